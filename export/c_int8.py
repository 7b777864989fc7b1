"""The C header in integer arithmetic: net_int8.h.in, filled with a network's quantized numbers.

Weights are 8-bit integers with a scale for each output channel, activations 8-bit integers with a scale and
a zero point for each channel, much as in Jacob et al., Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, CVPR 2018. An activation of value v is kept as v / scale + zero.
The scales of a layer's inputs are part of its weights, so that its sums need none.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Options
from datasets import MNIST, Dataset, load
from export.c_code import array
from export.network import Layer, fill, published_layers
from model import Net
from runtime.errors import UserError
from utils import normalize

CALIBRATION = 1000  # training images, evenly spread, that the ranges of activations are taken from
PIXELS = 49  # of the last map, which is averaged
LARGEST = 2**30  # of a product, and of what is added to it: so that their sum is below 2^31


@dataclass(frozen=True)
class Quantized:
    """A layer in integers, float64 here: see struct net_conv in net_int8.h.in."""

    name: str
    weight: Tensor  # (outputs, inputs, k, k), from -127 to 127
    bias: Tensor  # (outputs,), as the next two
    offset: Tensor
    factor: Tensor
    zero: Tensor  # (inputs,)
    before: int
    after: int


def activation_ranges(found: list[Layer], images: Tensor, dataset: Dataset) -> list[tuple[Tensor, Tensor]]:
    """Return, for each layer, the least and the greatest output of each channel before pooling; 0 is between.

    ``images``, of ``dataset``, is uint8 (N, 28, 28); what is returned is float64 (outputs,).
    """
    ranges, x = [], normalize(images[:, None], dataset)
    for layer in found:
        x = F.conv2d(x, layer.weight.float(), layer.bias.float(), padding=layer.weight.shape[-1] // 2)
        x = F.relu(x) if layer.relu else x
        if layer.norm:
            factor, summand = (tensor.float().view(-1, 1, 1) for tensor in layer.norm)
            x = x * factor + summand
        low, high = x.double().amin(dim=(0, 2, 3)), x.double().amax(dim=(0, 2, 3))
        ranges.append((low.clamp(max=0), high.clamp(min=0)))
        x = F.max_pool2d(x, 2) if layer.pool else x
    return ranges


def round_weights(
    layer: Layer, scale: Tensor, zero: Tensor, shared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Round the weights of ``layer`` to 8 bits, and its bias, for inputs of ``scale`` and ``zero``.

    Returns them and what a unit of both is worth, (outputs,): with ``shared`` one power of two for all.
    """
    weight = layer.weight * scale.view(-1, 1, 1)
    # A bias that is large beside all weights makes them coarser, rather than the sums wider.
    step = torch.maximum(weight.flatten(1).abs().amax(dim=1) / 127, layer.bias.abs() / 2**24)
    step[step == 0] = 1
    if shared:
        step = 2 ** step.max().log2().ceil().expand_as(step)
    weight = (weight / step.view(-1, 1, 1, 1)).round()
    return weight, (layer.bias / step - weight.sum(dim=(2, 3)) @ zero).round(), step


def largest_sum(weight: Tensor, bias: Tensor, largest: int) -> int:
    """Return a bound on the magnitude of all sums, partial ones too, over inputs from 0 to ``largest``."""
    return int((bias.abs() + largest * weight.abs().flatten(1).sum(dim=1)).max())


def quantize(model: Net, images: Tensor, dataset: Dataset = MNIST) -> tuple[list[Quantized], int, int]:
    """Quantize ``model`` with activation ranges from ``images`` of ``dataset``, uint8 (N, 28, 28).

    Returns the layers; the integer that stands for 1 in the logits; and a bound on the magnitude of all sums.
    Raises ``UserError`` where 32 bits can't hold a sum that some image might lead to.
    """
    found, quantized, bounds = published_layers(model), [], []
    scale = torch.tensor([1 / (255 * dataset.std)]).double()
    zero = torch.tensor([255 * dataset.mean]).double()
    ranges = activation_ranges(found[:-1], images, dataset)
    for layer, (low, high) in zip(found[:-1], ranges, strict=True):
        weight, bias, step = round_weights(layer, scale, zero)
        bound = largest_sum(weight, bias, 255)
        before = max(0, bound.bit_length() - 15)
        factor, summand = layer.norm or (torch.ones_like(bias), torch.zeros_like(bias))
        factor = factor * step * 2**before
        # No finer than a sum that lost these bits: a channel that hardly moves needs no large factor.
        next_scale = torch.maximum((high - low) / 255, factor.abs())
        next_scale[next_scale == 0] = 1
        next_zero = (-low / next_scale).round()
        factor, offset = factor / next_scale, summand / next_scale + next_zero + 0.5  # 0.5: to round
        largest = torch.maximum(factor.abs() * 2**15, offset.abs()).max()
        after = min(22, int(torch.log2(LARGEST / largest).floor()))
        factor = (factor * 2**after).round().clamp(1 - 2**15, 2**15 - 1)
        offset = (offset * 2**after).round()
        bounds += [bound, int((factor.abs() * (bound >> before) + offset.abs()).max())]
        quantized.append(Quantized(layer.name, weight, bias, offset, factor, zero.round(), before, after))
        scale, zero = next_scale, next_zero
    weight, bias, step = round_weights(found[-1], scale / PIXELS, zero * PIXELS, shared=True)
    bounds.append(largest_sum(weight, bias, 255 * PIXELS))
    quantized.append(Quantized(found[-1].name, weight, bias, bias, bias, zero, 0, 0))
    one = int(1 / step[0])
    if max(bounds) >= 2**31 or not 1 <= one < 2**31 or min(each.after for each in quantized) < 0:
        raise UserError("these weights are too uneven for sums of 32 bits: export them as c")
    return quantized, one, max(bounds)


def write(model: Net, dataset: Dataset = MNIST, data_path: str = Options.data_path) -> bytes:
    """Return the header that computes what ``model`` of ``dataset`` does in evaluation mode, in integers.

    ``data_path`` is where its training set lies. Raises ``UserError`` like ``quantize`` and ``load``, and
    ``OSError``.
    """
    (images, _), _ = load(dataset.name, data_path, train=True)
    sample = images[torch.arange(CALIBRATION) * len(images) // CALIBRATION]  # evenly spread
    quantized, one, bound = quantize(model, sample, dataset)
    arrays = []
    for layer in quantized:
        weight = layer.weight.permute(0, 3, 2, 1).flatten().to(torch.int8)
        arrays.append(f"static const signed char net_{layer.name}_weights[] = {array(weight)};")
        numbers = [array(each.int()) for each in (layer.bias, layer.offset, layer.factor, layer.zero)]
        if layer is quantized[-1]:
            arrays.append(f"static const int net_{layer.name}_bias[] = {numbers[0]};")
            continue
        outputs, inputs = layer.weight.shape[:2]
        sizes = f"{len(weight) // outputs}, {inputs}, {outputs}, {layer.before}, {layer.after}"
        fields = ",\n".join([f"net_{layer.name}_weights", *numbers, sizes])
        arrays.append(f"static const struct net_conv net_{layer.name} = {{{fields}}};")
    numbers_of = {"arrays": "\n".join(arrays), "one": str(one), "bound": f"{bound:,}"}
    return fill("net_int8.h.in", model, dataset, **numbers_of)
