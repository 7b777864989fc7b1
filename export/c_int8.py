"""The C header in integer arithmetic: net_int8.h.in, filled with a network's quantized numbers.

Weights are 8-bit integers, with a scale for each output channel. Activations are 8-bit integers, with a scale
and a zero point for each channel: an activation v is stored as v / scale + zero point. This is much as in
Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018. But the scales of a layer's inputs are folded into its weights, so its sums need no scales.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import MNIST, Dataset, read
from export.network import Layer, layers, render
from model import Net
from runtime.errors import UserError
from utils import normalize

CALIBRATION = 1000  # training images from which the ranges of activations are measured
PIXELS = 49  # of the last map, which is averaged
LARGEST = 2**30  # of a product, and of the offset added to it, so that their sum is below 2^31


@dataclass(frozen=True)
class Quantized:
    """A layer in integers, here as float64. struct net_int8_conv in net_int8.h.in says how they are used."""

    name: str
    weight: Tensor  # (outputs, inputs, k, k), from -127 to 127
    bias: Tensor  # (outputs,), as the next two
    offset: Tensor
    factor: Tensor
    zero: Tensor  # (inputs,)
    sum_shift: int
    output_shift: int


def round_weights(
    layer: Layer, scale: Tensor, zero: Tensor, pixels: int = 1
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Round weights and bias of ``layer``, whose inputs have this ``scale`` and zero point, to integers.

    Returns weights, from -127 to 127, biases, the step of each output, and a bound on the magnitude of all
    sums, partial ones included. The step is the real number that the integer 1 stands for. The inputs of the
    last layer are sums of several ``pixels``. There, the step is the same power of two for all outputs.
    """
    weight = layer.weight * (scale / pixels).view(-1, 1, 1)
    # Where a bias is much larger than the weights, round these more coarsely, so that 32 bits hold the sums.
    step = torch.maximum(weight.flatten(1).abs().amax(dim=1) / 127, layer.bias.abs() / 2**24)
    step[step == 0] = 1
    if pixels > 1:
        step = 2 ** step.max().log2().ceil().expand_as(step)
    weight = (weight / step.view(-1, 1, 1, 1)).round()
    bias = (layer.bias / step - weight.sum(dim=(2, 3)) @ (zero * pixels)).round()
    bound = bias.abs() + 255 * pixels * weight.abs().flatten(1).sum(dim=1)
    return weight, bias, step, int(bound.max())


def quantize(model: Net, images: Tensor, dataset: Dataset = MNIST) -> tuple[list[Quantized], int, int]:
    """Quantize ``model`` with activation ranges from ``images`` of ``dataset``, uint8 (N, 28, 28).

    Returns the layers, the integer for 1.0 in the logits, and a bound on the magnitude of all sums.
    """
    *hidden, last = layers(model)
    quantized, bounds = [], []
    scale = torch.tensor([1 / (255 * dataset.std)]).double()
    zero = torch.tensor([255 * dataset.mean]).double()
    x = normalize(images[:, None], dataset)
    for layer in hidden:
        # In float32: the range of each output channel before pooling, extended to include 0.
        factor, summand = layer.factor_and_summand
        x = F.relu(F.conv2d(x, layer.weight.float(), layer.bias.float(), padding="same"))
        x = x * factor.float().view(-1, 1, 1) + summand.float().view(-1, 1, 1)
        low = x.double().amin(dim=(0, 2, 3)).clamp(max=0)
        high = x.double().amax(dim=(0, 2, 3)).clamp(min=0)
        x = F.max_pool2d(x, 2) if layer.pool else x

        weight, bias, step, bound = round_weights(layer, scale, zero)
        sum_shift = max(0, bound.bit_length() - 15)
        factor = factor * step * 2**sum_shift
        # No scale is finer than the shifted sum: else a nearly constant channel would need a huge factor.
        scale = torch.maximum((high - low) / 255, factor.abs())
        scale[scale == 0] = 1
        input_zero, zero = zero.round(), (-low / scale).round()
        factor, offset = factor / scale, summand / scale + zero + 0.5  # 0.5: to round
        largest = torch.maximum(factor.abs() * 2**15, offset.abs()).max()
        shift = min(22, int(torch.log2(LARGEST / largest).floor()))
        factor = (factor * 2**shift).round().clamp(1 - 2**15, 2**15 - 1)
        offset = (offset * 2**shift).round()
        bounds += [bound, int((factor.abs() * (bound >> sum_shift) + offset.abs()).max())]
        quantized.append(Quantized(layer.name, weight, bias, offset, factor, input_zero, sum_shift, shift))
    weight, bias, step, bound = round_weights(last, scale, zero, pixels=PIXELS)
    unused = torch.zeros_like(bias)  # the logits have neither batch norm nor quantization
    quantized.append(Quantized(last.name, weight, bias, unused, unused, zero, 0, 0))
    one, bound = int(1 / step[0]), max(bound, *bounds)
    if bound >= 2**31 or not 1 <= one < 2**31 or min(layer.output_shift for layer in quantized) < 0:
        raise UserError("the sums of these weights could overflow 32 bits: export them as c")
    return quantized, one, bound


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the header that computes ``model`` of ``dataset`` in evaluation mode, in integers."""
    (images, _), _ = read(dataset.name, dataset.path, train=True)
    sample = images[torch.arange(CALIBRATION) * len(images) // CALIBRATION]  # evenly spaced
    quantized, one, bound = quantize(model, sample, dataset)
    return render("net_int8.h.in", model, dataset, layers=quantized, one=one, bound=bound)
