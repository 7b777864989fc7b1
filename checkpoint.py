"""Save and load the files of a run: last.pt, best.pt and metrics.csv."""

import contextlib
import io
import pickle
import platform
import shlex
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from config import Config, Options, flag
from datasets import Dataset
from runtime.errors import UsageError, UserError, warn
from runtime.files import locked, replace_file, write_table

FORMAT = 3  # of best.pt and last.pt


@dataclass(frozen=True)
class EpochMetrics:
    """A row of metrics.csv. Losses are mean negative log-likelihoods, accuracies are in percent."""

    epoch: int  # from 1
    lr: float  # at the start of the epoch
    train_loss: float  # mean over the augmented images, with dropout, each before its step
    train_accuracy: float
    split: str  # what was evaluated: "test", or "holdout", training images that were held out
    eval_loss: float
    eval_accuracy: float
    seconds: float  # of training and evaluation

    @property
    def split_name(self) -> str:
        """What was evaluated, in words."""
        return "test set" if self.split == "test" else "held-out images"


@dataclass
class Run:
    """A run: its settings, the description of its data, and its results so far."""

    folder: Path
    config: Config
    dataset: Dataset
    device: str
    versions: dict[str, str]
    metrics: list[EpochMetrics] = field(default_factory=list)
    best_weights: dict[str, Any] | None = None  # state dict of the best epoch; of the running average, if any

    @property
    def epoch(self) -> int:
        """The last complete epoch; 0 before the first."""
        return len(self.metrics)

    @property
    def best(self) -> EpochMetrics | None:
        """The first epoch with the highest accuracy in evaluation."""
        return max(self.metrics, key=lambda row: row.eval_accuracy, default=None)

    @property
    def reached(self) -> bool:
        """Whether the target accuracy is reached: by the latest epoch, as training then stops."""
        target = self.config.target_accuracy
        return bool(target and self.metrics and self.metrics[-1].eval_accuracy >= target)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.reached or self.epoch == self.config.epochs


def versions() -> dict[str, str]:
    """Return the versions of Python and PyTorch, and the kind of machine."""
    packages = {name: version(name) for name in ("torch", "torchvision")}
    machine = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), **packages, "machine": machine}


def resume_settings(config: Config, options: Options) -> tuple[Config, Options]:
    """Return the settings of the run to resume, and ``options`` with its folder, device and data.

    A flag that contradicts the run's settings raises ``UsageError``.
    """
    path = Path(options.resume)
    path = path if path.name == "last.pt" else path / "last.pt"
    if not path.is_file():
        raise UsageError(f"argument --resume: {path} is missing; name the folder of a run")
    run = load_run(path)
    for name in sorted(options.given & vars(config).keys()):
        old, new = getattr(run.config, name), getattr(config, name)
        if old != new:
            raise UsageError(f"argument {flag(name)}: the run has {old}, not {new}; leave it out")
    device = options.device if "device" in options.given else run.device
    data_path = options.data_path or run.dataset.path
    return run.config, replace(options, resume=str(path.parent), device=device, data_path=data_path)


@contextlib.contextmanager
def open_run(
    config: Config, options: Options, dataset: Dataset, device: torch.device, parts: Mapping[str, Any]
) -> Iterator[Run]:
    """Open a new run, or the one to resume, and lock its folder against other processes.

    ``parts`` are the network and all else that training changes. Resuming restores their states.
    """
    with contextlib.ExitStack() as stack:
        name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}-seed{config.seed}"
        folder = Path(options.resume or options.output_dir or name)
        if options.dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Look before writing. Ignore hidden files: a run that was killed at its start may have left some.
            if not options.resume and any(path.name[0] != "." for path in folder.iterdir()):
                raise UsageError(f"argument --output-dir: {folder} is not empty: name a new folder")
            stack.enter_context(locked(folder))
        except OSError as error:
            solution = "" if options.resume else ": name a folder for the results by --output-dir"
            raise UserError(f"{error.filename}: {error.strerror}{solution}") from None
        if options.resume:
            run = load_run(folder / "last.pt")
            if dataset != replace(run.dataset, path=dataset.path):  # hashes, too
                raise UserError(f"--data-path {dataset.path}: not the data that {folder} was trained on")
            load_run(folder / "last.pt", parts)  # now: the states may not fit other data
            run.dataset, run.device, run.versions = dataset, str(device), versions()
        else:
            run = Run(folder, config, dataset, str(device), versions())
        save_run(run, parts)  # now, so that a folder that can't be written fails before the training
        try:
            yield run
        except KeyboardInterrupt as stop:
            if options.dry_run:
                raise
            command = f"python main.py --resume {shlex.quote(str(folder))}"
            raise type(stop)(f"to continue: {command}") from None  # or Terminated, its subclass for SIGTERM


def save_run(run: Run, parts: Mapping[str, Any]) -> None:
    """Write last.pt, which --resume reads; then best.pt; then metrics.csv.

    best.pt is last.pt without the states of ``parts``. Both have the weights of the best epoch so far, and
    the metrics of all epochs, so both are written after every epoch; before the first, there is no best.pt.
    """
    content = {"format": FORMAT} | {name: value for name, value in asdict(run).items() if name != "folder"}
    training = {name: part.state_dict() for name, part in parts.items()}
    save_tensors(run.folder / "last.pt", content | {"training": training})
    if run.best_weights is not None:
        save_tensors(run.folder / "best.pt", content)
    try:
        write_table(run.folder / "metrics.csv", content["metrics"])
    except OSError as error:  # last.pt has the rows too
        warn(f"{error}; the next epoch, or --resume, writes it")


def load_run(path: Path, parts: Mapping[str, Any] | None = None) -> Run:
    """Read a run from its last.pt or best.pt. Restore the states of ``parts``, which only last.pt has."""
    content = load_tensors(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        values = {entry.name: content[entry.name] for entry in fields(Run) if entry.name != "folder"}
        values |= {"config": Config(**values["config"]), "dataset": Dataset(**values["dataset"])}
        values["metrics"] = [EpochMetrics(**row) for row in values["metrics"]]
        for name, part in (parts or {}).items():
            part.load_state_dict(content["training"][name])
            if isinstance(part, Optimizer):
                match_strides(part)
        return Run(path.parent, **values)
    except Exception as error:  # a file of another version can fail to fit in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"{path} does not fit this version of the project ({reason})"
        raise UserError(f"{problem}: use the version that wrote it, or train again") from None


def match_strides(optimizer: Optimizer) -> None:
    """Give each momentum the strides of its weight, as fused SGD requires: ``speed_up`` changes them."""
    for weight, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"] = torch.empty_like(weight).copy_(state["momentum_buffer"])


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, tensors and plain values by their names, to ``path``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getvalue())


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that ``torch.save`` wrote, onto the CPU."""
    file = path.read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(file)):
            with zipfile.ZipFile(io.BytesIO(file)) as archive:
                # torch.save doesn't compress; a small compressed file could fill the memory.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError("is compressed, and torch.save writes no such file")
                if damaged := archive.testzip():  # torch ignores the checksums
                    raise UserError(f"is damaged: {damaged} in it has changed since it was written")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of unknown formats, then raises an error
            content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise UserError("holds no dictionary of names")
    except pickle.UnpicklingError:
        problem = "damaged, or more than tensors and plain values, such as a whole pickled model"
        raise UserError(f"{path} is refused: {problem}") from None
    except Exception as error:  # damaged bytes can cause any error in zipfile and torch
        problem = "is damaged, or no file that torch.save wrote"
        raise UserError(f"{path} {error if isinstance(error, UserError) else problem}") from None
    return content
