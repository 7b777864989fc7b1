"""Folders of pictures: one folder for each class."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from datasets.images import SIDE, Images, split_holdout
from datasets.pictures import PictureError, fit_to_28x28, read_picture
from runtime.errors import UserError
from runtime.files import warn

# The usual names of a data set's parts, in lower case.
TRAIN, TEST, VALIDATION = {"train", "training"}, {"test", "testing"}, {"val", "valid", "validation"}
# Hidden files, and what Windows, macOS and file servers add to a folder.
IGNORED = re.compile(r"\.|(thumbs\.db|desktop\.ini|__macosx|@eadir)$", re.IGNORECASE)
Samples = list[tuple[Path, int]]  # pictures and their labels


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
    samples = [(path, label) for label, path in enumerate(class_folders) for path in list_pictures(path)]
    if len(class_folders) < 2:
        raise UserError(
            f"--data-path {folder}: it needs 2 class folders or more, not {len(class_folders)}: CLASS/PICTURE"
        )
    warn_unused({root, folder} if train else {folder} - {root}, {*parts, *class_folders})
    if folder == root:
        samples = take_fifth(samples, train)
    images = np.empty((len(samples), SIDE, SIDE), dtype=np.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with open(path, "rb") as file:
                images[i] = read_picture(file, fit_to_28x28)
        except PictureError as error:
            raise UserError(f"{path}: {error}; replace or remove it") from None
    labels = torch.tensor([label for _, label in samples])
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
    train, test, validation = (
        [path for path in folders if path.name.lower() in names] for names in (TRAIN, TEST, VALIDATION)
    )
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


def take_fifth(samples: Samples, train: bool) -> Samples:
    """Return the fifth of ``samples`` that is the test set, or for ``train`` the others."""
    counts = Counter(label for _, label in samples)
    for path, label in samples:
        if counts[label] == 1:
            raise UserError(f"{path}: the only picture of its class; training and test need one each")
    labels = torch.tensor([label for _, label in samples])
    index = split_holdout(labels, -(-len(labels) // 5))[0 if train else 1]
    return [samples[i] for i in index.tolist()]
