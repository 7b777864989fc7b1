"""What all data sets share: the form of their images, and the choice of held-out ones."""

import torch
from torch import Tensor

Images = tuple[Tensor, Tensor]  # uint8 (N, 28, 28), and their labels, int64 (N,)
SIDE = 28  # pixels of an image


def split_holdout(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` of the images with these ``labels``, int64 (N,), so that each class keeps its share.

    Returns the indices of the others and of the chosen ones, int64. The same labels give the same choice.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(9798))
    by_class = order[labels[order].argsort(stable=True)]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[torch.arange(count) * len(labels) // max(count, 1)]] = True
    return (~chosen).nonzero().view(-1), chosen.nonzero().view(-1)
