"""Test trained weights on digits by other writers than MNIST's, prepared as by ``python -m predict``.

The data are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998,
https://doi.org/10.24432/C50P49), which scikit-learn includes: 1,797 digits on forms that 13 people filled in.
They are 8×8 pixels each, so much coarser than MNIST's. The preparation of small pictures was tuned on the
first 898; the last 899 had no part in it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from config import WEIGHTS_HELP
    from runtime.arguments import Parser
    from runtime.errors import run_command

    parser = Parser("writers.py", "Read digits by other writers than MNIST's.")
    parser.add_argument("weights", nargs="*", metavar="FILE", help=WEIGHTS_HELP)
    run_command("writers.py", parser.values, "benchmarks.writers")

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import MNIST
from datasets.pictures import read_colors
from predict.preprocess import read_digits
from runtime.errors import UserError
from trained import load_trained

TUNED_ON = 898  # pictures; the others are the hold-out set


def load_pictures() -> tuple[list[Image.Image], Tensor]:
    """Load the pictures, 8×8 and dark on light, and their digits, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"{error}: pip install scikit-learn") from None
    digits = load_digits()  # images in 0 for paper to 16 for ink
    pixels = np.round(255 - digits.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels], torch.from_numpy(digits.target)


def main(files: list[str]) -> None:
    """Print how many digits each of the weights ``files`` reads correctly."""
    pictures, labels = load_pictures()
    prepared = [read_digits(read_colors(picture))[0][0].image for picture in pictures]
    images = torch.from_numpy(np.stack(prepared))
    for trained in map(load_trained, files) if files else [load_trained(None)]:
        if trained.dataset.classes != MNIST.classes:
            raise UserError(f"{trained.path} was not trained on the digits 0 to 9: name other weights")
        correct = trained.log_probs(images).argmax(dim=1) == labels
        first, last = int(correct[:TUNED_ON].sum()), int(correct[TUNED_ON:].sum())
        count = len(labels) - TUNED_ON
        result = f"tuned on {first} of {TUNED_ON}; held out {last} of {count}, {100 * last / count:.2f} %"
        print(f"{trained}: {result}", flush=True)
