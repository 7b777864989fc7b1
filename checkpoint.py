"""A run's folder: make it, write into it, read it back."""

import contextlib
import io
import pickle
import platform
import shlex
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torchvision
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from config import Config, Options, flag, value_type
from datasets import MNIST, Dataset
from errors import UsageError, UserError
from files import locked, replace_file, write_table
from model import Net

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FORMAT = 2  # of best.pt and last.pt
T = TypeVar("T")


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch's line of metrics.csv. Losses are negative log-likelihoods, accuracies in percent."""

    epoch: int  # from 1
    lr: float  # at the epoch's start
    train_loss: float  # of images as they were trained on: rotated, with dropout, before each step
    train_accuracy: float
    split: str  # what was evaluated on: "test", or "holdout", training images that were not trained on
    eval_loss: float
    eval_accuracy: float
    seconds: float  # of training and evaluation

    @property
    def split_name(self) -> str:
        """What was evaluated on, in words."""
        return "test set" if self.split == "test" else "held-out images"

    def add_to(self, writer: "SummaryWriter") -> None:
        """Add this epoch to TensorBoard's curves."""
        for name in ("lr", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy"):
            split, _, kind = name.replace("eval", self.split).rpartition("_")
            writer.add_scalar(f"{kind}/{split}" if split else kind, getattr(self, name), self.epoch)
        writer.flush()


@dataclass
class Progress:
    """How far a run has come."""

    config: Config
    device: str
    versions: dict[str, str]
    metrics: list[EpochMetrics] = field(default_factory=list)
    finished: bool = False
    dataset: Dataset = MNIST

    @property
    def epoch(self) -> int:
        """The last epoch that is complete; 0 before the first."""
        return len(self.metrics)

    @property
    def best_accuracy(self) -> float:
        """The highest accuracy in evaluation so far, in percent; -1 before the first, which may have 0."""
        return max((row.eval_accuracy for row in self.metrics), default=-1.0)


@dataclass(frozen=True)
class TrainingState:
    """What changes while a run trains."""

    model: Net
    optimizer: Optimizer
    scheduler: OneCycleLR
    ema: Net | None  # the running average of the network

    @property
    def tested(self) -> Net:
        """The network that is evaluated and kept: the running average, where there is one."""
        return self.model if self.ema is None else self.ema


def versions() -> dict[str, str]:
    """Return what the results depend on beside the code: Python, torch, torchvision, the machine."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@contextlib.contextmanager
def open_run(
    config: Config, options: Options, device: torch.device, dataset: Dataset | None = None
) -> Iterator[tuple[Path, Progress]]:
    """Open the folder of a run, new or resumed as ``options`` say, and keep other processes out of it.

    Raises ``UsageError`` where ``options`` contradict a run that is resumed, ``UserError`` where the
    folder can't be used, ``OSError``, and ``KeyboardInterrupt`` with a message on how the run goes on.
    """
    progress = Progress(config, str(device), versions(), dataset=dataset or MNIST)
    if options.dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary), progress
        return
    if options.resume is None:
        folder = make_run_folder(options.output_dir, f"{config.recipe}-seed{config.seed}")
    else:
        path = Path(options.resume)
        folder = path.parent if path.name == "last.pt" else path
    with locked(folder):
        if options.resume is None:
            save_progress(folder, progress)
        else:
            progress = load_progress(folder)
            for name in sorted(options.given & vars(config).keys()):
                stored, given = getattr(progress.config, name), getattr(config, name)
                if stored != given:
                    raise UsageError(
                        f"argument {flag(name)}: the run has {stored}, not {given}; leave it out"
                    )
            progress.versions = versions()
            progress.device = progress.device if options.device == "auto" else str(device)
        try:
            yield folder, progress
        except KeyboardInterrupt as stop:
            epoch = load_progress(folder).epoch  # progress may be ahead of it
            done = f"saved up to epoch {epoch}" if epoch else "no epoch was complete"
            again = f"python main.py --resume {shlex.quote(str(folder))}"
            again += f" --data-path {shlex.quote(options.data_path)}" if "data_path" in options.given else ""
            raise type(stop)(f"{done}; to go on: {again}") from None


def make_run_folder(output_dir: str | None, name: str) -> Path:
    """Claim a folder for a run: ``output_dir``, or a new one for ``name`` under runs/.

    Creating its metrics.csv, which only one process can do, is the claim, so two runs never share
    a folder. Raises ``UserError`` where ``output_dir`` holds anything, and ``OSError``.
    """
    stem, count = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", 1
    while True:
        path = Path(output_dir or Path("runs", stem if count == 1 else f"{stem}-{count}"))
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another run has just claimed it
            if not any(path.iterdir()):
                (path / "metrics.csv").touch(exist_ok=False)
                return path
        if output_dir is not None:
            raise UserError(f"--output-dir {path} is not empty: name a new one")
        count += 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, of tensors and plain values, to ``path``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    replace_file(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, whatever is in it, onto the CPU, running no code from it.

    Raises ``OSError``, and ``UserError`` when it isn't a dictionary of tensors and plain values.
    """
    content = path.read_bytes()
    try:
        # What torch.save writes is a zip file, whose CRCs torch ignores.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} in it has changed since it was written")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on foreign formats, then refuses them
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: damaged, or more than tensors and plain values") from None
    except Exception as error:  # damaged bytes lead zipfile and torch into whatever error they happen to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or no checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint of this project: it has no entry 'model'")
    if "conv1.weight" not in checkpoint and checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of the project, which can't read it")
    return checkpoint


def build(path: Path, kind: type[T], values: Any) -> T:
    """Make a ``kind`` of ``values``, read from ``path``. Raises ``UserError`` where they don't fit."""
    try:
        made = kind(**values)
        for name, value in values.items() if kind not in (Config, Dataset) else ():  # they check theirs
            expected = value_type(kind, name)
            if not isinstance(value, (int, float) if expected is float else expected):
                raise TypeError(name)
    except (TypeError, UserError):
        raise UserError(f"{path} does not fit this version of the project: another {kind.__name__}") from None
    return made


def save_best(folder: Path, progress: Progress, model: Net, row: EpochMetrics) -> None:
    """Write best.pt: the weights of ``model``, its ``row`` of metrics.csv, settings, data and versions."""
    about = {"config": asdict(progress.config), "dataset": asdict(progress.dataset)}
    about |= {"versions": progress.versions, "metrics": asdict(row)}
    save_checkpoint(folder / "best.pt", about | {"model": model.state_dict()})


def save_progress(folder: Path, progress: Progress, state: TrainingState | None = None) -> None:
    """Write metrics.csv and then last.pt, which holds ``progress`` and the states of ``state``."""
    write_table(folder / "metrics.csv", [*map(asdict, progress.metrics)])
    named = {} if state is None else vars(state)
    states = {name: part.state_dict() for name, part in named.items() if part is not None}
    save_checkpoint(folder / "last.pt", asdict(progress) | states)


def load_progress(folder: Path) -> Progress:
    """Read the progress of the run in ``folder`` from its last.pt.

    Raises ``OSError``, and ``UserError`` when it is damaged or doesn't hold a run's progress.
    """
    path = folder / "last.pt"
    content = read_checkpoint(path)
    values = {entry.name: content.get(entry.name) for entry in fields(Progress)}
    values["config"] = build(path, Config, values["config"])
    values["dataset"] = build(path, Dataset, content.get("dataset", asdict(MNIST)))
    if isinstance(values["metrics"], list):
        values["metrics"] = [build(path, EpochMetrics, row) for row in values["metrics"]]
    return build(path, Progress, values)


def restore(folder: Path, progress: Progress, state: TrainingState) -> None:
    """Bring ``state`` and metrics.csv to what last.pt in ``folder`` holds.

    Raises ``UserError`` where it doesn't fit, and ``OSError``.
    """
    states = read_checkpoint(folder / "last.pt")
    try:
        for name, part in vars(state).items():
            if part is not None:
                if part.state_dict().keys() != states[name].keys():
                    raise ValueError(f"another {name}")
                part.load_state_dict(states[name])
    except Exception as error:  # a last.pt of another version can fail to fit in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder / 'last.pt'} does not fit this version of the project: {reason}") from None
    write_table(folder / "metrics.csv", [*map(asdict, progress.metrics)])


def tensorboard_writer(folder: Path, metrics: list[EpochMetrics]) -> "SummaryWriter":
    """Open TensorBoard's curves in ``folder`` with the epochs so far, in place of what was written before."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder, purge_step=0)
    for row in metrics:
        row.add_to(writer)
    return writer
