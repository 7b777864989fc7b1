"""A trained network: find it, read it, ask it."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from config import Config, Options, value_type
from datasets import MNIST, SIDE, Dataset
from model import Net
from runtime.errors import UsageError, UserError
from runtime.files import warn
from runtime.tensor_files import load_tensors
from utils import EVALUATION_BATCH, normalize

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


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU and in evaluation mode.

    For a file of weights alone, MNIST is assumed, and the other fields keep their defaults.
    """

    path: Path
    model: Net
    metrics: EpochMetrics | None = None  # of the epoch with these weights
    config: Config | None = None
    versions: dict[str, str] = field(default_factory=dict)
    dataset: Dataset = MNIST
    data_path: str = Options.data_path
    test_hash: str | None = None  # of the test set

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
    """Read a trained network: the newest, or that in ``file``.

    ``file`` is a best.pt, a folder with one, or a file with another state dict of ``Net``.
    """
    if file is None:
        return newest_trained()
    path = Path(file)
    if path.is_dir():
        path /= "best.pt"
    content = read_checkpoint(path)
    if "finished" in content:
        raise UserError(f"{path} is for resuming a run: name the best.pt beside it")
    stored = {entry.name for entry in fields(Trained)} - {"path", "model"}
    names = stored if "format" in content else set()
    known = {name: content[name] for name in names & content.keys()}
    for name, kind in {"metrics": EpochMetrics, "config": Config, "dataset": Dataset}.items():
        if name in known:
            known[name] = load_dataclass(path, kind, known[name])
    with torch.random.fork_rng(devices=[]):
        classes = len(known.get("dataset", MNIST).classes)
        model = Net(num_classes=classes, width=known["config"].width if "config" in known else 1.0).eval()
    try:
        weights = find_state_dict(content)
        if not all(weights[name].is_floating_point() for name, _ in model.named_parameters()):
            raise TypeError("weights of another dtype would be converted without a word")
        model.load_state_dict(weights)
    except Exception:  # whatever the file holds instead
        raise UserError(f"{path} holds another network than the one in model.py") from None
    trained = load_dataclass(path, Trained, {"path": path, "model": model, **known})
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, SIDE, SIDE)
    values = *model.state_dict().values(), trained.log_probs(black_and_white)
    if not all(value.isfinite().all() for value in values):
        raise UserError(f"{path} is refused: its weights, or their results, are not all numbers")
    return trained


def load_teacher(config: Config, dataset: Dataset) -> Net | None:
    """Load the network of ``config.teacher``, a path relative to the project; None if it is 'none'.

    It must not have been trained on images that this run evaluates, and its epoch must not have been chosen
    on the test set. Else it raises ``UsageError``.
    """
    if config.teacher == "none":
        return None
    path = Path(__file__).parent / config.teacher
    if not path.is_file():
        problem = "is a folder: name its best.pt" if path.is_dir() else "is missing"
        raise UsageError(f"argument --teacher: {path} {problem}")
    trained = load_trained(path)
    holdout = 0 if trained.config is None else trained.config.holdout
    if trained.dataset != dataset:
        problem = "it was trained on other data"
    elif holdout == 0:
        problem = "its epoch was chosen on the test set, or is unknown"
    elif config.holdout not in (0, holdout):
        problem = f"it was trained with --holdout {holdout}"
    else:
        return trained.model.requires_grad_(False)
    flags = f"--recipe teacher --dataset {dataset.name}"
    flags += f" --holdout {config.holdout}" if config.holdout else ""
    solution = f"add --teacher none, or the best.pt that main.py {flags} has trained"
    raise UsageError(f"argument --teacher: {path}: {problem}; {solution}")


def find_state_dict(content: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict in ``content``, without prefixes of ``DataParallel`` and ``torch.compile``."""
    for name in ("model", "state_dict", "model_state_dict"):
        content = content.get(name, content)
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in content.items()}


def newest_trained() -> Trained:
    """Read the best.pt of the newest run under runs/, or else of weights/, which comes with the project.

    Teachers, and runs that trained on a few batches only, by --limit-train-batches, don't count.
    """

    def saved(path: Path) -> float:
        """Return the time of the last epoch: --resume of a finished run writes best.pt anew, not last.pt."""
        last = path.with_name("last.pt")
        return (last if last.exists() else path).stat().st_mtime

    for path in sorted(Path("runs").glob("*/best.pt"), key=saved, reverse=True):
        try:
            trained = load_trained(path)
        except (UserError, OSError) as error:  # of an earlier version, for example
            warn(f"{error}; it is skipped")
            continue
        config = trained.config
        if config is not None and config.limit_train_batches is None and config.recipe != "teacher":
            return trained
    included = Path(__file__).parent / "weights" / "best.pt"
    return load_trained(included.relative_to(Path.cwd()) if included.is_relative_to(Path.cwd()) else included)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read best.pt, last.pt, or another file of weights, which has no format number."""
    content = load_tensors(path)
    number = content.get("format", FORMAT)
    if type(number) is not int or number != FORMAT:
        raise UserError(f"{path} was written by another version of the project: use that, or train again")
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
    except (TypeError, ValueError, RuntimeError, UserError):  # RuntimeError: a tensor instead of a number
        problem = f"{path} does not fit this version of the project: another {kind.__name__}"
        raise UserError(f"{problem}; use the version that wrote it, or train again") from None
    return instance
