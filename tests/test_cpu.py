"""``speed_up``: the same results as torch's layers, and torch's own layers where a tool looks in."""

import math

import pytest
import torch
from torch import nn

from runtime.cpu import BatchNorm2d, Dropout, NormalizeChannels, draw_positions


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_batch_norm_is_that_of_torch_in_float64(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.cpu.is_ordinary_training", lambda *_: True)  # float64 too
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
