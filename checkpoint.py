"""A run's folder: save, load, resume. And the trained network in it: find, read, ask."""

import contextlib
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from config import Config, Options, check_resumed, choose_data_path, select_device, value_type
from datasets import MNIST, Dataset
from model import Net
from runtime.errors import UsageError, UserError
from runtime.files import claim_folder, locked, warn, write_table
from runtime.tensor_files import load_tensors, save_tensors
from train import TrainingState
from utils import EVALUATION_BATCH, Loaders, get_loaders, normalize

FORMAT = 2  # of best.pt and last.pt
T = TypeVar("T")


@dataclass(frozen=True)
class EpochMetrics:
    """A row of metrics.csv. Losses are mean negative log-likelihoods, accuracies are in percent."""

    epoch: int  # from 1
    lr: float  # at the start of the epoch
    train_loss: float  # of the images as trained on: distorted, with dropout, each before its step
    train_accuracy: float
    split: str  # what was evaluated: "test", or "holdout", training images that were held out
    eval_loss: float
    eval_accuracy: float
    seconds: float  # of training and evaluation

    def __post_init__(self) -> None:
        possible = all(0 <= value <= 100 for value in (self.train_accuracy, self.eval_accuracy))  # not NaN
        if not (possible and self.epoch >= 1 and self.split in ("test", "holdout")):
            raise ValueError(f"impossible metrics of epoch {self.epoch}")

    @property
    def split_name(self) -> str:
        """What was evaluated, in words."""
        return "test set" if self.split == "test" else "held-out images"


@dataclass
class Progress:
    """What last.pt holds of a run, besides the training state."""

    config: Config
    device: str
    data_path: str
    dataset: Dataset
    versions: dict[str, str]
    metrics: list[EpochMetrics] = field(default_factory=list)
    finished: bool = False
    best_model: dict[str, Tensor] | None = None  # weights of the first epoch with the highest accuracy

    @property
    def epoch(self) -> int:
        """The last complete epoch; 0 before the first."""
        return len(self.metrics)

    @property
    def best_accuracy(self) -> float:
        """The highest accuracy in evaluation so far, in percent; -1 before the first epoch."""
        return max((row.eval_accuracy for row in self.metrics), default=-1.0)


@dataclass
class Run:
    """A run that is open: its folder, which no other process can open, its data, and its progress."""

    folder: Path
    loaders: Loaders
    progress: Progress
    states: dict[str, Any] = field(default_factory=dict)  # state dicts of a resumed ``TrainingState``
    saved_epoch: int = 0  # the last one that last.pt has


def versions() -> dict[str, str]:
    """Return what a result depends on besides the code."""
    packages = {name: version(name) for name in ("torch", "torchvision")}
    machine = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), **packages, "machine": machine}


@contextlib.contextmanager
def open_run(config: Config, options: Options) -> Iterator[Run]:
    """Open a new run, or one that is resumed, and load its data."""
    with contextlib.ExitStack() as stack:
        if options.resume is not None:
            folder = Path(options.resume)
            folder = folder.parent if folder.name == "last.pt" else folder
            if not (folder / "last.pt").is_file():
                raise UserError(f"{folder / 'last.pt'} is missing: --resume needs the folder of a run")
            stack.enter_context(locked(folder))
            yield resume_run(folder, config, options)
            return
        # The data comes first: if it can't be loaded, no folder is left behind.
        device = select_device(options.device)
        data_path = choose_data_path(options, config.dataset, options.data_path)
        loaders = get_loaders(config, device, data_path)
        dataset = loaders[0].dataset
        if dataset.target_accuracy is None and not options.given & {"early_stopping", "target_accuracy"}:
            config = replace(config, early_stopping=False)
        progress = Progress(config, str(device), data_path, dataset, versions())
        if options.dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}-seed{config.seed}"
            folder = claim_folder(options.output_dir, Path("runs", name))
        stack.enter_context(locked(folder))
        run = Run(folder, loaders, progress)
        save_run(run)
        yield run


