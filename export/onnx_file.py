"""The ONNX file, built node by node. This needs no tracing, and no package but onnx."""

from typing import Any

import torch
from torch import Tensor

from datasets import MNIST, Dataset
from export.network import layers
from model import Net
from utils import EVALUATION_BATCH

OPSET, IR_VERSION = 17, 8  # of 2022; onnxruntime reads them since 1.12


def write(model: Net, dataset: Dataset = MNIST) -> bytes:
    """Return ``model`` of ``dataset`` in evaluation mode as one self-contained ONNX file.

    - Input "images": uint8 (N, 28, 28) for any N, in 0 for black to 255 for white. MNIST is white on black.
    - Output "log_probs": float32 (N, classes).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []

    def add(kind: str, *parameters: Tensor, **attributes: Any) -> None:
        """Append a node whose inputs are the output of the node before and ``parameters``."""
        inputs = [nodes[-1].output[0] if nodes else "images"]
        for tensor in parameters:
            inputs.append(f"constant{len(constants)}")
            array = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
            constants.append(numpy_helper.from_array(array, inputs[-1]))
        nodes.append(helper.make_node(kind, inputs, [f"step{len(nodes)}"], **attributes))

    add("Unsqueeze", torch.tensor([1]))
    add("Cast", to=TensorProto.FLOAT)
    for kind, number in (("Div", 255.0), ("Sub", dataset.mean), ("Div", dataset.std)):
        add(kind, torch.tensor(number))
    for layer in layers(model):
        add("Conv", layer.weight, layer.bias, pads=[layer.weight.shape[-1] // 2] * 4)
        if layer.relu:
            add("Relu")
        if layer.norm:
            mean, variance = torch.zeros_like(layer.bias), torch.ones_like(layer.bias)
            add("BatchNormalization", *layer.norm, mean, variance, epsilon=0.0)
        if layer.pool:
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    add("GlobalAveragePool")
    add("Flatten")
    add("LogSoftmax", axis=1)
    nodes[-1].output[0] = "log_probs"

    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28])
    log_probs = helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ("N", len(dataset.classes)))
    graph = helper.make_graph(nodes, "net", [images], [log_probs], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="export")
    onnx.checker.check_model(file, full_check=True)
    return bytes(file.SerializeToString())


def run(content: bytes, images: Tensor) -> Tensor:
    """Return an ONNX file's log-probabilities, float32 (N, classes), for ``images``, uint8 (N, 28, 28)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    batches = torch.split(images, EVALUATION_BATCH)
    return torch.cat([torch.from_numpy(session.run(None, {"images": b.numpy()})[0]) for b in batches])
