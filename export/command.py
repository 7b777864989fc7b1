"""Write a trained network to files, and check each against PyTorch."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from checkpoint import Trained, load_trained
from datasets import MNIST, load_test
from export import c_code, c_int8, onnx_file, web
from export.__main__ import FILES
from export.network import Predictor
from runtime.errors import UserError
from runtime.files import replace_file

ROUNDING = 1e-4  # in log-probabilities: ten times what another order of float32 sums was seen to change
INT8_LOSS = 0.001  # of the test images, though at least one of them, that 8-bit weights may cost
REPEATS = 300  # images timed


@torch.inference_mode()
def run(predictor: Predictor, images: Tensor) -> Tensor:
    """Return the log-probabilities (N, classes) of images, uint8 (N, 28, 28), a thousand at a time."""
    return torch.cat([predictor(batch) for batch in torch.split(images, 1000)])


def compare(found: Tensor, expected: Tensor, labels: Tensor, int8: bool) -> str:
    """Describe how log-probabilities ``found`` differ from PyTorch's, ``expected``, both (N, classes).

    Raises ``UserError`` when a prediction differs, or a number by more than ROUNDING; with ``int8``,
    when more right predictions are lost than INT8_LOSS allows.
    """
    same = int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
    correct, expected_correct = (int((each.argmax(dim=1) == labels).sum()) for each in (found, expected))
    difference = (found - expected).abs().max().item()
    count = len(labels)
    text = (
        f"accuracy {correct / count:.2%}, PyTorch's {expected_correct / count:.2%}; {same:,} of {count:,} "
        f"predictions as PyTorch's, log-probabilities within {difference:.1e}"
    )
    exact = same == count and difference <= ROUNDING  # NaN isn't
    accurate = expected_correct - correct <= max(1, INT8_LOSS * count) and math.isfinite(difference)
    if not (accurate if int8 else exact):
        raise UserError(f"not written, for it does not agree with PyTorch: {text}")
    return text


@torch.inference_mode()
def race(predictors: dict[str, Predictor], images: Tensor) -> str:
    """Let ``predictors`` take turns, an image at a time on one thread, and describe their median times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for image in torch.split(images[:REPEATS], 1):
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor(image)
            seconds[name].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    times = ", ".join(f"{name} {1000 * median(values):.3f} ms" for name, values in seconds.items())
    return f"One image, median of {len(images[:REPEATS])} in turn on one thread: {times}"


def make(name: str, trained: Trained, data_path: str) -> tuple[bytes, str, Predictor | None]:
    """Make the file of the format ``name``: return its content, its size in words, and what runs it here.

    Raises ``UserError`` when it can't be made, or not be run where it could be.
    """
    model, dataset = trained.model, trained.dataset
    if name == "web":
        if dataset != MNIST:
            raise UserError(f"the page is for MNIST's digits, not for {dataset.name}: name other formats")
        content = web.write(model)
        return content, f"{len(content):,} bytes", None
    if name == "onnx":
        content = onnx_file.write(model, dataset)
        return content, f"{len(content):,} bytes", onnx_file.load(content)
    int8, classes = name == "c-int8", len(dataset.classes)
    content = c_int8.write(model, dataset, data_path) if int8 else c_code.write(model, dataset)
    return content, c_code.measure(content, classes), c_code.load(content, classes)


def main(
    formats: Sequence[str] = (),
    weights: str | None = None,
    output_dir: str | None = None,
    data_path: str | None = None,
) -> int:
    """Write a file for each of ``formats``, by default all that there are for the data set.

    ``data_path`` is where the data set lies, if it isn't MNIST. Returns the exit status, after a line on
    stderr a failure. Raises ``UserError`` and ``OSError`` where no format can be written.
    """
    trained = load_trained(weights)
    print(f"Weights: {trained}")
    dataset, failures = trained.dataset, 0
    data_path = data_path or trained.data_path
    images, labels = load_test(dataset, data_path)
    formats = formats or [name for name in FILES if name != "web" or dataset == MNIST]
    folder = Path(output_dir) if output_dir else trained.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    predictors: dict[str, Predictor] = {"PyTorch": trained.log_probs}
    expected = trained.log_probs(images)
    for name in dict.fromkeys(formats):
        path = folder / FILES[name]
        try:
            content, text, predictor = make(name, trained, data_path)
            if predictor:
                text += f"\n    {compare(run(predictor, images), expected, labels, name == 'c-int8')}"
                predictors[path.name] = predictor
            replace_file(path, content)
        except UserError as error:
            print(f"export: error: {path}: {error}", file=sys.stderr)
            failures += 1
        else:
            print(f"{path}:\n    {text}", flush=True)
    if len(predictors) > 1:
        print(race(predictors, images), flush=True)
    return 1 if failures else 0
