"""The network: 9,798 parameters, one digit in, ten log-probabilities out; or as many as there are classes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Three scales of 3×3 convolutions, then an average over the picture for each class.

    ``dropout``, in [0, 1), is the share of activations that each dropout drops in training. The attributes
    have the names of the original notebook, so that weights which it saved can be loaded.
    The initialisation is PyTorch's default, drawn from the global generator.
    """

    def __init__(self, dropout: float = 0.05, num_classes: int = 10) -> None:
        super().__init__()
        #                                                     output     receptive field
        self.conv1 = nn.Conv2d(1, 10, 3, padding=1)  #        10×28×28    3
        self.bn1 = BatchNorm2d(10)  # below: ten channels are slow in nn's
        self.dropout1 = Dropout(dropout)
        self.conv2 = nn.Conv2d(10, 16, 3, padding=1)  #       16×28×28    5
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout2 = Dropout(dropout)

        self.pool1 = nn.MaxPool2d(2)  #                       16×14×14    6
        self.conv1x1_1 = nn.Conv2d(16, 10, 1)  #              10×14×14    6
        self.conv3 = nn.Conv2d(10, 16, 3, padding=1)  #       16×14×14   10
        self.bn3 = nn.BatchNorm2d(16)
        self.dropout3 = Dropout(dropout)
        self.conv4 = nn.Conv2d(16, 16, 3, padding=1)  #       16×14×14   14
        self.bn4 = nn.BatchNorm2d(16)
        self.dropout4 = Dropout(dropout)

        self.pool2 = nn.MaxPool2d(2)  #                       16×7×7     16
        self.conv1x1_2 = nn.Conv2d(16, 10, 1)  #              10×7×7     16
        self.conv5 = nn.Conv2d(10, 16, 3, padding=1)  #       16×7×7     24
        self.bn5 = nn.BatchNorm2d(16)
        self.dropout5 = Dropout(dropout)
        self.conv6 = nn.Conv2d(16, 16, 3, padding=1)  #       16×7×7     32
        self.bn6 = nn.BatchNorm2d(16)
        self.dropout6 = Dropout(dropout)

        self.conv7 = nn.Conv2d(16, num_classes, 1)  #         10×7×7     32
        self.gap = nn.AdaptiveAvgPool2d(1)  #                 10×1×1     28, the whole picture

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 28, 28), float32, normalised, to log-probabilities (N, num_classes), float32."""
        # ReLU is a function here, as the original's summary has no row for it; in place, as that is faster.
        x = self.dropout1(self.bn1(F.relu(self.conv1(x), inplace=True)))
        x = self.dropout2(self.bn2(F.relu(self.conv2(x), inplace=True)))
        x = F.relu(self.conv1x1_1(self.pool1(x)), inplace=True)
        x = self.dropout3(self.bn3(F.relu(self.conv3(x), inplace=True)))
        x = self.dropout4(self.bn4(F.relu(self.conv4(x), inplace=True)))
        x = F.relu(self.conv1x1_2(self.pool2(x)), inplace=True)
        x = self.dropout5(self.bn5(F.relu(self.conv5(x), inplace=True)))
        x = self.dropout6(self.bn6(F.relu(self.conv6(x), inplace=True)))
        x = self.gap(self.conv7(x))
        return F.log_softmax(x.flatten(start_dim=1), dim=1)


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws few random numbers on a CPU, where drawing them is what it costs.

    It draws the gaps between dropped activations, which are geometric: Fan, Muller, Rezucha, JASA 57 (1962).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        mask = torch.full_like(x, 1 / (1 - self.p))
        mask.as_strided((x.numel(),), (1,)).index_fill_(0, draw_positions(x.numel(), self.p), 0)
        return x * mask


def draw_positions(count: int, p: float) -> Tensor:
    """Draw which of ``count`` elements to drop, each by itself with probability ``p`` in (0, 1).

    Returns their indices, int64, in order.
    """
    expected, deviation = count * p, math.sqrt(count * p * (1 - p))
    gaps = torch.empty(int(expected + 7 * deviation) + 8)  # less than one draw in 10^11 ends before count
    gaps.uniform_().neg_().log1p_().mul_(1 / math.log1p(-p)).clamp_(max=count)
    positions = gaps.long().add_(1).cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, count))]


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` as ``Net`` uses it, trained faster on a CPU if the channels are few and lie last.

    There torch sums up a matrix (N·H·W, C), each thread in a row of C sums. If C is 10, two threads' rows
    share a cache line, and they wait for each other; 16 floats fill one, so the other layers need nothing.
    This gives the same kernels a matrix (N·H, W·C) instead, of which W columns belong to a channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            x = NormalizeChannels.apply(x, self.weight, self.bias, self)
            return x
        return super().forward(x)


class NormalizeChannels(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy, ICML 2015) in training, for ``BatchNorm2d``; once differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any) -> Tensor:
        rows, width, count = as_rows(x), x.shape[3], x.numel() // x.shape[1]
        means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
        # A channel's columns are of one length: its variance is that of their means plus the mean of theirs.
        between, mean = torch.var_mean(means.view(width, -1), 0, correction=0)
        variance = between + variances.view(width, -1).mean(0)
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        inverse = (variance + norm.eps).rsqrt()
        factor = weight * inverse
        offset = bias - mean * factor
        out = torch.empty_like(x)
        torch.addcmul(offset.repeat(width), rows, factor.repeat(width), out=as_rows(out))
        ctx.save_for_backward(x, factor, mean, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, mean, inverse = ctx.saved_tensors
        grad = as_rows(grad_outputs[0].contiguous(memory_format=torch.channels_last))
        rows, width, count = as_rows(x), x.shape[3], x.numel() // x.shape[1]
        statistics = mean.repeat(width), inverse.repeat(width)
        _, products, sums = torch.ops.aten.native_batch_norm_backward(  # of each column's grad·x̂ and grad
            grad, rows, None, None, None, *statistics, True, 0.0, [False, True, True]
        )
        grad_weight, grad_bias = products.view(width, -1).sum(0), sums.view(width, -1).sum(0)
        # factor * (grad - mean of grad - x̂ * mean of grad·x̂), with x̂ = (x - mean) * inverse
        slope = factor * inverse * grad_weight / -count
        offset = factor * grad_bias / -count - mean * slope
        grad_x = torch.empty_like(x)
        torch.addcmul(offset.repeat(width), rows, slope.repeat(width), out=as_rows(grad_x))
        as_rows(grad_x).addcmul_(grad, factor.repeat(width))
        return grad_x, grad_weight, grad_bias, None


def as_rows(x: Tensor) -> Tensor:
    """View (N, C, H, W), channels last, as (N·H, W·C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[3] * x.shape[1])
