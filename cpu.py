"""What makes training fast on a CPU, where memory traffic is what costs: same numbers, fewer passes."""

import ctypes
import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Block


def keep_freed_memory() -> None:
    """Ask glibc to keep the memory that it frees; elsewhere, do nothing.

    By default it hands each large activation back to the kernel and gets it again, zeroed, thousands
    of page faults a step. Same as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ (mallopt(3)).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(m_trim_threshold, (1 << 31) - 1)


def drop_positions(count: int, p: float) -> Tensor:
    """Draw which of ``count`` elements to drop, each independently with probability ``p`` in (0, 1).

    Returns their indices, int64, in order. Draws the gaps between them, which are geometric, instead of
    a number for every element: 1/p times fewer (Fan, Muller and Rezucha, JASA 57, 1962).
    """
    expected, deviation = count * p, math.sqrt(count * p * (1 - p))
    gaps = torch.empty(int(expected + 7 * deviation) + 8)  # one draw in 10^11 ends before count
    gaps.uniform_().neg_().log1p_().mul_(1 / math.log1p(-p))
    positions = gaps.long().add_(1).cumsum_(0).sub_(1)
    return positions[: int(torch.searchsorted(positions, count))]


def rows(x: Tensor) -> Tensor:
    """View (N, C, H, W), channels last, as (N·H, W·C): long rows that add and multiply at full speed."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[3] * x.shape[1])


def per_channel(sums: Tensor, channels: int) -> Tensor:
    """Add up the (W·C,) sums of ``rows`` to (C,)."""
    return sums.view(-1, channels).sum(0)


class NormDrop(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy, 2015), then dropout, of a channels-last (N, C, H, W) tensor in training.

    What ``F.batch_norm`` and ``F.dropout`` compute, running statistics included, in fewer passes: the
    scale 1/(1-p) rides on batch norm's multiply-and-add, and dropping writes zeros where they go.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, p: float) -> Tensor:
        channels, width = x.shape[1], x.shape[3]
        flat, count = rows(x), x.numel() // channels
        mean = per_channel(flat.sum(0), channels) / count
        variance = (per_channel((flat * flat).sum(0), channels) / count - mean * mean).clamp_(min=0)
        inverse = (variance + norm.eps).rsqrt_()
        if norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None:
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / max(count - 1, 1)), norm.momentum)
        ctx.keep = 1 - p
        factor = weight * inverse
        offset = (bias - mean * factor) / ctx.keep
        out = torch.empty_like(x)
        torch.addcmul(offset.repeat(width), flat, (factor / ctx.keep).repeat(width), out=rows(out))
        dropped = drop_positions(x.numel(), p) if p > 0 else torch.empty(0, dtype=torch.int64)
        rows(out).view(-1).index_fill_(0, dropped, 0)
        ctx.save_for_backward(x, mean, inverse, factor, dropped)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, factor, dropped = ctx.saved_tensors
        channels, width = x.shape[1], x.shape[3]
        flat, count = rows(x), x.numel() // channels
        grad = rows(grad_outputs[0].contiguous(memory_format=torch.channels_last)) / ctx.keep
        grad.view(-1).index_fill_(0, dropped, 0)
        grad_bias = per_channel(grad.sum(0), channels)
        grad_weight = (per_channel((grad * flat).sum(0), channels) - mean * grad_bias) * inverse
        # factor * (grad - mean of grad - x̂ * mean of grad·x̂), with x̂ = (x - mean) * inverse
        slope = factor * inverse * grad_weight / -count
        offset = factor * grad_bias / -count - mean * slope
        torch.addcmul(offset.repeat(width), grad, factor.repeat(width), out=grad)
        grad.addcmul_(flat, slope.repeat(width))
        grad_x = grad.view(x.shape[0], x.shape[2], width, channels).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad_bias, None, None


class FastBlock(Block):
    """A ``Block`` with the same parameters and results, whose training passes are those of ``NormDrop``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        conv, norm, dropout = self
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        x = F.relu(conv(x), inplace=True).contiguous(memory_format=torch.channels_last)
        out: Tensor = NormDrop.apply(x, norm.weight, norm.bias, norm, dropout.p)
        return out


def speed_up(model: nn.Module) -> None:
    """Make ``model`` train fast on a CPU, in place: channels last, ``FastBlock``, memory kept."""
    keep_freed_memory()
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if type(module) is Block:
            module.__class__ = FastBlock
