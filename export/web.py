"""The web page: page.html, filled with page.js and a network's numbers."""

import base64
import json
from pathlib import Path

import torch

from export.network import fill, steps
from model import Net


def write(model: Net) -> bytes:
    """Return the page as one HTML file that holds ``model``, in UTF-8.

    The page gets the steps, each with the shape of the first numbers that it takes, and all the numbers
    as float32, little-endian, in the order in which the steps take them.
    """
    found = steps(model)
    shapes = [
        {"kind": step.kind, "shape": [*step.numbers[0].shape] if step.numbers else []} for step in found
    ]
    numbers = torch.cat([tensor.float().flatten() for step in found for tensor in step.numbers])
    return fill(
        "page.html",
        model,
        script=Path(__file__).with_name("page.js").read_text(encoding="utf-8"),
        steps=",\n  ".join(map(json.dumps, shapes)),
        numbers=base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode(),
    )
