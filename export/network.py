"""What the formats share: the network as a list of steps, and templates."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from model import Net
from utils import MEAN, STD

Predictor = Callable[[Tensor], Tensor]  # images, uint8 (N, 28, 28), to log-probabilities, float32 (N, 10)


class Step(NamedTuple):
    """One operation on maps of activations.

    "conv" takes weights (outputs, inputs, k, k) and biases (outputs,), and keeps the side by zeros around;
    "norm", a batch norm, a factor and then a summand for each channel; "relu", "pool" (the maximum of each
    2×2 activations) and "mean" (of each channel) take no numbers.
    """

    kind: str
    name: str  # of the module in Net
    numbers: tuple[Tensor, ...] = ()  # float64


def steps(model: Net) -> list[Step]:
    """Return what ``model`` computes in evaluation mode between normalised images and log-softmax."""
    found: list[Step] = []
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, module in model.named_children():  # in the order in which forward calls them
        if isinstance(module, nn.Conv2d):
            found.append(Step("conv", name, (state[f"{name}.weight"], state[f"{name}.bias"])))
            if name != "conv7":
                found.append(Step("relu", name))
        elif isinstance(module, nn.BatchNorm2d):
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            factor = state[f"{name}.weight"] / (variance + module.eps).sqrt()
            found.append(Step("norm", name, (factor, state[f"{name}.bias"] - mean * factor)))
        elif isinstance(module, nn.MaxPool2d):
            found.append(Step("pool", name))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            found.append(Step("mean", name))
    return found


def fill(template: str, model: Net, **fields: str) -> bytes:
    """Return the file ``template`` of this folder with each {{field}} replaced, in UTF-8.

    {{parameters}}, {{mean}} and {{std}} are known: the number of ``model``'s, and what normalises images.
    """
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    fields |= {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "mean": str(MEAN),
        "std": str(STD),
    }
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    return text.encode()
