"""A run's folder: save, load, resume."""

import contextlib
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from config import Config, Options, check, choose_data_path, flag
from datasets import Dataset, hash_tensors, load_test
from model import Net
from runtime.device import select_device
from runtime.errors import UsageError, UserError
from runtime.files import claim_folder, locked, warn, write_table
from runtime.tensor_files import save_tensors
from train import TrainingState
from trained import FORMAT, EpochMetrics, load_dataclass, load_teacher, read_checkpoint
from utils import DeviceLoader, Loaders, get_loaders


@dataclass
class Progress:
    """What last.pt holds of a run, besides the training state."""

    config: Config
    device: str
    data_path: str
    dataset: Dataset
    versions: dict[str, str]
    metrics: list[EpochMetrics] = field(default_factory=list)
    teacher_width: float | None = None  # None if there is no teacher
    data_hash: str | None = None  # of all images and labels
    test_hash: str | None = None  # of those of the test set
    finished: bool = False
    best_model: dict[str, Tensor] | None = None  # weights of the first epoch with the highest accuracy

    def __post_init__(self) -> None:
        if self.teacher_width is not None:
            check("width", self.teacher_width)

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
    """A run that is open: its folder, which no other process can open, its data, progress and teacher."""

    folder: Path
    loaders: Loaders
    progress: Progress
    teacher: Net | None
    states: dict[str, Any] = field(default_factory=dict)  # state dicts of a resumed ``TrainingState``
    saved_epoch: int = 0  # the last one that last.pt has


def versions() -> dict[str, str]:
    """Return the versions of Python and PyTorch, and the kind of machine."""
    packages = {name: version(name) for name in ("torch", "torchvision")}
    machine = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), **packages, "machine": machine}


def hash_data(*loaders: DeviceLoader) -> str:
    """Return the hash of the images and labels of ``loaders``."""
    return hash_tensors(*(tensor for loader in loaders for tensor in (loader.images, loader.labels)))


@contextlib.contextmanager
def open_run(config: Config, options: Options) -> Iterator[Run]:
    """Open a new run, or one that is resumed, and load its data."""
    with contextlib.ExitStack() as stack:
        if options.resume is not None:
            folder = Path(options.resume)
            folder = folder.parent if folder.name == "last.pt" else folder
            if not (folder / "last.pt").is_file():
                raise UsageError(
                    f"argument --resume: {folder / 'last.pt'} is missing; name the folder of a run"
                )
            stack.enter_context(locked(folder))
            yield resume_run(folder, config, options)
            return
        # The data comes first: if it can't be loaded, no folder is left behind.
        device = select_device(options.device)
        data_path = choose_data_path(options.given_data_path, config.dataset, options.data_path, new=True)
        loaders = get_loaders(config, device, data_path)
        dataset = loaders[0].dataset
        teacher = load_teacher(config, dataset)
        if dataset.target_accuracy is None and not options.given & {"early_stopping", "target_accuracy"}:
            config = replace(config, early_stopping=False)
        width = None if teacher is None else teacher.width
        progress = Progress(
            *(config, str(device), data_path, dataset, versions()),
            teacher_width=width,
            data_hash=hash_data(*loaders),
            test_hash=hash_tensors(*load_test(dataset, data_path))
            if config.holdout
            else hash_data(loaders[1]),
        )
        if options.dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}-seed{config.seed}"
            folder = claim_folder(options.output_dir, Path("runs", name))
        stack.enter_context(locked(folder))
        run = Run(folder, loaders, progress, teacher)
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
    dataset = progress.dataset
    known_path = progress.data_path
    progress.data_path = choose_data_path(options.given_data_path, dataset.name, known_path)
    loaders = get_loaders(progress.config, device, progress.data_path)
    if progress.data_hash not in (None, hash_data(*loaders)) or loaders[0].dataset != dataset:
        raise UserError(f"--data-path {progress.data_path}: not the data that {folder} was trained on")
    if progress.best_model is not None and progress.data_path != known_path:
        save_best(folder, progress)  # no later epoch may be better
    progress.versions = versions()
    run = Run(folder, loaders, progress, None, states, progress.epoch)
    if progress.teacher_width is not None:  # its weights are in last.pt, as its file may have changed since
        with torch.random.fork_rng(devices=[]):
            run.teacher = Net(num_classes=len(dataset.classes), width=progress.teacher_width)
        run.teacher.eval().requires_grad_(False)
        restore(run, {"teacher": run.teacher})
    return run


def check_resumed(stored: Config, config: Config, given: Set[str]) -> None:
    """Raise ``UsageError`` if a ``given`` flag contradicts the ``stored`` settings of a resumed run."""
    for name in sorted(given & vars(config).keys()):
        old, new = getattr(stored, name), getattr(config, name)
        if old != new:
            raise UsageError(f"argument {flag(name)}: the run has {old}, not {new}; leave it out")
    if "target_accuracy" in given and config.early_stopping and not stored.early_stopping:
        raise UsageError("argument --target-accuracy: the run has no early stopping; leave it out")


def save_run(run: Run, state: TrainingState | None = None) -> None:
    """Write last.pt, from which a run is resumed, and then best.pt and metrics.csv, which follow from it."""
    progress = run.progress
    parts = {"teacher": run.teacher} if state is None else vars(state)
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    save_tensors(run.folder / "last.pt", {"format": FORMAT} | asdict(progress) | states)
    run.saved_epoch = progress.epoch
    if progress.metrics and progress.metrics[-1].eval_accuracy == progress.best_accuracy:
        save_best(run.folder, progress)
    save_metrics(run.folder, progress)


def save_best(folder: Path, progress: Progress) -> None:
    """Write best.pt: the weights of the best epoch, with its metrics, settings, data set and versions."""
    values = asdict(progress)
    content = {name: values[name] for name in ("config", "dataset", "data_path", "versions", "test_hash")}
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


def match_strides(optimizer: Optimizer) -> None:
    """Give each momentum the strides of its weight, as torch's fused SGD requires.

    They differ after a change of device: ``speed_up`` makes weights channels-last, on a CPU only.
    """
    for weight, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"] = torch.empty_like(weight).copy_(state["momentum_buffer"])


def restore(run: Run, parts: Mapping[str, Any]) -> None:
    """Load the state dicts of a resumed ``run`` into ``parts``, the fields of a ``TrainingState`` by name."""
    try:
        for name, part in parts.items():
            if part is not None:
                if part.state_dict().keys() != run.states[name].keys():
                    raise ValueError(f"another {name}")
                part.load_state_dict(run.states[name])
                if isinstance(part, Optimizer):
                    match_strides(part)
    except Exception as error:  # a last.pt of another version can fail to fit in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        path = run.folder / "last.pt"
        raise UserError(f"{path} does not fit this version of the project: {reason}") from None
