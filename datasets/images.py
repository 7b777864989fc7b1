"""What all data sets share: the form of their images, and the split into training and held-out images."""

import torch
from torch import Tensor

Images = tuple[Tensor, Tensor]  # uint8 (N, 28, 28), and their labels, int64 (N,)
SIDE = 28  # pixels of an image


def split_holdout(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Hold out ``count`` of the images with these ``labels``, int64 (N,). Each class keeps its share.

    Returns the indices of the other images and of the held-out ones, int64. They depend only on the labels.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(9798))
    by_class = order[labels[order].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[torch.arange(count) * len(labels) // max(count, 1)]] = True
    return (~held_out).nonzero().view(-1), held_out.nonzero().view(-1)
