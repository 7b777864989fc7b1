"""The web page: page.html, filled with page.js and the network's numbers."""

import base64
import json
from pathlib import Path

import torch

from export.network import layers, render
from model import Net


def write(model: Net) -> bytes:
    """Return the page, one HTML file in UTF-8 that contains ``model``.

    The page gets a description of each layer, and all numbers as one float32 array, little-endian: for each
    layer its weights, biases, and the factors and summands of batch norm.
    """
    layer_list = layers(model)
    shapes = [
        {"shape": [*layer.weight.shape[:3]], "relu": layer.relu, "norm": bool(layer.norm), "pool": layer.pool}
        for layer in layer_list
    ]
    tensors = [tensor for layer in layer_list for tensor in (layer.weight, layer.bias, *layer.norm)]
    numbers = torch.cat([tensor.float().flatten() for tensor in tensors])
    return render(
        "page.html",
        model,
        script=Path(__file__).with_name("page.js").read_text(encoding="utf-8"),
        layers=",\n  ".join(map(json.dumps, shapes)),
        numbers=base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode(),
    )
