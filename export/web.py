"""The web page: page.html, filled with page.js and a network's numbers."""

import base64
import json
from pathlib import Path

import torch

from export.network import fill, layers
from model import Net


def write(model: Net) -> bytes:
    """Return the page as one HTML file that holds ``model``, in UTF-8.

    The page gets a description of each layer, and the numbers of them all as float32, little-endian: of each
    layer the weights, the biases and those of batch norm.
    """
    found = layers(model)
    shapes = [
        {"shape": [*each.weight.shape[:3]], "relu": each.relu, "norm": bool(each.norm), "pool": each.pool}
        for each in found
    ]
    numbers = torch.cat([t.float().flatten() for each in found for t in (each.weight, each.bias, *each.norm)])
    return fill(
        "page.html",
        model,
        script=Path(__file__).with_name("page.js").read_text(encoding="utf-8"),
        layers=",\n  ".join(map(json.dumps, shapes)),
        numbers=base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode(),
    )
