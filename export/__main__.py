"""Write a trained network as ONNX, C and a web page: ``python -m export``. ``--help`` lists the flags."""

import math
import sys
from pathlib import Path

from torch import Tensor

from config import DATA_PATH_HELP, WEIGHTS_HELP
from datasets import MNIST, load_test
from export import c_code, c_int8, onnx_file
from export.network import write_page
from runtime.arguments import Parser
from runtime.errors import UsageError, UserError, printable, run_command
from runtime.files import replace_file
from trained import load_trained

WRITE = {"onnx": onnx_file.write, "c": c_code.write, "c-int8": c_int8.write, "web": write_page}
FILES = {"onnx": "net.onnx", "c": "net.h", "c-int8": "net_int8.h", "web": "net.html"}
ROUNDING = 1e-3  # tolerance for log-probabilities; float32 changed them by 1e-5 to 1.2e-4
LOSS = 0.001  # share of the test images, at least one image, that a format may cost


def check(name: str, content: bytes, images: Tensor, labels: Tensor, expected: Tensor) -> str:
    """Run ``content`` of the format ``name`` on ``images``. Describe how it compares, or why it can't be run.

    ``expected`` are PyTorch's log-probabilities, (N, classes).
    """
    if name == "web":
        return "not checked: it runs in a browser"
    try:
        if name == "onnx":
            log_probs = onnx_file.run(content, images)
        else:
            log_probs = c_code.run(content, Path(FILES[name]).stem, expected.shape[1], images)
    except ModuleNotFoundError as error:
        return f"not checked: pip install {error.name}"
    except OSError as error:
        return f"not checked: it can't be run here ({error})"
    return compare(log_probs, expected, labels, int8=name == "c-int8")


def compare(log_probs: Tensor, expected: Tensor, labels: Tensor, int8: bool) -> str:
    """Describe how ``log_probs`` differ from PyTorch's in float64, ``expected``, both (N, classes).

    They are refused if the accuracy falls by more than LOSS or, without ``int8``, if a log-probability
    differs by ROUNDING or more.
    """
    correct, expected_correct = (int((each.argmax(dim=1) == labels).sum()) for each in (log_probs, expected))
    same = int((log_probs.argmax(dim=1) == expected.argmax(dim=1)).sum())
    count, difference = len(labels), (log_probs - expected).abs().max().item()
    description = (
        f"accuracy {correct / count:.2%}, PyTorch's {expected_correct / count:.2%}; {same:,} of {count:,} "
        f"predictions equal PyTorch's; log-probabilities differ by up to {difference:.1e}"
    )
    lost, limit = expected_correct - correct, math.inf if int8 else ROUNDING
    if not difference < limit or lost > max(1, LOSS * count):  # NaN is not less either
        raise UserError(f"it differs from PyTorch: {description}")
    return description


def main() -> int:
    """Write a file for each format. Return the exit status: 1 if a file could not be made, or is wrong."""
    parser = Parser("python -m export", "Write a trained network to files that run without PyTorch.")
    files = "; ".join(f"{name}: {file}" for name, file in FILES.items())
    formats_help = f"{files} (default: all; web only for MNIST)"
    output_help = "folder for the files (default: that of the weights)"
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=formats_help)
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--output-dir", metavar="DIR", help=output_help)
    parser.add_argument("--data-path", metavar="DIR", help=DATA_PATH_HELP)
    args = parser.parse_args()
    trained, status = load_trained(args.weights or "", args.data_path or ""), 0
    model, dataset = trained.model.double(), trained.dataset  # so PyTorch's results have no rounding
    formats = [name for name in FILES if name != "web" or dataset == MNIST]
    if unknown := ", ".join(sorted(set(args.formats) - set(formats))):
        raise UsageError(
            f"argument FORMAT: must be of {', '.join(formats)} for {dataset.name}, not {unknown}"
        )
    print(f"Weights: {trained}")
    images, labels = load_test(dataset)
    expected = trained.log_probs(images.double())
    folder = Path(args.output_dir or trained.path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(args.formats or formats):
        path = folder / FILES[name]
        try:
            content = WRITE[name](model, dataset)
            result = check(name, content, images, labels, expected)
            replace_file(path, content)
        except (UserError, OSError, ModuleNotFoundError) as error:
            reason = f"pip install {error.name}" if isinstance(error, ModuleNotFoundError) else str(error)
            print(printable(f"export: error: {path.name}: not written: {reason}"), file=sys.stderr)
            status = 1
        else:
            print(f"{path}: {len(content):,} bytes\n    {result}", flush=True)
    return status


if __name__ == "__main__":
    run_command(main)
