import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from config import FAST, ORIGINAL
from model import Net
from optimizer import MUON_LR, MUON_MOMENTUM, Muon, make_optimizer, orthogonalize

pytestmark = pytest.mark.arithmetic

SIZES = [(10, 9), (16, 90), (10, 16), (16, 144), (40, 16), (1, 1)]


def give_gradients(*networks: nn.Module) -> None:
    """Give the parameters of all ``networks`` the same random gradients."""
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def test_schedule_of_the_original() -> None:
    """The learning rate and momentum at each of the 19 × 469 steps, from the formula of the paper's cycle."""
    optimizer, scheduler = make_optimizer(Net(), ORIGINAL, 19 * 469)
    total, warm = 19 * 469, 0.2 * 19 * 469 - 1

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    rates = []
    for epoch in range(19):
        step = epoch * 469  # the quirk: 469 steps at once, after each epoch
        if step <= warm:
            rate, momentum = between(0.0015, 0.015, step / warm), between(0.95, 0.85, step / warm)
        else:
            share = (step - warm) / (total - 1 - warm)
            rate, momentum = between(0.015, 0.000015, share), between(0.85, 0.95, share)
        rates.append(rate)
        assert math.isclose(optimizer.param_groups[0]["lr"], rate, rel_tol=1e-9)
        assert math.isclose(optimizer.param_groups[0]["momentum"], momentum, rel_tol=1e-9)
        optimizer.step()
        for _ in range(469):
            scheduler.step()
    assert math.isclose(rates[0], 0.0015) and 0.0149 < max(rates) < 0.015
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4 and len(optimizer.param_groups) == 1


@pytest.mark.parametrize("config", [ORIGINAL, FAST], ids=["sgd", "muon"])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 10, 100])
def test_schedule_of_any_length_has_a_peak_and_ends_at_its_last_step(
    total_steps: int, config: object
) -> None:
    assert isinstance(config, type(ORIGINAL))
    optimizer, scheduler = make_optimizer(Net(), config, total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # after the last step, too, as ``train`` does
    assert math.isclose(rates[0], config.lr / config.div_factor)
    if total_steps > 1:
        assert max(rates) <= config.lr * (1 + 1e-9) and max(rates) > 0.9 * config.lr
    if total_steps > 2:
        assert math.isclose(rates[-1], rates[0] / 100)


def test_both_groups_follow_one_schedule_and_the_momentum_of_muon_is_constant() -> None:
    optimizer, scheduler = make_optimizer(Net(), replace(FAST, lr=0.4), 50)
    others, matrices = optimizer.param_groups
    momenta = set()
    for _ in range(50):
        assert math.isclose(matrices["lr"] / others["lr"], MUON_LR / 0.4)
        assert matrices["momentum"] == 0  # Muon has its own, which is constant
        momenta.add(others["momentum"])
        optimizer.step()
        scheduler.step()
    assert (min(momenta), max(momenta)) == (0.85, 0.95)
    assert (others["weight_decay"], matrices["weight_decay"]) == (FAST.weight_decay, 0)


def test_orthogonalize_against_a_singular_value_decomposition() -> None:
    """The steps keep the singular vectors and map each singular value by the polynomial, five times."""

    def steps(values: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return values

    every = steps(torch.linspace(0.01, 1, 100_001, dtype=torch.float64))
    assert (round(every.min().item(), 2), round(every.max().item(), 2)) == (0.68, 1.13)
    torch.manual_seed(0)
    matrices = [10**exponent * torch.randn(size) for exponent, size in zip(range(-3, 3), SIZES, strict=True)]
    matrices[1][3] = matrices[1][2]  # a singular value is 0
    for matrix, result in zip(matrices, orthogonalize(matrices), strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = steps(values / values.norm())  # which is the matrix's norm
        expected = left @ values.diag() @ right * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert torch.equal(orthogonalize([torch.zeros(3, 4)])[0], torch.zeros(3, 4))


def test_matrices_move_as_with_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon needs torch 2.9")
    # torch's steps are in bfloat16: up to 2.14 by that method, later by that dtype.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    torch.manual_seed(0)
    ours = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in SIZES)
    theirs = copy.deepcopy(ours)
    optimizers = [
        Muon(ours.parameters(), lr=1, momentum=0.5, weight_decay=0.3),
        torch.optim.Muon(theirs.parameters(), lr=MUON_LR, momentum=MUON_MOMENTUM, weight_decay=0),
    ]
    for _ in range(5):
        give_gradients(ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=2e-5)


def test_other_parameters_move_as_with_sgd_and_convolutions_as_matrices() -> None:
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    before = copy.deepcopy(ours)
    mine = Muon(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sgd = SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        give_gradients(ours, theirs)
        mine.step()
        sgd.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.ndim == 1:
            torch.testing.assert_close(one, other, msg=name)
    step = (ours.conv4.weight - before.conv4.weight).flatten(start_dim=1)  # sum of three steps
    assert torch.linalg.svdvals(step).max() < 3 * MUON_LR * 1.21


def test_a_copy_goes_on_as_the_optimizer_does() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = Muon(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    give_gradients(model)
    optimizer.step()
    other, copied = copy.deepcopy((model, optimizer))
    give_gradients(model, other)
    optimizer.step()
    copied.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
