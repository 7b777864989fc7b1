"""The C header: net.h.in, filled with a network's numbers. And how to run a C header from Python."""

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
from export.network import Predictor, c_layers, render
from model import Net
from runtime.errors import UserError

FAST = ("-O3", "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native")
PROGRAM = """
void predict_all(const unsigned char *images, long count, float *logits);
void predict_all(const unsigned char *images, long count, float *logits)
{
    static struct net_scratch scratch;
    net_logit scores[CLASSES];
    int i;

    for (; count > 0; count--, images += 784)
        for (net_predict(images, scores, &scratch), i = 0; i < CLASSES; i++)
            *logits++ = (float)scores[i] / (float)NET_ONE;
}
"""


def as_c_array(values: Tensor) -> str:
    """Write ``values``, of one dimension, as a C initialiser: integers, or float32 to the last bit."""
    suffix = "f" if values.is_floating_point() else ""
    numbers = ", ".join(f"{value}{suffix}" for value in values.numpy())
    return "{\n" + textwrap.fill(numbers, width=110, break_on_hyphens=False) + "}"


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the header that computes ``model`` of ``dataset`` in evaluation mode, in float32."""
    arrays = []
    for layer in c_layers(model):
        outputs, inputs = layer.weight.shape[:2]
        # [column][row][input][output], padded to 16 outputs or more: whole vectors.
        weight = F.pad(layer.weight.permute(3, 2, 1, 0).flatten(0, 2), (0, max(0, 16 - outputs)))
        factor, summand = layer.norm or (torch.ones_like(layer.bias), torch.zeros_like(layer.bias))
        weights = f"net_{layer.name}_weights"
        arrays.append(f"static const float {weights}[] = {as_c_array(weight.float().flatten())};")
        numbers = ",\n".join(as_c_array(each.float()) for each in (layer.bias, factor, summand))
        initializer = f"{weights}, {len(weight)}, {inputs}, {outputs},\n{numbers}"
        arrays.append(f"static const struct net_conv net_{layer.name} = {{{initializer}}};")
    room = str(max(16, len(dataset.classes)))
    return render("net.h.in", model, dataset, arrays="\n".join(arrays), room=room)


def compile_header(content: bytes, prefix: str, classes: int, output: Path, *flags: str) -> None:
    """Compile a header, whose names begin with ``prefix``, and PROGRAM to the file ``output``."""
    if shutil.which("cc") is None:
        raise UserError("no C compiler: install gcc or clang, with the command cc")
    program = PROGRAM.replace("net_", f"{prefix}_").replace("NET_", f"{prefix.upper()}_")
    source = output.with_suffix(".c")
    source.write_bytes(content + program.encode())
    command = ["cc", "-std=gnu99", *flags, f"-DCLASSES={classes}", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"cc failed: {next((line for line in lines if 'error' in line), lines[0])}")


def load(content: bytes, prefix: str, classes: int) -> Predictor:
    """Compile a header for this processor, as ``compile_header`` does, and return a function that runs it."""
    try:
        with tempfile.TemporaryDirectory(
            ignore_cleanup_errors=True
        ) as folder:  # Windows keeps loaded libraries
            library = Path(folder, "program.so")
            compile_header(content, prefix, classes, library, *FAST, "-fPIC", "-shared")
            function = ctypes.CDLL(str(library)).predict_all
    except OSError as error:  # the folder is full, or no program may run there
        raise UserError(f"{error}; set TMPDIR to a folder where programs can run") from None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None

    def predict(images: Tensor) -> Tensor:
        images, logits = images.contiguous(), torch.empty(len(images), classes)
        function(images.data_ptr(), len(images), logits.data_ptr())
        return F.log_softmax(logits, dim=1)

    return predict
