"""Predict what pictures show, and print it."""

import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from checkpoint import Trained, load_trained
from datasets import MNIST, Dataset
from predict.preprocess import preprocess_file
from runtime.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """The network's two most probable classes for a file, with their probabilities, in [0, 1].

    The classes are MNIST's digits, as int, or another data set's names.
    """

    file: str
    prediction: int | str
    confidence: float
    runner_up: int | str
    runner_up_confidence: float

    def __str__(self) -> str:
        text = f"{printable(self.file)}: {printable(str(self.prediction))} ({self.confidence:.2%}), "
        return text + f"runner-up {printable(str(self.runner_up))} ({self.runner_up_confidence:.2%})"


def printable(name: str) -> str:
    """Return the name ``name``, of a file or class, as it can stand in one line."""
    return name if name.isprintable() else ascii(name)


def read_image(name: str, dataset: Dataset = MNIST) -> Tensor | None:
    """Return the file ``name`` as an image of ``dataset``, uint8 (28, 28), or None after a line on stderr.

    '-' is stdin.
    """
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return torch.from_numpy(preprocess_file(file, dataset))
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"predict: error: {printable(name)}: {reason}", file=sys.stderr)
    return None


def predict(trained: Trained, files: list[str], images: Tensor) -> list[Prediction]:
    """Return the predictions of ``trained`` for ``images``, uint8 (N, 28, 28), which come from ``files``."""
    (first, second), labels = (top.T.tolist() for top in trained.log_probs(images).exp().topk(2))
    is_mnist = trained.dataset == MNIST
    names: list[int] | list[str] = list(range(10)) if is_mnist else list(trained.dataset.classes)
    prediction, runner_up = ([names[label] for label in row] for row in labels)
    return list(map(Prediction, files, prediction, first, runner_up, second))


def main(files: list[str], weights: str | None, as_json: bool) -> int:
    """Print the predictions for ``files``; return the exit status, 1 where one of them can't be used.

    Raises ``UserError`` where the weights can't be used, and ``OSError``.
    """
    trained = load_trained(weights)
    print(f"Weights: {trained}", file=sys.stderr)
    images = [(name, image) for name in files if (image := read_image(name, trained.dataset)) is not None]
    readable = [name for name, _ in images]
    predictions: list[Prediction] = []
    if images:
        predictions = predict(trained, readable, torch.stack([image for _, image in images]))
    lines = [json.dumps(list(map(asdict, predictions)), indent=2)] if as_json else map(str, predictions)
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return 0 if len(predictions) == len(files) else 1
