"""Predict what pictures show: ``python -m predict IMAGE…``. ``--help`` lists the flags."""

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

from config import WEIGHTS_HELP
from datasets import MNIST, Dataset
from datasets.folder import ENOUGH, fit_to_28x28
from pictures import LONGEST_SIDE, SIDE, Bytes, Floats, border, read, round_half_up, to_bytes
from predict.components import Box, dilate, label
from predict.ink import SOLID
from predict.prepare import Digit, read_digits
from runtime.arguments import Parser
from runtime.errors import UsageError, UserError, printable, run_command
from runtime.files import replace_file
from trained import Trained, load_trained

UNSURE = 0.88  # a digit of a lower confidence is unsure; so is a blot, by SOLID, and these:
APART = 2  # its parts are farther apart than twice this, in pixels of its image
TALLER = 1.8  # another digit of the number is so many times as tall
LONGEST, CELL, LINE = 448, 4 * SIDE, 14  # pixels: --save's picture, an enlarged image, the text above it


@dataclass(frozen=True)
class Answer:
    """The two most probable classes of a digit or of a picture, and their probabilities in [0, 1].

    A class is a digit, or the name of another data set's class. Several digits are a string, with spaces
    between lines; they have the product of the confidences, and no runner-up.
    """

    prediction: int | str
    confidence: float
    runner_up: int | str | None
    runner_up_confidence: float | None
    unsure: bool
    box: Box  # around all digits, in pixels of the upright picture in the file

    def __str__(self) -> str:
        return printable(f"{self.prediction} {self.confidence:.2%}")


def as_line(file: str, answer: Answer, digits: list[Answer]) -> str:
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
    if not os.path.isdir(name):
        return [name]
    extensions = Image.registered_extensions()  # first, as it fills Image.OPEN
    suffixes = {suffix for suffix, format in extensions.items() if format in Image.OPEN} | {".heic", ".heif"}
    files = [str(path) for path in Path(name).glob("[!.]*") if path.suffix.lower() in suffixes]
    return sorted(files) or [name]


def read_image(name: str, dataset: Dataset) -> tuple[Floats, float, list[list[Digit]]]:
    """Read the file ``name``, or stdin for '-': return its colours, a scale, and its digits, line by line.

    - The colours are RGB (H, W, 3) in [0, 1]. The file's picture has scale times as many pixels on each side.
    - If the data set is not like digits, the whole picture is the only "digit".
    """
    if Path(name).is_dir():
        os.listdir(name)  # raises if the folder can't be read
        raise UserError("there is no picture in this folder")
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        rgb, scale = read(file, LONGEST_SIDE if dataset.digit_like else ENOUGH)
    if dataset.digit_like:
        return rgb, scale, read_digits(rgb, scale)
    image = fit_to_28x28(rgb)
    if dataset.light_on_dark and np.median(border(image)) > 127:
        image = 255 - image
    height, width = (round_half_up(scale * side) for side in rgb.shape[:2])
    return rgb, scale, [[Digit(Box(0, 0, width, height), image)]]


def is_doubtful(image: Bytes) -> bool:
    """Tell whether ``image`` (28, 28) shows a blot, or parts that are far apart."""
    strong = image > 127
    height, width = (np.ptp(np.flatnonzero(strong.any(axis=axis))) + 1 for axis in (1, 0))
    blot = 2 * width > height and strong.sum() > SOLID * width * height  # not a narrow stroke
    return bool(blot or label(dilate(image > 63, APART)).max() > 1)


def predict(trained: Trained, lines: list[list[Digit]]) -> tuple[Answer, list[Answer]]:
    """Return the answer of ``trained`` to a picture with ``lines`` of digits, and to each digit."""
    digits = list(chain(*lines))
    classes: Sequence[int | str] = range(10) if trained.dataset == MNIST else trained.dataset.classes
    log_probs = trained.log_probs(torch.from_numpy(np.stack([digit.image for digit in digits])))
    confidences, labels = (values.tolist() for values in log_probs.exp().topk(2))
    tallest = max(digit.box.bottom - digit.box.top for digit in digits)
    answers = []
    for digit, (first, second), (best, next_best) in zip(digits, confidences, labels, strict=True):
        unsure = not first >= UNSURE or tallest > TALLER * (digit.box.bottom - digit.box.top)  # or NaN
        unsure |= trained.dataset.digit_like and is_doubtful(digit.image)
        answers.append(Answer(classes[best], first, classes[next_best], second, unsure, digit.box))
    if len(answers) == 1:
        return answers[0], answers
    predictions = iter(str(answer.prediction) for answer in answers)
    number = " ".join("".join(next(predictions) for _ in line) for line in lines)
    confidence = math.prod(answer.confidence for answer in answers)
    lefts, tops, rights, bottoms = zip(*(digit.box for digit in digits), strict=True)
    box = Box(min(lefts), min(tops), max(rights), max(bottoms))
    return Answer(number, confidence, None, None, any(answer.unsure for answer in answers), box), answers