def resume_run(folder: Path, config: Config, options: Options) -> Run:
    """Load the run in ``folder`` with what ``options`` may change; restore its best.pt and metrics.csv."""
    progress, states = load_run(folder)
    check_resumed(progress.config, config, options.given)
    if progress.best_model is not None:
        save_best(folder, progress)
    save_metrics(folder, progress)
    if "device" in options.given:
        progress.device = str(select_device(options.device))
    try:
        device = select_device(progress.device)
    except UsageError:
        problem = f"{folder} was trained on {progress.device}, which can't be used here"
        raise UserError(f"{problem}: to continue on the CPU, add --device cpu") from None
    progress.data_path = choose_data_path(options, progress.dataset.name, progress.data_path)
    if progress.dataset != MNIST and not Path(progress.data_path).exists():
        raise UserError(f"the data of {folder} is no longer in {progress.data_path}: add --data-path")
    loaders = get_loaders(progress.config, device, progress.data_path)
    if loaders[0].dataset != progress.dataset:
        raise UserError(f"--data-path {progress.data_path}: not the data that {folder} was trained on")
    progress.versions = versions()
    return Run(folder, loaders, progress, states, progress.epoch)


def save_run(run: Run, state: TrainingState | None = None) -> None:
    """Write last.pt, from which a run is resumed, and then best.pt and metrics.csv, which follow from it."""
    progress = run.progress
    parts = {} if state is None else vars(state)
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    save_tensors(run.folder / "last.pt", {"format": FORMAT} | asdict(progress) | states)
    run.saved_epoch = progress.epoch
    if progress.metrics and progress.metrics[-1].eval_accuracy == progress.best_accuracy:
        save_best(run.folder, progress)
    save_metrics(run.folder, progress)


def save_best(folder: Path, progress: Progress) -> None:
    """Write best.pt: the weights of the best epoch, with its metrics, settings, data set and versions."""
    values = asdict(progress)
    content = {name: values[name] for name in ("config", "dataset", "data_path", "versions")}
    content["metrics"] = max(values["metrics"], key=lambda row: float(row["eval_accuracy"]))
    save_tensors(folder / "best.pt", {"format": FORMAT, "model": progress.best_model} | content)


def save_metrics(folder: Path, progress: Progress) -> None:
    """Write metrics.csv. If that fails, only warn: last.pt has its rows too."""
    try:
        write_table(folder / "metrics.csv", [*map(asdict, progress.metrics)])
    except OSError as error:
        warn(f"{error}; the next epoch, or --resume, writes it")


