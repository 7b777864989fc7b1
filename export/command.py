"""Write a trained network to files, and compare the predictions of each with PyTorch's."""

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from config import choose_data_path
from datasets import MNIST, load_test
from export import c_code, c_int8, onnx_file, web
from export.__main__ import FILES
from export.network import Predictor
from runtime.errors import UserError, printable
from runtime.files import replace_file
from trained import Trained, load_trained

ROUNDING = 1e-3  # tolerance for log-probabilities; float32 changed them by 1e-5 to 1.2e-4
INT8_LOSS = 0.001  # share of the test images, at least one image, that 8-bit weights may cost


def compare(log_probs: Tensor, expected: Tensor, labels: Tensor, int8: bool) -> str:
    """Describe how ``log_probs`` differ from PyTorch's in float64, ``expected``, both (N, classes).

    They are refused if a log-probability differs by more than ROUNDING. With ``int8``, they are refused if
    the accuracy falls by more than INT8_LOSS.
    """
    correct, expected_correct = (int((each.argmax(dim=1) == labels).sum()) for each in (log_probs, expected))
    same = int((log_probs.argmax(dim=1) == expected.argmax(dim=1)).sum())
    count, difference = len(labels), (log_probs - expected).abs().max().item()
    description = (
        f"accuracy {correct / count:.2%}, PyTorch's {expected_correct / count:.2%}; {same:,} of {count:,} "
        f"predictions equal PyTorch's; log-probabilities differ by up to {difference:.1e}"
    )
    equal = difference <= ROUNDING  # false for NaN
    accurate = expected_correct - correct <= max(1, INT8_LOSS * count) and math.isfinite(difference)
    if not (accurate if int8 else equal):
        raise UserError(f"not written, as it differs from PyTorch: {description}")
    return description


def create(name: str, trained: Trained, data_path: str) -> bytes:
    """Return the content of the file of the format ``name``."""
    model, dataset = trained.model, trained.dataset
    if name == "onnx":
        return onnx_file.write(model, dataset)
    if name == "c":
        return c_code.write(model, dataset)
    if name == "c-int8":
        return c_int8.write(model, dataset, data_path)
    if dataset != MNIST:
        raise UserError(f"the page is for MNIST's digits, not for {dataset.name}: name other formats")
    return web.write(model)


def load(name: str, content: bytes, classes: int) -> Predictor:
    """Return a function that runs ``content`` of the format ``name``. A ``UserError`` says why it can't."""
    if name == "web":
        raise UserError("it runs in a browser")
    if name == "onnx":
        return onnx_file.load(content)
    return c_code.load(content, Path(FILES[name]).stem, classes)


def main(formats: Sequence[str], weights: str | None, output_dir: Path | None, data_path: str | None) -> int:
    """Write a file for each of ``formats``, by default all that fit the data set.

    A file that differs from PyTorch is not written. One that can't be run here is written, and its line says
    that it is not checked. Returns the exit status: 1 if a file could not be written.
    """
    trained, status = load_trained(weights), 0
    print(f"Weights: {trained}")
    data_path = choose_data_path(data_path, trained.dataset.name, trained.data_path)
    images, labels = load_test(trained.dataset, data_path, trained.test_hash)
    in_float64 = replace(trained, model=copy.deepcopy(trained.model).double())
    expected = in_float64.log_probs(images.double())
    folder = trained.path.parent if output_dir is None else output_dir
    folder.mkdir(parents=True, exist_ok=True)
    suitable = [name for name in FILES if name != "web" or trained.dataset == MNIST]
    formats = list(dict.fromkeys(formats)) or suitable
    for count, name in enumerate(formats):
        path = folder / FILES[name]
        try:
            content = create(name, trained, data_path)
            try:
                predict = load(name, content, len(trained.dataset.classes))
            except UserError as reason:
                check = f"not checked: {reason}"
            else:
                check = compare(predict(images), expected, labels, int8=name == "c-int8")
            replace_file(path, content)
        except (UserError, OSError) as error:
            print(printable(f"export: error: {path}: {error}"), file=sys.stderr)
            status = 1
        except KeyboardInterrupt as stop:
            raise type(stop)(f"{count} of {len(formats)} formats were done") from None
        else:
            print(f"{path}: {len(content):,} bytes\n    {check}", flush=True)
    return status
