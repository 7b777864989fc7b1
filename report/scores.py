"""What a network's answers come to, beside the accuracy."""

import torch
from torch import Tensor

from model import Net
from utils import normalise


@torch.inference_mode()
def answers(model: Net, images: Tensor) -> tuple[Tensor, Tensor]:
    """Show ``images``, uint8 (N, 28, 28), to ``model``, which is in evaluation mode, on the CPU.

    Returns its answers, int64 (N,), and the probability that it gives each, float64 (N,) in (0, 1].
    """
    log_probs = torch.cat([model(normalise(batch)) for batch in torch.split(images.unsqueeze(1), 1000)])
    sure, said = log_probs.double().max(dim=1)
    return said, sure.exp()


def confusion_matrix(labels: Tensor, said: Tensor) -> Tensor:
    """Count images by label (row) and answer (column): both int64 (N,) in 0 to 9, to int64 (10, 10)."""
    return torch.bincount(10 * labels + said, minlength=100).view(10, 10)


def wrong_images(labels: Tensor, said: Tensor, sure: Tensor) -> Tensor:
    """Return the indices where ``said`` isn't ``labels``, int64, from the surest answer to the least sure."""
    wrong = (said != labels).nonzero().flatten()
    return wrong[sure[wrong].argsort(descending=True, stable=True)]


def wilson(right: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Bound the rate behind ``right`` of ``total``, of one shape, with 95 % confidence; NaN where total is 0.

    Returns the ends of the score interval, in [0, 1]: Wilson, "Probable inference, the law of succession,
    and statistical inference", Journal of the American Statistical Association 22 (1927).
    """
    right, total, z2 = right.double(), total.double(), 1.959964**2
    middle = (right + z2 / 2) / (total + z2)
    half = (z2 * (right * (total - right) / total + z2 / 4)).sqrt() / (total + z2)
    return middle - half, middle + half


def calibration(sure: Tensor, right: Tensor, bins: int = 15) -> tuple[float, Tensor, Tensor, Tensor]:
    """Compare how sure a network is with how often it is right, in bins of equal width.

    ``sure`` is float64 (N,) in (0, 1], ``right`` bool (N,); bin m of M holds ((m - 1) / M, m / M].
    Returns the expected calibration error, in [0, 1]: the gap between mean ``sure`` and the share of right
    answers, averaged over the images' bins. And of each bin, (bins,): its images and those answered right,
    both int64, and its mean ``sure``, float64, NaN in an empty bin.
    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017), section 2.
    """
    index = torch.bucketize(sure, torch.arange(1, bins, dtype=torch.float64) / bins)
    count, hits = torch.bincount(index, minlength=bins), torch.bincount(index[right], minlength=bins)
    total = torch.bincount(index, sure, minlength=bins)
    return float((hits - total).abs().sum() / len(sure)), count, hits, total / count
