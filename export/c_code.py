"""The C header: net.h.in, filled with a network's numbers. And how to run a C header from Python."""

import ctypes
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import MNIST, Dataset
from export.network import Predictor, c_layers, render
from model import Net
from runtime.errors import UserError

FAST = ("-O3", "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native")


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the header that computes ``model`` of ``dataset`` in evaluation mode, in float32."""
    room = max(16, len(dataset.classes))  # outputs of the widest layer
    layers = c_layers(model)
    # [column][row][input][output], padded to 16 outputs or more: whole vectors.
    weights = [layer.weight.permute(3, 2, 1, 0).flatten(0, 2) for layer in layers]
    weights = [F.pad(weight, (0, max(0, 16 - weight.shape[1]))) for weight in weights]
    return render("net.h.in", model, dataset, layers=zip(layers, weights, strict=True), room=room)


def compile_header(content: bytes, prefix: str, classes: int, output: Path, *flags: str) -> None:
    """Compile a header, whose names begin with ``prefix``, and predict_all.c to the file ``output``."""
    if shutil.which("cc") is None:
        raise UserError("no C compiler: install gcc or clang, with the command cc")
    program = Path(__file__).with_name("predict_all.c").read_text(encoding="utf-8")
    program = program.replace("net_", f"{prefix}_").replace("NET_", f"{prefix.upper()}_")
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
        # Windows can't remove a loaded library.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
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
