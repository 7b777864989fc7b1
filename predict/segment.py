"""Find the digits in a picture's ink: steps 7 and 8 of ``predict.preprocess``."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.pictures import Floats, border

STRONG = 0.35  # ink that belongs to a component
STRIP, INSIDE, LIGHT = 0.1, 0.8, 0.3  # scraps: width of the strip, share of them in it, their weight
BRIDGED = 1 / 25  # of a digit's height: half of the gap that a broken stroke may have
SMALL = 0.15  # of a digit's height: a smaller piece is a speck
LOW, TALL, FAINT = 0.5, 2.0, 0.2  # of the others' height, height and weight: limits of a digit
SEVERAL = 40  # pixels: a smaller picture is of one digit
BESIDE = 0.6  # of the taller's height: what two digits have beside each other
MOST = 100  # pieces; more are no digits

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """Where a digit is, in pixels; ``right`` and ``bottom`` are the first column and row beyond it."""

    left: int
    top: int
    right: int
    bottom: int


def label(mask: Mask) -> Labels:
    """Number the 8-connected components of ``mask`` (H, W) from 1, in the order of their first pixels.

    The result is (H, W), 0 where ``mask`` is False. It joins runs: the stretches of True in a row.
    """
    height, width = mask.shape[0], mask.shape[1] + 2
    padded = np.zeros((height, width), dtype=bool)
    padded[:, 1:-1] = mask
    edges = np.flatnonzero(padded.ravel()[1:] != padded.ravel()[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    # The runs of the next row that touch a run, also diagonally, are those from first to last.
    first = np.searchsorted(ends, starts + width, side="left")
    counts = np.maximum(np.searchsorted(starts, ends + width, side="right") - first, 0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    root = np.arange(len(starts))
    while True:
        least = np.minimum(root[above], root[below])
        joined = root.copy()
        np.minimum.at(joined, root[above], least)
        np.minimum.at(joined, root[below], least)
        joined = joined[joined]
        if np.array_equal(joined, root):
            break
        root = joined
    numbers = np.cumsum(root == np.arange(len(root)))[root]
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.repeat(numbers, ends - starts)
    return labels


def measure(labels: Labels) -> tuple[Labels, Labels]:
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
    """Return True where ``mask`` (H, W) is True within ``reach`` rows and columns."""
    for _ in range(2):  # along the columns, then along the rows
        mask = np.pad(mask, ((reach, reach), (0, 0)))
        size = 1  # of the window that mask covers
        while size <= 2 * reach:
            step = min(size, 2 * reach + 1 - size)
            mask = mask[:-step] | mask[step:]
            size += step
        mask = mask.T
    return mask


def erase(ink: Floats, other: Mask, own: Mask) -> Floats:
    """Return ``ink`` without the pixels ``other`` and those that touch them, except for ``own``."""
    return np.where(dilate(other, 1) & ~own, 0, ink)


def drop_scraps(ink: Floats) -> Floats:
    """Return ``ink`` (H, W) without the components at the picture's border that are no digit: step 7."""
    labels = label(ink >= STRONG)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    strip = math.ceil(STRIP * min(ink.shape))
    inner = np.bincount(labels[strip:-strip, strip:-strip].ravel(), minlength=len(areas))
    touching = np.zeros(len(areas), dtype=bool)
    touching[border(labels)] = True
    heaviest = (areas * ~touching).max()
    scraps = touching & ((areas - inner >= INSIDE * areas) | (areas < LIGHT * heaviest))
    scraps[0] = False
    if not scraps.any() or scraps[1:].all():
        return ink
    scrap = scraps[labels]
    return erase(ink, scrap, (labels > 0) & ~scrap)


def typical(heights: Labels, areas: Labels) -> int:
    """Return the height that half of the ink lies in components of, or lower ones."""
    order = np.argsort(heights, kind="stable")
    weights = np.cumsum(areas[order])
    return int(heights[order][np.searchsorted(2 * weights, weights[-1])])


