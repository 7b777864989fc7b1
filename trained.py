"""A trained network: find one, read it, ask it."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from checkpoint import EpochMetrics, build, read_checkpoint
from config import Config
from datasets import MNIST, Dataset
from errors import UserError
from model import Net
from utils import EVALUATION_BATCH, normalize


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU and in evaluation mode; of bare weights, nothing else is known."""

    path: Path
    model: Net
    metrics: EpochMetrics | None = None  # of the epoch that the weights are of
    config: Config | None = None
    versions: dict[str, str] = field(default_factory=dict)
    dataset: Dataset = MNIST

    @torch.inference_mode()
    def log_probs(self, images: Tensor) -> Tensor:
        """Map images of its data set, uint8 (N, 28, 28), to log-probabilities (N, classes), float32."""
        batches = torch.split(images.unsqueeze(1), EVALUATION_BATCH)
        return torch.cat([self.model(normalize(batch, self.dataset)) for batch in batches])

    def __str__(self) -> str:
        if self.metrics is None:
            return str(self.path)
        name = self.metrics.split_name
        if self.dataset != MNIST:
            name += f" of {self.dataset.name}"
        return f"{self.path} (epoch {self.metrics.epoch}: {self.metrics.eval_accuracy:.2f}% on the {name})"


def load_trained(file: str | Path | None) -> Trained:
    """Read a trained network: a best.pt, or what ``torch.save(model.state_dict(), file)`` left.

    None stands for the newest that there is. Raises ``OSError``, and ``UserError`` when the file isn't a
    checkpoint of this network with finite weights.
    """
    if file is None:
        return newest_trained()
    path = Path(file)
    content = read_checkpoint(path)
    if "finished" in content:
        raise UserError(f"{path} is what a run goes on from: name the best.pt beside it")
    bare = "conv1.weight" in content
    dataset = build(path, Dataset, content["dataset"]) if "dataset" in content else MNIST
    with torch.random.fork_rng(devices=[]):
        model = Net(num_classes=len(dataset.classes)).eval()
    try:
        model.load_state_dict(content if bare else content["model"])
    except Exception:  # whatever the file holds in its place
        raise UserError(f"{path} holds another network than the one in model.py") from None
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise UserError(f"{path} is refused: its weights hold NaN or infinity")
    if bare:
        return Trained(path, model)
    values = {"path": path, "model": model, "dataset": dataset, "versions": content.get("versions")}
    values["metrics"] = build(path, EpochMetrics, content.get("metrics"))
    values["config"] = build(path, Config, content.get("config"))
    return build(path, Trained, values)


def newest_trained() -> Trained:
    """Read the best.pt of the newest run under runs/, or else of weights/, which came with the project.

    A run of a few batches, by --limit-train-batches, doesn't count. Raises ``UserError``.
    """
    found = sorted(Path("runs").glob("*/best.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        with contextlib.suppress(UserError, OSError):  # of an earlier version, say
            trained = load_trained(path)
            if trained.config is not None and trained.config.limit_train_batches is None:
                return trained
    ours = Path(__file__).parent / "weights" / "best.pt"
    return load_trained(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)
