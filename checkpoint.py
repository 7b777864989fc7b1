"""A run's folder: make it, write into it."""

import csv
import io
import os
import platform
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision

Row = dict[str, float]  # one epoch's line of metrics.csv


class RunError(Exception):
    """A run's folder can't be used; the message says why and what to do."""


def versions() -> dict[str, str]:
    """Return what the results depend on beside the code: Python, torch, torchvision, the machine."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def make_run_dir(output_dir: str | None, name: str) -> Path:
    """Claim a folder for a run: ``output_dir``, or a new one for ``name`` under runs/.

    Creating its metrics.csv, which only one process can do, is the claim, so two runs never share
    a folder. Raises ``RunError`` where ``output_dir`` holds anything, and ``OSError``.
    """
    if output_dir is not None:
        path = Path(output_dir)
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunError(f"--output-dir {path} is not empty: name a new one")
        try:
            (path / "metrics.csv").touch(exist_ok=False)
        except FileExistsError:
            raise RunError(f"--output-dir {path} was just taken by another run: name a new one") from None
        return path
    stem, count = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", 1
    while True:
        path = Path("runs", stem if count == 1 else f"{stem}-{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            count += 1
            continue
        (path / "metrics.csv").touch(exist_ok=False)
        return path


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that it is there whole or, after any failure, as it was before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write ``checkpoint``, of tensors and plain values, to ``path``, whole or not at all."""
    buffer: BinaryIO = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    replace_file(path, buffer.read())


def write_metrics(path: Path, rows: list[Row]) -> None:
    """Write a line an epoch, under the names of the first row, to ``path``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
