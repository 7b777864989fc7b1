"""Count how ``predict`` reads labelled pictures: ``PYTHONPATH=. python tests/score_pictures.py SET…``.

A SET is "mnist" (every fourth test image as a picture), "sheets" or "pages" (drawn by draw_digits.py from
test images of MNIST), or a folder with labels.csv (columns file, digit, kind). Use one thread.
"""

import contextlib
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from draw_digits import draw_cutout, draw_page, draw_sheet
from PIL import Image

from datasets import load_mnist
from pictures import LONGEST_SIDE, Floats, colors, decode, read
from predict.__main__ import predict
from predict.prepare import read_digits
from runtime.errors import UserError
from trained import load_trained

EACH = 60  # sheets of each kind, and pages
FIRST_SEED = 1000  # none that a test uses


def labelled_pictures(name: str) -> Iterator[tuple[str, str, Image.Image | Path]]:
    """Yield the kind, the label, and the picture, or its file, of each in a set."""
    tensors, numbers = load_mnist(train=False)
    images, labels = tensors.numpy(), [str(number) for number in numbers.tolist()]
    seeds = range(FIRST_SEED, FIRST_SEED + EACH)
    if name == "mnist":
        for i in range(0, len(labels), 4):
            yield "mnist", labels[i], Image.fromarray(images[i])
    elif name == "sheets":
        for seed in seeds:
            for kind in ("desk", "turned", "side", "corner"):
                yield kind, labels[seed], draw_sheet(seed, images[seed] / 255, kind)
            for kind, paper in (("white, transparent margin", 230), ("black, transparent margin", 20)):
                yield kind, labels[seed], draw_cutout(seed, images[seed] / 255, paper)
    elif name == "pages":
        digits = [(int(labels[i]), crop(images[i] / 255)) for i in range(FIRST_SEED)]
        for seed in seeds:
            page, texts = draw_page(seed, digits)
            yield "pages", " ".join(texts), page
    else:
        with open(Path(name, "labels.csv"), newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield row["kind"], row["digit"], Path(name, row["file"])


def get_colors(picture: Image.Image | Path) -> tuple[Floats, float]:
    """Return the colours of a picture, or of one in a file, and its scale."""
    if isinstance(picture, Path):
        with open(picture, "rb") as file:
            return read(file, LONGEST_SIDE)
    return colors(decode(picture)), 1.0


def crop(ink: Floats) -> Floats:
    """Crop ``ink`` (H, W) to what isn't 0."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def main() -> None:
    torch.set_num_threads(1)
    trained = load_trained()
    for name in sys.argv[1:]:
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
        seconds = []
        for kind, label, picture in labelled_pictures(name):
            start, prediction, unsure = time.perf_counter(), "none", True
            with contextlib.suppress(UserError):  # it is blank, say
                answer = predict(trained, read_digits(*get_colors(picture)))[0]
                prediction, unsure = str(answer.prediction), answer.unsure
            seconds.append(time.perf_counter() - start)
            right = prediction == label
            results = (1, right, right and unsure, not right and unsure, not right and not unsure)
            for group in (kind, "all"):
                counts[group] = [old + int(new) for old, new in zip(counts[group], results, strict=True)]
        print(f"{name}: {1000 * median(seconds):.1f} ms a picture (median)")
        print("| kind | number | right | right, but unsure | wrong, and unsure | wrong and sure |")
        for kind, (count, count_right, *others) in counts.items():
            if kind == "all" or len(counts) > 2:
                cells = [kind, count, f"{count_right} ({count_right / count:.1%})", *others]
                print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
