"""Find the digits in a picture's ink: steps 7 and 8 in docs/predict.md."""

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.pictures import Floats, border

STRONG = 0.35  # ink that belongs to a component
STRIP, INSIDE, LIGHT = 0.1, 0.8, 0.3  # shares: of the shorter side, of the component, of the largest one
SEVERAL, MOST = 40, 100  # pixels: a smaller picture has one digit; pieces: more are no digits
BRIDGED, SPECK = 0.04, 0.15  # of the typical height: reach over gaps in a stroke, smallest piece
LOW, TALL, FAINT = 0.5, 2.0, 0.2  # limits of a digit: of the typical height, twice, and of the mean area
BESIDE = 0.6  # share of the taller digit's rows that the other of two digits must have, too

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are the first column and row beyond it."""

    left: int
    top: int
    right: int
    bottom: int


Digit = tuple[Box, Floats]  # the box around a digit, the ink in it


def label(mask: Mask) -> Integers:
    """Number the 8-connected components of ``mask`` (H, W) from 1, in the order of their first pixels."""
    width = mask.shape[1] + 2
    flat = np.pad(mask, ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]  # of runs: stretches of True in a row
    # In the row below, the runs from first on, as many as counts, touch a run.
    first = np.searchsorted(ends, starts + width)
    counts = np.maximum(np.searchsorted(starts, ends + width, side="right") - first, 0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    root, before = np.arange(len(starts)), np.array([])
    while not np.array_equal(root, before):  # each run points to an earlier one of its component
        before, least = root, np.minimum(root[above], root[below])
        root = root.copy()
        np.minimum.at(root, before[above], least)
        np.minimum.at(root, before[below], least)
        root = root[root]
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.repeat(np.cumsum(root == np.arange(len(root)))[root], ends - starts)
    return labels


def measure(labels: Integers) -> tuple[Integers, Integers]:
    """Return the boxes (n, 4), like ``Box``, and the areas (n,) of the components 1 to n of ``labels``."""
    y, x = np.nonzero(labels)
    number = labels[y, x] - 1
    areas = np.bincount(number)
    boxes = np.tile(np.array([*labels.shape[::-1], 0, 0]), (len(areas), 1))
    for column, values in enumerate((x, y)):
        np.minimum.at(boxes[:, column], number, values)
        np.maximum.at(boxes[:, column + 2], number, values + 1)
    return boxes, areas


def dilate(mask: Mask, reach: int) -> Mask:
    """Return where ``mask`` (H, W) is True within ``reach`` rows and columns."""
    for _ in range(2):  # along the columns, then along the rows
        padded = np.pad(mask, ((reach, reach), (0, 0)))
        mask = reduce(np.logical_or, (padded[i : i + len(mask)] for i in range(2 * reach + 1))).T
    return mask


def erase(ink: Floats, others: Mask, own: Mask) -> Floats:
    """Set ``ink`` (H, W) to 0 where ``others`` is True, and beside it unless ``own`` is True there."""
    return np.where(dilate(others, 1) & ~own, 0, ink)


def drop_scraps(ink: Floats) -> Floats:
    """Erase the components of ``ink`` (H, W) that touch the picture's border and are no digits: step 7."""
    labels = label(ink >= STRONG)
    strip = math.ceil(STRIP * min(ink.shape))
    areas = np.bincount(labels.ravel())
    inner = np.bincount(labels[strip:-strip, strip:-strip].ravel(), minlength=len(areas))
    touching = np.zeros(len(areas), dtype=bool)
    touching[border(labels)] = True
    largest = (areas * ~touching)[1:].max(initial=0)
    scraps = touching & ((areas - inner >= INSIDE * areas) | (areas < LIGHT * largest))
    scraps[0] = False
    if not scraps.any() or scraps[1:].all():
        return ink
    return erase(ink, scraps[labels], (labels > 0) & ~scraps[labels])


def typical_height(boxes: Integers, areas: Integers) -> int:
    """Return the least height such that the ``boxes`` (n, 4) up to it have half of the ``areas`` (n,)."""
    heights = boxes[:, 3] - boxes[:, 1]
    order = np.argsort(heights, kind="stable")
    sums = np.cumsum(areas[order])
    return int(heights[order[np.searchsorted(2 * sums, sums[-1])]])


