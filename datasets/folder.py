"""Folders of pictures: one folder for each class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.images import SIDE, Images, split_holdout
from datasets.pictures import PictureError, fit_to_28x28, read_picture
from runtime.errors import UserError

# The usual names of the two halves, in any case; of two test sets, the first in this order is used.
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


def load_folder(data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read pictures from folders that are named after their classes.

    They are in train/CLASS and test/CLASS under ``data_path``, or in CLASS alone. Then a fifth, rounded up,
    is the test set: the same files always give the same one, and each class keeps its share.
    Returns images as ``fit_to_28x28`` makes them and labels, by class and file name, and the names of the classes.
    """
    root = Path(data_path)
    halves = find_halves(root)
    folder = root if halves is None else halves[0 if train else 1]
    classes = sorted(list_folder(folder)[0])
    if len(classes) < 2:
        found = f"only one class, {classes[0].name!r}" if classes else "no folder named after a class"
        raise UserError(f"--data-path {folder}: {found}; two are needed")
    samples = [(path, label) for label, kind in enumerate(classes) for path in list_pictures(kind)]
    if halves is None:
        samples = take_fifth(samples, train)
    images = np.empty((len(samples), SIDE, SIDE), dtype=np.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with open(path, "rb") as file:
                images[i] = read_picture(file, fit_to_28x28)
        except PictureError as error:
            raise UserError(f"{path}: {error}") from None
    labels = torch.tensor([label for _, label in samples])
    return (torch.from_numpy(images), labels), tuple(kind.name for kind in classes)


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other files in ``folder``, without hidden ones."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]


def find_halves(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training and the test set in ``root``; None if it holds the classes itself."""
    folders, files = list_folder(root)
    Image.init()
    if stray := [path for path in files if path.suffix.lower() in Image.EXTENSION]:
        raise UserError(f"{stray[0]}: a picture outside the classes' folders; move it into one, or elsewhere")
    names = {path.name.lower(): path for path in folders}
    train, test = ([names[name] for name in half if name in names] for half in (TRAIN, TEST))
    if not train or not test:
        for path in (*train, *test):
            if list_folder(path)[0]:
                missing = "test" if train else "train"
                raise UserError(f"{path} holds folders of classes, but there is no {missing} beside it")
        return None
    if others := [path for path in folders if path.name.lower() not in (*TRAIN, *TEST)]:
        raise UserError(
            f"{others[0]}: a class beside {train[0].name} and {test[0].name}, which hold the classes"
        )
    if len(train) > 1 or len(names) < len(folders):
        raise UserError(f"--data-path {root}: two training sets, or two test sets; move one elsewhere")
    return train[0], test[0]


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a class's ``folder``, by name: all its files that are not hidden."""
    folders, files = list_folder(folder)
    if folders:
        raise UserError(
            f"{folders[0]}: a folder where the pictures of the class {folder.name!r} should be; --data-path "
            "names the folder above the classes, or above train and test"
        )
    if not files:
        raise UserError(f"{folder}: no picture in the folder of this class")
    return sorted(files)


def take_fifth(samples: list[tuple[Path, int]], train: bool) -> list[tuple[Path, int]]:
    """Return the fifth of ``samples``, paths and labels, that is the test set, or for ``train`` the others."""
    labels = torch.tensor([label for _, label in samples])
    if (single := labels.bincount() == 1).any():
        path = samples[int((labels == single.nonzero()[0]).nonzero()[0])][0]
        raise UserError(f"{path}: the only picture of its class; training and test need one each")
    index = split_holdout(labels, -(-len(labels) // 5))[0 if train else 1]
    return [samples[i] for i in index.tolist()]
