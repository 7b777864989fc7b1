"""Read digits by other writers than MNIST's, as ``python -m predict`` does, and count the right ones.

    python benchmarks/writers.py [FILE …]

They are the 1,797 digits of scikit-learn, by 13 people who filled in forms: the test set of "Optical
Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998, https://doi.org/10.24432/C50P49), 8×8 pixels each,
so much coarser than MNIST's. The first 898 had a part in how ``predict`` prepares small pictures; the last
899 had none.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.arguments import parse_writers
    from runtime.errors import run_command

    run_command("writers.py", parse_writers, "benchmarks.writers")

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from checkpoint import load_trained
from predict.preprocess import preprocess
from runtime.errors import UserError

LOOKED_AT = 898  # pictures; the others are kept apart


def load_pictures() -> tuple[list[Image.Image], Tensor]:
    """Return the pictures, 8×8 and dark on light, and their digits, int64 (1797,).

    Raises ``UserError`` where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"{error}: pip install scikit-learn") from None
    digits = load_digits()  # images in 0 for paper to 16 for ink
    pixels = np.round(255 - digits.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels], torch.from_numpy(digits.target)


def main(files: list[str]) -> None:
    """Print how many digits each of the weights ``files`` gets right. Raises what ``load_trained`` does."""
    pictures, labels = load_pictures()
    images = torch.stack([torch.from_numpy(preprocess(picture)) for picture in pictures])
    for trained in map(load_trained, files) if files else [load_trained(None)]:
        right = trained.log_probs(images).argmax(dim=1) == labels
        first, last = int(right[:LOOKED_AT].sum()), int(right[LOOKED_AT:].sum())
        count = len(labels) - LOOKED_AT
        print(
            f"{trained}: {first} of {LOOKED_AT}; kept apart {last} of {count}, {100 * last / count:.2f} %",
            flush=True,
        )
