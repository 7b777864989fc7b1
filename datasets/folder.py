"""Read folders of pictures as a data set: one folder for each class."""

import re
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.mnist import Images, split_holdout
from pictures import SIDE, Bytes, Floats, border, read, round_half_up, to_bytes
from runtime.errors import UserError, warn

ENOUGH = 8 * SIDE  # pixels on each side of a JPEG, for fit_to_28x28
GREY = (0.299, 0.587, 0.114)  # share of red, green and blue in a grey (ITU-R BT.601, as in Pillow)
# The usual names of the folders of the training and the test set, in lower case, by descending priority.
PARTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")
# Hidden files, and what Windows, macOS and file servers add to a folder.
IGNORED = re.compile(r"\.|(thumbs\.db|desktop\.ini|__macosx|@eadir)$", re.IGNORECASE)


def fit_to_28x28(rgb: Floats) -> Bytes:
    """Scale a whole picture, ``rgb`` (H, W, 3), to a grey image, uint8 (28, 28), with its aspect ratio kept.

    Its longer side becomes 28 pixels, by Pillow's bicubic filter. It is centred, and the padding has the
    median of its border. A grey picture of 28×28 pixels stays as it is.
    """
    values = to_bytes(rgb @ GREY)
    grey, scale = Image.fromarray(values), SIDE / max(values.shape)
    width, height = (max(1, round_half_up(side * scale)) for side in grey.size)
    image = Image.new("L", (SIDE, SIDE), int(np.median(border(values))))
    image.paste(grey.resize((width, height)), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.array(image)


def load_folder(data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read the training or the test set from folders of pictures, which are named after their classes.

    - Pictures are in train/CLASS and test/CLASS under ``data_path``, or only in CLASS. Then a fifth of them,
      rounded up, is the test set, with a picture of each class. The same files always give the same one.
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
        raise UserError(f"--data-path {folder}: it needs 2 class folders or more, not {len(pictures)}")
    warn_unused({root, folder} if train else {folder} - {root}, {*parts, *class_folders})
    paths = [path for of_class in pictures for path in of_class]
    labels = torch.tensor([label for label, of_class in enumerate(pictures) for _ in of_class])
    if folder == root:
        if len(fewest := min(pictures, key=len)) < 2:
            raise UserError(f"{fewest[0]}: the only picture of its class; training and test need one each")
        chosen = choose_test(labels) != train
        paths, labels = list(compress(paths, chosen)), labels[chosen]
    images = np.empty((len(paths), SIDE, SIDE), dtype=np.uint8)
    for i, path in enumerate(paths):
        try:
            with open(path, "rb") as file:
                images[i] = fit_to_28x28(read(file, ENOUGH)[0])
        except UserError as error:
            raise UserError(f"{path}: {error}; replace or remove it") from None
    return (torch.from_numpy(images), labels), tuple(path.name for path in class_folders)


def choose_test(labels: Tensor) -> Tensor:
    """Choose the test set of pictures with these ``labels``, int64 (N,): a fifth, rounded up, as bool (N,).

    A class too small for a share in that fifth has its first picture in the test set, too.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[split_holdout(labels, -(-len(labels) // 5))[1]] = True
    for label in set(labels.tolist()) - set(labels[chosen].tolist()):
        chosen[labels.tolist().index(label)] = True
    return chosen


def list_visible(folder: Path) -> list[Path]:
    """List the files and folders in ``folder`` by name, without those to be ``IGNORED``."""
    paths = [path for path in folder.iterdir() if not IGNORED.match(path.name)]
    return sorted(paths, key=lambda path: path.name)  # paths themselves sort in another order on Windows


def find_parts(root: Path) -> tuple[Path, Path]:
    """Return the folders of the training and the test set: both are ``root`` if it holds the classes."""
    folders = {path.name.lower(): path for path in list_visible(root) if path.is_dir()}
    train, test = (next((folders[name] for name in names if name in folders), root) for names in PARTS)
    return (root, root) if root in (train, test) else (train, test)


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures of a class: all visible files in its ``folder``, which must have no subfolders."""
    paths = list_visible(folder)
    if not paths or any(path.is_dir() for path in paths):
        layout = "CLASS/PICTURE, or train/CLASS/PICTURE and test/CLASS/PICTURE"
        raise UserError(f"{folder} holds {'folders' if paths else 'no pictures'}: --data-path needs {layout}")
    if others := [path for path in paths if not path.is_file()]:  # a pipe would wait for ever
        raise UserError(f"{others[0]}: it is not a file; remove it")
    return paths


def warn_unused(folders: set[Path], used: set[Path]) -> None:
    """Name what is in ``folders`` but is not ``used``."""
    unused = [str(path) for folder in sorted(folders) for path in list_visible(folder) if path not in used]
    if unused:
        more = f" and {len(unused) - 5:,} more" if len(unused) > 5 else ""
        warn(f"these are not part of the training or test set: {', '.join(unused[:5])}{more}")
