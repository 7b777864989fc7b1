"""Find the digits in a picture's ink: step 5 in docs/predict.md."""

import numpy as np

from pictures import Floats, round_half_up
from predict.components import Box, Integers, Mask, dilate, label, measure
from predict.ink import MOST, erase

STRONG = 0.35  # ink that belongs to a component
# A gap in a stroke that is bridged, on each side: share of the typical height, but at least of the picture.
BRIDGED, AT_LEAST = 0.04, 0.005
SPECK = 0.15  # smallest piece, as a share of the typical height
SHORTEST, TALLEST = 0.5, 2.0  # a digit's height, as a multiple of the typical height
LEAST = 8  # pixels of a digit's height
BESIDE = 0.75  # share of the taller digit's rows that the other of two digits must have, too


def overlap(a: Box, b: Box, axis: int) -> tuple[int, int]:
    """Return how many columns (axis 0) or rows (axis 1) the boxes share, and how many the smaller one has.

    The first value is negative for a gap.
    """
    shared = min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])
    return shared, min(a[axis + 2] - a[axis], b[axis + 2] - b[axis])


def stacked(a: Box, b: Box, height: int) -> bool:
    """Return whether ``a`` and ``b`` are one above the other, like the pieces of a digit."""
    columns, narrower = overlap(a, b, 0)
    rows, lower = overlap(a, b, 1)
    return 2 * columns >= narrower and 2 * rows <= lower and -10 * rows <= 3 * height - 2 * lower


def find_pieces(strong: Mask) -> Integers:
    """Number the pieces that digits are of in ``strong`` ink (H, W), from 1; 0 is all else.

    Close components are one piece, and so are stacked ones. If there is one digit only, all is one piece.
    """
    _, _, height = measure(label(strong))
    reach = max(int(BRIDGED * height), round_half_up(AT_LEAST * max(strong.shape)))
    labels = label(dilate(strong, reach)) * strong
    boxes, _, height = measure(labels)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).max(axis=1) >= SPECK * height)
    if not 2 <= len(large) <= MOST:
        return strong.astype(np.int64)
    numbers = np.zeros(len(boxes) + 1, dtype=np.int64)  # of the pieces, by label
    joined: dict[int, Box] = {}
    for new in (large + 1).tolist():
        box, numbers[new] = Box(*boxes[new - 1].tolist()), new
        while old := next((old for old in joined if stacked(joined[old], box, height)), None):
            other = joined.pop(old)
            box = Box(*map(min, other[:2], box[:2]), *map(max, other[2:], box[2:]))
            numbers[numbers == old] = new
        joined[new] = box
    return np.unique(numbers, return_inverse=True)[1][labels]


def find_digits(ink: Floats) -> list[list[tuple[Box, Floats]]]:
    """Return the digits in ``ink`` (H, W), line by line: a box around each, and the ink in it.

    If there are fewer than two, the only box is the whole picture.
    """
    labels = find_pieces(ink >= STRONG)
    boxes, _, height = measure(labels)
    heights = boxes[:, 3] - boxes[:, 1]
    fits = (heights >= max(SHORTEST * height, LEAST)) & (heights <= TALLEST * height)
    tops, bottoms = boxes[fits, 1], boxes[fits, 3]
    broken = len(tops) == 2 and bottoms.min() - tops.max() < BESIDE * (bottoms - tops).max()
    if broken or len(tops) < 2:
        return [[(Box(0, 0, ink.shape[1], ink.shape[0]), ink)]]
    lines: list[list[tuple[Box, Floats]]] = []
    for i in sorted(np.flatnonzero(fits), key=lambda i: int(boxes[i, 0])):  # from left to right
        box = Box(*boxes[i].tolist())
        part = slice(box.top, box.bottom), slice(box.left, box.right)
        own = labels[part] == i + 1
        digit = box, erase(ink[part], (ink[part] >= STRONG) & ~own, own)
        for line in lines:
            rows, lower = overlap(line[-1][0], box, 1)
            if 2 * rows >= lower:
                line.append(digit)
                break
        else:
            lines.append([digit])
    return sorted(lines, key=lambda line: sum(box.top + box.bottom for box, _ in line) / len(line))
