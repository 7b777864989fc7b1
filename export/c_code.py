"""The C header: net.h.in, filled with a network's numbers."""

import ctypes
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from config import UserError
from export.network import Predictor, fill, steps
from model import Net

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PROGRAM = """#include "net.h"
void predict_all(const unsigned char *images, long count, float *logits);
void predict_all(const unsigned char *images, long count, float *logits)
{
    for (; count > 0; count--, images += 784, logits += 10)
        predict(images, logits);
}
"""


def array(values: Tensor) -> str:
    """Return ``values`` in C's notation, dimension by dimension: integers, or float32 to the last bit."""
    if values.dim() > 1:
        return "{\n" + ",\n".join(map(array, values)) + "}"
    numbers = (
        [f"{value}f" for value in values.float().numpy()] if values.is_floating_point() else values.tolist()
    )
    return "{\n" + textwrap.fill(", ".join(map(str, numbers)), width=110, break_on_hyphens=False) + "}"


def quantize(weight: Tensor, bias: Tensor, int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split a convolution so that its output is ``factor * (convolution with weights + bias)``.

    Returns the weights (out, in, k, k), and for each output channel the bias (out,) and the factor
    (out,). With ``int8`` the weights are integers from -127 to 127, and the factor is what one of
    them is worth: the largest magnitude among the channel's weights over 127. Else the factor is 1.
    """
    if not int8:
        return weight, bias, torch.ones_like(bias)
    factor = weight.flatten(1).abs().amax(dim=1) / 127
    factor[factor == 0] = 1
    return (weight / factor.view(-1, 1, 1, 1)).round().to(torch.int8), bias / factor, factor


def write(model: Net, int8: bool = False) -> bytes:
    """Return the header that computes what ``model`` does in evaluation mode.

    With ``int8`` the weights of the convolutions are 8-bit integers with a scale for each output channel.
    """
    arrays, found = [], steps(model)
    norms = {step.name: step.numbers for step in found if step.kind == "norm"}
    for step in found:
        if step.kind != "conv":
            continue
        name, (conv_weight, conv_bias) = step.name, step.numbers
        weight, bias, factor = quantize(conv_weight, conv_bias, int8)
        norm = norms.get(name.replace("conv", "bn"))
        if norm is None:
            parts = ",\n".join(map(array, (bias, factor, weight.flatten(1))))
            arrays.append(f"static const struct net_mix net_{name} = {{\n{parts}}};")
        else:
            # The factor is above 0, so that it may as well act after ReLU.
            parts = ",\n".join(map(array, (bias, factor * norm[0], norm[1])))
            arrays.append(f"static const net_weight net_{name}_weights[] = {array(weight.flatten())};")
            sizes = f"{weight.shape[1]}, {weight.shape[0]}"
            arrays.append(f"static const struct net_conv net_{name} = {{{sizes},\n{parts}}};")
    return fill("net.h.in", model, int8=str(int(int8)), arrays="\n".join(arrays))


def compile_program(content: bytes, folder: str, output: str, *flags: str) -> Path:
    """Compile ``PROGRAM`` around the header ``content`` in ``folder`` with cc; return the output's path.

    Raises ``UserError`` when there is no C compiler, or it refuses or warns.
    """
    if shutil.which("cc") is None:
        raise UserError("checking the C code needs a C compiler called cc: install gcc or clang")
    Path(folder, "net.h").write_bytes(content)
    Path(folder, "program.c").write_text(PROGRAM)
    command = ["cc", *WARNINGS, *flags, "program.c", "-o", output]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise UserError(f"{' '.join(command)} failed: {reason}")
    return Path(folder, output)


def load(content: bytes) -> Predictor:
    """Compile the header ``content`` with -O3 and return what runs it, an image at a time.

    Raises ``UserError`` like ``compile_program``.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(str(compile_program(content, folder, "program.so", "-O3", "-fPIC", "-shared")))
    function = library.predict_all
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None

    def predict(images: Tensor) -> Tensor:
        images, logits = images.contiguous(), torch.empty(len(images), 10)
        function(images.data_ptr(), len(images), logits.data_ptr())
        return F.log_softmax(logits, dim=1)

    return predict


def measure(content: bytes) -> str:
    """Compile the header ``content`` for size, with -Os, and say how much memory it takes on this processor.

    Raises ``UserError`` like ``compile_program``, and when the size of an object file can't be had.
    """
    flags = ["-Os", "-fno-asynchronous-unwind-tables", "-c"]  # tables that only a debugger and C++ read
    with tempfile.TemporaryDirectory() as folder:
        path = compile_program(content, folder, "program.o", *flags)
        try:
            sizes = subprocess.run(["size", path], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            raise UserError("measuring the C code needs the program size: install binutils") from None
    text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    return f"flash {text + data:,} bytes, RAM {data + bss:,} bytes (cc -Os)"