def load_run(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Read last.pt in ``folder``: the run's progress, and the state dicts of its ``TrainingState``."""
    path = folder / "last.pt"
    content = read_checkpoint(path)
    values = {entry.name: content.pop(entry.name, None) for entry in fields(Progress)}
    values["config"] = load_dataclass(path, Config, values["config"])
    values["dataset"] = load_dataclass(path, Dataset, values["dataset"])
    if isinstance(values["metrics"], list):
        values["metrics"] = [load_dataclass(path, EpochMetrics, row) for row in values["metrics"]]
    return load_dataclass(path, Progress, values), content


def restore(run: Run, state: TrainingState) -> None:
    """Load the state dicts of a resumed ``run`` into ``state``."""
    try:
        for name, part in vars(state).items():
            if part is not None:
                if part.state_dict().keys() != run.states[name].keys():
                    raise ValueError(f"another {name}")
                part.load_state_dict(run.states[name])
    except Exception as error:  # a last.pt of another version can fail to fit in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        path = run.folder / "last.pt"
        raise UserError(f"{path} does not fit this version of the project: {reason}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read best.pt, last.pt, or another file of weights, which has no format number."""
    content = load_tensors(path)
    number = content.get("format", FORMAT)
    if type(number) is not int or number != FORMAT:
        raise UserError(f"{path} was written by another version of the project, which this one can't read")
    return content


def load_dataclass(path: Path, kind: type[T], values: Any) -> T:
    """Make a ``kind`` of ``values``, read from ``path``, if names, types and ranges fit."""
    try:
        instance = kind(**values)
        for entry in fields(instance) if kind not in (Config, Dataset) else ():  # type: ignore[arg-type]
            value, expected = getattr(instance, entry.name), value_type(kind, entry.name)
            allowed = (int, float) if expected is float else expected
            if value is not entry.default and not isinstance(value, allowed):
                raise TypeError(entry.name)
    except (TypeError, ValueError, UserError):
        raise UserError(f"{path} does not fit this version of the project: another {kind.__name__}") from None
    return instance


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU and in evaluation mode. Of bare weights, nothing else is known."""

    path: Path
    model: Net
    metrics: EpochMetrics | None = None  # of the epoch with these weights
    config: Config | None = None
    versions: dict[str, str] = field(default_factory=dict)
    dataset: Dataset = MNIST
    data_path: str = Options.data_path

    @torch.inference_mode()
    def log_probs(self, images: Tensor) -> Tensor:
        """Map images of its data set, uint8 (N, 28, 28), to log-probabilities, float32 (N, classes)."""
        batches = torch.split(images.unsqueeze(1), EVALUATION_BATCH)
        return torch.cat([self.model(normalize(batch, self.dataset)) for batch in batches])

    def __str__(self) -> str:
        if self.metrics is None:
            return str(self.path)
        split = self.metrics.split_name + ("" if self.dataset == MNIST else f" of {self.dataset.name}")
        return f"{self.path} (epoch {self.metrics.epoch}: {self.metrics.eval_accuracy:.2f}% on the {split})"


def load_trained(file: str | Path | None) -> Trained:
    """Read a trained network: the newest, or that in ``file``, a best.pt or another state dict of ``Net``."""
    if file is None:
        return newest_trained()
    path = Path(file)
    content = read_checkpoint(path)
    if "finished" in content:
        raise UserError(f"{path} is for resuming a run: name the best.pt beside it")
    names = {"metrics", "config", "dataset", "versions", "data_path"} if "format" in content else set()
    known = {name: content[name] for name in names & content.keys()}
    for name, kind in {"metrics": EpochMetrics, "config": Config, "dataset": Dataset}.items():
        if name in known:
            known[name] = load_dataclass(path, kind, known[name])
    with torch.random.fork_rng(devices=[]):
        model = Net(num_classes=len(known.get("dataset", MNIST).classes)).eval()
    try:
        model.load_state_dict(find_state_dict(content))
    except Exception:  # whatever the file holds instead
        raise UserError(f"{path} holds another network than the one in model.py") from None
    for name, value in model.state_dict().items():
        if not value.isfinite().all() or (name.endswith("running_var") and (value < 0).any()):
            raise UserError(f"{path} is refused: impossible values in {name}")
    return load_dataclass(path, Trained, {"path": path, "model": model, **known})


def find_state_dict(content: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict in ``content``, without prefixes of ``DataParallel`` and ``torch.compile``."""
    for name in ("model", "state_dict", "model_state_dict"):
        content = content.get(name, content)
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in content.items()}


def newest_trained() -> Trained:
    """Read the best.pt of the newest run under runs/, or else of weights/, which comes with the project.

    Runs that trained on a few batches only, by --limit-train-batches, don't count.
    """
    paths = sorted(Path("runs").glob("*/best.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        with contextlib.suppress(UserError, OSError):  # of an earlier version, for example
            trained = load_trained(path)
            if trained.config is not None and trained.config.limit_train_batches is None:
                return trained
    included = Path(__file__).parent / "weights" / "best.pt"
    return load_trained(included.relative_to(Path.cwd()) if included.is_relative_to(Path.cwd()) else included)
