"""Pictures of any kind and size become images of 28×28 pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import colors, decode, fit_to_28x28, read, round_half_up, to_bytes
from runtime.errors import UserError


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Make a picture of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (90, 30), (7, 20), (1, 500)])
def test_any_picture_is_scaled_and_padded(mode: str, size: tuple[int, int]) -> None:
    if mode == "I;16":
        grey = picture("L", size)
        original = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        original = picture(mode, size)
        grey = original.convert("RGB").convert("L")
    image = fit_to_28x28(colors(decode(original)))
    assert image.shape == (28, 28) and image.dtype == np.uint8
    width, height = (max(1, round(28 * side / max(size))) for side in size)
    left, top = (28 - width) // 2, (28 - height) // 2
    inside = np.zeros((28, 28), dtype=bool)
    inside[top : top + height, left : left + width] = True
    expected = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    # Pillow rounds differently when it converts colours to grey.
    assert np.abs(image[inside].reshape(height, width) - expected).max() <= 2
    if mode == "L" and size == (28, 28):
        assert np.array_equal(image, np.asarray(grey))
    pixels = np.asarray(grey).astype(int)
    border = [*pixels[0], *pixels[-1], *pixels[1:-1, 0], *pixels[1:-1, -1]]
    assert all(abs(int(value) - np.median(border)) <= 2 for value in image[~inside])


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


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (2000, 1))).save(tmp_path / "large.jpg", quality=95)
    with open(tmp_path / "large.jpg", "rb") as file:
        image = fit_to_28x28(read(file, 224)[0])
    # 3000 × 2000 pixels become 28 × 19, from row 4 on.
    assert np.abs(image[10].astype(int) - (np.arange(28) + 0.5) / 28 * 255).max() <= 6
