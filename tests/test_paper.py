"""A picture may show more than paper: the sheet in it is found, and what is none isn't taken for one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from draw_digits import Floats, draw_cutout, draw_sheet
from PIL import Image

from datasets import load_mnist
from pictures import colors, decode
from predict.__main__ import Answer, predict
from predict.paper import crop_to_sheet
from predict.prepare import read_digits
from trained import load_trained

TRAINED = load_trained(Path(__file__).parents[1] / "weights" / "best.pt")
EACH = 12  # pictures of a kind
DRAWN: dict[str, Callable[[int, Floats], Image.Image]] = {
    **{kind: partial(draw_sheet, kind=kind) for kind in ("desk", "turned", "side", "corner")},
    "white cutout": partial(draw_cutout, paper=250),
    "dark cutout": partial(draw_cutout, paper=40),
}


def answer(picture: Image.Image) -> Answer:
    return predict(TRAINED, read_digits(colors(decode(picture))))[0]


@pytest.mark.parametrize("kind", DRAWN)
def test_digits_on_a_sheet_are_read(kind: str) -> None:
    """Nearly all are right; three of twelve may be wrong, and one of these sure."""
    images, labels = load_mnist(train=False)
    answers = [answer(DRAWN[kind](seed, images[seed].numpy() / 255)) for seed in range(EACH)]
    wrong = [each for each, label in zip(answers, labels.tolist(), strict=False) if each.prediction != label]
    assert len(wrong) <= 3
    assert sum(not each.unsure for each in wrong) <= 1


def test_the_sheet_is_cropped_and_the_desk_gets_its_colour() -> None:
    rgb = np.full((200, 300, 3), 0.2)
    rgb[40:160, 60:240] = 0.9
    rgb[80:120, 140:150] = 0.1
    paper, sheet, origin = crop_to_sheet(rgb)
    assert np.abs(np.subtract(origin, (60, 40))).max() <= 10
    assert np.abs(np.subtract(paper.shape[:2], (120, 180))).max() <= 20
    assert sheet.all() and paper.shape[:2] == sheet.shape
    assert np.median(paper) == 0.9 and (paper[0] == 0.9).all() and (paper == 0.1).any()
    turned = colors(decode(draw_sheet(1, np.eye(28), "turned")))
    paper, sheet, _ = crop_to_sheet(turned)
    assert not sheet.all()
    assert np.ptp(paper[~sheet], axis=0).max() == 0


def test_what_is_no_sheet_stays() -> None:
    """A soft shadow, an empty sheet, a digit's own shape, two sheets, a small picture."""
    y, x = np.mgrid[:200, :200]
    pictures = {
        "shadow": 0.9 - 0.5 / (1 + np.exp((x - 120) / 10)),
        "empty": np.where((abs(x - 100) < 70) & (abs(y - 100) < 60), 0.9, 0.2),
        "two": np.where((abs(x - 50) < 35) | (abs(x - 150) < 35), 0.9, 0.2) * (abs(y - 100) < 60),
        "stroke": np.where((abs(x - 100) < 20) & (abs(y - 100) < 70), 0.1, 0.9),
    }
    written = (abs(x % 100 - 50) < 5) & (abs(y - 100) < 20)
    for name, grey in pictures.items():
        grey = grey if name in ("empty", "stroke") else np.where(written, 0.05, grey)
        paper, sheet, _ = crop_to_sheet(np.repeat(grey[:, :, None], 3, axis=2))
        assert sheet.all() and paper.shape[:2] == (200, 200), name
    small = np.repeat(pictures["empty"][::4, ::4, None], 3, axis=2)
    small[20:30, 25] = 0.1
    assert crop_to_sheet(small)[0].shape == small.shape
