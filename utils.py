"""Data: find and download MNIST, rotate and normalise it, hand it out in batches."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.transforms import InterpolationMode

MEAN, STD = 0.1307, 0.3081  # of the training set's pixels, scaled to [0, 1]


class DataError(Exception):
    """The dataset can't be had; the message says what to do."""


class Loader(Protocol):
    """What ``train`` and ``test`` iterate over: batches of images and targets."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def ensure_mnist(data_path: str) -> None:
    """Download the four files of MNIST to ``data_path``/MNIST/raw where they are missing.

    Raises ``DataError`` when no mirror has them.
    """
    raw = Path(data_path, "MNIST", "raw")
    names = [name.removesuffix(".gz") for name, _ in datasets.MNIST.resources]
    for archive, md5 in datasets.MNIST.resources:
        if (raw / archive.removesuffix(".gz")).is_file():
            continue
        raw.mkdir(parents=True, exist_ok=True)
        for mirror in datasets.MNIST.mirrors:
            # Beside, then into place: a download that breaks off is never taken for the file.
            with tempfile.TemporaryDirectory(dir=raw, prefix=".download-") as folder:
                try:
                    download_and_extract_archive(mirror + archive, folder, md5=md5)
                except (OSError, EOFError, RuntimeError):
                    continue
                os.replace(Path(folder, archive.removesuffix(".gz")), raw / archive.removesuffix(".gz"))
                break
        else:
            urls = ", ".join(mirror + archive for mirror in datasets.MNIST.mirrors)
            raise DataError(
                f"MNIST is not in {raw} and could not be downloaded (tried {urls}): "
                f"put {', '.join(names[:-1])} and {names[-1]} into {raw}"
            )


def get_loaders(
    data_path: str,
    batch_size: int = 128,
    rotation: float = 7.0,
    interpolation: str = "nearest",
    seed: int = 1,
) -> tuple[Loader, Loader]:
    """Make the loaders of the 60,000 training and 10,000 test images under ``data_path``.

    Both yield images (N, 1, 28, 28), float32, normalised, and targets (N,), int64 in 0 to 9.
    Training images come in a new order each epoch, each rotated by an angle drawn uniformly from
    ±``rotation`` degrees, corners filled with 0; the last batch holds what is left.
    Raises ``DataError`` when the data can't be had.
    """
    ensure_mnist(data_path)
    normalise = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
    rotate = transforms.RandomRotation(rotation, InterpolationMode(interpolation), fill=0)
    train_set = datasets.MNIST(data_path, train=True, transform=transforms.Compose([rotate, *normalise]))
    test_set = datasets.MNIST(data_path, train=False, transform=transforms.Compose(normalise))
    generator = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train_set, batch_size, shuffle=True, generator=generator),
        DataLoader(test_set, batch_size=1000),
    )
