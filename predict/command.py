"""Predict what pictures show, print it, and draw what the network was shown."""

import io
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from datasets import MNIST, Dataset
from datasets.pictures import ENOUGH, LONGEST_SIDE, Floats, border, fit_to_28x28, read_picture
from predict.preprocess import FRAME, DigitImage, read_digits
from predict.segment import Box
from runtime.errors import UsageError, UserError, printable
from runtime.files import replace_file
from trained import Trained, load_trained

UNSURE, HEAVY = 0.85, 102  # unsure: a lower confidence, or a higher mean of the image; see docs/predict.md
MANY = 20  # pictures; from here on, there is a progress bar
HEIGHT, CELL, LINE = 448, 4 * FRAME, 14  # pixels: --save's picture, an enlarged image, the text below


@dataclass(frozen=True)
class Answer:
    """The two most probable classes, and their probabilities in [0, 1].

    A class is a digit, or the name of another data set's class. Several digits are a string, with spaces
    between lines, and have no runner-up.
    """

    prediction: int | str
    confidence: float
    runner_up: int | str | None
    runner_up_confidence: float | None
    unsure: bool

    def __str__(self) -> str:
        return printable(f"{self.prediction} {self.confidence:.2%}")


@dataclass(frozen=True)
class Digit(Answer):
    box: Box  # in pixels of the upright picture


def as_line(file: str, answer: Answer, digits: list[Digit]) -> str:
    """Return the answer for ``file`` as one line of text."""
    if answer.runner_up is None:
        line = f"{file}: {answer.prediction} ({', '.join(map(str, digits))})"
    else:
        line = f"{file}: {answer.prediction} ({answer.confidence:.2%}), "
        line += f"runner-up {answer.runner_up} ({answer.runner_up_confidence:.2%})"
    for position, digit in enumerate(digits, 1):
        if digit.unsure:
            which = f" of digit {position}" if len(digits) > 1 else ""
            line += f"; unsure{which}: {digit.prediction} or {digit.runner_up}"
    return printable(line)


