"""Shared by the tests of the exported files: networks, PyTorch's results, and a C program."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import Net
from trained import load_trained

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "best.pt"
Numbers = np.ndarray[Any, Any]


def programs_run() -> bool:
    """Return whether programs can run in the temporary folder, which may be mounted with noexec."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o700)
        return os.access(file.name, os.X_OK)


needs_cc = pytest.mark.skipif(
    shutil.which("cc") is None or not programs_run(),
    reason="needs a C compiler, and a TMPDIR where programs can run",
)

CC = "cc -std=c99 -pedantic -Wall -Wextra -Werror -Wconversion -Wshadow -Wundef -Wcast-qual".split()  # noqa: SIM905
# It reads images from stdin, and writes the prediction and the logits of each to stdout.
PROGRAM = """
#include <stdio.h>
#include "header.h"

int main(void)
{
    static struct net_scratch scratch;
    unsigned char image[784];
    net_logit line[11];

    while (fread(image, 1, 784, stdin) == 784) {
        line[0] = (net_logit)net_predict(image, line + 1, &scratch);
        if (fwrite(line, sizeof *line, 11, stdout) != 11)
            return 1;
    }
    return 0;
}
"""


def trained_net() -> Net:
    return load_trained(WEIGHTS).model


def wild_net() -> Net:
    """Return a network with negative and zero factors of batch norm, and channels without weights."""
    torch.manual_seed(3)
    model = Net().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 4)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.zeros_(module.weight[2:3])
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)  # type: ignore[arg-type]
            nn.init.zeros_(module.weight[1])
    return model


def noise(count: int) -> Tensor:
    """Return images, uint8 (count, 28, 28), of random bytes; the first two are all 0 and all 255."""
    images = torch.randint(0, 256, (count, 28, 28), generator=torch.Generator().manual_seed(1))
    images[:2] = torch.tensor([0, 255]).view(2, 1, 1)
    return images.to(torch.uint8)


def reference(model: Net, images: Tensor) -> Numbers:
    """Return PyTorch's log-probabilities (N, 10) of images, uint8 (N, 28, 28)."""
    with torch.inference_mode():
        inputs = (images[:, None].float() / 255 - 0.1307) / 0.3081
        parts = [model(part) for part in torch.split(inputs, 500)]
    return torch.cat(parts).double().numpy()


def run_c(header: bytes, images: Tensor, folder: Path, *flags: str, prefix: str = "net") -> Numbers:
    """Return the logits, float64 (N, 10), of a header whose names begin with ``prefix``.

    Its predictions must be the largest logits.
    """
    (folder / "header.h").write_bytes(header)
    (folder / "main.c").write_text(PROGRAM.replace("net_", f"{prefix}_"))
    subprocess.run([*CC, *(flags or ["-O2"]), "main.c", "-o", "main"], cwd=folder, check=True)
    done = subprocess.run([folder / "main"], input=images.numpy().tobytes(), capture_output=True, check=True)
    assert done.stderr == b""
    dtype = np.float32 if prefix == "net" else np.int32
    lines = np.frombuffer(done.stdout, dtype=dtype).reshape(len(images), 11)
    np.testing.assert_array_equal(lines[:, 0], lines[:, 1:].argmax(1))
    return lines[:, 1:].astype(np.float64)


def log_softmax(logits: Numbers) -> Numbers:
    scores = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