def join(boxes: list[Box], height: int) -> list[list[int]]:
    """Group the pieces ``boxes`` into digits: a piece right above or below another belongs to it."""
    groups = [[i] for i in range(len(boxes))]
    boxes, i = list(boxes), 0
    while i < len(groups):
        a = boxes[i]
        for j, b in enumerate(boxes):
            overlap = min(a.right, b.right) - max(a.left, b.left)
            gap = max(a.top, b.top) - min(a.bottom, b.bottom)
            narrower = min(a.right - a.left, b.right - b.left)
            lower = min(a.bottom - a.top, b.bottom - b.top)
            stacked = 2 * overlap >= narrower and 2 * gap >= -lower
            if i != j and stacked and 10 * gap <= 3 * height - 2 * lower:
                boxes[min(i, j)] = Box(*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:]))
                groups[min(i, j)] += groups[max(i, j)]
                del boxes[max(i, j)], groups[max(i, j)]
                i = -1
                break
        i += 1
    return groups


def side_by_side(boxes: Labels) -> bool:
    """Return whether the two ``boxes`` are beside each other, as two digits are and a broken one isn't."""
    both = boxes[:, 3].min() - boxes[:, 1].max()
    return bool(both >= BESIDE * (boxes[:, 3] - boxes[:, 1]).max())


def lines(boxes: list[Box]) -> list[list[int]]:
    """Return the indices of ``boxes`` line by line, from left to right in each."""
    rows: list[list[int]] = []
    for i in sorted(range(len(boxes)), key=lambda i: boxes[i].left):
        for row in rows:
            a, b = boxes[row[-1]], boxes[i]
            overlap = min(a.bottom, b.bottom) - max(a.top, b.top)
            if 2 * overlap >= min(a.bottom - a.top, b.bottom - b.top):
                row.append(i)
                break
        else:
            rows.append([i])
    return sorted(rows, key=lambda row: sum(boxes[i].top + boxes[i].bottom for i in row) / len(row))


def find_digits(ink: Floats) -> list[list[tuple[Box, Floats]]]:
    """Return the digits in ``ink`` (H, W), line by line: the box of each, and the ink in it. Steps 7 and 8.

    A picture of one digit is one box.
    """
    ink = drop_scraps(ink)
    whole = [[(Box(0, 0, ink.shape[1], ink.shape[0]), ink)]]
    if max(ink.shape) < SEVERAL:
        return whole
    strong = ink >= STRONG
    boxes, areas = measure(label(strong))
    height = typical(boxes[:, 3] - boxes[:, 1], areas)
    labels = label(dilate(strong, max(1, math.floor(BRIDGED * height + 0.5)))) * strong
    boxes, areas = measure(labels)
    sizes = boxes[:, 2:] - boxes[:, :2]
    height = typical(sizes[:, 1], areas)
    large = np.flatnonzero(sizes.max(axis=1) >= SMALL * height)
    if not 1 < len(large) <= MOST:
        return whole
    groups = [large[group] for group in join([Box(*box) for box in boxes[large].tolist()], height)]
    boxes = np.array([[*boxes[group].min(axis=0)[:2], *boxes[group].max(axis=0)[2:]] for group in groups])
    areas = np.array([areas[group].sum() for group in groups])
    heights = boxes[:, 3] - boxes[:, 1]
    height = typical(heights, areas)
    good = (heights >= LOW * height) & (heights <= TALL * height) & (areas >= FAINT * np.median(areas))
    chosen = np.flatnonzero(good)
    if len(chosen) < 2 or (len(chosen) == 2 and not side_by_side(boxes[chosen])):
        return whole
    found = []
    for i in chosen:
        box = Box(*boxes[i].tolist())
        near = labels[box.top : box.bottom, box.left : box.right]
        own = np.isin(near, groups[i] + 1)
        part = ink[box.top : box.bottom, box.left : box.right]
        found.append((box, erase(part, (near > 0) & ~own, own)))
    return [[found[i] for i in row] for row in lines([box for box, _ in found])]
