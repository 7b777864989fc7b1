"""Pictures of any kind and size become images of 28×28 pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.pictures import fit_to_28x28, read_colors, read_picture
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
    image = fit_to_28x28(read_colors(original))
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
        read_picture(file)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (2000, 1))).save(tmp_path / "large.jpg", quality=95)
    with open(tmp_path / "large.jpg", "rb") as file:
        image = fit_to_28x28(read_picture(file, 224)[0])
    # 3000 × 2000 pixels become 28 × 19, from row 4 on.
    assert np.abs(image[10].astype(int) - (np.arange(28) + 0.5) / 28 * 255).max() <= 6
