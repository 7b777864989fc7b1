"""Write a trained network as ONNX, C and a web page: ``python export.py``. ``--help`` lists the flags."""

# ruff: noqa: E402 (torch takes seconds to import: --help and mistakes answer before)

import argparse
import sys
from collections.abc import Sequence

FILES = {"onnx": "net.onnx", "c": "net.h", "c-int8": "net_int8.h", "web": "net.html"}


def format_name(text: str) -> str:
    """Take the name of a format, as an argparse type."""
    if text in FILES:
        return text
    raise argparse.ArgumentTypeError(f"must be {', '.join(FILES)}, not {text!r}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; end with argparse's message and exit status 2 where it can't be used."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write a trained network to files that run without PyTorch, each checked against it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "formats",
        nargs="*",
        type=format_name,
        default=list(FILES),
        metavar="FORMAT",
        help="; ".join(f"{name}: {file}" for name, file in FILES.items()) + " (default: all)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a best.pt that main.py wrote (default: that of the newest run, or else the project's own)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="where the files go (default: the folder of the weights)"
    )
    parser.add_argument(
        "--data-path",
        default="data",
        metavar="DIR",
        help="where MNIST lies in torchvision's layout, or is downloaded to (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    args = parse_args()

import math
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from checkpoint import RunError, load_net, newest_weights, replace_file
from exports import ExportError, Predictor, c_code, onnx_file
from model import Net
from utils import DataError, load_mnist, normalise

ROUNDING = 1e-4  # in log-probabilities: ten times what another order of float32 sums was seen to change
INT8_LOSS = 10  # images of the 10,000 in the test set that 8-bit weights may cost: 0.1 percentage points
REPEATS = 300  # images timed


@torch.inference_mode()
def run(predictor: Predictor, pictures: Tensor) -> Tensor:
    """Return the log-probabilities (N, 10) of pictures, uint8 (N, 28, 28), a thousand at a time."""
    return torch.cat([predictor(batch) for batch in torch.split(pictures, 1000)])


def compare(found: Tensor, expected: Tensor, labels: Tensor, int8: bool) -> str:
    """Describe how an export's log-probabilities ``found`` differ from PyTorch's, ``expected``; both (N, 10).

    Raises ``ExportError`` when an answer differs, or a number by more than ROUNDING; with ``int8``,
    when more than INT8_LOSS right answers are lost.
    """
    answers, expected_answers = found.argmax(dim=1), expected.argmax(dim=1)
    same = int((answers == expected_answers).sum())
    correct, expected_correct = int((answers == labels).sum()), int((expected_answers == labels).sum())
    difference = (found - expected).abs().max().item()
    text = (
        f"accuracy {100 * correct / len(labels):.2f}%, {same:,} of {len(labels):,} answers as PyTorch's, "
        f"log-probabilities within {difference:.1e}"
    )
    if int8:
        good = expected_correct - correct <= INT8_LOSS and math.isfinite(difference)
    else:
        good = same == len(labels) and difference <= ROUNDING  # NaN isn't
    if not good:
        accuracy = f"{100 * expected_correct / len(labels):.2f}%"
        raise ExportError(f"not written, for it does not agree with PyTorch, of accuracy {accuracy}: {text}")
    return text


@torch.inference_mode()
def race(model: Net, predictor: Predictor, pictures: Tensor) -> str:
    """Time ``model`` and ``predictor`` in turn, a picture at a time on one thread, and describe the medians.

    ``model`` gets the pictures, uint8 (N, 28, 28), normalised already; ``predictor`` has that to do too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: tuple[list[float], list[float]] = [], []
    for picture in torch.split(pictures[:REPEATS], 1):
        normalised = normalise(picture[:, None])
        start = time.perf_counter()
        model(normalised)
        middle = time.perf_counter()
        predictor(picture)
        end = time.perf_counter()
        times[0].append(middle - start)
        times[1].append(end - middle)
    torch.set_num_threads(threads)
    eager, exported = (1000 * median(values) for values in times)
    return (
        f"one image {exported:.3f} ms, PyTorch {eager:.3f} ms, ratio {exported / eager:.2f} "
        f"(one thread, medians of {len(times[0])} in turn)"
    )


def make(
    name: str, model: Net, pictures: Tensor, labels: Tensor, expected: Tensor
) -> tuple[bytes, list[str]]:
    """Make the file of the format ``name`` and check it; return its content, and lines that describe it.

    ``pictures``, uint8 (N, 28, 28), and ``labels`` (N,) are the test set, ``expected`` (N, 10) the
    log-probabilities that PyTorch finds for it.
    Raises ``ExportError`` when the file can't be made or checked, or is wrong.
    """
    if name == "web":
        from exports import web

        content = web.write(model)
        return content, [f"{len(content):,} bytes"]
    int8 = name == "c-int8"
    if name == "onnx":
        content, load = onnx_file.write(model), onnx_file.load
        size = f"{len(content):,} bytes"
    else:
        content, load = c_code.write(model, int8), c_code.load
        numbers, code, ram = c_code.measure(content)
        size = f"flash {numbers + code:,} bytes ({numbers:,} of numbers), RAM {ram:,} bytes (cc -Os)"
    predictor = load(content)
    agreement = compare(run(predictor, pictures), expected, labels, int8)
    return content, [size, agreement, race(model, predictor, pictures)]


def main(args: argparse.Namespace) -> int:
    """Carry out the command line ``args``; return the exit status, after a line on stderr a failure."""
    failures = 0
    try:
        weights = Path(args.weights) if args.weights else newest_weights()
        model, _ = load_net(weights)
        pictures, labels = load_mnist(args.data_path, train=False)
        folder = Path(args.output_dir) if args.output_dir else weights.parent
        folder.mkdir(parents=True, exist_ok=True)
        expected = run(lambda batch: model(normalise(batch[:, None])), pictures)
        accuracy = 100 * (expected.argmax(dim=1) == labels).float().mean().item()
        print(f"{weights}: accuracy {accuracy:.2f}%")
        for name in dict.fromkeys(args.formats):
            path = folder / FILES[name]
            try:
                content, lines = make(name, model, pictures, labels, expected)
            except ExportError as error:
                print(f"export.py: error: {path}: {error}", file=sys.stderr)
                failures += 1
                continue
            replace_file(path, content)
            print("\n    ".join([f"{path}:", *lines]))
    except (DataError, RunError, OSError) as error:
        print(f"export.py: error: {error}", file=sys.stderr)
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(args))
