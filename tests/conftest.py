"""What several tests share: the real dataset, the flags of a short run, the command as a user calls it."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Also in the commands that tests start. Threads that wait for each other are slow on busy cores, and another
# number of threads rounds otherwise.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Flags of a short training on real images; the held-out part is small, so that evaluating is quick.
SHORT = "--device cpu --epochs 3 --limit-train-batches 2 --batch-size 32 --holdout 100".split()  # noqa: SIM905
sys.path.insert(0, str(ROOT))  # ahead of the standard library, also where pytest itself imported its test

import datasets  # noqa: E402

# Reading the archives takes longer than most trainings in the tests.
datasets.load_mnist = functools.cache(datasets.load_mnist)

Set = tuple[torch.Tensor, torch.Tensor]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def train_set() -> Set:
    return datasets.load_mnist(True)


@pytest.fixture(scope="session")
def test_set() -> Set:
    return datasets.load_mnist(False)


@pytest.fixture(scope="session")
def command() -> Command:
    """Run ``python main.py`` with the given flags, as a user does; the folder is ``cwd``."""

    def run(*flags: str, cwd: Path = ROOT, **options: object) -> "subprocess.CompletedProcess[str]":
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *flags],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,  # type: ignore[call-overload]
        )
        return done

    return run
