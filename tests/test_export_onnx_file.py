"""net.onnx against PyTorch, in an onnxruntime session of its own."""

import numpy as np
import pytest
import torch
from exported import Numbers, noise, reference, trained_net, wild_net
from torch import Tensor

from datasets import load_mnist
from export import onnx_file

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.arithmetic


def run_onnx(content: bytes, images: Tensor) -> Numbers:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.type, given.shape[1:], result.shape[1:]) == ("tensor(uint8)", [28, 28], [10])
    (log_probs,) = session.run(None, {given.name: images.numpy()})
    assert log_probs.shape == (len(images), 10)
    return np.asarray(log_probs)


@pytest.mark.parametrize("count", [1, 70])
def test_predicts_as_pytorch_for_any_number_of_images(count: int) -> None:
    model, images = trained_net(), load_mnist(train=False)[0][:count]
    log_probs, expected = run_onnx(onnx_file.write(model), images), reference(model, images)
    np.testing.assert_array_equal(log_probs.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-4)


def test_computes_any_network() -> None:
    model, images = wild_net(), torch.cat([load_mnist(train=False)[0][:50], noise(50)])
    expected = reference(model, images)
    log_probs = run_onnx(onnx_file.write(model), images)
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_is_one_file_of_standard_operators() -> None:
    model = trained_net()
    file = onnx.load_from_string(onnx_file.write(model))
    assert {node.domain for node in file.graph.node} == {""}
    assert all(not number.external_data for number in file.graph.initializer)
    weights = sum(np.prod(n.dims) for n in file.graph.initializer if len(n.dims) == 4)
    assert weights == sum(p.numel() for p in model.parameters() if p.dim() == 4)
