"""Data sets: read the images and labels, and describe what the network must know of them."""

import os
from dataclasses import dataclass, replace

from datasets.mnist import SIDE, Images, load_mnist, split_holdout
from runtime.errors import UserError, warn

__all__ = ["MNIST", "NAMES", "SIDE", "Dataset", "Images"]
__all__ += ["choose_path", "load", "load_mnist", "load_test", "read", "split_holdout"]

# Data sets that torchvision downloads: their name for --dataset, and torchvision's class, like its MNIST.
TORCHVISION = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("mnist", *TORCHVISION, "folder")


@dataclass(frozen=True)
class Dataset:
    """The description of a data set, not its images: what is stored with the weights."""

    name: str  # one of NAMES
    classes: tuple[str, ...]  # names, in the order of the labels
    mean: float  # of the training images' pixels, scaled to [0, 1]
    std: float  # their standard deviation
    light_on_dark: bool  # the background is dark
    digit_like: bool  # and the images have MNIST's form, see datasets/describe.py
    path: str = ""  # its folder; MNIST, which is included, has none, and its checksums are in the code
    train_hash: str = ""  # of the images and labels, by hash_tensors
    test_hash: str = ""


MNIST = Dataset("mnist", tuple("0123456789"), 0.1307, 0.3081, light_on_dark=True, digit_like=True)


def choose_path(given: str, name: str, known: str) -> str:
    """Return the folder of the data set ``name``: the ``given`` --data-path, or else the ``known`` one."""
    if name != MNIST.name:
        return os.path.abspath(given or known)
    if given:
        warn("--data-path is not used: MNIST is included")
    return MNIST.path


def read(name: str, path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read the training or the test set of the data set ``name`` in the folder ``path``.

    Returns images, uint8 (N, 28, 28), and labels, int64 (N,); and the names of the classes.
    """
    if name == MNIST.name:
        return load_mnist(train), MNIST.classes
    if name == "folder":
        if not os.path.isdir(path):
            raise UserError(f"--data-path {path}: no such folder; name that of the pictures")
        from datasets.folder import load_folder

        return load_folder(path, train)
    from datasets.torchvision import load_torchvision

    return load_torchvision(name, TORCHVISION[name], path, train)


def load(name: str, data_path: str) -> tuple[Dataset, Images, Images]:
    """Describe the data set ``name`` in ``data_path`` (by default "data"); read its training and test set."""
    path = choose_path(data_path, name, "data")
    train, classes = read(name, path, train=True)
    if name == MNIST.name:
        return MNIST, train, load_test(MNIST)
    from datasets.describe import describe, hash_tensors

    dataset = replace(describe(name, classes, train[0]), path=path, train_hash=hash_tensors(*train))
    test = load_test(dataset)
    return replace(dataset, test_hash=hash_tensors(*test)), train, test


def load_test(dataset: Dataset) -> Images:
    """Read the test set of ``dataset``. A warning says so if it isn't that of the training run."""
    test, classes = read(dataset.name, dataset.path, train=False)
    if dataset != MNIST:
        from datasets.describe import check_test

        check_test(dataset, classes, test)
    return test
