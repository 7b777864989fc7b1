"""Tell ink from the paper that it is on, and from what else is there: steps 5 to 8 in docs/predict.md."""

import math

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from pictures import SIDE, Floats, border, distance, to_bytes
from predict.components import Integers, Mask, dilate, label, measure
from predict.paper import REDUCED, STRONG, shrink
from runtime.errors import UserError

MIN_CONTRAST = 0.1  # of the way from black to white
LOW, HIGH = 0.15, 0.85  # of the strongest ink: below is paper, above is stroke
UNEVEN, FRAMED = 0.3, 0.9  # the background varies if more of the border than the first is ink; a frame
WINDOW = 21  # pixels of a reduced picture: the window of the median
ENLARGE = 4  # times, a picture smaller than MNIST's
STRIP = 0.1  # width of the strip along the sheet's edge, as a share of the shorter side
INSIDE = 0.8  # share of a component's pixels that make it lie in the strip
THINNER = 0.45  # a component at the edge is a scrap if it is so much thinner than the others
AROUND = 4  # a frame's largest height, divided by that of a component inside it
SOLID = 0.65  # a blot's share of its box
THIN = 0.12  # a frame's largest number of pixels, divided by height · (width + height)
MOST = 100  # more components are no digits
BLUR = 0.01  # share of the longer side: how far from a scrap its blurred edge reaches, beyond a pixel


def local_background(rgb: Floats) -> Floats:
    """Return the median of ``rgb`` (H, W, 3) around each pixel, likewise."""
    # Pillow's filter repeats the outermost pixels, so a thin dark edge would win there. Mirrored ones don't.
    reach = WINDOW // 2
    mirrored = np.pad(to_bytes(shrink(rgb)), ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    medians = ImageOps.crop(Image.fromarray(mirrored).filter(ImageFilter.MedianFilter(WINDOW)), reach)
    return np.asarray(medians.resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)) / 255


def is_blot(boxes: Integers, areas: Integers) -> Mask:
    """Tell which components, of ``boxes`` (n, 4) and ``areas`` (n,), are no strokes: round and solid."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return (areas > SOLID * width * height) & (2 * width > height) & (2 * height > width)


def is_frame(boxes: Integers, areas: Integers) -> Mask:
    """Tell which components, of ``boxes`` (n, 4) and ``areas`` (n,), are thin and around another one."""
    if len(boxes) > MOST:
        return np.zeros(len(boxes), dtype=np.bool_)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    inside = np.concatenate([boxes[:, None, :2] > boxes[:, :2], boxes[:, None, 2:] < boxes[:, 2:]], axis=2)
    tall = AROUND * height[:, None] >= height  # [i, j]: component i beside j
    return (areas <= THIN * height * (width + height)) & (inside.all(axis=2) & tall).any(axis=0)


def find_scraps(strong: Mask, sheet: Mask) -> Mask:
    """Return which of the ``strong`` ink (H, W) on the ``sheet`` (H, W) is scraps and frames, but no digits.

    If nothing would be left, there are none.
    """
    labels = label(strong)
    boxes, areas, _ = measure(labels)
    beyond = np.pad(~sheet, 1, constant_values=True)
    strip, edge = (dilate(beyond, n)[1:-1, 1:-1] for n in (math.ceil(STRIP * min(strong.shape)), 1))
    at_edge = np.isin(np.arange(len(areas)) + 1, labels[edge])
    in_strip = np.bincount(labels[strip], minlength=len(areas) + 1)[1:] >= INSIDE * areas
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    # A line is as long as it may be: its length doesn't make up for its width. A short scrap is no stroke.
    thickness = areas / np.maximum(longer, longer[~at_edge].max(initial=1))
    scraps = at_edge & (in_strip | (thickness < THINNER * thickness[~at_edge].max(initial=0)))
    scraps |= in_strip & is_blot(boxes, areas) | is_frame(boxes, areas)
    kept = np.append(False, ~scraps)
    return strong & ~kept[labels] if kept.any() else np.zeros_like(strong)


def erase(ink: Floats, others: Mask, own: Mask, reach: int = 1) -> Floats:
    """Return ``ink`` (H, W) with 0 within ``reach`` pixels of ``others``, but not where it is ``own``."""
    return np.where(dilate(others, reach) & ~own, 0, ink)


def find_ink(rgb: Floats, sheet: Mask) -> Floats:
    """Return the ink on the ``sheet`` (H, W) of ``rgb`` (H, W, 3) as (H, W) in [0, 1], without scraps.

    A picture smaller than MNIST's is enlarged: its ink is (4 H, 4 W). A blank one raises ``UserError``.
    """
    ink = distance(rgb, np.median(border(rgb), axis=0))
    if (ink >= STRONG * ink.max()).mean() > 0.5:
        ink = distance(rgb, np.median(rgb, axis=(0, 1)))
    outer = border(ink)
    varies = (outer > LOW * ink.max()).mean() > UNEVEN and (outer >= STRONG * ink.max()).mean() < FRAMED
    if (varies or not sheet.all()) and min(ink.shape) >= REDUCED:
        ink = distance(rgb, local_background(rgb))
    if not ink.max() >= MIN_CONTRAST:
        raise UserError("it is blank: nothing in it stands out from the background")
    if max(ink.shape) < SIDE:
        enlarged = ImageOps.scale(Image.fromarray(ink.astype(np.float32)), ENLARGE, Image.Resampling.BICUBIC)
        ink = np.asarray(enlarged, dtype=np.float64)
        sheet = np.ones_like(ink, dtype=np.bool_)
    strong = ink >= STRONG * ink.max()
    scraps = find_scraps(strong, sheet)
    ink = erase(ink, scraps, strong & ~scraps, 1 + math.floor(BLUR * max(ink.shape)))
    return np.asarray(np.clip((ink / ink.max() - LOW) / (HIGH - LOW), 0, 1))
