"""Bring the digits in a picture into MNIST's own form; export/page.js does the same. See docs/predict.md."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from pictures import SIDE, Bytes, Floats, round_half_up, to_bytes
from predict.components import Box
from predict.ink import find_ink
from predict.paper import crop_to_sheet
from predict.segment import STRONG, find_digits

ENLARGE = 4  # times, a picture smaller than MNIST's
SPECKS = 0.01  # share of the strong ink that may be outside the digit's box, on each side
VISIBLE = 0.1  # ink that counts for the strength of a stroke
TIE = 1e-6  # pixels; more than the rounding errors of float64
LONGER = 20  # pixels of a digit's longer side


@dataclass(frozen=True)
class Digit:
    """A digit in a picture."""

    box: Box  # in pixels of the upright picture in the file
    image: Bytes  # (28, 28), light on dark, as in MNIST


def resampling(n: int, m: int) -> Floats:
    """Return the matrix (m, n) that resamples n values to m: area average if fewer, else linear (step 7)."""
    if m < n:
        edges = np.arange(m + 1)[:, None] * (n / m)
        j = np.arange(n)
        overlap = np.minimum(edges[1:], j + 1) - np.maximum(edges[:-1], j)
        return np.asarray(np.maximum(overlap, 0) * (m / n))
    x = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(x[:, None] - np.arange(n))))


def crop(ink: Floats) -> Box:
    """Return the box of the digit in ``ink`` (H, W): step 6."""
    strong = np.where(ink >= STRONG, ink, 0)
    starts, ends = [], []
    for sums in strong.sum(axis=0), strong.sum(axis=1):
        least = SPECKS * sums.sum()
        starts.append(int(np.searchsorted(np.cumsum(sums), least, "right")))
        ends.append(len(sums) - int(np.searchsorted(np.cumsum(sums[::-1]), least, "right")))
    return Box(*starts, *ends)


def centre(ink: Floats) -> Bytes:
    """Bring the cropped ``ink`` (H, W) of a digit into MNIST's form, uint8 (28, 28): steps 7 and 8."""
    longer = max(ink.shape)
    height, width = (max(1, round_half_up(LONGER * side / longer)) for side in ink.shape)
    ink = resampling(ink.shape[0], height) @ ink @ resampling(ink.shape[1], width).T
    ink = ink / ink.max()
    visible = np.sort(ink[ink > VISIBLE])
    ink = np.minimum(ink / visible[3 * len(visible) // 4], 1)

    y, x = (np.arange(side) @ ink.sum(axis=1 - axis) / ink.sum() for axis, side in enumerate(ink.shape))
    top = min(max(round_half_up(SIDE / 2 - y + TIE), 0), SIDE - height)
    left = min(max(round_half_up(SIDE / 2 - x + TIE), 0), SIDE - width)
    padding = (top, SIDE - height - top), (left, SIDE - width - left)
    return np.pad(to_bytes(ink), padding)


def read_digits(rgb: Floats, scale: float = 1) -> list[list[Digit]]:
    """Return the digits in ``rgb`` (H, W, 3) in [0, 1], line by line: steps 2 to 8.

    The file's picture has ``scale`` times as many pixels on each side.
    """
    if max(rgb.shape[:2]) < SIDE:
        enlarged = ImageOps.scale(Image.fromarray(to_bytes(rgb)), ENLARGE, Image.Resampling.BICUBIC)
        rgb, scale = np.asarray(enlarged) / 255, scale / ENLARGE
    paper, sheet, origin = crop_to_sheet(rgb)

    def read(outer: Box, ink: Floats) -> Digit:
        left, top, right, bottom = inner = crop(ink)
        corners = (scale * (origin[i % 2] + outer[i % 2] + side) for i, side in enumerate(inner))
        return Digit(Box(*map(round_half_up, corners)), centre(ink[top:bottom, left:right]))

    return [[read(*digit) for digit in line] for line in find_digits(find_ink(paper, sheet))]
