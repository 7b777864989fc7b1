"""``speed_up``: the same results as torch's layers; and ``Net`` itself, which is for every tool of torch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Net
from runtime.cpu import BatchNorm2d, Dropout, NormalizeChannels, draw_positions, speed_up

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_batch_norm_is_that_of_torch_in_float64(dtype: torch.dtype, tolerance: float) -> None:
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
    assert torch.equal(Dropout(0.05).eval()(x), x)


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    F.nll_loss(network(x).float(), torch.arange(len(x)) % 10).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


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


def test_layers_that_are_not_the_usual_ones_stay_as_they_are() -> None:
    """``speed_up`` decides once, when it is called."""
    assert type(speed_up(nn.BatchNorm2d(16))) is nn.BatchNorm2d
    assert type(speed_up(nn.BatchNorm2d(15))) is BatchNorm2d
    for p in (0.0, 1.0):
        assert type(speed_up(nn.Dropout(p))) is nn.Dropout
    assert type(speed_up(nn.Dropout2d(0.1))) is nn.Dropout2d


def test_evaluation_is_that_of_torchs_layers() -> None:
    torch.manual_seed(0)
    plain = Net()
    gradients(plain, torch.randn(16, 1, 28, 28))  # which moves the running statistics
    fast, x = speed_up(copy.deepcopy(plain)), torch.randn(16, 1, 28, 28)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    assert fast(x[:0]).shape == (0, 10)


def test_a_second_derivative_is_a_clear_error() -> None:
    x = torch.randn(4, 1, 28, 28, requires_grad=True)
    (grad,) = torch.autograd.grad(speed_up(Net())(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()  # type: ignore[no-untyped-call]
