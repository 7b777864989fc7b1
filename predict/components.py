"""Find the components of a mask, and the boxes around them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are the first column and row beyond it."""

    left: int
    top: int
    right: int
    bottom: int


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


def measure(labels: Integers) -> tuple[Integers, Integers, int]:
    """Return the boxes (n, 4), like ``Box``, and the areas (n,) of the components 1 to n of ``labels``.

    The last value is their typical height: the least such that the components up to it have half of the area.
    """
    y, x = np.nonzero(labels)
    number = labels[y, x] - 1
    areas = np.bincount(number)
    boxes = np.tile(np.array([*labels.shape[::-1], 0, 0]), (len(areas), 1))
    for column, values in enumerate((x, y)):
        np.minimum.at(boxes[:, column], number, values)
        np.maximum.at(boxes[:, column + 2], number, values + 1)
    heights = boxes[:, 3] - boxes[:, 1]
    order = np.argsort(heights, kind="stable")
    sums = np.cumsum(areas[order])
    return boxes, areas, int(heights[order[np.searchsorted(2 * sums, sums[-1])]])


def dilate(mask: Mask, reach: int) -> Mask:
    """Return where ``mask`` (H, W) is True within ``reach`` rows and columns."""
    for _ in range(2):  # along the columns, then along the rows
        mask, width = np.pad(mask, ((reach, reach), (0, 0))), 1
        while width <= 2 * reach:  # each row is that many rows in one
            step = min(width, 2 * reach + 1 - width)
            mask, width = mask[:-step] | mask[step:], width + step
        mask = mask.T
    return mask
