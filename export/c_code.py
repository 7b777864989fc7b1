"""The C header: net.h.in, filled with a network's numbers."""

import ctypes
import platform
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import MNIST, Dataset
from export.network import Predictor, fill, published_layers
from model import Net
from runtime.errors import UserError

NATIVE = "cpu" if platform.machine() in ("aarch64", "arm64") else "arch"
FLAGS = ["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PROGRAM = """#include "net.h"
void predict_all(const unsigned char *images, long count, float *logits);
void predict_all(const unsigned char *images, long count, float *logits)
{
    static struct net_scratch scratch;
    net_logit found[CLASSES];
    int i;

    for (; count > 0; count--, images += 784)
        for (predict(images, found, &scratch), i = 0; i < CLASSES; i++)
            *logits++ = (float)found[i] / (float)NET_ONE;
}
"""


def array(values: Tensor) -> str:
    """Return ``values``, of one dimension, in C's notation: integers, or float32 to the last bit."""
    suffix = "f" if values.is_floating_point() else ""
    numbers = ", ".join(f"{value}{suffix}" for value in values.numpy())
    return "{\n" + textwrap.fill(numbers, width=110, break_on_hyphens=False) + "}"


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the header that computes what ``model`` of ``dataset`` does in evaluation mode, in float32."""
    arrays = []
    for layer in published_layers(model):
        outputs, inputs = layer.weight.shape[:2]
        # By column, row, input and output, with room for 16 outputs or more: for whole vectors.
        weight = F.pad(layer.weight.permute(3, 2, 1, 0).flatten(0, 2), (0, max(0, 16 - outputs)))
        factor, summand = layer.norm or (torch.ones_like(layer.bias), torch.zeros_like(layer.bias))
        arrays.append(f"static const float net_{layer.name}_weights[] = {array(weight.float().flatten())};")
        numbers = ",\n".join(array(each.float()) for each in (layer.bias, factor, summand))
        numbers = f"net_{layer.name}_weights, {len(weight)}, {inputs}, {outputs},\n{numbers}"
        arrays.append(f"static const struct net_conv net_{layer.name} = {{{numbers}}};")
    room = str(max(16, len(dataset.classes)))
    return fill("net.h.in", model, dataset, arrays="\n".join(arrays), room=room)


def compile_program(content: bytes, folder: str, output: str, *flags: str) -> Path:
    """Compile ``PROGRAM`` around the header ``content`` in ``folder`` with cc; return the output's path.

    Raises ``UserError`` when there is no C compiler or no ``size``, or the compiler refuses or warns.
    """
    for program in ("cc", "size"):
        if shutil.which(program) is None:
            raise UserError(f"checking C needs the program {program}: install gcc or clang, and binutils")
    Path(folder, "net.h").write_bytes(content)
    Path(folder, "program.c").write_text(PROGRAM)
    command = ["cc", *FLAGS, *flags, "program.c", "-o", output]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise UserError(f"{' '.join(command)} failed: {reason}")
    return Path(folder, output)


def load(content: bytes, classes: int) -> Predictor:
    """Compile the header ``content`` for this processor and return what runs it, an image at a time.

    Raises ``UserError`` like ``compile_program``.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = "-O3", f"-m{NATIVE}=native", "-fPIC", "-shared", f"-DCLASSES={classes}"
        function = ctypes.CDLL(str(compile_program(content, folder, "program.so", *flags))).predict_all
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None

    def predict(images: Tensor) -> Tensor:
        images, logits = images.contiguous(), torch.empty(len(images), classes)
        function(images.data_ptr(), len(images), logits.data_ptr())
        return F.log_softmax(logits, dim=1)

    return predict


def measure(content: bytes, classes: int) -> str:
    """Compile the header ``content`` for size, and say how much memory it takes, the stack aside.

    Raises ``UserError`` like ``compile_program``.
    """
    # As on a microcontroller.
    flags = "-Os", "-fno-pie", "-fno-asynchronous-unwind-tables", "-c", f"-DCLASSES={classes}"
    with tempfile.TemporaryDirectory() as folder:
        path = compile_program(content, folder, "program.o", *flags)
        sizes = subprocess.run(["size", path], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    return f"flash {text + data:,} bytes, RAM {data + bss:,} bytes (cc -Os, on this processor)"
