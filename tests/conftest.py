"""What several tests share: the real data set."""

import functools
import os
import sys
from pathlib import Path

# Also in the commands that tests start. Threads that wait for each other are slow on busy cores, and another
# number of threads rounds otherwise.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # ahead of the standard library, also where pytest itself imported its test

import datasets  # noqa: E402

# Reading the archives takes longer than most trainings in the tests.
datasets.load_mnist = functools.cache(datasets.load_mnist)

Set = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="session")
def train_set() -> Set:
    return datasets.load_mnist(True)


@pytest.fixture(scope="session")
def test_set() -> Set:
    return datasets.load_mnist(False)


@pytest.fixture(scope="session")
def unicode_names() -> None:
    """Skip a test that passes other than ASCII to a file or a command, where the locale forbids it."""
    if sys.getfilesystemencoding() != "utf-8":
        pytest.skip("file names and arguments must be ASCII in this locale")


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MNIST have 1,000 training and 1,000 test images."""
    whole = datasets.load_mnist
    monkeypatch.setattr(datasets, "load_mnist", lambda train: tuple(part[:1000] for part in whole(train)))
