"""A trained network: read it, ask it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoint import Run, load_run, load_tensors
from config import Options
from datasets import MNIST, SIDE, Dataset, choose_path, load_test
from model import Net
from runtime.device import select_device
from runtime.errors import UserError
from test import test
from utils import EVALUATION_BATCH, get_eval_loader, normalize

INCLUDED = Path(__file__).parent / "weights" / "best.pt"


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU and in evaluation mode."""

    path: Path
    model: Net
    dataset: Dataset
    run: Run | None  # the run that it is the best epoch of; None for weights alone, then MNIST is assumed

    @torch.inference_mode()
    def log_probs(self, images: Tensor) -> Tensor:
        """Map images of its data set, uint8 (N, 28, 28), to log-probabilities, float32 (N, classes)."""
        batches = torch.split(images.unsqueeze(1), EVALUATION_BATCH)
        return torch.cat([self.model(normalize(batch, self.dataset)) for batch in batches])

    def __str__(self) -> str:
        best = self.run and self.run.best
        if not best:
            return str(self.path)
        split = best.split_name + ("" if self.dataset == MNIST else f" of {self.dataset.name}")
        return f"{self.path} (epoch {best.epoch}: {best.eval_accuracy:.2f}% on the {split})"


def load_trained(file: str | Path = "", data_path: str = "") -> Trained:
    """Read a trained network: that in ``file``, or else the included one.

    - ``file`` is a best.pt, a folder with one, or a file with another state dict of ``Net``.
    - ``data_path`` is the folder of its data set, if that has moved.
    """
    path = Path(file or INCLUDED)
    path = path / "best.pt" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path} is missing: name a file of weights, or the folder of a run")
    try:
        content = load_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; expected is what torch.save(model.state_dict(), …) writes") from None
    run = load_run(path) if "format" in content else None
    dataset = MNIST if run is None else run.dataset
    dataset = replace(dataset, path=choose_path(data_path, dataset.name, dataset.path))
    model = Net(num_classes=len(dataset.classes)).eval()
    try:
        weights = find_state_dict(content)
        if not all(weights[name].is_floating_point() for name, _ in model.named_parameters()):
            raise TypeError("integers, as of a quantized network, would be converted without a word")
        model.load_state_dict(weights)
    except Exception:  # whatever the file holds instead
        raise UserError(f"{path} holds another network than the one in model.py") from None
    trained = Trained(path, model, dataset, run)
    values = *model.state_dict().values(), trained.log_probs(torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))
    if not all(value.isfinite().all() for value in values):
        raise UserError(f"{path} is refused: its weights, or their results, are not all numbers")
    return trained


def evaluate(options: Options) -> None:
    """Evaluate trained weights on the test set of their data set, as ``options`` say."""
    trained, device = load_trained(options.weights, options.data_path), select_device(options.device)
    print(f"Weights: {trained}")
    test_loader = get_eval_loader(trained.dataset, load_test(trained.dataset), device)
    test(trained.model.to(device), device, test_loader)


def find_state_dict(content: dict[str, Any]) -> dict[str, Any]:
    """Return the first dictionary of tensors: ``content``, or a value in it, as in a best.pt.

    What ``DataParallel``, Lightning and ``AveragedModel`` put before the names is dropped.
    """
    dictionaries = [value for value in (content, *content.values()) if isinstance(value, dict) and value]
    weights = next(d for d in dictionaries if all(isinstance(value, Tensor) for value in d.values()))
    prefix = next(name for name in weights if name.endswith("conv1.weight")).removesuffix("conv1.weight")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
