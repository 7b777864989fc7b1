"""Measure the exported files on this machine: their size, memory, and time for an image.

It prints a Markdown table. Flash and RAM are those of a C header alone, compiled for size: its code and
constants, and its struct of working memory. The formats take turns, one image at a time, on one thread. The
times include normalisation and, for ONNX and C, the call from Python.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from config import WEIGHTS_HELP
    from runtime.arguments import Parser
    from runtime.errors import run_command

    parser = Parser("benchmarks/export.py", "Measure size, memory and speed of the exported files.")
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    run_command("benchmarks/export.py", parser.values, "benchmarks.export")

import torch
from torch import Tensor

from checkpoint import versions
from datasets import load_test
from export.c_code import compile_header
from export.command import create, load
from export.network import Predictor
from runtime.errors import UserError
from trained import load_trained

IMAGES = 300  # timed


def measure_memory(header: bytes, prefix: str, classes: int) -> tuple[int, int]:
    """Compile a C header for size, as for a microcontroller; return its flash and RAM in bytes."""
    flags = "-Os", "-fno-pie", "-fno-asynchronous-unwind-tables", "-c"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "program.o")
        compile_header(header, prefix, classes, output, *flags)
        printed = subprocess.run(["size", output], capture_output=True, text=True, check=True).stdout
    columns, values = (line.split() for line in printed.splitlines()[:2])
    if columns[:3] != ["text", "data", "bss"]:  # macOS prints others
        raise UserError("size doesn't print the columns text, data and bss: use the one of GNU or LLVM")
    code, data, bss = map(int, values[:3])
    return code + data, data + bss


@torch.inference_mode()
def measure_times(predictors: Mapping[str, Predictor], images: Tensor) -> dict[str, float]:
    """Return the median milliseconds that each predictor takes for one of ``images``, uint8 (N, 28, 28)."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for image in torch.split(images, 1):
        for name, predict in predictors.items():
            start = time.perf_counter()
            predict(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(values) for name, values in seconds.items()}


def main(weights: str | None) -> None:
    """Export a trained network, measure each format, and print the table."""
    trained = load_trained(weights)
    classes = len(trained.dataset.classes)
    sizes = {"PyTorch": "| |"}
    predictors: dict[str, Predictor] = {"PyTorch": trained.log_probs}
    for name, prefix in (("onnx", None), ("c", "net"), ("c-int8", "net_int8")):
        content = create(name, trained, trained.data_path)
        memory = "{:,} | {:,}".format(*measure_memory(content, prefix, classes)) if prefix else "|"
        sizes[name] = f"{len(content):,} | {memory}"
        predictors[name] = load(name, content, classes)
    images, _ = load_test(trained.dataset, trained.data_path)
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{trained}; {versions()}; {compiler.splitlines()[0]}\n")
    print("| format | bytes | flash, cc -Os | RAM | ms an image |\n| --- | --- | --- | --- | --- |")
    for name, milliseconds in measure_times(predictors, images[:IMAGES]).items():
        print(f"| {name} | {sizes[name]} | {milliseconds:.3f} |")
