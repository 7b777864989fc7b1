"""Data: find, verify and download MNIST, rotate and normalise it, hand it out in batches."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

MEAN, STD = 0.1307, 0.3081  # of the training set's pixels, scaled to [0, 1]
EVALUATION_BATCH = 250  # images at a time: large enough to be fast, small enough for a CPU's cache


class MnistFile(NamedTuple):
    """One file of MNIST, as published: torchvision checks only that it exists."""

    name: str
    size: int  # bytes
    sha256: str


TRAIN_IMAGES = MnistFile(
    "train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
)
TRAIN_LABELS = MnistFile(
    "train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
)
TEST_IMAGES = MnistFile(
    "t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
)
TEST_LABELS = MnistFile(
    "t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


class DataError(Exception):
    """The dataset can't be had or isn't MNIST; the message says what to do."""


class Loader(Protocol):
    """What ``train`` and ``test`` iterate over: batches of images and targets."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def raw_folder(data_path: str) -> Path:
    """Return where torchvision keeps MNIST's files under ``data_path``."""
    return Path(data_path, "MNIST", "raw")


def download(file: MnistFile, raw: Path) -> None:
    """Fetch ``file`` into ``raw`` from the first of torchvision's mirrors that has it, behind a progress bar.

    Raises ``DataError`` when none has; ``raw`` is then as it was before.
    """
    archive = f"{file.name}.gz"
    md5 = dict(datasets.MNIST.resources)[archive]
    urls = [mirror + archive for mirror in datasets.MNIST.mirrors]
    failures = []
    for url in urls:
        # Beside, then into place: a download that breaks off is never taken for the file.
        with tempfile.TemporaryDirectory(dir=raw, prefix=".download-") as folder:
            try:
                download_and_extract_archive(url, folder, md5=md5)
            except (OSError, EOFError, RuntimeError, HTTPException) as error:
                # The text can be the server's own.
                reason = "".join(c if c.isprintable() else " " for c in str(error)).strip()
                failures.append(f"{url}: {reason or type(error).__name__}")
                continue
            os.replace(Path(folder, file.name), raw / file.name)
            return
    names = [f.name for f in FILES]
    raise DataError(
        f"MNIST is not complete and could not be downloaded (tried {'; '.join(failures)}): "
        f"put {', '.join(names[:-1])} and {names[-1]} into {raw}"
    )


def read_verified(file: MnistFile, raw: Path) -> bytearray:
    """Return the bytes of ``file`` in ``raw`` once they are what was published.

    Raises ``DataError`` when they are not or can't be read.
    """
    path = raw / file.name
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest == file.sha256:
        return content
    others = {other.sha256: other.name for other in FILES}
    if digest in others:
        found = f"the content of {others[digest]}"
    elif len(content) != file.size:
        found = f"{len(content):,} bytes where {file.size:,} are expected"
    else:
        found = f"SHA-256 {digest} where {file.sha256} is expected"
    raise DataError(f"{path} is not MNIST's: it has {found}; delete it, and the next run downloads it again")


