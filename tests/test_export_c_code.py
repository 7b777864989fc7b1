"""net.h against PyTorch, by a program of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import log_softmax, needs_cc, noise, reference, run_c, trained_net, wild_net

from export import c_code
from utils import load_mnist

pytestmark = needs_cc


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_predicts_as_pytorch(count: int, tmp_path: Path) -> None:
    model, images = trained_net(), load_mnist(train=False)[0][:count]
    found, expected = log_softmax(run_c(c_code.write(model), images, tmp_path)), reference(model, images)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_computes_any_network_within_its_memory(tmp_path: Path) -> None:
    model, images = wild_net(), torch.cat([load_mnist(train=False)[0][:50], noise(50)])
    expected = reference(model, images)
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    found = log_softmax(run_c(c_code.write(model), images, tmp_path, *flags))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