def expand(name: str) -> list[str]:
    """Return the pictures in the folder ``name``, sorted; [``name``] if it is a file or has none."""
    extensions = Image.registered_extensions()  # first, as it fills Image.OPEN
    formats = Image.OPEN.keys() - {"BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow only recognises these
    suffixes = {suffix for suffix, format in extensions.items() if format in formats}
    suffixes |= {".mpo", ".heic", ".heif"}
    try:
        files = [path for path in Path(name).iterdir() if path.suffix.lower() in suffixes]
    except OSError:  # no folder, or one that can't be read, as read_image will say
        return [name]
    return sorted(str(path) for path in files if not path.name.startswith(".")) or [name]


def read_image(name: str, dataset: Dataset) -> tuple[Floats, float, list[list[DigitImage]]]:
    """Read the file ``name``, or stdin for '-': return its colours, a scale, and its digits, line by line.

    - The colours are RGB (H, W, 3) in [0, 1]. The file's picture has scale times as many pixels on each side.
    - If the data set is not like digits, the whole picture is the only "digit".
    """
    if Path(name).is_dir():
        os.scandir(name).close()  # raises if the folder can't be read
        raise UserError("there is no picture in this folder")
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        rgb, scale = read_picture(file, LONGEST_SIDE if dataset.digit_like else ENOUGH)
    if dataset.digit_like:
        return rgb, scale, read_digits(rgb)
    image = fit_to_28x28(rgb)
    if dataset.light_on_dark and np.median(border(image)) > 127:
        image = 255 - image
    height, width, _ = rgb.shape
    return rgb, scale, [[DigitImage(Box(0, 0, width, height), image)]]


def predict(trained: Trained, lines: list[list[DigitImage]], scale: float = 1) -> tuple[Answer, list[Digit]]:
    """Return the answer of ``trained`` to a picture with ``lines`` of digits, and its answer to each digit.

    The boxes in the answers are multiplied by ``scale``.
    """
    images = list(chain(*lines))
    classes: Sequence[int | str] = range(10) if trained.dataset == MNIST else trained.dataset.classes
    log_probs = trained.log_probs(torch.from_numpy(np.stack([image for _, image in images])))
    confidences, labels = (values.tolist() for values in log_probs.exp().topk(2))
    digits = []
    for (box, image), (first, second), (best, next_best) in zip(images, confidences, labels, strict=True):
        # A confidence that is NaN is unsure too.
        unsure = not first >= UNSURE or (trained.dataset.digit_like and bool(image.mean() > HEAVY))
        box = Box(*(math.floor(side * scale + 0.5) for side in box))
        digits.append(Digit(classes[best], first, classes[next_best], second, unsure, box))
    if len(digits) == 1:
        return digits[0], digits
    predictions = iter(str(digit.prediction) for digit in digits)
    number = " ".join("".join(next(predictions) for _ in line) for line in lines)
    confidence = math.prod(digit.confidence for digit in digits)
    return Answer(number, confidence, None, None, any(digit.unsure for digit in digits)), digits


def draw_sheet(rgb: Floats, images: list[DigitImage], digits: list[Digit]) -> bytes:
    """Return a PNG: ``rgb``, (H, W, 3) in [0, 1], with a box around each digit, and the digits' images.

    The answer is above each digit's box and below its image.
    """
    scale = HEIGHT / max(rgb.shape[:2])
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in rgb.shape[1::-1])
    picture = Image.fromarray(np.floor(rgb * 255 + 0.5).astype(np.uint8)).resize((width, height))
    rows = HEIGHT // (CELL + LINE)
    sheet = Image.new("RGB", (HEIGHT + math.ceil(len(images) / rows) * (CELL + 4), HEIGHT), (90, 90, 90))
    sheet.paste(picture)
    pen, red = ImageDraw.Draw(sheet), (220, 30, 60)
    for i, ((box, image), digit) in enumerate(zip(images, digits, strict=True)):
        answer = str(digit).encode("ascii", "backslashreplace").decode()  # Pillow's font has few letters
        left, top, right, bottom = (side * scale for side in box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=red)
        pen.text((left, max(0, top - LINE)), answer, fill=red)
        x, y = HEIGHT + 4 + i // rows * (CELL + 4), i % rows * (CELL + LINE)
        sheet.paste(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + CELL), answer, fill="white")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def main(images: list[str], weights: str | None, as_json: bool = False, save: Path | None = None) -> int:
    """Print the predictions for ``images``; return the exit status, 1 if one of them can't be read."""
    torch.set_num_threads(1)  # an image is too small to share; on a busy machine, threads wait for each other
    trained = load_trained(weights)
    print(f"Weights: {trained}", file=sys.stderr)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        if any(save.iterdir()):  # perhaps pictures, which must not be overwritten
            raise UsageError(f"argument --save: {save} is not empty: name a new folder")
    files, answered = [file for name in images for file in expand(name)], 0
    bar = tqdm(files, unit=" pictures", leave=False, disable=None if len(files) >= MANY else True)
    try:
        for number, file in enumerate(bar, 1):
            try:
                rgb, scale, lines = read_image(file, trained.dataset)
            except (OSError, UserError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                tqdm.write(printable(f"predict: error: {file}: {reason}"), file=sys.stderr)
                continue
            answer, digits = predict(trained, lines, scale)
            answered += 1
            if as_json:
                entry = {"file": file, **asdict(answer), "digits": list(map(asdict, digits))}
                text = ("[" if answered == 1 else ",") + json.dumps([entry], indent=2)[1:-2]
            else:
                text = as_line(file, answer, digits) + "\n"
            tqdm.write(text, end="")
            sys.stdout.flush()
            if save is not None:
                sheet = save / f"{number}-{Path(file).stem[:50]}.png"
                replace_file(sheet, draw_sheet(rgb, list(chain(*lines)), digits))
    finally:  # an error or Ctrl-C must not leave half an array
        if as_json:
            print("\n]" if answered else "[]", flush=True)
    return 0 if answered == len(files) else 1
