"""net.h against PyTorch, by a program of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import log_softmax, needs_cc, noise, reference, run_c, trained_net, wild_net

from datasets import MNIST, load_mnist
from export import c_code
from model import Net

pytestmark = needs_cc


def test_predicts_as_pytorch(tmp_path: Path) -> None:
    model, images = trained_net(), load_mnist(train=False)[0][:100]
    found, expected = log_softmax(run_c(c_code.write(model), images, tmp_path)), reference(model, images)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_computes_any_network_within_its_memory(tmp_path: Path) -> None:
    model, images = wild_net(), torch.cat([load_mnist(train=False)[0][:50], noise(50)])
    expected = reference(model, images)
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    found = log_softmax(run_c(c_code.write(model), images, tmp_path, *flags))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


NAMES = ("*/", "/*", "/*/*/", "a\nb", "{{arrays}}", "??/", "\\", '"', "\udcff\u202e", "猫", "")


@pytest.mark.parametrize("count", [2, 26])  # fewer and more than the 16 outputs of the other layers
def test_any_number_of_classes_of_any_names(count: int) -> None:
    torch.manual_seed(2)
    model, images = Net(num_classes=count).eval(), noise(20)
    classes = (*NAMES, *map(str, range(26)))[:count]
    dataset = replace(MNIST, name="folder", classes=classes, mean=0.6, std=0.25)
    with torch.inference_mode():
        expected = model((images[:, None].float() / 255 - 0.6) / 0.25)
    content = c_code.write(model, dataset)
    assert content.isascii() and content.count(b"{{arrays}}") == (count > 4)
    torch.testing.assert_close(c_code.load(content, count)(images), expected, rtol=0, atol=1e-4)
