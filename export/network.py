"""What the formats share: the network as a list of layers, and templates."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from datasets import MNIST, Dataset
from model import Net
from runtime.errors import UserError

Predictor = Callable[[Tensor], Tensor]  # uint8 (N, 28, 28) to log-probabilities, float32 (N, classes)

# The layers of the C templates, without conv7: outputs, inputs, kernel size, and whether max pooling follows.
C_LAYERS = {"conv1": (10, 1, 3, False), "conv2": (16, 10, 3, True), "conv1x1_1": (10, 16, 1, False)}
C_LAYERS |= {"conv3": (16, 10, 3, False), "conv4": (16, 16, 3, True), "conv1x1_2": (10, 16, 1, False)}
C_LAYERS |= {"conv5": (16, 10, 3, False), "conv6": (16, 16, 3, False)}


@dataclass
class Layer:
    """A convolution, with the padding that keeps the size, and what follows it; float64."""

    name: str  # of the convolution in Net
    weight: Tensor  # (outputs, inputs, k, k)
    bias: Tensor  # (outputs,)
    relu: bool
    norm: tuple[Tensor, ...] = ()  # batch norm as x * norm[0] + norm[1], each (outputs,); () if it has none
    pool: bool = False  # whether 2×2 max pooling follows


def layers(model: Net) -> list[Layer]:
    """List what ``model`` computes from normalised images in evaluation mode.

    Global average pooling and log-softmax follow the last layer.
    """
    result: list[Layer] = []
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, module in model.named_children():  # in the order in which forward calls them
        if isinstance(module, nn.Conv2d):
            result.append(Layer(name, state[f"{name}.weight"], state[f"{name}.bias"], relu=name != "conv7"))
        elif isinstance(module, nn.BatchNorm2d):
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            factor = state[f"{name}.weight"] / (variance + module.eps).sqrt()
            result[-1].norm = factor, state[f"{name}.bias"] - mean * factor
        elif isinstance(module, nn.MaxPool2d):
            result[-1].pool = True
    return result


def c_layers(model: Net) -> list[Layer]:
    """List the layers of ``model`` for the C templates, which fit only the published network."""
    result = layers(model)
    shapes = {layer.name: (*layer.weight.shape[:3], layer.pool) for layer in result[:-1]}
    for name in shapes | C_LAYERS:
        if shapes.get(name) != C_LAYERS.get(name):
            raise UserError(f"C needs the published network; model.py has another {name}: name other formats")
    return result


def render(template: str, model: Net, dataset: Dataset = MNIST, **fields: str) -> bytes:
    """Replace each {{field}} in the file ``template`` of this folder, and encode it as UTF-8.

    Besides ``fields``, all templates can have those below. {{names}} are lines of a C comment that number the
    classes of ``dataset``, as Python's literals in ASCII.
    """
    names = [ascii(name).replace("*/", r"*\/").replace("/*", r"/\*") for name in dataset.classes]
    fields |= {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "mean": str(dataset.mean),
        "std": str(dataset.std),
        "classes": str(len(names)),
        "last": str(len(names) - 1),
        "names": "".join(f"\n *     {label} {name}" for label, name in enumerate(names)),
    }
    content = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], content).encode()
