"""Images: distort and normalise them, hand them out in batches."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config, Options
from datasets import MNIST, Dataset, load_test, load_train, split_holdout
from errors import UsageError

EVALUATION_BATCH = 250  # images at a time: large enough to be fast, small enough for a CPU's cache


class Loader(Protocol):
    """What ``train`` and ``test`` iterate over: batches of images and targets."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def normalize(images: Tensor, dataset: Dataset = MNIST) -> Tensor:
    """Bring pixels, uint8 or (then in place) float32, from 0..255 to mean 0, deviation 1 over ``dataset``."""
    return images.float().div_(255 * dataset.std).sub_(dataset.mean / dataset.std)


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


STREAMS = ("weights", "loader", "dropout")


def stream_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """Derive from a run's ``seed`` the seed of one of its ``STREAMS``, in ``epoch``.

    All these streams are independent. Each epoch has its own, so a run can be resumed after any of them.
    """
    return int(np.random.SeedSequence([seed, epoch, STREAMS.index(stream)]).generate_state(1)[0])


@dataclass
class DeviceLoader:
    """Batches of a dataset that lies on the device whole; stands where a ``DataLoader`` would.

    ``images`` is uint8 (N, 28, 28), ``labels`` int64 (N,). Yields images (B, 1, 28, 28), float32,
    normalised, and targets (B,), the last batch holding what is left. With a ``config``, each pass, numbered
    by ``epoch``, comes in a new order that its seed determines, and each image distorted by uniform draws, up
    to its ``rotation`` either way and so on. Nothing goes back to the host on the way.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    _: KW_ONLY
    dataset: Dataset = MNIST  # that they are of
    config: Config | None = None
    epoch: int = 1  # of the next pass

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        if config is None:
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield normalize(self.images[batch, None], self.dataset), self.labels[batch]
            return
        device = self.images.device
        generator = torch.Generator(device).manual_seed(stream_seed(config.seed, "loader", self.epoch))
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=generator, device=device)
        for index in torch.split(order, self.batch_size):
            images = self.images.index_select(0, index)[:, None].float()
            if config.rotation or config.translation or config.scale or config.shear:
                draw = torch.rand(len(index), 6, generator=generator, device=device) * 2 - 1
                images = affine(
                    images,
                    draw[:, 0] * config.rotation,
                    shift=draw[:, 1:3] * config.translation,
                    scale=1 + draw[:, 3:5] * config.scale,
                    shear=draw[:, 5] * config.shear,
                    interpolation=config.interpolation,
                )
            yield normalize(images, self.dataset), self.labels.index_select(0, index)


Loaders = tuple[DeviceLoader, DeviceLoader]  # for training and for evaluation


def get_loaders(config: Config, device: torch.device, data_path: str = Options.data_path) -> Loaders:
    """Put the data set that ``config`` names on ``device`` and make the loaders for training and evaluation.

    With a ``config.holdout``, that many training images, always the same, stand in place of the test set.
    ``data_path`` is where a data set lies, or is downloaded to, that isn't MNIST. Raises ``UserError``, which
    says how to get what is missing, and ``OSError``.
    """
    dataset, (images, labels) = load_train(config.dataset, data_path)
    if config.holdout >= len(labels):
        raise UsageError(f"argument --holdout: must be less than the {len(labels):,} training images")
    if config.holdout:
        train_index, holdout_index = split_holdout(labels, config.holdout)
        held_out = images[holdout_index].to(device), labels[holdout_index].to(device)
        test_loader = DeviceLoader(*held_out, EVALUATION_BATCH, dataset=dataset)
        images, labels = images[train_index], labels[train_index]
    else:
        test_loader = get_test_loader(dataset, data_path, device)
    on_device = images.to(device), labels.to(device)
    return DeviceLoader(*on_device, config.batch_size, dataset=dataset, config=config), test_loader


def get_test_loader(dataset: Dataset, data_path: str, device: torch.device) -> DeviceLoader:
    """Put the test set of ``dataset`` on ``device`` and make its loader. Raises what ``load_test`` does."""
    images, labels = load_test(dataset, data_path)
    return DeviceLoader(images.to(device), labels.to(device), EVALUATION_BATCH, dataset=dataset)
