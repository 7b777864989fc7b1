"""Decode one picture of any format and size: a file becomes colours, or a grey image of 28×28 pixels."""

import contextlib
import functools
import importlib
import math
import warnings
from functools import reduce
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.errors import UserError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

SIDE = 28  # pixels of an image that a network reads
LONGEST_SIDE = 1000  # pixels of a picture; more only cost time, as few are left in the end


def round_half_up(value: float) -> int:
    """Round ``value`` to the nearest integer, and a half up."""
    return math.floor(value + 0.5)


def to_bytes(values: Floats) -> Bytes:
    """Scale ``values`` in [0, 1] to [0, 255], and round them half up."""
    return (values * 255 + 0.5).astype(np.uint8)  # which cuts off, and so rounds down


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost of ``pixels``, (H, W, …), each once (if H or W is 1: twice), as (n, …)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def distance(rgb: Floats, background: Floats) -> Floats:
    """Return the largest difference over R, G, B, (H, W), of ``rgb`` to ``background``, (3,) or (H, W, 3)."""
    channels = np.moveaxis(abs(rgb - background), 2, 0)
    return reduce(np.maximum, channels)  # several times as fast as .max(axis=2)


@functools.cache
def register_heic() -> None:
    """Let Pillow open HEIC, the format of iPhones, if pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def read(file: BinaryIO, enough: int = LONGEST_SIDE) -> tuple[Floats, float]:
    """Read the picture in ``file``, or an animation's first frame: return its ``colors``, and a scale.

    The file's picture has scale times as many pixels on each side. A large JPEG is decoded at a half, a
    quarter or an eighth of its size, as long as both sides keep ``enough`` pixels.
    """
    register_heic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata: if the pixels can be had, that is enough
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                longer = max(picture.size)
                picture.draft(None, (enough, enough))
                decoded = decode(picture)
        except UnidentifiedImageError:
            problem = "it is not a picture that Pillow can read (HEIC needs: pip install pillow-heif)"
            raise UserError(problem) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError(f"it is too large: the limit is {Image.MAX_IMAGE_PIXELS:,} pixels") from None
        except Exception as error:  # Pillow's decoders have no common error for a damaged file
            if isinstance(error, (AttributeError, NameError)):  # a bug, which keeps its traceback
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"it can't be read: {reason}") from None
    rgb = colors(decoded)
    return rgb, longer / max(rgb.shape[:2])


def decode(picture: Image.Image) -> Image.Image:
    """Return ``picture`` upright, as its EXIF tag says, in the mode RGB or RGBA, or a grey one as it is."""
    picture.load()  # a TIFF is turned by Pillow here, which also drops its tag
    with contextlib.suppress(Exception):  # another EXIF tag may be damaged; the picture is upright by then
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith(("I", "F")):  # more than 8 bits
        return picture
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def colors(picture: Image.Image) -> Floats:
    """Return the colours of a decoded ``picture``, RGB (H, W, 3) in [0, 1], with at most 1,000 pixels a side.

    Step 1 in docs/predict.md. A transparent picture is laid on black or white.
    """
    low, high = 0.0, 255.0
    if picture.mode.startswith("I;16"):
        high, picture = 65535.0, picture.convert("I")
    elif picture.mode in ("I", "F"):
        low, high = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
    picture = picture.reduce(math.ceil(max(picture.size) / LONGEST_SIDE))
    values = (np.asarray(picture, dtype=np.float64) - low) / max(high - low, 1e-9)
    if not np.isfinite(values).all():  # in a TIFF of floats
        raise UserError("it can't be read: a pixel is not a number")
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3, axis=2)
    if values.shape[2] == 3:
        return values
    rgb, alpha = values[:, :, :3], values[:, :, 3:]
    opaque = (rgb * alpha).sum(axis=(0, 1)) / max(alpha.sum(), 1e-9)
    ground = 1.0 if (1 - opaque).max() >= opaque.max() else 0.0
    return np.asarray(rgb * alpha + ground * (1 - alpha))
