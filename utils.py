"""Data: read MNIST, distort and normalise it, hand it out in batches."""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ORIGINAL, UserError

FOLDER = Path(__file__).parent / "data" / "mnist"
SHA256 = {  # of the archives
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
MEAN, STD = 0.1307, 0.3081  # of the training set's pixels, scaled to [0, 1]
EVALUATION_BATCH = 250  # images at a time: large enough to be fast, small enough for a CPU's cache


class Loader(Protocol):
    """What ``train`` and ``test`` iterate over: batches of images and targets."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def read_archive(name: str) -> bytearray:
    """Return what the archive ``name`` of MNIST holds. Raises ``UserError`` if it is missing or damaged."""
    path = FOLDER / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): git checkout data") from None
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"{path} is damaged, its SHA-256 is not that of MNIST: git checkout data")
    return bytearray(gzip.decompress(content))


def load_mnist(train: bool) -> tuple[Tensor, Tensor]:
    """Read MNIST from the archives in data/mnist.

    Returns images, uint8 (N, 28, 28), and labels, int64 (N,) in 0 to 9: 60,000 for ``train``, else
    10,000, in the published order. Raises ``UserError`` when a file is missing or damaged.
    """
    part = "train" if train else "t10k"
    # The IDX headers, 16 and 8 bytes, need no parsing: the checksum has vouched for every byte.
    images = torch.frombuffer(read_archive(f"{part}-images-idx3-ubyte.gz"), dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(read_archive(f"{part}-labels-idx1-ubyte.gz"), dtype=torch.uint8, offset=8)
    return images.view(-1, 28, 28), labels.long()


def normalize(images: Tensor) -> Tensor:
    """Bring pixels from 0..255 to mean 0 and deviation 1 over the training set, in float32.

    ``images``, of any shape, is uint8; or float32, and is then changed in place.
    """
    return images.float().div_(255 * STD).sub_(MEAN / STD)


def affine(
    images: Tensor,
    degrees: Tensor,
    *,
    shift: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    shear: Tensor | float = 0.0,
    interpolation: str = "nearest",
) -> Tensor:
    """Distort each image about its centre by its own affine map: scaled, sheared, rotated, then shifted.

    ``images``, (N, 1, H, H), holds pixels from 0 to 255 in float32, as does what is returned; what comes from
    outside is 0. ``degrees``, (N,), turn anticlockwise, which alone gives pixel by pixel what torchvision's
    ``rotate`` makes of uint8 tensors, up to float rounding at the border between two pixels or grey levels.
    ``shift``, (N, 2), is in pixels to the right and down; ``scale``, (N, 2), multiplies width and height;
    ``shear``, (N,), times a row's distance below the centre is what it moves right. All are float32.
    """
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    ones = torch.ones(len(images), 2, device=images.device)
    (dx, dy), (width, height) = (ones * shift * (2 / images.shape[-1])).T, (ones * scale).T
    # Where a pixel is taken from, in half sides from the centre: each step undone, the last first.
    a, b, d, e = (cos - shear * sin) / width, (-sin - shear * cos) / width, sin / height, cos / height
    matrix = torch.stack([a, b, -a * dx - b * dy, d, e, -d * dx - e * dy], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    result = F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return result.round_() if interpolation == "bilinear" else result


def epoch_seed(seed: int, epoch: int) -> int:
    """Return what seeds the randomness of an epoch, counted from 1: so a run can go on from any of them."""
    return seed + 1_000_003 * (epoch - 1)


@dataclass
class DeviceLoader:
    """Batches of a dataset that lies on the device whole; stands where a ``DataLoader`` would.

    ``images`` is uint8 (N, 28, 28), ``labels`` int64 (N,). Yields images (B, 1, 28, 28), float32,
    normalised, and targets (B,), the last batch holding what is left. With a ``seed``, each pass, numbered
    by ``epoch``, comes in a new order, and each image distorted by uniform draws, up to ``rotation`` degrees
    either way and so on, as ``config.Config`` says. Nothing goes back to the host on the way.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    _: KW_ONLY
    seed: int | None = None
    epoch: int = 1  # of the next pass
    rotation: float = 0.0
    interpolation: str = "nearest"
    translation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield normalize(self.images[batch, None]), self.labels[batch]
            return
        device = self.images.device
        generator = torch.Generator(device).manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=generator, device=device)
        for index in torch.split(order, self.batch_size):
            images = self.images.index_select(0, index)[:, None].float()
            if self.rotation or self.translation or self.scale or self.shear:
                draw = torch.rand(len(index), 6, generator=generator, device=device) * 2 - 1
                images = affine(
                    images,
                    draw[:, 0] * self.rotation,
                    shift=draw[:, 1:3] * self.translation,
                    scale=1 + draw[:, 3:5] * self.scale,
                    shear=draw[:, 5] * self.shear,
                    interpolation=self.interpolation,
                )
            yield normalize(images), self.labels.index_select(0, index)


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
    device: torch.device,
    *,
    batch_size: int = ORIGINAL.batch_size,
    rotation: float = ORIGINAL.rotation,
    interpolation: str = ORIGINAL.interpolation,
    translation: float = ORIGINAL.translation,
    scale: float = ORIGINAL.scale,
    shear: float = ORIGINAL.shear,
    seed: int = ORIGINAL.seed,
    holdout: int = ORIGINAL.holdout,
) -> tuple[DeviceLoader, DeviceLoader]:
    """Put MNIST on ``device`` and make the loaders for training and for evaluation.

    They hold the 60,000 training and the 10,000 test images; with ``holdout``, that many training
    images are kept for evaluation instead, the same ones always, and the test set stays out of it.
    ``seed`` determines the order and distortions of the training images. Raises ``UserError``
    when a file of MNIST is missing or damaged.
    """
    images, labels = load_mnist(train=True)
    if holdout:
        train_index, holdout_index = split_holdout(labels, holdout)
        test_images, test_labels = images[holdout_index], labels[holdout_index]
        images, labels = images[train_index], labels[train_index]
    else:
        test_images, test_labels = load_mnist(train=False)
    train_loader = DeviceLoader(
        images.to(device),
        labels.to(device),
        batch_size,
        seed=seed,
        rotation=rotation,
        interpolation=interpolation,
        translation=translation,
        scale=scale,
        shear=shear,
    )
    return train_loader, DeviceLoader(test_images.to(device), test_labels.to(device), EVALUATION_BATCH)
