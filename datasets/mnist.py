"""MNIST, from the four archives in data/mnist."""

import gzip
import hashlib
from pathlib import Path

import torch

from datasets.images import SIDE, Images
from runtime.errors import UserError

FOLDER = Path(__file__).parent.parent / "data" / "mnist"
SHA256 = {  # of the archives
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}


def read_archive(name: str) -> bytearray:
    """Verify the checksum of MNIST's archive ``name``, and return its decompressed content."""
    path = FOLDER / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): git checkout data") from None
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"{path} is damaged (its SHA-256 is wrong): git checkout data")
    return bytearray(gzip.decompress(content))


def load_mnist(train: bool) -> Images:
    """Read MNIST's 60,000 training or 10,000 test images, in the published order.

    Returns images, uint8 (N, 28, 28), and labels, int64 (N,) in 0 to 9.
    """
    part = "train" if train else "t10k"
    # The checksum covers every byte, so the IDX headers, 16 and 8 bytes, need no parsing.
    images = torch.frombuffer(read_archive(f"{part}-images-idx3-ubyte.gz"), dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(read_archive(f"{part}-labels-idx1-ubyte.gz"), dtype=torch.uint8, offset=8)
    return images.view(-1, SIDE, SIDE), labels.long()
