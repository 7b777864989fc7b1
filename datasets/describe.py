"""Measure what the network must know of another data set than MNIST, and know its images again."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from datasets import MNIST, SIDE, Dataset, Images
from pictures import border
from runtime.errors import UserError, warn

NEARLY_ALL = 0.99  # share of the training images that decides on a property of the data set


def describe(name: str, classes: tuple[str, ...], images: Tensor) -> Dataset:
    """Measure the properties of the data set ``name`` from its training ``images``, uint8 (N, 28, 28)."""
    shares = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    std = round((shares @ (levels - mean) ** 2).sqrt().item(), 4)  # digits, as for MNIST
    if std == 0:
        raise UserError(f"{name}: all pixels of the training images have the same value")
    background = np.median(border(images.numpy().transpose(1, 2, 0)), axis=0)
    light_on_dark = bool((background < 64).mean() >= NEARLY_ALL)
    digit_like = light_on_dark and bool(has_mnists_form(images).double().mean() >= NEARLY_ALL)
    dataset = Dataset(name, classes, round(mean.item(), 4), std, light_on_dark, digit_like)
    if name != "folder" and (dataset.mean, dataset.std) == (MNIST.mean, MNIST.std):  # the same file names
        raise UserError(f"{name}: its folder has MNIST's images in place of its own: delete them")
    return dataset


def has_mnists_form(images: Tensor) -> Tensor:
    """Tell which ``images``, uint8 (N, 28, 28), have the form of MNIST's, as bool (N,).

    Such images are 20 pixels high or wide, and their centre of mass is within half a pixel of 14. This holds
    for 99.7 % of MNIST's training images, and for none of Fashion-MNIST's.
    """
    sums = torch.stack([images.sum(dim=1), images.sum(dim=2)]).double()  # of columns and rows, (2, N, 28)
    centres = sums @ torch.arange(SIDE, dtype=torch.float64) / sums.sum(dim=2)
    longest = (sums > 0).sum(dim=2).amax(dim=0)
    return ((centres - 14).abs() <= 0.5).all(dim=0) & (longest == 20)


def check_test(dataset: Dataset, classes: tuple[str, ...], test: Images) -> None:
    """Compare the test set of ``dataset`` with what is known of it: its classes, its images and labels."""
    if classes != dataset.classes:
        differing = ", ".join(sorted(set(classes) ^ set(dataset.classes)))
        raise UserError(f"{dataset.path}: training and test set differ in the classes {differing}")
    if dataset.test_hash and dataset.test_hash != hash_tensors(*test):
        warn(f"{dataset.path}: not the test set of the training run; the network may have seen its images")


def hash_tensors(*tensors: Tensor) -> str:
    """Return the SHA-256 of the values of ``tensors``."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
