import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from main import print_summary
from model import Net, count_parameters

pytestmark = pytest.mark.arithmetic

LAYERS = [  # name in the original's table, output shape, parameters
    *[("Conv2d", (10, 28, 28), 100), ("BatchNorm2d", (10, 28, 28), 20), ("Dropout", (10, 28, 28), 0)],
    *[("Conv2d", (16, 28, 28), 1456), ("BatchNorm2d", (16, 28, 28), 32), ("Dropout", (16, 28, 28), 0)],
    *[("MaxPool2d", (16, 14, 14), 0), ("Conv2d", (10, 14, 14), 170)],
    *[("Conv2d", (16, 14, 14), 1456), ("BatchNorm2d", (16, 14, 14), 32), ("Dropout", (16, 14, 14), 0)],
    *[("Conv2d", (16, 14, 14), 2320), ("BatchNorm2d", (16, 14, 14), 32), ("Dropout", (16, 14, 14), 0)],
    *[("MaxPool2d", (16, 7, 7), 0), ("Conv2d", (10, 7, 7), 170)],
    *[("Conv2d", (16, 7, 7), 1456), ("BatchNorm2d", (16, 7, 7), 32), ("Dropout", (16, 7, 7), 0)],
    *[("Conv2d", (16, 7, 7), 2320), ("BatchNorm2d", (16, 7, 7), 32), ("Dropout", (16, 7, 7), 0)],
    *[("Conv2d", (10, 7, 7), 170), ("AdaptiveAvgPool2d", (10, 1, 1), 0)],
]


def test_parameter_count() -> None:
    model = Net()
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model) == 9798
    model.conv1.requires_grad_(False)
    assert count_parameters(model) == 9798 and count_parameters(model, trainable=True) == 9798 - 100
    assert count_parameters(Net(num_classes=3)) == 9798 - 7 * 17


def test_shapes_and_parameters_layer_by_layer() -> None:
    seen: list[tuple[str, tuple[int, ...], int]] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        count = sum(p.numel() for p in module.parameters())
        seen.append((type(module).__name__, tuple(output.shape[1:]), count))

    model = Net()
    for module in model.children():
        module.register_forward_hook(note)
    model(torch.randn(3, 1, 28, 28))
    assert seen == LAYERS


@pytest.mark.parametrize("count", [1, 128])
def test_log_probabilities(count: int) -> None:
    log_probs = Net().eval()(torch.randn(count, 1, 28, 28))
    assert log_probs.shape == (count, 10) and log_probs.dtype == torch.float32
    assert (log_probs <= 0).all()
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(count))


def test_weights_of_the_original_notebook_load() -> None:
    """The state dict of the notebook's network, put together from its attributes' names and sizes."""
    conv = {"conv1": (10, 1, 3), "conv2": (16, 10, 3), "conv1x1_1": (10, 16, 1), "conv3": (16, 10, 3)}
    conv |= {"conv4": (16, 16, 3), "conv1x1_2": (10, 16, 1), "conv5": (16, 10, 3), "conv6": (16, 16, 3)}
    conv |= {"conv7": (10, 16, 1)}
    theirs: dict[str, Tensor] = {}
    for name, (outputs, inputs, size) in conv.items():
        theirs[f"{name}.weight"] = torch.randn(outputs, inputs, size, size)
        theirs[f"{name}.bias"] = torch.randn(outputs)
    for number, channels in enumerate((10, 16, 16, 16, 16, 16), start=1):
        theirs |= {f"bn{number}.{part}": torch.rand(channels) for part in ("weight", "bias")}
        theirs |= {f"bn{number}.running_{part}": torch.rand(channels) for part in ("mean", "var")}
        theirs[f"bn{number}.num_batches_tracked"] = torch.tensor(8911)
    model = Net()
    model.load_state_dict(theirs)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in theirs.items())
    names = [name for name, _ in model.named_children()]
    assert names[0] == "conv1" and names[-2:] == ["conv7", "gap"]
    assert set(names) == {n.split(".")[0] for n in theirs} | {f"dropout{i}" for i in range(1, 7)} | {
        *("pool1", "pool2", "gap")
    }


def column(values: Tensor | None) -> Tensor:
    """Turn a (C,) tensor into (C, 1, 1)."""
    assert values is not None
    return values[:, None, None]


def test_against_the_recipe_written_out() -> None:
    """The forward pass of the recipe's table, from unfold and einsum, on the same weights."""
    model = Net().eval()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean = torch.rand_like(norm.weight)
        norm.running_var = torch.rand_like(norm.weight) + 0.5

    def conv1x1(x: Tensor) -> Tensor:
        conv = convs.pop(0)
        return torch.einsum("nchw,oc->nohw", x, conv.weight[:, :, 0, 0]) + column(conv.bias)

    with torch.no_grad():
        images = torch.randn(5, 1, 28, 28)
        x = images
        for step in ["block", "block", "pool", "block", "block", "pool", "block", "block"]:
            if step == "pool":
                x = conv1x1(x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-2, -1))).clamp(min=0)
            else:
                conv, norm = convs.pop(0), norms.pop(0)
                patches = nn.functional.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:])
                x = torch.einsum("nckhw,ock->nohw", patches, conv.weight.flatten(2)) + column(conv.bias)
                x = (x.clamp(min=0) - column(norm.running_mean)) / (column(norm.running_var) + 1e-5).sqrt()
                x = x * column(norm.weight) + column(norm.bias)
        x = conv1x1(x).mean(dim=(2, 3))
        assert not convs and not norms
        expected = x - x.exp().sum(dim=1, keepdim=True).log()
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


def test_summary_is_the_original_table_and_disturbs_nothing() -> None:
    pytest.importorskip("torchsummary")
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_summary(model)
    assert out.getvalue() == (Path(__file__).parent / "summary.txt").read_text(encoding="utf-8")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dropout_is_in_each_block_as_it_is_told() -> None:
    assert [m.p for m in Net(0.25).modules() if isinstance(m, nn.Dropout)] == [0.25] * 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tools_of_torch_take_the_network_as_it_is() -> None:
    model, x = Net().eval(), torch.randn(4, 1, 28, 28)
    expected = model(x)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)  # a graph break would be an error
    tools: list[Callable[[Tensor], Tensor]] = [
        *(compiled, torch.jit.script(model), torch.fx.symbolic_trace(model)),
        torch.jit.trace(model, x),  # type: ignore[no-untyped-call]
        torch.export.export(model, (x,)).module(),
    ]
    for tool in tools:
        torch.testing.assert_close(tool(x), expected)
    program = torch.export.export(Net().train(), (x,))
    assert sum("dropout" in str(node.target) for node in program.graph.nodes) == 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Net()(x).float().sum().backward()  # type: ignore[no-untyped-call]
    update_bn(list(torch.randn(4, 16, 1, 28, 28)), model)
