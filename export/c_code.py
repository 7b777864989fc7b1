"""The C header: net.h.in, filled with a network's numbers. And how to run a C header from Python."""

import ctypes
import platform
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import MNIST, Dataset
from export.network import layers, render
from model import Net
from runtime.errors import UserError

FAST = ("-O3", "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native")


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return the header that computes ``model`` of ``dataset`` in evaluation mode, in float32."""
    room = max(16, len(dataset.classes))  # outputs of the widest layer
    convolutions = layers(model)
    # [column][row][input][output], padded to 16 outputs or more: whole vectors.
    weights = [layer.weight.permute(3, 2, 1, 0).flatten(0, 2) for layer in convolutions]
    weights = [F.pad(weight, (0, max(0, 16 - weight.shape[1]))) for weight in weights]
    return render("net.h.in", model, dataset, layers=zip(convolutions, weights, strict=True), room=room)


def compile_c(source: bytes, failure: type[Exception] = UserError) -> ctypes.CDLL:
    """Compile C for this processor, and load it. Raises ``failure`` if the compiler does not accept it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
        library = str(Path(folder, "program.so"))
        command = ["cc", "-std=gnu99", *FAST, "-fPIC", "-shared", "-x", "c", "-", "-o", library]
        done = subprocess.run(command, input=source, capture_output=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").splitlines() or [f"exit status {done.returncode}"]
            raise failure(f"cc fails: {next((line for line in lines if 'error' in line), lines[0])}")
        return ctypes.CDLL(library)


def run(header: bytes, prefix: str, classes: int, images: Tensor) -> Tensor:
    """Compile a header, whose names begin with ``prefix``, and return its log-probabilities.

    ``images`` are uint8 (N, 28, 28); the result is float32 (N, classes).
    """
    compile_c(b"", OSError)  # if no C program can be compiled and run here, the header is not at fault
    program = Path(__file__).with_name("predict_all.c").read_text(encoding="utf-8")
    program = program.replace("net_", f"{prefix}_").replace("NET_", f"{prefix.upper()}_")
    predict_all = compile_c(header + f"#define CLASSES {classes}\n{program}".encode()).predict_all
    predict_all.argtypes, predict_all.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None
    images, logits = images.contiguous(), torch.empty(len(images), classes)
    predict_all(images.data_ptr(), len(images), logits.data_ptr())
    return F.log_softmax(logits, dim=1)
