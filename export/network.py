"""The network as a list of layers, templates that are filled with it, and the web page, one of them."""

import base64
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor, nn

from datasets import MNIST, Dataset
from model import Net, count_parameters


@dataclass
class Layer:
    """A convolution, with the padding that keeps the size, and what follows it; float64."""

    name: str  # of the convolution in Net
    weight: Tensor  # (outputs, inputs, k, k)
    bias: Tensor  # (outputs,)
    relu: bool
    norm: tuple[Tensor, ...] = ()  # batch norm as x * norm[0] + norm[1], each (outputs,); () if it has none
    pool: bool = False  # whether 2×2 max pooling follows

    @property
    def factor_and_summand(self) -> tuple[Tensor, ...]:
        """``norm``, or 1 and 0 if it has none."""
        return self.norm or (torch.ones_like(self.bias), torch.zeros_like(self.bias))


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


def as_c_array(values: Tensor) -> str:
    """Write ``values`` as a C initialiser: integers, or float32 to the last bit."""
    suffix = "f" if values.is_floating_point() else ""
    numbers = ", ".join(f"{value}{suffix}" for value in values.flatten().numpy())
    return "{\n" + textwrap.fill(numbers, width=110, break_on_hyphens=False) + "}"


def render(template: str, model: Net, dataset: Dataset = MNIST, **values: Any) -> bytes:
    """Fill the Jinja2 template of this name in this folder, and encode it as UTF-8.

    Besides ``values``, it can have ``dataset``, the number of ``parameters`` of ``model``, the filter
    ``array``, and ``names`` for a C comment: those of the classes, as Python's literals in ASCII.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["array"] = as_c_array
    values |= {"dataset": dataset, "parameters": f"{count_parameters(model):,}"}
    values["names"] = [ascii(name).replace("*/", r"*\/").replace("/*", r"/\*") for name in dataset.classes]
    content = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return environment.from_string(content).render(values).encode()


def write_page(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the web page, one HTML file in UTF-8 that contains ``model`` of ``dataset``.

    It gets a description of each layer, and all numbers as one float32 array, little-endian: for each layer
    its weights, biases, and the factors and summands of batch norm.
    """
    network = layers(model)
    tensors = [tensor for layer in network for tensor in (layer.weight, layer.bias, *layer.norm)]
    array = torch.cat([tensor.float().flatten() for tensor in tensors]).numpy().astype("<f4")
    numbers = base64.b64encode(array.tobytes()).decode()
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return render("page.html", model, dataset, layers=network, numbers=numbers, script=script)
