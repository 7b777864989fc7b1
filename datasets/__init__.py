"""Data sets: read the images and labels, and describe what the network must know of them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import ORIGINAL, TORCHVISION, check
from datasets.folder import load_folder
from datasets.mnist import SIDE, Images, load_mnist, load_torchvision, split_holdout
from pictures import border
from runtime.errors import UserError
from runtime.files import warn

__all__ = ["MEAN", "MNIST", "SIDE", "STD", "Dataset"]
__all__ += ["hash_tensors", "load", "load_mnist", "load_test", "load_train", "split_holdout"]

NEARLY_ALL = 0.99  # share of the training images that decides on a property of the data set


@dataclass(frozen=True)
class Dataset:
    """What the network must know of its data. It is stored with the weights, so its values are checked."""

    name: str  # that --dataset takes
    classes: tuple[str, ...]  # names, in the order of the labels
    mean: float  # of the training images' pixels, scaled to [0, 1]
    std: float  # their standard deviation
    light_on_dark: bool  # the background is dark
    digit_like: bool  # and the images have MNIST's form, see has_mnists_form
    target_accuracy: float | None  # in percent, for early stopping by default

    def __post_init__(self) -> None:
        check("dataset", self.name)
        types = (str, tuple, float, float, bool, bool, float | None)  # of the fields
        if not (
            all(map(isinstance, vars(self).values(), types))
            and all(isinstance(name, str) for name in self.classes)
            and len(self.classes) == len(set(self.classes)) >= 2
            and 0 <= self.mean <= 1
            and 0 < self.std <= 1
            and 0 <= (self.target_accuracy or 0) <= 100
        ):
            raise UserError(f"impossible description of a data set: {self}")


MEAN, STD = 0.1307, 0.3081  # of MNIST
MNIST = Dataset("mnist", tuple("0123456789"), MEAN, STD, True, True, ORIGINAL.target_accuracy)


def load(name: str, data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read images, labels and class names of the training or the test set of the data set ``name``."""
    if name == MNIST.name:
        return load_mnist(train), MNIST.classes
    return load_folder(data_path, train) if name == "folder" else load_torchvision(name, data_path, train)


def load_train(name: str, data_path: str) -> tuple[Dataset, Images]:
    """Read the training set of the data set ``name``, and describe it."""
    images, classes = load(name, data_path, train=True)
    dataset = MNIST if name == MNIST.name else describe(name, classes, images[0])
    if name in TORCHVISION and (dataset.mean, dataset.std) == (MEAN, STD):  # its files have the same names
        raise UserError(f"{data_path} has MNIST's images in place of those of {name}: delete them")
    return dataset, images


def load_test(dataset: Dataset, data_path: str, known_hash: str | None = None) -> Images:
    """Read the test set of ``dataset``. It must have the classes of the training set.

    If its ``hash_tensors`` is not ``known_hash``, that of the training run, a warning says so.
    """
    images, classes = load(dataset.name, data_path, train=False)
    if classes != dataset.classes:
        differing = ", ".join(sorted(set(classes) ^ set(dataset.classes)))
        raise UserError(f"--data-path {data_path}: training and test set differ in the classes {differing}")
    if known_hash not in (None, hash_tensors(*images)):
        warn(
            f"{data_path}: not the test set of the training run; the network may have seen some of its images"
        )
    return images


def hash_tensors(*tensors: Tensor) -> str:
    """Return the SHA-256 of the values of ``tensors``."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def describe(name: str, classes: tuple[str, ...], images: Tensor) -> Dataset:
    """Measure the properties of the data set ``name`` from its training ``images``, uint8 (N, 28, 28).

    Mean and standard deviation are rounded to four digits, like MNIST's.
    """
    shares = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    std = round((shares @ (levels - mean) ** 2).sqrt().item(), 4)
    if std == 0:
        raise UserError(f"{name}: all pixels of the training images have the same value")
    background = np.median(border(images.numpy().transpose(1, 2, 0)), axis=0)
    light_on_dark = bool((background < 64).mean() >= NEARLY_ALL)
    digit_like = light_on_dark and bool(has_mnists_form(images).double().mean() >= NEARLY_ALL)
    return Dataset(name, classes, round(mean.item(), 4), std, light_on_dark, digit_like, None)


def has_mnists_form(images: Tensor) -> Tensor:
    """Tell which ``images``, uint8 (N, 28, 28), have the form of MNIST's, as bool (N,).

    Such images are 20 pixels high or wide, and their centre of mass is within half a pixel of 14. This holds
    for 99.7 % of MNIST's training images, and for none of Fashion-MNIST's.
    """
    sums = torch.stack([images.sum(dim=1), images.sum(dim=2)]).double()  # of columns and rows, (2, N, 28)
    centres = sums @ torch.arange(SIDE, dtype=torch.float64) / sums.sum(dim=2)
    longest = (sums > 0).sum(dim=2).amax(dim=0)
    return ((centres - 14).abs() <= 0.5).all(dim=0) & (longest == 20)
