"""Faster training on a CPU. ``Net`` is plain PyTorch; ``main.py`` calls ``speed_up`` on a CPU."""

import ctypes
import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHE_LINE_FLOATS = 16  # float32 numbers in 64 bytes


def speed_up(model: nn.Module) -> nn.Module:
    """Make ``model`` train faster on a CPU in float32, in place, and return it.

    This is for ``train.py``. All else, such as ``torch.compile`` or autocast, is for the plain ``Net``. Names
    and values of parameters stay.

    - Its weights, and so its activations, are stored with their channels last.
    - Each ``nn.Dropout``, and each ``nn.BatchNorm2d`` of fewer than 16 channels, becomes the faster class of
      this file. The results are equivalent, but dropout draws different random numbers.
    - In the whole process, glibc keeps freed memory for reuse (mallopt(3)). By default, it returns large
      blocks to the operating system. To get them again costs thousands of page faults per training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: 32 MiB, the largest value that glibc accepts
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: return nothing
    for module in model.modules():
        # Another class for the same object: parameters, buffers and hooks stay as they are.
        if type(module) is nn.Dropout and 0 < module.p < 1:
            module.__class__ = Dropout
        elif type(module) is nn.BatchNorm2d and module.num_features < CACHE_LINE_FLOATS:
            module.__class__ = BatchNorm2d
    return model.to(memory_format=torch.channels_last)


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws a random number for each dropped element, instead of one for each element.

    On a CPU, random numbers dominate the cost of dropout. The gaps between dropped elements have a geometric
    distribution: Fan, Muller and Rezucha, JASA 57 (1962).
    """

    def forward(self, input: Tensor) -> Tensor:
        """In training, drop elements of ``input``, of any shape, and scale the others by 1 / (1 - p)."""
        if not self.training:
            return input
        mask = torch.full_like(input, 1 / (1 - self.p))
        flat = mask.as_strided((input.numel(),), (1,))  # view(-1) fails with channels last
        flat.index_fill_(0, draw_positions(input.numel(), self.p), 0)
        return input * mask


def draw_positions(count: int, p: float) -> Tensor:
    """Draw which of ``count`` elements to drop, each independently with probability ``p`` in (0, 1).

    Returns their indices, int64, in ascending order.
    """
    expected, deviation = count * p, math.sqrt(count * p * (1 - p))
    # Enough gaps to reach the last element, except in one of 10^11 calls. In that one, the last are kept.
    gaps = torch.empty(int(expected + 7 * deviation) + 8)
    # Inverse transform sampling: log(1 - u) / log(1 - p), rounded down, is geometric for a uniform u.
    gaps.uniform_().neg_().log1p_().mul_(1 / math.log1p(-p)).clamp_(max=count)
    positions = gaps.long().add_(1).cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, count))]


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that is faster in training if its channels are few and stored last.

    PyTorch sums the columns of a matrix (N·H·W, C), and each thread has C partial sums in memory. With C
    below 16, the sums of two threads share a cache line, so the threads wait for each other. This layer gives
    PyTorch's functions a matrix (N·H, W·C), with W columns for each channel. Then it combines their sums.
    """

    running_mean: Tensor  # not None, nor are the next three: they are nn.BatchNorm2d's defaults
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, H, W), and in training update the running statistics."""
        if not self.training:
            return super().forward(input)
        results: tuple[Tensor, ...] = NormalizeChannels.apply(input, self.weight, self.bias, self.eps)
        out, mean, variance = results
        count = input.numel() // self.num_features
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return out


class NormalizeChannels(torch.autograd.Function):
    """Batch norm in training (Ioffe and Szegedy, ICML 2015) for ``BatchNorm2d``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        """Return the normalised ``x``, (N, C, H, W), with the batch's means and variances, (C,)."""
        rows, width = as_rows(x), x.shape[3]
        # Means and biased variances of the columns, without running statistics.
        means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
        # Law of total variance, for columns of equal length: variance of the column means plus mean of the
        # column variances.
        variance_of_means, mean = torch.var_mean(means.view(width, -1), 0, correction=0)
        variance = variance_of_means + variances.view(width, -1).mean(0)
        inverse_std = (variance + eps).rsqrt()
        factor = weight * inverse_std
        offset = bias - mean * factor
        out = torch.empty_like(x)
        torch.addcmul(offset.repeat(width), rows, factor.repeat(width), out=as_rows(out))
        ctx.save_for_backward(x, factor, mean, inverse_std)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, factor, mean, inverse_std = ctx.saved_tensors
        grad = as_rows(grad_outputs[0].contiguous(memory_format=torch.channels_last))
        rows, width, count = as_rows(x), x.shape[3], x.numel() // x.shape[1]
        statistics = mean.repeat(width), inverse_std.repeat(width)
        # For each column, the sums of grad · x̂ and of grad, with x̂ = (x - mean) · inverse_std. They don't
        # depend on the layer's weight and running statistics, so these are None.
        _, grad_xhat_sums, grad_sums = torch.ops.aten.native_batch_norm_backward(
            grad, rows, None, None, None, *statistics, True, 0.0, [False, True, True]
        )
        grad_weight, grad_bias = (sums.view(width, -1).sum(0) for sums in (grad_xhat_sums, grad_sums))
        # grad_x = factor · (grad - mean(grad) - x̂ · mean(grad · x̂)) = slope · x + offset + factor · grad
        slope = factor * inverse_std * grad_weight / -count
        offset = factor * grad_bias / -count - mean * slope
        grad_x = torch.empty_like(x)
        torch.addcmul(offset.repeat(width), rows, slope.repeat(width), out=as_rows(grad_x))
        as_rows(grad_x).addcmul_(grad, factor.repeat(width))
        return grad_x, grad_weight, grad_bias, None


def as_rows(x: Tensor) -> Tensor:
    """View ``x``, (N, C, H, W) with channels last, as (N·H, W·C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[3] * x.shape[1])
