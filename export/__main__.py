"""Write a trained network as ONNX, C and a web page: ``python -m export``. ``--help`` lists the flags."""

import argparse
from collections.abc import Sequence

from config import Parser, end_in_one_line

FILES = {"onnx": "net.onnx", "c": "net.h", "c-int8": "net_int8.h", "web": "net.html"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. Raises ``UsageError`` where it can't be used."""
    parser = Parser(
        "python -m export",
        "Write a trained network to files that run without PyTorch, each checked against it.",
    )
    files = "; ".join(f"{name}: {file}" for name, file in FILES.items())
    parser.add_argument(
        "formats", nargs="*", default=list(FILES), metavar="FORMAT", help=f"{files} (default: all)"
    )
    weights = "a best.pt that main.py wrote (default: the newest run's, else the project's own)"
    parser.add_argument("--weights", metavar="FILE", help=weights)
    parser.add_argument(
        "--output-dir", metavar="DIR", help="where the files go (default: the folder of the weights)"
    )
    args = parser.parse_args(argv)
    for name in args.formats:
        if name not in FILES:
            parser.error(f"argument FORMAT: must be one of {', '.join(FILES)}, not {name!r}")
    return args


if __name__ == "__main__":
    end_in_one_line("export")
    args = parse_args()

import math
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from checkpoint import load_trained, newest_trained, replace_file
from config import UserError
from export import c_code, onnx_file, web
from export.network import Predictor
from model import Net
from utils import load_mnist, normalize

ROUNDING = 1e-4  # in log-probabilities: ten times what another order of float32 sums was seen to change
INT8_LOSS = 10  # images of the 10,000 in the test set that 8-bit weights may cost: 0.1 percentage points
REPEATS = 300  # images timed


@torch.inference_mode()
def run(predictor: Predictor, images: Tensor) -> Tensor:
    """Return the log-probabilities (N, 10) of images, uint8 (N, 28, 28), a thousand at a time."""
    return torch.cat([predictor(batch) for batch in torch.split(images, 1000)])


def compare(found: Tensor, expected: Tensor, labels: Tensor, int8: bool) -> str:
    """Describe how an export's log-probabilities ``found`` differ from PyTorch's, ``expected``; both (N, 10).

    Raises ``UserError`` when a prediction differs, or a number by more than ROUNDING; with ``int8``,
    when more than INT8_LOSS right predictions are lost.
    """
    same = int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
    correct, expected_correct = (int((each.argmax(dim=1) == labels).sum()) for each in (found, expected))
    difference = (found - expected).abs().max().item()
    text = (
        f"accuracy {100 * correct / len(labels):.2f}%, {same:,} of {len(labels):,} predictions as PyTorch's, "
        f"log-probabilities within {difference:.1e}"
    )
    exact = same == len(labels) and difference <= ROUNDING  # NaN isn't
    accurate = expected_correct - correct <= INT8_LOSS and math.isfinite(difference)
    if not (accurate if int8 else exact):
        accuracy = f"{100 * expected_correct / len(labels):.2f}%"
        raise UserError(f"not written, for it does not agree with PyTorch, of accuracy {accuracy}: {text}")
    return text


@torch.inference_mode()
def race(model: Net, predictor: Predictor, images: Tensor) -> str:
    """Time ``model`` and ``predictor`` in turn, an image at a time on one thread, and describe the medians.

    ``model`` gets the images, uint8 (N, 28, 28), normalised already; ``predictor`` has that to do too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for image in torch.split(images[:REPEATS], 1):
        normalized = normalize(image[:, None])
        start = time.perf_counter()
        model(normalized)
        middle = time.perf_counter()
        predictor(image)
        seconds.append((middle - start, time.perf_counter() - middle))
    torch.set_num_threads(threads)
    eager, exported = (1000 * median(column) for column in zip(*seconds, strict=True))
    return (
        f"one image {exported:.3f} ms, PyTorch {eager:.3f} ms, ratio {exported / eager:.2f} "
        f"(one thread, medians of {len(seconds)} in turn)"
    )


def make(name: str, model: Net, images: Tensor, labels: Tensor, expected: Tensor) -> tuple[bytes, list[str]]:
    """Make the file of the format ``name`` and check it; return its content, and lines that describe it.

    ``images``, uint8 (N, 28, 28), and ``labels`` (N,) are the test set, ``expected`` (N, 10) the
    log-probabilities that PyTorch finds for it.
    Raises ``UserError`` when the file can't be made or checked, or is wrong.
    """
    if name == "web":
        content = web.write(model)
        return content, [f"{len(content):,} bytes"]
    if name == "onnx":
        content, load = onnx_file.write(model), onnx_file.load
        size = f"{len(content):,} bytes"
    else:
        content, load = c_code.write(model, name == "c-int8"), c_code.load
        size = c_code.measure(content)
    predictor = load(content)
    agreement = compare(run(predictor, images), expected, labels, name == "c-int8")
    return content, [size, agreement, race(model, predictor, images)]


def main(formats: Sequence[str], weights: str | None = None, output_dir: str | None = None) -> int:
    """Write a file for each of ``formats``; return the exit status, after a line on stderr a failure.

    Raises ``UserError`` and ``OSError`` where no format can be written.
    """
    trained = load_trained(Path(weights)) if weights else newest_trained()
    print(f"Weights: {trained}")
    model, failures = trained.model, 0
    images, labels = load_mnist(train=False)
    folder = Path(output_dir) if output_dir else trained.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    expected = run(lambda batch: model(normalize(batch[:, None])), images)
    for name in dict.fromkeys(formats):
        path = folder / FILES[name]
        try:
            content, lines = make(name, model, images, labels, expected)
            replace_file(path, content)
        except UserError as error:
            print(f"export: error: {path}: {error}", file=sys.stderr)
            failures += 1
        else:
            print("\n    ".join([f"{path}:", *lines]), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(**vars(args)))
