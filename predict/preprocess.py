"""Bring digits in any picture into MNIST's own form; export/page.js does the same. Steps: docs/predict.md."""

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from datasets.pictures import Floats, border
from predict.segment import STRONG, Box, find_digits
from runtime.errors import UserError

MIN_CONTRAST = 0.1  # of the way from black to white
LOW, HIGH = 0.15, 0.85  # of the strongest ink: below is paper, above is stroke
UNEVEN, FRAMED = 0.3, 0.9  # share of the border that is ink if the background varies; more is a frame
REDUCED, WINDOW = 64, 21  # pixels, of a varying background: its longer side, the median's window
ENLARGE = 4  # times, a picture smaller than MNIST's
SPECKS = 0.01  # share of the strong ink that may be outside the digit's box, on each side
VISIBLE = 0.1  # ink that counts for the strength of a stroke
TIE = 1e-6  # pixels; more than the rounding errors of float64 in step 12
DIGIT, FRAME = 20, 28  # pixels: the digit's longer side, the picture's sides


class DigitImage(NamedTuple):
    """A digit in a picture."""

    box: Box  # in pixels of the picture
    image: NDArray[np.uint8]  # (28, 28), light on dark, as in MNIST


def distance(rgb: Floats, background: Floats) -> Floats:
    """Return the largest difference over R, G, B, (H, W), of ``rgb`` to ``background``, (3,) or (H, W, 3)."""
    channels = np.moveaxis(abs(rgb - background), 2, 0)
    return reduce(np.maximum, channels)  # several times as fast as .max(axis=2)


def local_background(rgb: Floats) -> Floats:
    """Return the median of ``rgb`` around each pixel, (H, W, 3) like it: step 5."""
    picture = Image.fromarray(np.floor(rgb * 255 + 0.5).astype(np.uint8))
    scale = REDUCED / max(picture.size)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in picture.size)
    reduced = picture.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(WINDOW))
    return np.asarray(reduced.resize(picture.size, Image.Resampling.BILINEAR)) / 255


def find_ink(rgb: Floats) -> Floats:
    """Return the ink in ``rgb`` (H, W, 3) as (H, W) in [0, 1]: steps 4 to 6.

    A picture smaller than MNIST's is enlarged: its ink is (4 H, 4 W). A blank one raises ``UserError``.
    """
    cut = LOW + STRONG * (HIGH - LOW)
    ink = distance(rgb, np.median(border(rgb), axis=0))
    if (ink >= cut * ink.max()).mean() > 0.5:
        ink = distance(rgb, np.median(rgb, axis=(0, 1)))
    share = (border(ink) >= cut * ink.max()).mean()
    if min(ink.shape) >= REDUCED and UNEVEN < share < FRAMED:
        ink = distance(rgb, local_background(rgb))
    if not ink.max() >= MIN_CONTRAST:
        raise UserError("it is blank: nothing in it stands out from the background")
    if max(ink.shape) < FRAME:
        enlarged = ImageOps.scale(Image.fromarray(ink.astype(np.float32)), ENLARGE, Image.Resampling.BICUBIC)
        ink = np.asarray(enlarged, dtype=np.float64)
    return np.asarray(np.clip((ink / ink.max() - LOW) / (HIGH - LOW), 0, 1))


def resampling(n: int, m: int) -> Floats:
    """Return the matrix (m, n) that resamples n values to m: area average if fewer, else linear (step 10)."""
    if m < n:
        edges = np.arange(m + 1)[:, None] * (n / m)
        j = np.arange(n)
        overlap = np.minimum(edges[1:], j + 1) - np.maximum(edges[:-1], j)
        return np.asarray(np.maximum(overlap, 0) * (m / n))
    x = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(x[:, None] - np.arange(n))))


def crop(ink: Floats) -> Box:
    """Return the box of the digit in ``ink`` (H, W): step 9."""
    strong = np.where(ink >= STRONG, ink, 0)
    starts, ends = [], []
    for sums in strong.sum(axis=0), strong.sum(axis=1):
        least = SPECKS * sums.sum()
        starts.append(int(np.searchsorted(np.cumsum(sums), least, "right")))
        ends.append(len(sums) - int(np.searchsorted(np.cumsum(sums[::-1]), least, "right")))
    return Box(*starts, *ends)


def centre(ink: Floats) -> NDArray[np.uint8]:
    """Bring the cropped ``ink`` (H, W) of a digit into MNIST's form, uint8 (28, 28): steps 10 to 12."""
    longer = max(ink.shape)
    height, width = (max(1, math.floor(DIGIT * side / longer + 0.5)) for side in ink.shape)
    ink = resampling(ink.shape[0], height) @ ink @ resampling(ink.shape[1], width).T
    ink = ink / ink.max()
    visible = np.sort(ink[ink > VISIBLE])
    ink = np.minimum(ink / visible[3 * len(visible) // 4], 1)

    y, x = (np.arange(side) @ ink.sum(axis=1 - axis) / ink.sum() for axis, side in enumerate(ink.shape))
    top, left = (math.floor(FRAME / 2 - middle + TIE + 0.5) for middle in (y, x))
    top, left = min(max(top, 0), FRAME - height), min(max(left, 0), FRAME - width)
    padding = (top, FRAME - height - top), (left, FRAME - width - left)
    return np.pad(np.floor(255 * ink + 0.5).astype(np.uint8), padding)


def read_digits(rgb: Floats) -> list[list[DigitImage]]:
    """Return the digits in ``rgb`` (H, W, 3) in [0, 1], line by line: steps 4 to 12."""
    ink = find_ink(rgb)
    scale = ink.shape[0] // rgb.shape[0]  # more than 1 if a small picture was enlarged

    def read(outer: Box, part: Floats) -> DigitImage:
        left, top, right, bottom = crop(part)
        image = centre(part[top:bottom, left:right])
        first = (outer.left + left) // scale, (outer.top + top) // scale
        beyond = math.ceil((outer.left + right) / scale), math.ceil((outer.top + bottom) / scale)
        return DigitImage(Box(*first, *beyond), image)

    return [[read(outer, part) for outer, part in line] for line in find_digits(ink)]
