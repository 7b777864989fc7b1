"""The C header: exports/net.h.in, filled with a network's numbers."""

import ctypes
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exports import ExportError, Predictor
from model import Block, Net
from utils import MEAN, STD

TEMPLATE = Path(__file__).with_name("net.h.in")
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PROGRAM = """#include "net.h"
void predict_all(const unsigned char *pictures, long count, float *logits);
void predict_all(const unsigned char *pictures, long count, float *logits)
{
    for (; count > 0; count--, pictures += 784, logits += 10)
        predict(pictures, logits);
}
"""


class Memory(NamedTuple):
    """What a header takes once compiled, in bytes."""

    numbers: int  # constants, in flash
    code: int  # in flash
    ram: int  # static; the stack, less than 1 KB, comes on top


def array(values: Tensor) -> str:
    """Return ``values`` in C's notation, dimension by dimension: integers, or float32 to the last bit."""
    suffix = "f" if values.is_floating_point() else ""
    if values.dim() > 1:
        return "{\n" + ",\n".join(array(row) for row in values) + "}"
    numbers = ", ".join(f"{value!s}{suffix}" for value in values.numpy())
    return "{\n" + textwrap.fill(numbers, width=110, break_on_hyphens=False) + "}"


def split(conv: nn.Conv2d, int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``conv`` so that its output is ``factor * (convolution with weights + bias)``.

    Returns the weights (out, in, k, k), and for each output channel the bias (out,) and the factor
    (out,). With ``int8`` the weights are integers from -127 to 127, and the factor is what one of
    them is worth: the largest magnitude among the channel's weights over 127. Else the factor is 1.
    """
    assert conv.bias is not None
    weight, bias = conv.weight.double(), conv.bias.double()
    if not int8:
        return weight.float(), bias, torch.ones_like(bias)
    factor = weight.flatten(1).abs().amax(dim=1) / 127
    factor[factor == 0] = 1
    return (weight / factor.view(-1, 1, 1, 1)).round().to(torch.int8), bias / factor, factor


@torch.no_grad()
def write(model: Net, int8: bool = False) -> bytes:
    """Return the header that computes what ``model`` does in evaluation mode.

    With ``int8`` the weights of the convolutions are 8-bit integers with a scale for each output channel.
    """
    arrays = []
    for number, part in enumerate(model.layers, start=1):
        conv = next((module for module in part.modules() if isinstance(module, nn.Conv2d)), None)
        if conv is None:
            continue  # the average at the end
        weight, bias, factor = split(conv, int8)
        if isinstance(part, Block):
            norm = cast(nn.BatchNorm2d, part[1])
            assert norm.running_mean is not None and norm.running_var is not None
            slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            offset = norm.bias.double() - norm.running_mean.double() * slope
            # The factor is above 0, so that it may as well act after ReLU.
            parts = bias.float(), (factor * slope).float(), offset.float()
            numbers = ",\n".join(array(values) for values in parts)
            sizes = f"{conv.in_channels}, {conv.out_channels}"
            arrays += [
                f"static const net_weight net_weights{number}[] = {array(weight.flatten())};",
                f"static const struct net_conv net_conv{number} = {{{sizes},\n{numbers}}};",
            ]
        else:
            parts = bias.float(), factor.float(), weight.flatten(1)
            numbers = ",\n".join(array(values) for values in parts)
            arrays.append(f"static const struct net_mix net_mix{number} = {{\n{numbers}}};")
    text = TEMPLATE.read_text(encoding="utf-8")
    fields = {
        "INT8": str(int(int8)),
        "PARAMETERS": f"{sum(p.numel() for p in model.parameters()):,}",
        "ARRAYS": "\n".join(arrays),
        "MEAN": str(MEAN),
        "STD": str(STD),
    }
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()


def compile_program(content: bytes, folder: str, output: str, *flags: str) -> Path:
    """Compile ``PROGRAM`` around the header ``content`` in ``folder`` with cc; return the output's path.

    Raises ``ExportError`` when there is no C compiler, or it refuses or warns.
    """
    if shutil.which("cc") is None:
        raise ExportError("checking the C code needs a C compiler called cc: install gcc or clang")
    Path(folder, "net.h").write_bytes(content)
    Path(folder, "program.c").write_text(PROGRAM)
    command = ["cc", *WARNINGS, *flags, "program.c", "-o", output]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise ExportError(f"{' '.join(command)} failed: {reason}")
    return Path(folder, output)


def load(content: bytes) -> Predictor:
    """Compile the header ``content`` with -O3 and return what runs it, an image at a time.

    Raises ``ExportError`` like ``compile_program``.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(compile_program(content, folder, "program.so", "-O3", "-fPIC", "-shared")))
    function = library.predict_all
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None

    def predict(pictures: Tensor) -> Tensor:
        pictures, logits = pictures.contiguous(), torch.empty(len(pictures), 10)
        function(pictures.data_ptr(), len(pictures), logits.data_ptr())
        return F.log_softmax(logits, dim=1)

    return predict


def measure(content: bytes) -> Memory:
    """Compile the header ``content`` for size, with -Os, and return what it takes on this processor.

    Raises ``ExportError`` like ``compile_program``, and when the size of an object file can't be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = compile_program(content, folder, "program.o", "-Os", "-c")
        try:
            text = subprocess.run(["size", "-A", path], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            raise ExportError("measuring the C code needs the program size: install binutils") from None
    sections = [(line.split()[0], int(line.split()[1])) for line in text.splitlines() if line.startswith(".")]
    numbers, code, data, bss = (
        sum(size for name, size in sections if name.startswith(start))
        for start in (".rodata", ".text", ".data", ".bss")
    )
    return Memory(numbers, code, data + bss)
