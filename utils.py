"""Loaders: distort images, normalise them, and hand them out in batches."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config, Options
from datasets import MNIST, SIDE, Dataset, load_test, load_train, split_holdout
from runtime.errors import UsageError

EVALUATION_BATCH = 250  # images; large enough to be fast, small enough for a CPU's cache
STREAMS = ("weights", "loader", "dropout")  # the streams of random numbers in a run


class Loader(Protocol):
    """What ``train`` and ``test`` iterate over: batches of images and targets."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def normalize(images: Tensor, dataset: Dataset = MNIST) -> Tensor:
    """Normalise pixels in [0, 255]: to float32, with mean 0 and standard deviation 1 over ``dataset``."""
    return images.div(255 * dataset.std).sub_(dataset.mean / dataset.std)


def affine(
    images: Tensor,
    degrees: Tensor,
    *,
    shift: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    shear: Tensor | float = 0.0,
    interpolation: str = "nearest",
) -> Tensor:
    """Distort each image about its centre: scale it, shear it, rotate it, then shift it.

    - ``images``, (N, 1, H, H), are pixels in 0 to 255. Pixels from outside an image are 0.
    - ``degrees``, (N,), rotate anticlockwise.
    - ``shift``, (N, 2), is in pixels to the right and down.
    - ``scale``, (N, 2), multiplies width and height.
    - ``shear``, (N,), moves a row that is y pixels below the centre by shear · y pixels to the right. Above
      the centre, y is negative.

    All are float32, as is the result. A rotation alone equals torchvision's ``rotate`` on uint8 images,
    except where rounding chooses another source pixel (nearest) or another grey level (bilinear).
    """
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    ones = torch.ones(len(images), 2, device=images.device)
    (dx, dy), (scale_x, scale_y) = (ones * shift * (2 / images.shape[-1])).T, (ones * scale).T
    # The inverse map, from a pixel of the result to its source: each step undone, in reverse order.
    # Coordinates are relative to the centre; the edges of the image are at -1 and 1.
    xx, xy = (cos - shear * sin) / scale_x, (-sin - shear * cos) / scale_x
    yx, yy = sin / scale_y, cos / scale_y
    matrix = torch.stack([xx, xy, -xx * dx - xy * dy, yx, yy, -yx * dx - yy * dy], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    result = F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return result.round_() if interpolation == "bilinear" else result


def stream_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """Compute the seed of a stream of random numbers, one of ``STREAMS``, from the ``seed`` of the run.

    The streams are independent. Each epoch has its own streams, so a run can be resumed after any epoch. The
    initial weights are drawn in epoch 0.
    """
    return int(np.random.SeedSequence([seed, epoch, STREAMS.index(stream)]).generate_state(1)[0])


@dataclass
class DeviceLoader:
    """A loader that keeps the whole data set on the device. It replaces a ``DataLoader``.

    - ``images`` is uint8 (N, 28, 28), ``labels`` is int64 (N,).
    - It yields normalised images, float32 (B, 1, 28, 28) unless they are cropped, and targets, int64 (B,).
      The last batch may be smaller. Nothing is copied to the host.
    - A loader for training has a ``config``. Then each pass has its own order, and distorts each image by
      uniform random amounts up to the config's limits. Seed and ``epoch`` determine both.
    - In the first half of the training's epochs, it crops images to the square in their middle with a side of
      ``config.train_crop_size`` pixels. Fewer pixels are faster.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    _: KW_ONLY
    dataset: Dataset = MNIST
    config: Config | None = None
    epoch: int = 1  # number of the next pass; each pass adds 1

    def __len__(self) -> int:
        batches = -(-len(self.labels) // self.batch_size)
        limit = self.config.limit_train_batches if self.config else None
        return batches if limit is None else min(batches, limit)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        if config is None:
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield normalize(self.images[batch, None], self.dataset), self.labels[batch]
            return
        device = self.images.device
        generator = torch.Generator(device).manual_seed(stream_seed(config.seed, "loader", self.epoch))
        side = config.train_crop_size if self.epoch <= config.epochs // 2 else SIDE
        crop = slice((SIDE - side) // 2, (SIDE + side) // 2)
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=generator, device=device)
        for index in torch.split(order, self.batch_size)[: config.limit_train_batches]:
            images = self.images.index_select(0, index)[:, None].float()
            if config.rotation or config.translation or config.scale or config.shear:
                draws = torch.rand(len(index), 6, generator=generator, device=device) * 2 - 1
                images = affine(
                    images,
                    draws[:, 0] * config.rotation,
                    shift=draws[:, 1:3] * config.translation,
                    scale=1 + draws[:, 3:5] * config.scale,
                    shear=draws[:, 5] * config.shear,
                    interpolation=config.interpolation,
                )
            yield normalize(images[..., crop, crop], self.dataset), self.labels.index_select(0, index)


Loaders = tuple[DeviceLoader, DeviceLoader]  # for training and for evaluation


def get_loaders(config: Config, device: torch.device | str, data_path: str = Options.data_path) -> Loaders:
    """Load the data set of ``config`` onto ``device``, and make the loaders for training and evaluation.

    If ``config.holdout`` is above 0, this many training images are held out, and evaluated instead of the
    test set. Every run holds out the same images. ``data_path`` is the data set's folder; MNIST needs none.
    """
    dataset, (images, labels) = load_train(config.dataset, data_path)
    if config.holdout >= len(labels):
        raise UsageError(f"argument --holdout: must be less than the {len(labels):,} training images")
    if config.holdout:
        train_index, holdout_index = split_holdout(labels, config.holdout)
        held_out = images[holdout_index].to(device), labels[holdout_index].to(device)
        eval_loader = DeviceLoader(*held_out, EVALUATION_BATCH, dataset=dataset)
        images, labels = images[train_index], labels[train_index]
    else:
        eval_loader = get_test_loader(dataset, data_path, device)
    on_device = images.to(device), labels.to(device)
    return DeviceLoader(*on_device, config.batch_size, dataset=dataset, config=config), eval_loader


def get_test_loader(
    dataset: Dataset, data_path: str, device: torch.device | str, known_hash: str | None = None
) -> DeviceLoader:
    """Load the test set of ``dataset`` onto ``device``, as ``load_test`` does, and make its loader."""
    images, labels = load_test(dataset, data_path, known_hash)
    return DeviceLoader(images.to(device), labels.to(device), EVALUATION_BATCH, dataset=dataset)
