"""Loaders: augment images, normalise them, and hand them out in batches."""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config
from datasets import MNIST, SIDE, Dataset, Images, load, split_holdout
from runtime.errors import UsageError

EVALUATION_BATCH = 250  # images; large enough to be fast, small enough for a CPU's cache
STREAMS = ("weights", "loader", "dropout")  # the streams of random numbers in a run


def normalize(images: Tensor, dataset: Dataset = MNIST) -> Tensor:
    """Normalise pixels in [0, 255]: to float32, with mean 0 and standard deviation 1 over ``dataset``."""
    return images.div(255 * dataset.std).sub_(dataset.mean / dataset.std)


def affine(
    images: Tensor,
    degrees: Tensor,
    *,
    shift: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    interpolation: str = "nearest",
) -> Tensor:
    """Transform each image about its centre: scale it, rotate it, then shift it.

    - ``images``, (N, 1, H, H), are pixels in 0 to 255. Pixels from outside an image are 0.
    - ``degrees``, (N,), rotate anticlockwise.
    - ``shift``, (N, 2), is in pixels to the right and down.
    - ``scale``, (N, 2), multiplies width and height.

    All are float32, as is the result. A rotation alone equals torchvision's ``rotate`` on uint8 images,
    except where rounding chooses another source pixel (nearest) or another grey level (bilinear).
    """
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    ones = torch.ones(len(images), 2, device=images.device)  # a scalar times this is (N, 2)
    dx, dy = (ones * shift * (2 / images.shape[-1])).T
    scale_x, scale_y = (ones * scale).T
    # affine_grid needs the inverse map, from a pixel of the result to its source: undo the shift, then the
    # rotation, then the scale. Coordinates are relative to the centre; the edges are at -1 and 1.
    xx, xy, yx, yy = cos / scale_x, -sin / scale_x, sin / scale_y, cos / scale_y
    matrix = torch.stack([xx, xy, -xx * dx - xy * dy, yx, yy, -yx * dx - yy * dy], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    result = F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return result.round_() if interpolation == "bilinear" else result


def stream_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """Compute the seed of a stream of random numbers, one of ``STREAMS``, from the ``seed`` of the run.

    Each pair of stream and epoch has its own seed. So a run can be resumed after any epoch. The initial
    weights are drawn in epoch 0.
    """
    return int(np.random.SeedSequence([seed, epoch, STREAMS.index(stream)]).generate_state(1)[0])


@dataclass
class DeviceLoader:
    """A loader that keeps the whole data set on the device. It replaces a ``DataLoader``.

    - ``images`` is uint8 (N, 28, 28), ``labels`` is int64 (N,).
    - It yields normalised images, float32 (B, 1, 28, 28) unless they are cropped, and labels, int64 (B,).
      The last batch may be smaller. All of this stays on the device.
    - A loader for training has a ``config``. Then each epoch has its own order and its own augmentation: each
      image is scaled, rotated and shifted by uniform random amounts up to the config's limits.
      ``config.seed`` and ``epoch`` determine order and augmentation; ``train`` sets ``epoch``.
    - With a ``config.train_crop_size`` below 28, the first half of the epochs trains on the centre of the
      images, a square with this side. Fewer pixels are faster.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    _: KW_ONLY
    dataset: Dataset = MNIST
    config: Config | None = None
    epoch: int = 1

    def __len__(self) -> int:
        batches = math.ceil(len(self.labels) / self.batch_size)
        limit = self.config.limit_train_batches if self.config else 0
        return min(batches, limit or batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        config, device = self.config, self.images.device
        if config is None:
            for start in range(0, len(self.labels), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield normalize(self.images[batch, None], self.dataset), self.labels[batch]
            return
        generator = torch.Generator(device).manual_seed(stream_seed(config.seed, "loader", self.epoch))
        side = config.train_crop_size if self.epoch <= config.epochs // 2 else SIDE
        crop = slice((SIDE - side) // 2, (SIDE + side) // 2)
        order = torch.randperm(len(self.labels), generator=generator, device=device)
        for index in torch.split(order, self.batch_size)[: len(self)]:
            images = self.images.index_select(0, index)[:, None].float()
            if config.rotation or config.translation or config.scale:
                # Five are used. They are six, so that earlier results can be repeated.
                draws = torch.rand(len(index), 6, generator=generator, device=device) * 2 - 1
                images = affine(
                    images,
                    draws[:, 0] * config.rotation,
                    shift=draws[:, 1:3] * config.translation,
                    scale=1 + draws[:, 3:5] * config.scale,
                    interpolation=config.interpolation,
                )
            yield normalize(images[..., crop, crop], self.dataset), self.labels.index_select(0, index)


def get_loaders(
    config: Config, device: torch.device | str, data_path: str = ""
) -> tuple[DeviceLoader, DeviceLoader]:
    """Load the data set of ``config`` onto ``device``, and make the loaders for training and evaluation.

    If ``config.holdout`` is above 0, this many training images are held out, and evaluated instead of the
    test set. Every run holds out the same images. ``data_path`` is the data set's folder; MNIST needs none.
    """
    dataset, (images, labels), eval_data = load(config.dataset, data_path)
    if config.holdout >= len(labels):
        raise UsageError(f"argument --holdout: must be less than the {len(labels):,} training images")
    if config.holdout:
        train_index, holdout_index = split_holdout(labels, config.holdout)
        eval_data = images[holdout_index], labels[holdout_index]
        images, labels = images[train_index], labels[train_index]
    data = images.to(device), labels.to(device)
    train_loader = DeviceLoader(*data, config.batch_size, dataset=dataset, config=config)
    return train_loader, get_eval_loader(dataset, eval_data, device)


def get_eval_loader(dataset: Dataset, data: Images, device: torch.device | str) -> DeviceLoader:
    """Make the loader for evaluation of images, uint8 (N, 28, 28), and labels, int64 (N,), of ``dataset``."""
    images, labels = data
    return DeviceLoader(images.to(device), labels.to(device), EVALUATION_BATCH, dataset=dataset)
