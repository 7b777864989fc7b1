import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpu import FastBlock, NormDrop, drop_positions, speed_up
from model import Net


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
def test_drops_each_element_independently_with_the_probability_asked_for(p: float) -> None:
    torch.manual_seed(0)
    count, rounds = 1_000_000, 40
    total, adjacent, far, last = 0, 0, 0, 0
    for _ in range(rounds):
        positions = drop_positions(count, p)
        dropped = torch.zeros(count, dtype=torch.bool)
        dropped[positions] = True
        assert len(positions) == dropped.sum() and (positions.diff() > 0).all()
        total += len(positions)
        adjacent += int((dropped[1:] & dropped[:-1]).sum())
        far += int((dropped[1600:] & dropped[:-1600]).sum())
        last += int(dropped[-1000:].sum())
    # Five standard deviations; for p = 0.05 that is 2e-4 / 1.15 of the share, and covers its bound of 1e-4.
    n = count * rounds
    assert abs(total / n - p) < 5 * math.sqrt(p * (1 - p) / n)
    for pairs in (adjacent, far):
        assert abs(pairs / n - p * p) < 5 * math.sqrt(p * p * (1 - p * p) * 3 / n) + 2000 / count * p * p
    assert abs(last / (1000 * rounds) - p) < 5 * math.sqrt(p * (1 - p) / (1000 * rounds))


def test_drop_probability_to_one_in_ten_thousand() -> None:
    """Exactly, from the gaps: of the 2^24 uniform numbers there are, the share that gives a gap of 1 is p."""
    p = 0.05
    uniform = torch.arange(2**24, dtype=torch.float32) / 2**24
    gaps = uniform.neg().log1p().mul(1 / math.log1p(-p)).long() + 1
    for gap in (1, 2, 10):
        share = (gaps == gap).double().mean().item()
        assert abs(share - p * (1 - p) ** (gap - 1)) < 1e-6
    assert abs(1 / gaps.double().mean().item() - p) < 1e-6


def test_scale_keeps_the_expected_value_and_dropped_is_zero() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    nn.init.constant_(norm.bias, 3.0)
    x = channels_last(64, 16, 28, 28)
    out = NormDrop.apply(x, norm.weight, norm.bias, norm, 0.05)
    plain = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.95) < 0.002
    torch.testing.assert_close(out[kept], plain[kept] / 0.95, atol=1e-4, rtol=1e-4)
    assert abs(out.mean().item() - plain.mean().item()) < 0.01


def test_gradient_against_autograd_with_the_same_mask() -> None:
    torch.manual_seed(0)
    for shape in [(4, 10, 6, 6), (3, 16, 7, 5), (1, 1, 2, 2)]:
        x = channels_last(*shape).requires_grad_()
        norm = nn.BatchNorm2d(shape[1])
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        reference = copy.deepcopy(norm)
        out = NormDrop.apply(x, norm.weight, norm.bias, norm, 0.3)
        mask = (out != 0) / 0.7
        x64 = x.detach().double().requires_grad_()
        expected = reference.double()(x64) * mask
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)
        grad = torch.randn(shape)
        out.backward(grad)
        expected.backward(grad.double())
        for ours, theirs in [(x, x64), (norm.weight, reference.weight), (norm.bias, reference.bias)]:
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=2e-4, rtol=1e-3)
        for ours, theirs in zip(norm.buffers(), reference.buffers(), strict=True):
            if ours.is_floating_point():
                torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def test_gradients_are_the_plain_networks_within_rounding() -> None:
    torch.manual_seed(0)
    plain = Net(dropout=0.0)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    assert sum(isinstance(m, FastBlock) for m in fast.modules()) == 6
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(5):  # from the same weights each time: rounding flips a ReLU sooner or later
        fast.load_state_dict(plain.state_dict())
        data, target = torch.randn(96, 1, 28, 28), torch.randint(10, (96,))
        for model in (plain, fast):
            model.zero_grad()
            F.nll_loss(model(data), target).backward()  # type: ignore[no-untyped-call]
        for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            error = (ours.grad - theirs.grad).norm() / (theirs.grad.norm() + 1e-3)
            assert error < 1e-3, name
        for (name, found), expected in zip(fast.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=name)
        optimizer.step()


def test_evaluation_is_the_plain_network(train_set: tuple[Tensor, Tensor]) -> None:
    plain = Net(dropout=0.5).eval()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    data = train_set[0][:300, None].float() / 255
    torch.testing.assert_close(fast(data), plain(data), atol=1e-5, rtol=1e-5)
    assert list(fast.state_dict()) == list(plain.state_dict())
