"""Read a picture of any format and size."""

import contextlib
import importlib
import math
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.mnist import SIDE
from runtime.errors import UserError

Floats = NDArray[np.float64]

LONGEST_SIDE = 1000  # pixels of a picture; more only cost time, as few are left in the end
with contextlib.suppress(ImportError):  # HEIC, the format of iPhones, where pillow-heif is installed
    importlib.import_module("pillow_heif").register_heif_opener()

HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")  # bytes 4 to 11 of a file
GREY = (0.299, 0.587, 0.114)  # share of red, green and blue in a grey (ITU-R BT.601, as in Pillow)


def read_picture(file: BinaryIO, enough: int = LONGEST_SIDE) -> tuple[Floats, float]:
    """Read the picture in ``file``, or an animation's first frame: return its ``read_colors``, and a scale.

    The file's picture has scale times as many pixels on each side. A large JPEG is decoded at a half, a
    quarter or an eighth of its size, as long as both sides keep ``enough`` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata: if the pixels can be had, that is enough
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                longer = max(picture.size)
                picture.draft(None, (enough, enough))
                rgb = read_colors(picture)
                return rgb, longer / max(rgb.shape[:2])
        except UnidentifiedImageError:
            problem = "it is not a picture that Pillow can read"
            with contextlib.suppress(OSError):  # a pipe can't be read again
                file.seek(0)
                if file.read(12)[4:] in HEIC:
                    problem = "it is a HEIC picture, which needs another package: pip install pillow-heif"
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            problem = f"it is too large: the limit is {Image.MAX_IMAGE_PIXELS:,} pixels"
        except Exception as error:  # Pillow's decoders have no common error: each has its own
            problem = "it is damaged: " + (str(error).partition("\n")[0] or type(error).__name__)
    raise UserError(problem)


def read_colors(picture: Image.Image) -> Floats:
    """Return the colours of ``picture``, RGB (H, W, 3) in [0, 1]: steps 1 to 3 in docs/predict.md.

    Raises what Pillow's decoders raise where the file is damaged, which can be any ``Exception``.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        low, high, picture = 0.0, 65535.0, picture.convert("I")
    elif picture.mode in ("I", "F"):
        low, high = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
    else:
        low, high = 0.0, 255.0
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture = picture.reduce(math.ceil(max(picture.size) / LONGEST_SIDE))
    values = (np.asarray(picture, dtype=np.float64) - low) / max(high - low, 1e-9)
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3, axis=2)
    if values.shape[2] == 3:
        return values
    rgb, alpha = values[:, :, :3], values[:, :, 3:]
    opaque = (rgb * alpha).sum(axis=(0, 1)) / max(alpha.sum(), 1e-9)
    ground = 1.0 if (1 - opaque).max() >= opaque.max() else 0.0
    return np.asarray(rgb * alpha + ground * (1 - alpha))


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost of ``pixels``, (H, W, …), each once, as (n, …)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def fit_to_28x28(rgb: Floats) -> NDArray[np.uint8]:
    """Scale a whole picture, ``rgb`` (H, W, 3), to a grey image, uint8 (28, 28), with its aspect ratio kept.

    Its longer side becomes 28 pixels, by Pillow's bicubic filter. It is centred, and the padding has the
    median of its border. A grey picture of 28×28 pixels stays as it is.
    """
    values = np.floor(np.nan_to_num(rgb @ GREY) * 255 + 0.5).astype(np.uint8)
    grey, scale = Image.fromarray(values), SIDE / max(values.shape)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in grey.size)
    image = Image.new("L", (SIDE, SIDE), int(np.median(border(values))))
    image.paste(grey.resize((width, height)), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.array(image)
