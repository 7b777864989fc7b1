"""``speed_up``: the same results as torch's layers, and torch's own layers where a tool looks in."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from model import Net
from runtime.cpu import BatchNorm2d, Dropout, NormalizeChannels, draw_positions, speed_up

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_batch_norm_is_that_of_torch_in_float64(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.cpu.is_fast_case", lambda *_: True)  # float64 too
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(10).to(dtype), nn.BatchNorm2d(10).double()
    nn.init.uniform_(theirs.weight, 0.5, 2)
    nn.init.uniform_(theirs.bias, -1, 1)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(2):  # with a mean far from 0, and at the left edge the same value in every image
        x = torch.randn(6, 10, 9, 7, dtype=torch.float64) + torch.linspace(-20, 20, 10).view(-1, 1, 1)
        x[:, :, :, 0] = 3
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        grad = torch.randn(6, 10, 9, 7, dtype=torch.float64)
        inputs = x.clone().requires_grad_(), x.double().contiguous().requires_grad_()
        outputs = ours(inputs[0]), theirs(inputs[1])
        for out in outputs:
            out.backward(grad.to(out.dtype))
        assert type(outputs[0].grad_fn).__name__ == f"{NormalizeChannels.__name__}Backward"
        assert outputs[0].is_contiguous(memory_format=torch.channels_last)
        pairs = [outputs, (inputs[0].grad, inputs[1].grad)]
        pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
        pairs += [(p, q) for p, q in zip(ours.buffers(), theirs.buffers(), strict=True)]
        for actual, expected in pairs:
            assert actual is not None and expected is not None
            torch.testing.assert_close(actual.to(expected.dtype), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
def test_each_element_is_dropped_by_itself_with_the_probability_asked_for(p: float) -> None:
    torch.manual_seed(0)
    count, rounds = 1_000_000, 5
    total, adjacent, far = 0, 0, 0
    for _ in range(rounds):
        positions = draw_positions(count, p)
        dropped = torch.zeros(count, dtype=torch.bool)
        dropped[positions] = True
        assert len(positions) == dropped.sum() and (positions.diff() > 0).all()
        total += len(positions)
        adjacent += int((dropped[1:] & dropped[:-1]).sum())
        far += int((dropped[1600:] & dropped[:-1600]).sum())
    n = count * rounds
    assert abs(total / n - p) < 5 * math.sqrt(p * (1 - p) / n)  # five standard deviations
    for pairs in (adjacent, far):
        assert abs(pairs / n - p * p) < 5 * math.sqrt(p * p * (1 - p * p) * 3 / n) + 2000 / count * p * p


def test_next_to_no_dropout_drops_nothing() -> None:
    assert draw_positions(1000, 1e-30).tolist() == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_scales_what_it_keeps_and_its_gradient_likewise(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.rand(64, 16, 28, 28) + 1).contiguous(memory_format=layout).requires_grad_()
    out = Dropout(0.05)(x)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.95) < 0.002
    torch.testing.assert_close(out[kept], x[kept] / 0.95)
    grad = torch.randn_like(x)
    out.backward(grad)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(kept, grad / 0.95, 0))
    assert torch.equal(Dropout(0.05).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    F.nll_loss(network(x).float(), torch.arange(len(x)) % 10).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


NETWORKS: list[Callable[[], nn.Module]] = [Net, lambda: speed_up(Net())]
both = pytest.mark.parametrize("network", NETWORKS, ids=["plain", "sped up"])


def test_what_speed_up_changes() -> None:
    plain = Net()
    fast = copy.deepcopy(plain)
    assert speed_up(fast) is fast
    fast_layers = [name for name, module in fast.named_children() if type(module).__module__ == "runtime.cpu"]
    assert fast_layers == ["bn1", *(f"dropout{i}" for i in range(1, 7))]
    assert fast.state_dict().keys() == plain.state_dict().keys()
    for one, other in zip(fast.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert fast.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert {type(module).__module__.split(".")[0] for module in Net().children()} == {"torch"}


def test_a_training_step_is_that_of_torchs_layers() -> None:
    torch.manual_seed(0)
    plain = Net(dropout=0.0)
    fast = speed_up(copy.deepcopy(plain))
    x = torch.randn(16, 1, 28, 28)
    for one, other in zip(gradients(fast, x), gradients(plain, x), strict=True):
        # Rounding decides some maxima in pooling, so a gradient may differ by a percent.
        assert (one - other).norm() < 0.05 * other.norm()
    for one, other in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@both
def test_autocast_trains(network: Callable[[], nn.Module]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = gradients(network(), torch.randn(8, 1, 28, 28))
    assert len(grads) == 30 and all(grad.isfinite().all() for grad in grads)


@both
def test_compile_trains(network: Callable[[], nn.Module]) -> None:
    model = network()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)  # a graph break would be an error
    assert len(gradients(compiled, torch.randn(8, 1, 28, 28))) == 30
    assert model.state_dict()["bn1.num_batches_tracked"] == 1


@both
def test_export_in_training_mode(network: Callable[[], nn.Module]) -> None:
    program = torch.export.export(network().train(), (torch.randn(4, 1, 28, 28),))
    assert sum("dropout" in str(node.target) for node in program.graph.nodes) == 6


@both
def test_update_bn_averages_without_momentum(network: Callable[[], nn.Module]) -> None:
    model, batches = network(), list(torch.randn(4, 16, 1, 28, 28))
    update_bn(batches, model)
    convolve, averaged = model.get_submodule("conv1"), model.state_dict()["bn1.running_mean"]
    means = [convolve(batch).relu().mean(dim=(0, 2, 3)) for batch in batches]
    torch.testing.assert_close(averaged, torch.stack(means).mean(dim=0), rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("tool", ["script", "symbolic_trace", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tools_that_take_a_network_apart(network: Callable[[], nn.Module], tool: str) -> None:
    model, x = network().eval(), torch.randn(4, 1, 28, 28)
    tools: dict[str, Callable[[], nn.Module]] = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, x),  # type: ignore[no-untyped-call]
        "symbolic_trace": lambda: torch.fx.symbolic_trace(model),
    }
    result = tools[tool]()
    torch.testing.assert_close(result(x), model(x))


@both
def test_onnx_in_training_mode_keeps_dropout(network: Callable[[], nn.Module]) -> None:
    onnx = pytest.importorskip("onnx")
    buffer, x = io.BytesIO(), torch.randn(2, 1, 28, 28)
    options: Any = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which has a training mode
        torch.onnx.export(network().train(), (x,), buffer, dynamo=False, **options)  # type: ignore[arg-type]
    nodes = [node.op_type for node in onnx.load_from_string(buffer.getvalue()).graph.node]
    assert nodes.count("Dropout") == 6


def test_batch_norm_falls_back_where_its_case_does_not_apply() -> None:
    """The same results and the same errors as torch's."""
    x = torch.randn(4, 10, 5, 5).contiguous(memory_format=torch.channels_last)
    settings: list[Any] = [{"affine": False}, {"momentum": None}, {"track_running_stats": False}]
    for options in settings:
        plain = nn.BatchNorm2d(10, **options)
        fast = speed_up(copy.deepcopy(plain))
        assert type(fast) is BatchNorm2d
        torch.testing.assert_close(fast(x), plain(x))
        torch.testing.assert_close(fast.state_dict(), plain.state_dict())
    fast = BatchNorm2d(10)
    torch.testing.assert_close(fast(x.contiguous()), nn.BatchNorm2d(10)(x))
    assert fast(x[:0]).shape == (0, 10, 5, 5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(torch.randn(1, 10, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        fast(torch.randn(4, 10))
    with pytest.raises(RuntimeError, match="10"):
        fast(torch.randn(4, 9, 5, 5).contiguous(memory_format=torch.channels_last))


@both
def test_a_batch_of_no_image(network: Callable[[], nn.Module]) -> None:
    assert network().eval()(torch.randn(0, 1, 28, 28)).shape == (0, 10)


def test_double_backward_works_with_plain_layers_and_is_a_clear_error_with_fast_ones() -> None:
    def second_derivative(model: nn.Module) -> None:
        x = torch.randn(4, 1, 28, 28, requires_grad=True)
        (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        grad.square().sum().backward()  # type: ignore[no-untyped-call]

    second_derivative(Net())
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second_derivative(speed_up(Net()))
