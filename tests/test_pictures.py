"""One picture is decoded, or a line says why it can't be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import read, round_half_up, to_bytes
from runtime.errors import UserError


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Make a picture of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_a_pixel_that_is_no_number_is_damage(tmp_path: Path) -> None:
    pixels = np.eye(28, dtype=np.float32)
    pixels[5, 5] = np.nan
    Image.fromarray(pixels).save(tmp_path / "nan.tiff")
    with open(tmp_path / "nan.tiff", "rb") as file, pytest.raises(UserError, match="a pixel is not a number"):
        read(file)


def test_a_bug_of_ours_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("RGB", (9, 9)).save(tmp_path / "good.png")
    monkeypatch.delattr(Image.Image, "has_transparency_data")  # as in Pillow before 10.1
    with open(tmp_path / "good.png", "rb") as file, pytest.raises(AttributeError):
        read(file)


@pytest.mark.parametrize(("value", "expected"), [(0.5, 1), (1.5, 2), (-0.5, 0), (2.49, 2), (-1.6, -2)])
def test_a_half_is_rounded_up(value: float, expected: int) -> None:
    assert round_half_up(value) == expected
    assert to_bytes(np.array([0.5, 1.5]) / 255).tolist() == [1, 2]
