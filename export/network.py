"""What the formats share: the network as a list of layers, and templates."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from datasets import MNIST, Dataset
from model import Net
from runtime.errors import UserError

# The words of the C headers: of MNIST's, and of the others', where 0 may be no background.
WORDS = ("task", "result", "kind", "dark", "light")
OF_DIGITS = ("Reads one handwritten digit", "digit", "digit", "the background", "the ink")
OF_IMAGES = ("Classifies one image", "label", "class", "black", "white")

Predictor = Callable[[Tensor], Tensor]  # uint8 (N, 28, 28) to log-probabilities, float32 (N, classes)


@dataclass
class Layer:
    """A convolution, padded by zeros to keep the side, and what follows it up to the next one; float64."""

    name: str  # of the convolution in Net
    weight: Tensor  # (outputs, inputs, k, k)
    bias: Tensor  # (outputs,)
    relu: bool
    # Batch norm: for each channel a factor, and then a summand; () where it has none.
    norm: tuple[Tensor, ...] = ()
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


def list_names(classes: tuple[str, ...]) -> str:
    """Return lines for a comment in C that number the ``classes``: as Python's literals, of ASCII alone."""
    names = [ascii(name).replace("*/", r"*\/").replace("/*", r"/\*") for name in classes]
    lines = "".join(f"\n *     {i} {name}" for i, name in enumerate(names))
    return f"\n *\n * The classes, in the order of the logits:{lines}"


# What the C templates are written for: outputs, inputs and kernel; conv7 has an output for each class.
WIDTHS = {"conv1": (10, 1, 3), "conv2": (16, 10, 3), "conv1x1_1": (10, 16, 1), "conv3": (16, 10, 3)}
WIDTHS |= {"conv4": (16, 16, 3), "conv1x1_2": (10, 16, 1), "conv5": (16, 10, 3), "conv6": (16, 16, 3)}


def published_layers(model: Net) -> list[Layer]:
    """Return ``layers`` of ``model``. Raises ``UserError`` where the C templates are not written for them."""
    found = layers(model)
    widths = {layer.name: tuple(layer.weight.shape[:3]) for layer in found[:-1]}
    for name in WIDTHS | widths:
        if widths.get(name) != WIDTHS.get(name):
            text = f"{name} has (outputs, inputs, kernel) {widths.get(name)}, not {WIDTHS.get(name)}"
            raise UserError(f"C is written for the layers of the published network alone: {text}")
    return found


def fill(template: str, model: Net, dataset: Dataset = MNIST, **fields: str) -> bytes:
    """Return the file ``template`` of this folder with each {{field}} replaced, in UTF-8.

    Known are {{parameters}}, the number of ``model``'s, {{mean}} and {{std}}, which normalise images of
    ``dataset``, {{classes}}, their number, {{last}}, the last one's, {{names}} and the ``WORDS``.
    """
    text, count = Path(__file__).with_name(template).read_text(encoding="utf-8"), len(dataset.classes)
    fields |= {"mean": str(dataset.mean), "std": str(dataset.std), "classes": str(count)}
    fields |= {"last": str(count - 1), "names": "" if dataset == MNIST else list_names(dataset.classes)}
    fields |= zip(WORDS, OF_DIGITS if dataset == MNIST else OF_IMAGES, strict=True)
    fields["parameters"] = f"{sum(p.numel() for p in model.parameters()):,}"
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], text).encode()
