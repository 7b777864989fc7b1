"""Say which digit a picture shows: ``python predict.py IMAGE…``. ``--help`` lists the flags.

``pictures.py`` brings each picture into MNIST's own form; its docstring has the algorithm.
"""

# ruff: noqa: E402 (torch takes seconds to import: --help and mistakes answer before)

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; end with argparse's message and exit status 2 where it can't be used."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description="Say which digit each picture shows.", allow_abbrev=False
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a picture of one digit, in any size, colours and format that Pillow opens; - is standard input",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a best.pt that main.py wrote (default: that of the newest run, or else the project's own)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array, an object for each answer")
    return parser.parse_args(argv)


if __name__ == "__main__":
    args = parse_args()

import torch
from torch import Tensor

from checkpoint import RunError, load_net, newest_weights
from model import Net
from pictures import PictureError, read
from utils import normalise


def complain(message: str) -> None:
    """Print ``message`` as this command's one line of error."""
    print(f"predict.py: error: {message}", file=sys.stderr)


def shown(name: str) -> str:
    """Return the file name ``name`` as it can stand in one line."""
    return name if name.isprintable() else ascii(name)


def read_digit(name: str) -> Tensor | None:
    """Return the digit in the file ``name``, uint8 (28, 28), or complain; '-' is standard input."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return torch.from_numpy(read(file))
    except OSError as error:
        complain(f"{shown(name)}: {error.strerror}")
    except PictureError as error:
        complain(f"{shown(name)}: {error}")
    return None


@torch.inference_mode()
def classify(model: Net, digits: Tensor) -> Tensor:
    """Return the probabilities, float32 (N, 10), of ``digits``, uint8 (N, 28, 28), in one forward pass."""
    log_probs: Tensor = model(normalise(digits.unsqueeze(1)))
    return log_probs.exp()


def answer(name: str, probabilities: Tensor) -> dict[str, Any]:
    """Return what is printed about the file ``name``, whose digit has ``probabilities``, float32 (10,)."""
    (first, second), (digit, runner_up) = (values.tolist() for values in probabilities.topk(2))
    return {
        "file": name,
        "digit": digit,
        "probability": first,
        "runner_up": runner_up,
        "runner_up_probability": second,
    }


def print_answers(answers: list[dict[str, Any]], as_json: bool) -> None:
    """Print a line for each of ``answers``, or all as one JSON array."""
    if as_json:
        print(json.dumps(answers, indent=2), flush=True)
        return
    for a in answers:
        print(
            f"{shown(a['file'])}: {a['digit']} ({a['probability']:.2%}), "
            f"runner-up {a['runner_up']} ({a['runner_up_probability']:.2%})",
            flush=True,
        )


def main(args: argparse.Namespace) -> int:
    """Carry out the command line ``args``; return the exit status, with a line on stderr for a failure."""
    try:
        weights = Path(args.weights) if args.weights else newest_weights()
        model, checkpoint = load_net(weights)
    except RunError as error:
        complain(str(error))
        return 1
    accuracy = checkpoint.get("test_accuracy", checkpoint.get("holdout_accuracy"))
    known = f" ({accuracy:.2f}% in its run)" if isinstance(accuracy, float) else ""
    print(f"weights: {shown(str(weights))}{known}", file=sys.stderr)

    digits = [(name, read_digit(name)) for name in args.images]
    found = [(name, digit) for name, digit in digits if digit is not None]
    answers = []
    if found:
        probabilities = classify(model, torch.stack([digit for _, digit in found]))
        answers = [answer(name, row) for (name, _), row in zip(found, probabilities, strict=True)]
    try:
        print_answers(answers, args.json)
    except OSError as error:
        complain(f"standard output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again at its end
        return 1
    return 0 if len(found) == len(digits) else 1


if __name__ == "__main__":
    sys.exit(main(args))