def overlap(a: Box, b: Box, axis: int) -> tuple[int, int, int]:
    """Return how many columns (axis 0) or rows (axis 1) the boxes share, and the shorter and longer extent.

    The first value is negative if there is a gap between the boxes.
    """
    shorter, longer = sorted((a[axis + 2] - a[axis], b[axis + 2] - b[axis]))
    return min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]), shorter, longer


def stacked(a: Box, b: Box, height: int) -> bool:
    """Return whether ``a`` and ``b`` are one above the other, like the pieces of a digit."""
    columns, narrower, _ = overlap(a, b, 0)
    rows, lower, _ = overlap(a, b, 1)
    return 2 * columns >= narrower and 2 * rows <= lower and -10 * rows <= 3 * height - 2 * lower


def join(boxes: Integers, large: Integers, height: int) -> Integers:
    """Give stacked components the same new label; return the new label of each old one, 0 to n: (n + 1,).

    ``boxes`` (n, 4) are the components' boxes. Those that aren't among the indices ``large`` (m,) get 0.
    ``height`` is the typical height of a component.
    """
    labels = np.zeros(len(boxes) + 1, dtype=np.int64)
    joined: dict[int, Box] = {}
    for new in (large + 1).tolist():
        box, labels[new] = Box(*boxes[new - 1].tolist()), new
        while old := next((old for old in joined if stacked(joined[old], box, height)), None):
            other = joined.pop(old)
            box = Box(*map(min, other[:2], box[:2]), *map(max, other[2:], box[2:]))
            labels[labels == old] = new
        joined[new] = box
    return np.unique(labels, return_inverse=True)[1]


def sort_into_lines(digits: list[Digit]) -> list[list[Digit]]:
    """Return ``digits`` as lines of text, from top to bottom, each from left to right."""
    lines: list[list[Digit]] = []
    for digit in sorted(digits, key=lambda digit: digit[0].left):
        for line in lines:
            rows, lower, _ = overlap(line[-1][0], digit[0], 1)
            if 2 * rows >= lower:
                line.append(digit)
                break
        else:
            lines.append([digit])
    return sorted(lines, key=lambda line: sum(box.top + box.bottom for box, _ in line) / len(line))


def find_digits(ink: Floats) -> list[list[Digit]]:
    """Return the digits in ``ink`` (H, W), line by line: a box around each, and the ink in it: steps 7 and 8.

    If there are fewer than two, the only box is the whole picture.
    """
    ink = drop_scraps(ink)
    strong, single = ink >= STRONG, [[(Box(0, 0, ink.shape[1], ink.shape[0]), ink)]]
    boxes, areas = measure(label(strong))
    if max(ink.shape) < SEVERAL or len(boxes) < 2:
        return single
    reach = max(1, math.floor(BRIDGED * typical_height(boxes, areas) + 0.5))
    labels = label(dilate(strong, reach)) * strong
    boxes, areas = measure(labels)
    height = typical_height(boxes, areas)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).max(axis=1) >= SPECK * height)
    if not 2 <= len(large) <= MOST:
        return single

    labels = join(boxes, large, height)[labels]
    boxes, areas = measure(labels)
    height, heights = typical_height(boxes, areas), boxes[:, 3] - boxes[:, 1]
    fits = (heights >= LOW * height) & (heights <= TALL * height)
    digits = []
    for i in np.flatnonzero(fits & (areas >= FAINT * areas.sum() / len(areas))):
        left, top, right, bottom = box = Box(*boxes[i].tolist())
        own = labels[top:bottom, left:right] == i + 1
        others = strong[top:bottom, left:right] & ~own
        digits.append((box, erase(ink[top:bottom, left:right], others, own)))
    if len(digits) == 2:
        rows, _, taller = overlap(digits[0][0], digits[1][0], 1)
        if rows < BESIDE * taller:
            return single
    return sort_into_lines(digits) if len(digits) > 1 else single
