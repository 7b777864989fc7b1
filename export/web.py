"""The web page: page.html, filled with page.js and the network's numbers."""

import base64
from pathlib import Path

import torch

from datasets import MNIST, Dataset
from export.network import layers, render
from model import Net


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the page, one HTML file in UTF-8 that contains ``model`` of ``dataset``.

    The page gets a description of each layer, and all numbers as one float32 array, little-endian: for each
    layer its weights, biases, and the factors and summands of batch norm.
    """
    network = layers(model)
    tensors = [tensor for layer in network for tensor in (layer.weight, layer.bias, *layer.norm)]
    array = torch.cat([tensor.float().flatten() for tensor in tensors]).numpy().astype("<f4")
    numbers = base64.b64encode(array.tobytes()).decode()
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return render("page.html", model, dataset, layers=network, numbers=numbers, script=script)
