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

UNSURE, HEAVY = 0.85, 102  # unsure: a lower confidence, a higher mean of the image. docs/predict.md says why
MANY = 20  # pictures have a progress bar


@dataclass(frozen=True)
class Answer:
    """The most probable classes and their probabilities, in [0, 1]; a number has no runner-up.

    A class is a digit, as int, or another data set's name; a number is a text, with spaces between lines.
    """

    prediction: int | str
    confidence: float
    runner_up: int | str | None
    runner_up_confidence: float | None
    unsure: bool

    def __str__(self) -> str:
        return f"{printable(self.prediction)} {self.confidence:.2%}"


@dataclass(frozen=True)
class Digit(Answer):
    box: Box  # in pixels of the upright picture


def printable(name: int | str) -> str:
    """Return ``name``, of a file or class, in a form that fits in one line."""
    return str(name) if str(name).isprintable() else ascii(name)


def as_line(file: str, whole: Answer, digits: list[Digit]) -> str:
    """Return the answers for ``file`` as one line of text."""
    text = f"{printable(file)}: {printable(whole.prediction)} ("
    if whole.runner_up is None:
        text += ", ".join(map(str, digits)) + ")"
    else:
        text += f"{whole.confidence:.2%}), runner-up {printable(whole.runner_up)} "
        text += f"({whole.runner_up_confidence:.2%})"
    for place, digit in enumerate(digits, 1):
        if digit.unsure:
            text += f"; unsure{f' of digit {place}' if len(digits) > 1 else ''}: "
            text += f"{printable(digit.prediction)} or {printable(str(digit.runner_up))}"
    return text


def expand(name: str) -> list[str]:
    """Return the pictures in the folder ``name``, sorted, or ``name`` itself if it is a file or has none."""
    if not Path(name).is_dir():
        return [name]
    suffixes = {*Image.registered_extensions(), ".heic", ".heif"}
    files = [path for path in Path(name).iterdir() if path.suffix.lower() in suffixes]
    return sorted(str(path) for path in files if not path.name.startswith(".")) or [name]


def read_image(name: str, dataset: Dataset) -> tuple[Floats, float, list[list[Found]]]:
    """Read the file ``name``, or stdin for '-': its colours, their reduction, and the digits, line by line.

    The colours are RGB (H, W, 3) in [0, 1]; the picture has as many times their pixels as the second result.
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

    if Path(name).is_dir():
        raise UserError("there is no picture in this folder")
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        return read_picture(file, prepare)


def predict(trained: Trained, found: list[list[Found]], scale: float = 1) -> tuple[Answer, list[Digit]]:
    """Return the answer of ``trained`` to what was ``found``, and that to each digit; ``scale`` the boxes."""
    digits = [digit for line in found for digit in line]
    names: list[int] | list[str] = list(range(10)) if trained.dataset == MNIST else [*trained.dataset.classes]
    probabilities = trained.log_probs(torch.from_numpy(np.stack([image for _, image in digits]))).exp()
    answers = []
    for (first, second), labels, (box, image) in zip(
        *(t.tolist() for t in probabilities.topk(2)), digits, strict=True
    ):
        best, runner_up = (names[label] for label in labels)
        place = Box(*(math.floor(side * scale + 0.5) for side in box))
        unsure = first < UNSURE or (trained.dataset.digit_like and bool(image.mean() > HEAVY))
        answers.append(Digit(best, first, runner_up, second, unsure, place))
    if len(answers) == 1:
        return answers[0], answers
    texts = iter(str(answer.prediction) for answer in answers)
    number = " ".join("".join(next(texts) for _ in line) for line in found)
    confidence = math.prod(answer.confidence for answer in answers)
    return Answer(number, confidence, None, None, any(answer.unsure for answer in answers)), answers


def read_all(
    trained: Trained, files: list[str], folder: Path | None
) -> Iterator[tuple[str, Answer, list[Digit]]]:
    """Yield the answers for each of ``files`` that can be read; print a line on stderr for each other."""
    bar = tqdm(files, unit=" pictures", leave=False, disable=None if len(files) >= MANY else True)
    for number, file in enumerate(bar, 1):
        try:
            rgb, scale, found = read_image(file, trained.dataset)
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            bar.write(f"predict: error: {printable(file)}: {reason}", file=sys.stderr)
            continue
        whole, digits = predict(trained, found, scale)
        if folder is not None:
            sheet = draw_sheet(rgb, [one for line in found for one in line], list(map(str, digits)))
            replace_file(folder / f"{number}-{Path(file).name[:50]}.png", sheet)
        yield file, whole, digits


def main(images: list[str], weights: str | None, as_json: bool = False, save: str | None = None) -> int:
    """Print the predictions for ``images``; return the exit status, 1 if one of them can't be read."""
    trained = load_trained(weights)
    print(f"Weights: {trained}", file=sys.stderr)
    folder = None if save is None else Path(save)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    files, count = [file for name in images for file in expand(name)], 0
    for count, (file, whole, digits) in enumerate(read_all(trained, files, folder), 1):
        if as_json:
            entry = {"file": file, **asdict(whole), "digits": list(map(asdict, digits))}
            text = ("[" if count == 1 else ",") + json.dumps([entry], indent=2)[1:-2]
        else:
            text = as_line(file, whole, digits) + "\n"
        tqdm.write(text, end="")
        sys.stdout.flush()
    if as_json:
        print("\n]" if count else "[]", flush=True)
    return 0 if count == len(files) else 1