def draw_overview(rgb: Floats, scale: float, digits: list[Digit], answers: list[Answer]) -> bytes:
    """Return a PNG: ``rgb``, (H, W, 3) in [0, 1], with a box around each digit, and the digits' images.

    The boxes are in pixels of the file's picture, which has ``scale`` times as many on each side.
    """
    picture = Image.fromarray(to_bytes(rgb))
    zoom = LONGEST / max(picture.size)
    picture = picture.resize([max(1, round_half_up(side * zoom)) for side in picture.size])
    size = max(picture.width, len(digits) * CELL), picture.height + CELL + LINE
    sheet = Image.new("RGB", size, (90, 90, 90))
    sheet.paste(picture)
    pen, red = ImageDraw.Draw(sheet), (220, 30, 60)
    for i, (digit, answer) in enumerate(zip(digits, answers, strict=True)):
        text = str(answer).encode("ascii", "backslashreplace").decode()  # Pillow's font has few letters
        left, top, right, bottom = (side / scale * zoom for side in digit.box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=red)
        pen.text((left, max(0, top - LINE)), text, fill=red)
        corner, image = (i * CELL, picture.height + LINE), Image.fromarray(digit.image)
        sheet.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), corner)
        pen.text((corner[0], picture.height), text, fill="white")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def answer_all(images: list[str], weights: str = "", as_json: bool = False, save: Path | None = None) -> int:
    """Print the predictions for ``images``; return the exit status, 1 if one of them can't be read."""
    torch.set_num_threads(1)  # an image is too small to share; on a busy machine, threads wait for each other
    trained = load_trained(weights)
    print(f"Weights: {trained}", file=sys.stderr)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        if any(save.iterdir()):  # perhaps pictures, which must not be overwritten
            raise UsageError(f"argument --save: {save} is not empty: name a new folder")
    files, entries = [file for name in images for file in expand(name)], []
    try:
        for number, file in enumerate(tqdm(files, leave=False, disable=None), 1):  # a bar on a terminal only
            try:
                rgb, scale, lines = read_image(file, trained.dataset)
            except (OSError, UserError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                tqdm.write(printable(f"predict: error: {file}: {reason}"), file=sys.stderr)
                continue
            answer, digits = predict(trained, lines)
            entries.append({"file": file, **asdict(answer), "digits": list(map(asdict, digits))})
            if not as_json:
                tqdm.write(as_line(file, answer, digits))
                sys.stdout.flush()
            if save is not None:
                sheet = save / f"{number}-{Path(file).stem[:50]}.png"
                replace_file(sheet, draw_overview(rgb, scale, list(chain(*lines)), digits))
    finally:  # after an error or Ctrl-C, too
        if as_json:
            print(json.dumps(entries, indent=2), flush=True)
    return 0 if len(entries) == len(files) else 1


def main() -> int:
    """Read the command line, and answer it; return the exit status."""
    parser = Parser("python -m predict", "Predict each picture's class: a digit, with the included weights.")
    help = "picture of a digit, a number or a thing; or a folder of pictures; -: standard input"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    help = "print a JSON array, one object for each picture that can be read"
    parser.add_argument("--json", action="store_true", help=help)
    help = "new or empty folder for a PNG of each picture: what the network was shown, and its answers"
    parser.add_argument("--save", metavar="DIR", help=help)
    args = parser.parse_args()
    return answer_all(args.images, args.weights or "", args.json, Path(args.save) if args.save else None)


if __name__ == "__main__":
    run_command(main)
