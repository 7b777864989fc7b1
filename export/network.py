"""What the formats share: the network as a list of layers, and templates."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from model import Net
from utils import MEAN, STD

Predictor = Callable[[Tensor], Tensor]  # images, uint8 (N, 28, 28), to log-probabilities, float32 (N, 10)


@dataclass
class Layer:
    """A convolution, padded by zeros to keep the side, and what follows it up to the next one; float64."""

    name: str  # of the convolution in Net
    weight: Tensor  # (outputs, inputs, k, k)
    bias: Tensor  # (outputs,)
    relu: bool
    norm: tuple[
        Tensor, ...
    ] = ()  # batch norm: for each channel a factor, and then a summand; () where it has none
    pool: bool = False  # whether the maximum of each 2×2 activations is taken


def layers(model: Net) -> list[Layer]:
    """Return what ``model`` computes in evaluation mode of normalised images.

    The average over the image for each channel of the last layer, and log-softmax, remain to be done.
    """
    found: list[Layer] = []
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, module in model.named_children():  # in the order in which forward calls them
        if isinstance(module, nn.Conv2d):
            found.append(Layer(name, state[f"{name}.weight"], state[f"{name}.bias"], relu=name != "conv7"))
        elif isinstance(module, nn.BatchNorm2d):
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            factor = state[f"{name}.weight"] / (variance + module.eps).sqrt()
            found[-1].norm = factor, state[f"{name}.bias"] - mean * factor
        elif isinstance(module, nn.MaxPool2d):
            found[-1].pool = True
    return found


def fill(template: str, model: Net, **fields: str) -> bytes:
    """Return the file ``template`` of this folder with each {{field}} replaced, in UTF-8.

    {{parameters}}, {{mean}} and {{std}} are known: the number of ``model``'s, and what normalises images.
    """
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    for name, value in {**fields, "parameters": parameters, "mean": str(MEAN), "std": str(STD)}.items():
        text = text.replace("{{" + name + "}}", value)
    return text.encode()
