"""The web page: exports/page.html, filled with exports/page.js and a network's numbers."""

import base64
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from model import Block, Net, Shrink
from utils import MEAN, STD

HERE = Path(__file__).parent


def flatten(model: Net) -> tuple[list[dict[str, int | str | bool]], Tensor]:
    """Return what ``model`` computes in evaluation mode, step by step, and the numbers that it takes.

    A step has a "kind", and what the kind needs:
    "conv" its "inputs", "outputs", "size" (the kernel's, padded to keep the side) and "relu" (whether
    one follows), and takes the kernels (outputs, inputs, size, size), then a bias for each output;
    "norm", a batch norm, its "channels", and takes a factor for each, then a summand for each;
    "pool" halves the side by maxima; "mean" averages each channel.
    The numbers, float32 (count,), lie in the order in which the steps take them.
    """
    steps: list[dict[str, int | str | bool]] = []
    numbers: list[Tensor] = []
    for part in model.layers:
        for module in part if isinstance(part, Block | Shrink) else [part]:
            match module:
                case nn.Conv2d(in_channels=inputs, out_channels=outputs, kernel_size=(size, _)):
                    relu = module is not part
                    steps.append(
                        {"kind": "conv", "inputs": inputs, "outputs": outputs, "size": size, "relu": relu}
                    )
                    assert module.bias is not None
                    numbers += [module.weight, module.bias]
                case nn.BatchNorm2d():
                    steps.append({"kind": "norm", "channels": module.num_features})
                    assert module.running_mean is not None and module.running_var is not None
                    factor = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
                    numbers += [factor, module.bias - module.running_mean.double() * factor]
                case nn.MaxPool2d():
                    steps.append({"kind": "pool"})
                case nn.AdaptiveAvgPool2d():
                    steps.append({"kind": "mean"})
                case nn.Dropout():
                    pass
                case _:
                    raise TypeError(f"the page can't compute {module}")
    return steps, torch.cat([tensor.detach().float().flatten() for tensor in numbers])


def write(model: Net) -> bytes:
    """Return the page as one HTML file that holds ``model``, in UTF-8."""
    steps, numbers = flatten(model)
    page = (HERE / "page.html").read_text(encoding="utf-8")
    fields = {
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": ",\n  ".join(json.dumps(step) for step in steps),
        "numbers": base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode(),
        "mean": str(MEAN),
        "std": str(STD),
    }
    for name, value in fields.items():
        page = page.replace("{{" + name + "}}", value)
    return page.encode()
