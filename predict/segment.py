"""Find the digits in a picture's ink: steps 7 and 8 in docs/predict.md."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.pictures import Floats, border

STRONG = 0.35  # ink that belongs to a component
STRIP, INSIDE, LIGHT = (
    0.1,
    0.8,
    0.3,
)  # step 7: strip of the shorter side, share within it, share of the heaviest
SEVERAL, MOST = 40, 100  # pixels: a smaller picture is of one digit; pieces: more are no digits
BRIDGED, SPECK = 0.04, 0.15  # of the typical height: reach over gaps in a stroke, smallest piece
LOW, TALL, FAINT = 0.5, 2.0, 0.2  # of the typical height, twice; of the mean area: limits of a digit
BESIDE = 0.6  # of the taller's height: how much of two digits is beside each other

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are the first column and row beyond it."""

    left: int
    top: int
    right: int
    bottom: int


class Piece(NamedTuple):
    """Components that belong together: the box around them, their pixels, their numbers."""

    box: Box
    area: int
    numbers: list[int]


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
        mask, size = np.pad(mask, ((reach, reach), (0, 0))), 1
        while size <= 2 * reach:  # size: of the window that mask covers
            step = min(size, 2 * reach + 1 - size)
            mask, size = mask[:-step] | mask[step:], size + step
        mask = mask.T
    return mask


def erase(ink: Floats, others: Mask, own: Mask) -> Floats:
    """Return ``ink`` without the pixels of ``others`` and those that touch them, but with its ``own``."""
    return np.where(dilate(others, 1) & ~own, 0, ink)


def drop_scraps(ink: Floats) -> Floats:
    """Return ``ink`` (H, W) without what touches the picture's border and is no digit: step 7."""
    labels = label(ink >= STRONG)
    strip = math.ceil(STRIP * min(ink.shape))
    areas = np.bincount(labels.ravel())
    inner = np.bincount(labels[strip:-strip, strip:-strip].ravel(), minlength=len(areas))
    touching = np.zeros(len(areas), dtype=bool)
    touching[border(labels)] = True
    heaviest = (areas * ~touching)[1:].max(initial=0)
    scraps = touching & ((areas - inner >= INSIDE * areas) | (areas < LIGHT * heaviest))
    scraps[0] = False
    if not scraps.any() or scraps[1:].all():
        return ink
    return erase(ink, scraps[labels], (labels > 0) & ~scraps[labels])


def typical_height(boxes: Integers, areas: Integers) -> int:
    """Return the least height such that ``boxes`` of at most this height hold half of the ``areas``."""
    heights = boxes[:, 3] - boxes[:, 1]
    order = np.argsort(heights, kind="stable")
    sums = np.cumsum(areas[order])
    return int(heights[order[np.searchsorted(2 * sums, sums[-1])]])


def stacked(a: Box, b: Box, height: int) -> bool:
    """Return whether one of ``a`` and ``b`` is right above the other, as the pieces of one digit are."""
    across = min(a.right, b.right) - max(a.left, b.left)
    gap = max(a.top, b.top) - min(a.bottom, b.bottom)
    narrower, lower = min(a.right - a.left, b.right - b.left), min(a.bottom - a.top, b.bottom - b.top)
    return 2 * across >= narrower and -lower <= 2 * gap and 10 * gap <= 3 * height - 2 * lower


def join(pieces: list[Piece], height: int) -> list[Piece]:
    """Join those of ``pieces`` that are stacked, until none are."""
    joined: list[Piece] = []
    for piece in pieces:
        while other := next((each for each in joined if stacked(each.box, piece.box, height)), None):
            joined.remove(other)
            box = Box(*map(min, other.box[:2], piece.box[:2]), *map(max, other.box[2:], piece.box[2:]))
            piece = Piece(box, other.area + piece.area, other.numbers + piece.numbers)
        joined.append(piece)
    return joined


def beside(a: Box, b: Box) -> tuple[int, int, int]:
    """Return how many rows ``a`` and ``b`` share, and the heights of the lower and the taller."""
    heights = sorted((a.bottom - a.top, b.bottom - b.top))
    return min(a.bottom, b.bottom) - max(a.top, b.top), heights[0], heights[1]


def lines(pieces: list[Piece]) -> list[list[Piece]]:
    """Sort ``pieces`` into lines, from top to bottom, each from left to right."""
    found: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.box.left):
        for line in found:
            shared, lower, _ = beside(line[-1].box, piece.box)
            if 2 * shared >= lower:
                line.append(piece)
                break
        else:
            found.append([piece])
    return sorted(found, key=lambda line: sum(p.box.top + p.box.bottom for p in line) / len(line))


def find_digits(ink: Floats) -> list[list[tuple[Box, Floats]]]:
    """Return the digits in ``ink`` (H, W), line by line: a box around each, and the ink in it.

    The box of a single digit is the whole picture. Steps 7 and 8.
    """
    ink = drop_scraps(ink)
    strong, whole = ink >= STRONG, [[(Box(0, 0, ink.shape[1], ink.shape[0]), ink)]]
    boxes, areas = measure(label(strong))
    if max(ink.shape) < SEVERAL or len(boxes) < 2:
        return whole
    reach = max(1, math.floor(BRIDGED * typical_height(boxes, areas) + 0.5))
    labels = label(dilate(strong, reach)) * strong
    boxes, areas = measure(labels)
    height = typical_height(boxes, areas)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).max(axis=1) >= SPECK * height)
    if not 2 <= len(large) <= MOST:
        return whole
    pieces = join([Piece(Box(*boxes[i].tolist()), int(areas[i]), [i + 1]) for i in large], height)
    height = typical_height(np.array([p.box for p in pieces]), np.array([p.area for p in pieces]))
    least = FAINT * sum(piece.area for piece in pieces) / len(pieces)
    low, tall = LOW * height, TALL * height
    digits = [p for p in pieces if low <= p.box.bottom - p.box.top <= tall and p.area >= least]
    if len(digits) == 2:
        shared, _, taller = beside(digits[0].box, digits[1].box)
        if shared < BESIDE * taller:
            return whole
    if len(digits) < 2:
        return whole

    def cut(piece: Piece) -> tuple[Box, Floats]:
        left, top, right, bottom = piece.box
        near = labels[top:bottom, left:right]
        own = np.isin(near, piece.numbers)
        return piece.box, erase(ink[top:bottom, left:right], (near > 0) & ~own, own)

    return [[cut(piece) for piece in line] for line in lines(digits)]
