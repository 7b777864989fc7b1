"""Start, stop and compare runs of ``main.py``, in the process of the test."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import main
from train import train

# Flags of a short training on real images; the held-out part is small, so that evaluating is quick.
SHORT = "--device cpu --epochs 3 --limit-train-batches 2 --batch-size 32 --holdout 100".split()  # noqa: SIM905


def call(*flags: str, summary: bool = False) -> None:
    """Call ``python main.py`` with ``flags``. The summary takes longer than a short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *flags])
        if not summary:
            patch.setattr(main, "print_summary", lambda model: None)
        main.main()


def call_and_stop(*flags: str, epoch: int = 2) -> str:
    """Start a run that Ctrl-C stops in ``epoch``; return the message."""

    def stop(*rest: Any, **more: Any) -> tuple[float, float]:
        if more["epoch"] == epoch:
            torch.rand(99)  # what an incomplete epoch has drawn must not matter
            raise KeyboardInterrupt
        return train(*rest, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(main, "train", stop)
        call(*flags)
    return str(caught.value)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two parts of a checkpoint are equal bit for bit, the seconds aside."""
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(folder: Path, whole: Path) -> None:
    """Compare all files of two finished runs, of which ``whole`` was never stopped."""
    lines = [(f / "metrics.csv").read_text().splitlines() for f in (folder, whole)]
    assert len(lines[0]) > 2  # the seconds are last
    assert [line.rpartition(",")[0] for line in lines[0]] == [line.rpartition(",")[0] for line in lines[1]]
    for name in ("best.pt", "last.pt"):
        assert same(*(load(f / name) for f in (folder, whole))), (folder, name)
    assert {file.name for file in folder.iterdir()} == {".lock", "best.pt", "last.pt", "metrics.csv"}
