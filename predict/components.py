"""Find the components of a mask, and the boxes around them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
    return np.asarray(ndimage.label(mask, np.ones((3, 3)))[0], dtype=np.int64)


def measure(labels: Integers) -> tuple[Integers, Integers, int]:
    """Return the boxes (n, 4), like ``Box``, and the areas (n,) of the components 1 to n of ``labels``.

    The last value is their typical height: the least such that the components up to it have half of the area.
    """
    boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(labels)])
    areas, heights = np.bincount(labels.ravel())[1:], boxes[:, 3] - boxes[:, 1]
    order = np.argsort(heights, kind="stable")
    sums = np.cumsum(areas[order])
    return boxes, areas, int(heights[order[np.searchsorted(2 * sums, sums[-1])]])


def dilate(mask: Mask, reach: int) -> Mask:
    """Return where ``mask`` (H, W) is True within ``reach`` rows and columns."""
    return np.asarray(ndimage.maximum_filter(mask, 2 * reach + 1))
