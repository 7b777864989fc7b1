"""Read pictures of any format and size, and folders of them: one folder for each class."""

import contextlib
import functools
import importlib
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from datasets.mnist import SIDE, Images, split_holdout
from runtime.errors import UserError, warn

Floats = NDArray[np.float64]

LONGEST_SIDE = 1000  # pixels of a picture; more only cost time, as few are left in the end
ENOUGH = 8 * SIDE  # pixels on each side of a JPEG, for fit_to_28x28
HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")  # bytes 4 to 11 of a file
GREY = (0.299, 0.587, 0.114)  # share of red, green and blue in a grey (ITU-R BT.601, as in Pillow)
# How a picture of each EXIF orientation becomes upright.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The usual names of a data set's parts, in lower case: training, test and validation set.
PARTS = {"train", "training"}, {"test", "testing"}, {"val", "valid", "validation"}
# Hidden files, and what Windows, macOS and file servers add to a folder.
IGNORED = re.compile(r"\.|(thumbs\.db|desktop\.ini|__macosx|@eadir)$", re.IGNORECASE)


@functools.cache
def register_heic() -> None:
    """Let Pillow open HEIC, the format of iPhones, if pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def read_picture(file: BinaryIO, enough: int = LONGEST_SIDE) -> tuple[Floats, float]:
    """Read the picture in ``file``, or an animation's first frame: return its ``read_colors``, and a scale.

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
            problem = "it can't be read: " + (str(error).partition("\n")[0] or type(error).__name__)
    raise UserError(problem)


def read_colors(picture: Image.Image) -> Floats:
    """Return the colours of ``picture``, RGB (H, W, 3) in [0, 1]: steps 1 to 3 in docs/predict.md.

    Raises what Pillow's decoders raise where the file is damaged, which can be any ``Exception``.
    """
    picture.load()  # a TIFF is turned by Pillow here, which also drops its tag
    # ImageOps.exif_transpose does the same, but fails if another EXIF tag is damaged.
    orientation = 1
    with contextlib.suppress(Exception):  # its readers have no common error
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in TRANSPOSES:
        picture = picture.transpose(TRANSPOSES[orientation])
    if picture.mode.startswith("I;16"):
        low, high, picture = 0.0, 65535.0, picture.convert("I")
    elif picture.mode in ("I", "F"):
        low, high = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
    else:
        low, high = 0.0, 255.0
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture = picture.reduce(math.ceil(max(picture.size) / LONGEST_SIDE))
    values = (np.asarray(picture, dtype=np.float64) - low) / max(high - low, 1e-9)
    if not np.isfinite(values).all():  # in a TIFF of floats
        raise ValueError("a pixel is not a number")
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3, axis=2)
    if values.shape[2] == 3:
        return values
    rgb, alpha = values[:, :, :3], values[:, :, 3:]
    opaque = (rgb * alpha).sum(axis=(0, 1)) / max(alpha.sum(), 1e-9)
    ground = 1.0 if (1 - opaque).max() >= opaque.max() else 0.0
    return np.asarray(rgb * alpha + ground * (1 - alpha))


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost of ``pixels``, (H, W, …), each once (if H or W is 1: twice), as (n, …)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def fit_to_28x28(rgb: Floats) -> NDArray[np.uint8]:
    """Scale a whole picture, ``rgb`` (H, W, 3), to a grey image, uint8 (28, 28), with its aspect ratio kept.

    Its longer side becomes 28 pixels, by Pillow's bicubic filter. It is centred, and the padding has the
    median of its border. A grey picture of 28×28 pixels stays as it is.
    """
    values = np.floor(rgb @ GREY * 255 + 0.5).astype(np.uint8)
    grey, scale = Image.fromarray(values), SIDE / max(values.shape)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in grey.size)
    image = Image.new("L", (SIDE, SIDE), int(np.median(border(values))))
    image.paste(grey.resize((width, height)), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.array(image)


def load_folder(data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read the training or the test set from folders of pictures, which are named after their classes.

    - Pictures are in train/CLASS and test/CLASS under ``data_path``, or only in CLASS. Then a fifth of them,
      rounded up, is the test set. The same files always give the same one.
    - It returns images as ``fit_to_28x28`` makes them, by class and file name, their labels, and the names of
      the classes, in alphabetical order.
    - Hidden files are ignored. A warning names anything else outside the class folders.
    """
    root = Path(data_path)
    parts = find_parts(root)
    folder = parts[0 if train else 1]
    class_folders = [path for path in list_visible(folder) if path.is_dir()]
    pictures = [list_pictures(path) for path in class_folders]
    if len(pictures) < 2:
        raise UserError(
            f"--data-path {folder}: it needs 2 class folders or more, not {len(pictures)}: CLASS/PICTURE"
        )
    warn_unused({root, folder} if train else {folder} - {root}, {*parts, *class_folders})
    paths = [path for of_class in pictures for path in of_class]
    labels = torch.tensor([label for label, of_class in enumerate(pictures) for _ in of_class])
    if folder == root:
        for path, *others in pictures:
            if not others:
                raise UserError(f"{path}: the only picture of its class; training and test need one each")
        index = split_holdout(labels, -(-len(labels) // 5))[0 if train else 1]
        paths, labels = [paths[i] for i in index.tolist()], labels[index]
    images = np.empty((len(paths), SIDE, SIDE), dtype=np.uint8)
    for i, path in enumerate(paths):
        try:
            with open(path, "rb") as file:
                images[i] = fit_to_28x28(read_picture(file, ENOUGH)[0])
        except UserError as error:
            raise UserError(f"{path}: {error}; replace or remove it") from None
    classes = [os.fsencode(path.name).decode(errors="replace") for path in class_folders]  # valid Unicode
    return (torch.from_numpy(images), labels), tuple(classes)


def list_visible(folder: Path) -> list[Path]:
    """List the files and folders in ``folder`` by name, without those to be ``IGNORED``."""
    paths = [path for path in folder.iterdir() if not IGNORED.match(path.name)]
    return sorted(paths, key=lambda path: path.name)  # paths themselves sort in another order on Windows


def find_parts(root: Path) -> tuple[Path, Path]:
    """Return the folders of the training and the test set in ``root``: both ``root`` if it holds the classes.

    A validation set is the test set if there is no other.
    """
    folders = [path for path in list_visible(root) if path.is_dir()]
    train, test, validation = ([path for path in folders if path.name.lower() in names] for names in PARTS)
    test = test or validation
    for part in train, test:
        if len(part) > 1:
            raise UserError(
                f"{part[0]} and {part[1]}: only one of them can be used; move the other elsewhere"
            )
    return (train[0], test[0]) if train and test else (root, root)


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures of a class: all visible files in its ``folder``, which must have no subfolders."""
    paths = list_visible(folder)
    if any(path.is_dir() for path in paths):
        raise UserError(
            f"{folder} holds folders instead of pictures: --data-path needs CLASS/PICTURE, "
            "or train/CLASS/PICTURE and test/CLASS/PICTURE"
        )
    if not paths:
        raise UserError(f"{folder}: a class without pictures; add some, or remove the folder")
    return paths


def warn_unused(folders: set[Path], used: set[Path]) -> None:
    """Name what is in ``folders`` but is not ``used``."""
    unused = [str(path) for folder in sorted(folders) for path in list_visible(folder) if path not in used]
    if unused:
        more = f" and {len(unused) - 5:,} more" if len(unused) > 5 else ""
        warn(f"these are not part of the training or test set: {', '.join(unused[:5])}{more}")
