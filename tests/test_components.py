"""Components, their boxes and areas, and dilation, on a mask that one can check by eye."""

import numpy as np

from predict.components import dilate, label, measure

ROWS = """
##....#
..#...#
......#
.#.....
"""
MASK = np.array([[char == "#" for char in row] for row in ROWS.split()])


def test_components_touch_at_corners_too() -> None:
    assert label(MASK).tolist() == [
        [1, 1, 0, 0, 0, 0, 2],
        [0, 0, 1, 0, 0, 0, 2],
        [0, 0, 0, 0, 0, 0, 2],
        [0, 3, 0, 0, 0, 0, 0],
    ]


def test_boxes_areas_and_the_height_that_half_of_the_area_has() -> None:
    boxes, areas, height = measure(label(MASK))
    assert boxes.tolist() == [[0, 0, 3, 2], [6, 0, 7, 3], [1, 3, 2, 4]]
    assert areas.tolist() == [3, 3, 1] and height == 2


def test_dilation_reaches_diagonally() -> None:
    expected = np.zeros((9, 9), dtype=bool)
    expected[2:7, 0:5] = True
    one = np.zeros((9, 9), dtype=bool)
    one[4, 2] = True
    assert np.array_equal(dilate(one, 2), expected)
