"""What a network's predictions are worth, in numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width; the tensors are (bins,)."""

    error: float  # the expected calibration error, in [0, 1]
    total: Tensor  # int64, images in each bin
    correct: Tensor  # int64, those predicted right
    confidence: Tensor  # float64, their mean, in (0, 1]; NaN in an empty bin


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int = 10) -> Tensor:
    """Count images by label (row) and prediction (column): both int64 (N,), to int64 (classes, classes)."""
    counts = torch.bincount(classes * labels + predictions, minlength=classes**2)
    return counts.view(classes, classes)


def mistakes(labels: Tensor, predictions: Tensor, confidence: Tensor) -> Tensor:
    """Return the indices of the wrong ``predictions``, int64, by descending ``confidence``."""
    wrong = (predictions != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)]


def wilson(correct: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Bound the rate behind ``correct`` of ``total`` with 95% confidence; NaN where ``total`` is 0.

    Returns the ends of the score interval, in [0, 1]: Wilson, "Probable inference, the law of succession,
    and statistical inference", Journal of the American Statistical Association 22 (1927).
    """
    correct, total, z2 = correct.double(), total.double(), 1.959964**2
    middle = (correct + z2 / 2) / (total + z2)
    half = (z2 * (correct * (total - correct) / total + z2 / 4)).sqrt() / (total + z2)
    return middle - half, middle + half


def calibration(confidence: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    """Compare ``confidence``, float64 (N,) in (0, 1], with which predictions are ``correct``, bool (N,).

    Bin m of M holds ((m - 1) / M, m / M]. Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
    Networks" (ICML 2017), section 2.
    """
    index = torch.bucketize(confidence, torch.arange(1, bins, dtype=torch.float64) / bins)
    total, hits = torch.bincount(index, minlength=bins), torch.bincount(index[correct], minlength=bins)
    summed = torch.bincount(index, confidence, minlength=bins)
    error = float((hits - summed).abs().sum() / len(confidence))
    return Calibration(error, total, hits, summed / total)
