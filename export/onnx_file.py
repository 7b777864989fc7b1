"""The ONNX file, put together node by node: it takes no tracing, and no package but onnx."""

from typing import Any

import torch
from torch import Tensor, nn

from exports import ExportError, Predictor
from model import Block, Net, Shrink
from utils import MEAN, STD

OPSET, IR_VERSION = 17, 8  # of 2022: what onnxruntime reads from 1.12 on, and other runtimes alike


def write(model: Net) -> bytes:
    """Return ``model`` in evaluation mode as one self-contained ONNX file.

    Its input "pictures" is uint8 (N, 28, 28), 0 for the background to 255 for the ink, for any N;
    its output "log_probabilities" is float32 (N, 10). Raises ``ExportError`` when onnx isn't installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ExportError("writing ONNX needs a package: pip install onnx") from None
    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []

    def add(kind: str, *numbers: Tensor | None, **attributes: Any) -> None:
        """Append a node that takes the output of the one before, and ``numbers``."""
        inputs = [nodes[-1].output[0] if nodes else "pictures"]
        for tensor in numbers:
            assert tensor is not None
            inputs.append(f"number{len(constants)}")
            constants.append(numpy_helper.from_array(tensor.detach().numpy(), inputs[-1]))
        nodes.append(helper.make_node(kind, inputs, [f"step{len(nodes)}"], **attributes))

    add("Unsqueeze", torch.tensor([1]))
    add("Cast", to=TensorProto.FLOAT)
    add("Div", torch.tensor(255.0))
    add("Sub", torch.tensor(MEAN))
    add("Div", torch.tensor(STD))
    for part in model.layers:
        for module in part if isinstance(part, Block | Shrink) else [part]:
            match module:
                case nn.Conv2d(padding=(pad, _)):
                    add("Conv", module.weight, module.bias, pads=[pad] * 4)
                    if module is not part:
                        add("Relu")
                case nn.BatchNorm2d(weight=weight, bias=bias, running_mean=mean, running_var=var, eps=eps):
                    add("BatchNormalization", weight, bias, mean, var, epsilon=eps)
                case nn.MaxPool2d():
                    add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
                case nn.AdaptiveAvgPool2d():
                    add("GlobalAveragePool")
    add("Flatten")
    add("LogSoftmax", axis=1)
    nodes[-1].output[0] = "log_probabilities"

    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", 28, 28])],
        [helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["N", 10])],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    file = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="export.py")
    onnx.checker.check_model(file, full_check=True)
    content: bytes = file.SerializeToString()
    return content


def load(content: bytes) -> Predictor:
    """Return what runs the ONNX file ``content``, by onnxruntime on one thread of the CPU.

    Raises ``ExportError`` when onnxruntime isn't installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ExportError("checking ONNX needs a package: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])
