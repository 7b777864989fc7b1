"""Digits are found, each whole, in the order of reading."""

import numpy as np
import pytest
from draw_digits import draw

from pictures import Floats
from predict.segment import find_digits


def place(*digits: tuple[str, int, int, int]) -> Floats:
    """Return ink (400, 800) with ``digits``: pen, left, top and side of each."""
    ink = np.zeros((400, 800))
    for name, left, top, side in digits:
        np.maximum(ink, draw(name, (800, 400), (left, top, side, side), side / 12), out=ink)
    return ink


def lefts(ink: Floats) -> list[list[int]]:
    """Return each digit's left side, line by line, in hundreds of pixels, rounded down."""
    return [[box.left // 100 for box, _ in line] for line in find_digits(ink)]


def test_digits_are_in_the_order_of_reading() -> None:
    numbers = [("3a", 600, 10, 120), ("1a", 100, 30, 120), ("7b", 300, 20, 120)]
    assert lefts(place(*numbers)) == [[1, 3, 6]]
    below = [(name, left, top + 200, side) for name, left, top, side in numbers]
    assert lefts(place(*below, *numbers)) == [[1, 3, 6], [1, 3, 6]]
    rising = [("0a", 100 * i, 260 - 40 * i, 90) for i in range(7)]
    assert lefts(place(*rising)) == [list(range(7))]


def test_sizes_may_differ_and_specks_are_no_digits() -> None:
    ink = place(("4a", 100, 40, 200), ("0a", 300, 90, 140), ("9b", 500, 40, 190))
    ink[300:304, 700:704] = ink[20, 20:50] = 1
    assert lefts(ink) == [[1, 3, 5]]


def test_a_broken_stroke_is_one_digit() -> None:
    """Alone, with a cut through it, or a 5 whose bar is off; and beside other digits."""
    for name in ("5a", "2a", "3b", "8a"):
        ink = place((name, 300, 100, 200))
        ink[195:199] = 0
        assert len(find_digits(ink)[0]) == 1
        many = np.maximum(ink, place(("0a", 20, 100, 200), ("6a", 550, 100, 200)))
        many[195:199, 300:500] = 0
        assert lefts(many) == [[0, 3, 5]]
    ink = place(("0a", 20, 100, 200), ("6a", 550, 100, 200))
    ink[90:105, 340:440] = 1  # a bar, and below it the rest of a 5
    ink[130:300, 330:345] = ink[190:205, 330:430] = ink[285:300, 330:430] = ink[190:300, 420:435] = 1
    assert lefts(ink) == [[0, 3, 5]]


def test_neighbours_are_not_in_a_digits_ink() -> None:
    """The box of a leaning 7 reaches over the 1 beside it."""
    ink = place(("7a", 100, 100, 200), ("0a", 400, 100, 200))
    ink[190:300, 255:267] = 1
    ((seven, one, zero),) = find_digits(ink)
    assert one[0].left < seven[0].right
    assert sum(part.sum() for _, part in (seven, one, zero)) == pytest.approx(ink.sum(), rel=0.02)


def test_too_many_pieces_are_no_digits() -> None:
    ink = np.zeros((400, 400))
    ink[10:390:20, 10:390:20] = ink[11:390:20, 10:390:20] = 1
    assert lefts(ink) == [[0]]
