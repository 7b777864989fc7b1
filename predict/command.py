"""Predict what pictures show, and print it."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from checkpoint import Trained, load_trained
from datasets import MNIST, Dataset
from datasets.pictures import Floats, border, fit_to_28x28, read_colors, read_picture
from predict.preprocess import Found, read_digits
from predict.segment import Box
from predict.sheet import draw_sheet
from runtime.errors import UserError
from runtime.files import replace_file

UNSURE = 0.85  # a lower confidence is unsure: docs/predict.md says how it was chosen
MANY = 20  # pictures get a progress bar


@dataclass(frozen=True)
class Digit:
    """The two most probable classes of a digit or thing, with their probabilities, in [0, 1].

    The classes are MNIST's digits, as int, or the names of another data set's. ``box`` is left, top, right
    and bottom in pixels of the picture, upright.
    """

    prediction: int | str
    confidence: float
    runner_up: int | str
    runner_up_confidence: float
    unsure: bool
    box: Box


@dataclass(frozen=True)
class Prediction:
    """What a file shows: one class like a ``Digit``, or several as one text, a space between lines.

    The confidence of several is the product of theirs, and they have no runner-up.
    """

    file: str
    prediction: int | str
    confidence: float
    runner_up: int | str | None
    runner_up_confidence: float | None
    unsure: bool
    digits: list[Digit]

    def __str__(self) -> str:
        first = self.digits[0]
        text = f"{printable(self.file)}: {printable(str(self.prediction))} ({self.confidence:.2%}), "
        if len(self.digits) == 1:
            text += f"runner-up {printable(str(first.runner_up))} ({first.runner_up_confidence:.2%})"
        else:
            text += ", ".join(f"{printable(str(d.prediction))} {d.confidence:.2%}" for d in self.digits)
        for i, d in enumerate(self.digits, 1):
            place = f" digit {i}," if len(self.digits) > 1 else ""
            if d.unsure:
                text += f"; unsure:{place} {printable(str(d.prediction))} or {printable(str(d.runner_up))}"
        return text


def printable(name: str) -> str:
    """Return ``name``, of a file or class, in a form that fits in one line."""
    return name if name.isprintable() else ascii(name)


def expand(name: str) -> list[str]:
    """Return the pictures in the folder ``name``, sorted, or ``name`` itself if it is none."""
    if not Path(name).is_dir():
        return [name]
    suffixes = {*Image.registered_extensions(), ".heic", ".heif"}
    files = sorted(path for path in Path(name).iterdir() if path.suffix.lower() in suffixes)
    return [str(path) for path in files if not path.name.startswith(".")] or [name]


def read_image(name: str, dataset: Dataset) -> tuple[Floats, float, list[list[Found]]]:
    """Read the file ``name``, or stdin for '-': its colours, and what the network is shown, line by line.

    The colours are RGB (H, W, 3) in [0, 1], reduced by the second result, a factor.
    """

    def prepare(picture: Image.Image) -> tuple[Floats, float, list[list[Found]]]:
        longer = max(picture.size)
        if dataset.digit_like:
            rgb = read_colors(picture)
            return rgb, longer / max(rgb.shape), read_digits(rgb)
        image = fit_to_28x28(picture)
        if dataset.light_on_dark and np.median(border(image)) > 127:
            image = 255 - image
        rgb = read_colors(picture)
        return rgb, longer / max(rgb.shape), [[Found(Box(0, 0, rgb.shape[1], rgb.shape[0]), image)]]

    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        return read_picture(file, prepare)


def predict(trained: Trained, file: str, found: list[list[Found]], scale: float = 1) -> Prediction:
    """Return what ``trained`` predicts for what was ``found`` in ``file``; ``scale`` enlarges the boxes."""
    images = torch.from_numpy(np.stack([one.image for line in found for one in line]))
    names: list[int] | list[str] = list(range(10)) if trained.dataset == MNIST else [*trained.dataset.classes]
    (first, second), labels = (top.T.tolist() for top in trained.log_probs(images).exp().topk(2))
    best, runner_up = ([names[label] for label in row] for row in labels)
    boxes = [Box(*(math.floor(side * scale + 0.5) for side in one.box)) for line in found for one in line]
    unsure = [confidence < UNSURE for confidence in first]
    digits = list(map(Digit, best, first, runner_up, second, unsure, boxes))
    if len(digits) == 1:
        return Prediction(file, best[0], first[0], runner_up[0], second[0], unsure[0], digits)
    texts = iter(map(str, best))
    text = " ".join("".join(next(texts) for _ in line) for line in found)
    return Prediction(file, text, math.prod(first), None, None, any(unsure), digits)


def predictions(trained: Trained, files: list[str], folder: Path | None) -> Iterator[Prediction]:
    """Yield the prediction for each of ``files`` that can be read; print a line on stderr for each other."""
    bar = tqdm(files, unit=" pictures", leave=False, disable=None if len(files) >= MANY else True)
    for number, file in enumerate(bar, 1):
        try:
            rgb, scale, found = read_image(file, trained.dataset)
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            bar.write(f"predict: error: {printable(file)}: {reason}", file=sys.stderr)
            continue
        prediction = predict(trained, file, found, scale)
        if folder is not None:
            answers = [f"{d.prediction} {d.confidence:.0%}" for d in prediction.digits]
            sheet = draw_sheet(rgb, [one for line in found for one in line], answers)
            replace_file(folder / f"{number}-{Path(file).name}.png", sheet)
        yield prediction


def main(images: list[str], weights: str | None, as_json: bool, save: str | None) -> int:
    """Print the predictions for ``images``; return the exit status, 1 if one of them can't be read."""
    trained = load_trained(weights)
    print(f"Weights: {trained}", file=sys.stderr)
    folder = None if save is None else Path(save)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    files, count = [file for name in images for file in expand(name)], 0
    for count, prediction in enumerate(predictions(trained, files, folder), 1):
        text = str(prediction)
        if as_json:
            text = json.dumps([asdict(prediction)], indent=2)[2:-2]
            text = ("[\n" if count == 1 else ",\n") + text
        tqdm.write(text, end="" if as_json else "\n")
        sys.stdout.flush()
    if as_json:
        print("\n]" if count else "[]", flush=True)
    return 0 if count == len(files) else 1