def load_mnist(data_path: str, train: bool) -> tuple[Tensor, Tensor]:
    """Read MNIST from ``data_path``, in torchvision's layout, downloading what is missing.

    Returns images, uint8 (N, 28, 28), and labels, int64 (N,) in 0 to 9: 60,000 for ``train``, else
    10,000, in the published order. Raises ``DataError`` when a file can't be had or isn't MNIST's.
    """
    raw = raw_folder(data_path)
    for file in FILES:
        if not (raw / file.name).exists():
            raw.mkdir(parents=True, exist_ok=True)
            download(file, raw)
    images_file, labels_file = (TRAIN_IMAGES, TRAIN_LABELS) if train else (TEST_IMAGES, TEST_LABELS)
    # The IDX headers, 16 and 8 bytes, need no parsing: the checksum has vouched for every byte.
    images = torch.frombuffer(read_verified(images_file, raw), dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(read_verified(labels_file, raw), dtype=torch.uint8, offset=8)
    return images.view(-1, 28, 28), labels.long()


def normalise(images: Tensor) -> Tensor:
    """Bring pixels from 0..255 to mean 0 and deviation 1 over the training set, in float32.

    ``images``, of any shape, is uint8; or float32, and is then changed in place.
    """
    return images.float().div_(255 * STD).sub_(MEAN / STD)


@functools.cache
def sampling_basis(height: int, width: int, device: torch.device) -> Tensor:
    """Return what cos and sin of an angle multiply to give ``F.grid_sample``'s grid: (2, height·width·2).

    A pixel at (x, y) from the centre is taken from (x cos - y sin, x sin + y cos), in half sizes.
    """
    y, x = torch.meshgrid(
        torch.arange(height, device=device) - (height - 1) / 2,
        torch.arange(width, device=device) - (width - 1) / 2,
        indexing="ij",
    )
    half = torch.tensor([width / 2, height / 2], device=device)
    of_cos, of_sin = torch.stack([x, y], dim=-1) / half, torch.stack([-y, x], dim=-1) / half
    return torch.stack([of_cos.flatten(), of_sin.flatten()])


def rotate(
    images: Tensor, degrees: Tensor, interpolation: str = "nearest", shift: Tensor | None = None
) -> Tensor:
    """Rotate each image anticlockwise by its own angle, about its centre, corners filled with 0.

    ``images``, (N, 1, H, W), holds pixels from 0 to 255 in float32, as does what is returned;
    ``degrees`` is (N,), float32; ``interpolation`` is 'nearest' or 'bilinear'. Pixel by pixel what
    ``torchvision.transforms.functional.rotate`` makes of uint8 tensors, up to float rounding at
    the border between two pixels or grey levels. ``shift``, (N, 2), float32, moves where each image
    is taken from by so many pixels to the right and down.
    """
    _, _, height, width = images.shape
    radians = torch.deg2rad(degrees)
    cos_sin = torch.stack([radians.cos(), radians.sin()], dim=1)
    basis = sampling_basis(height, width, images.device)
    grid = (cos_sin @ basis).view(-1, height, width, 2)  # one matrix product for the whole batch
    if shift is not None:
        grid = grid + (shift / torch.tensor([width / 2, height / 2], device=images.device))[:, None, None, :]
    rotated = F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return rotated.round_() if interpolation == "bilinear" else rotated


class DeviceLoader:
    """Batches of a dataset that lies on the device whole; stands where a ``DataLoader`` would.

    ``images`` is uint8 (N, 28, 28), ``labels`` int64 (N,). Yields images (B, 1, 28, 28), float32,
    normalised, and targets (B,), the last batch holding what is left. With a ``generator``, which
    lies on the same device, each pass comes in a new order, and each image rotated by an angle
    drawn uniformly from ±``rotation`` degrees and shifted, both ways, by up to ``translation`` pixels.
    Nothing goes back to the host on the way.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
        rotation: float = 0.0,
        interpolation: str = "nearest",
        translation: float = 0.0,
    ) -> None:
        self.images, self.labels, self.batch_size, self.generator = images, labels, batch_size, generator
        self.rotation, self.interpolation, self.translation = rotation, interpolation, translation

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.generator is None:
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield normalise(self.images[batch, None]), self.labels[batch]
            return
        device = self.images.device
        order = torch.randperm(len(self.labels), generator=self.generator, device=device)
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            images = self.images.index_select(0, index)[:, None].float()
            if self.rotation > 0 or self.translation > 0:
                # Columns: the angle, and the shift to the right and down, each uniform in [-1, 1).
                draw = torch.rand(len(index), 3, generator=self.generator, device=device) * 2 - 1
                shift = draw[:, 1:] * self.translation if self.translation > 0 else None
                images = rotate(images, draw[:, 0] * self.rotation, self.interpolation, shift)
            yield normalise(images), self.labels.index_select(0, index)


def split_holdout(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` of the ``labels``, int64 (N,), so that each class keeps its share.

    Returns the indices of the others and of the chosen, int64, always the same for the same labels.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(9798))
    by_class = order[labels[order].argsort(stable=True)]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[torch.arange(count) * len(labels) // max(count, 1)]] = True
    return (~chosen).nonzero().view(-1), chosen.nonzero().view(-1)


def get_loaders(
    data_path: str,
    device: torch.device,
    batch_size: int = 128,
    rotation: float = 7.0,
    interpolation: str = "nearest",
    translation: float = 0.0,
    seed: int = 1,
    holdout: int = 0,
) -> tuple[DeviceLoader, DeviceLoader]:
    """Put MNIST on ``device`` and make the loaders for training and for evaluation.

    They hold the 60,000 training and the 10,000 test images; with ``holdout``, that many training
    images are kept for evaluation instead, the same ones always, and the test set stays out of it.
    ``seed`` determines the order, rotations and shifts of the training images. Raises ``DataError``
    when the data can't be had.
    """
    images, labels = load_mnist(data_path, train=True)
    if holdout:
        train_index, holdout_index = split_holdout(labels, holdout)
        test_images, test_labels = images[holdout_index], labels[holdout_index]
        images, labels = images[train_index], labels[train_index]
    else:
        test_images, test_labels = load_mnist(data_path, train=False)
    generator = torch.Generator(device).manual_seed(seed)
    return (
        DeviceLoader(
            images.to(device), labels.to(device), batch_size, generator, rotation, interpolation, translation
        ),
        DeviceLoader(test_images.to(device), test_labels.to(device), EVALUATION_BATCH),
    )
