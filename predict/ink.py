"""Tell ink from the paper that it is on, and from what else is there: steps 3 and 4 in docs/predict.md."""

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from pictures import Floats, border, distance, to_bytes
from predict.components import Integers, Mask, dilate, label, measure
from predict.paper import REDUCED, shrink
from runtime.errors import UserError

MIN_CONTRAST = 0.1  # of the way from black to white
STROKE = 0.395  # share of the strongest ink: a stroke
LOW, HIGH = 0.15, 0.85  # of the strongest ink: below is paper, above is stroke
UNEVEN, FRAMED = 0.3, 0.9  # share of the border that isn't paper: the light is uneven; strong: a frame
WINDOW = 21  # pixels of a reduced picture: the window of the median
STRIP, WITHIN = 0.1, 0.8  # width of the strip along the edge, as a share of the shorter side; share in it
THINNER = 0.45  # a component at the edge is a scrap if it is so much thinner than the others
SOLID = 0.65  # a blot's share of its box
THIN = 0.12  # a frame's largest number of pixels, divided by height · (width + height)
AROUND = 4  # a frame's largest height, divided by that of a component inside it
MOST = 100  # more components are no digits
BLUR = 0.01  # share of the longer side: how far from a scrap its blurred edge reaches, beyond a pixel


def local_background(rgb: Floats) -> Floats:
    """Return the median of ``rgb`` (H, W, 3) around each pixel, likewise."""
    medians = ndimage.median_filter(to_bytes(shrink(rgb)), (WINDOW, WINDOW, 1))  # mirrored at its edges
    return np.asarray(Image.fromarray(medians).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)) / 255


def find_frames(boxes: Integers, areas: Integers) -> Mask:
    """Tell which components, of ``boxes`` (n, 4) and ``areas`` (n,), are thin and around another one."""
    if len(boxes) > MOST:
        return np.zeros(len(boxes), dtype=np.bool_)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    inside = np.concatenate([boxes[:, None, :2] > boxes[:, :2], boxes[:, None, 2:] < boxes[:, 2:]], axis=2)
    tall = AROUND * height[:, None] >= height  # [i, j]: component i beside j
    return np.asarray((areas <= THIN * height * (width + height)) & (inside.all(axis=2) & tall).any(axis=0))


def find_scraps(strong: Mask, sheet: Mask) -> Mask:
    """Return which of the ``strong`` ink (H, W) on the ``sheet`` (H, W) is scraps and frames, but no digits.

    If nothing would be left, there are none.
    """
    labels = label(strong)
    boxes, areas, _ = measure(labels)
    beyond = np.pad(~sheet, 1, constant_values=True)
    strip, edge = (dilate(beyond, n)[1:-1, 1:-1] for n in (math.ceil(STRIP * min(strong.shape)), 1))
    at_edge = np.isin(np.arange(len(areas)) + 1, labels[edge])
    in_strip = np.bincount(labels[strip], minlength=len(areas) + 1)[1:] >= WITHIN * areas
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    blots = (areas > SOLID * width * height) & (2 * width > height) & (2 * height > width)
    longer = np.maximum(width, height)
    # Pixels for each pixel of length, so a long line is thin. A short scrap gets the length of the others.
    thickness = areas / np.maximum(longer, longer[~at_edge].max(initial=1))
    thin = thickness < THINNER * thickness[~at_edge].max(initial=0)
    scraps = (at_edge & (in_strip | thin)) | (in_strip & blots) | find_frames(boxes, areas)
    return np.asarray(strong & np.append(False, scraps & ~scraps.all())[labels])


def erase(ink: Floats, others: Mask, own: Mask, reach: int = 1) -> Floats:
    """Return ``ink`` (H, W) with 0 within ``reach`` pixels of ``others``, but not where it is ``own``."""
    return np.where(dilate(others, reach) & ~own, 0, ink)


def find_ink(rgb: Floats, sheet: Mask) -> Floats:
    """Return the ink on the ``sheet`` (H, W) in ``rgb`` (H, W, 3), without scraps, as (H, W) in [0, 1].

    A blank one raises ``UserError``.
    """
    ink = distance(rgb, np.median(border(rgb), axis=0))
    if (ink >= STROKE * ink.max()).mean() > 0.5:
        ink = distance(rgb, np.median(rgb, axis=(0, 1)))
    outer = border(ink)
    uneven = (outer > LOW * ink.max()).mean() > UNEVEN and (outer >= STROKE * ink.max()).mean() < FRAMED
    if (uneven or not sheet.all()) and min(ink.shape) >= REDUCED:
        ink = distance(rgb, local_background(rgb))
    if not ink.max() >= MIN_CONTRAST:
        raise UserError("it is blank: nothing in it stands out from the background")
    strong = ink >= STROKE * ink.max()
    scraps = find_scraps(strong, sheet)
    ink = erase(ink, scraps, strong & ~scraps, 1 + math.floor(BLUR * max(ink.shape)))
    return np.asarray(np.clip((ink / ink.max() - LOW) / (HIGH - LOW), 0, 1))
