"""Measure the quality of predictions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width; the tensors are (bins,)."""

    error: float  # expected calibration error, in [0, 1]
    total: Tensor  # int64, predictions in each bin
    correct: Tensor  # int64, correct predictions in each bin
    confidence: Tensor  # float64, mean of each bin, in (0, 1]; NaN if the bin is empty


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int = 10) -> Tensor:
    """Count images by label (row) and prediction (column), both int64 (N,), as int64 (classes, classes)."""
    return torch.bincount(classes * labels + predictions, minlength=classes**2).view(classes, classes)


def mistakes(labels: Tensor, predictions: Tensor, confidence: Tensor) -> Tensor:
    """Return the indices of wrong ``predictions``, int64, by descending ``confidence``; all are (N,)."""
    wrong = (predictions != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)]


def wilson(correct: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return both ends of the 95% confidence interval of ``correct / total``, float64 in [0, 1].

    They are NaN where ``total`` is 0. This is the score interval: Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22 (1927).
    """
    correct, total, z2 = correct.double(), total.double(), 1.959964**2
    middle = (correct + z2 / 2) / (total + z2)
    half = (z2 * (correct * (total - correct) / total + z2 / 4)).sqrt() / (total + z2)
    return middle - half, middle + half


def calibration(confidence: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    """Compare ``confidence``, float64 (N,) in (0, 1], with ``correct``, bool (N,), in ``bins`` bins.

    Bin m of M is ((m - 1) / M, m / M]. Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
    Networks" (ICML 2017), section 2.
    """
    index = torch.bucketize(confidence, torch.arange(1, bins, dtype=torch.float64) / bins)
    total = torch.bincount(index, minlength=bins)
    total_correct = torch.bincount(index[correct], minlength=bins)
    total_confidence = torch.bincount(index, confidence, minlength=bins)
    error = float((total_correct - total_confidence).abs().sum() / len(confidence))
    return Calibration(error, total, total_correct, total_confidence / total)
