import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHORT
from test_main import assert_same_run, call, call_and_stop
from torch import nn
from torch.optim import SGD

from config import FAST
from model import Net
from muon import MOMENTUM, Muon, orthogonalize
from train import advance, make_optimizer

pytestmark = pytest.mark.arithmetic

SIZES = [(10, 9), (16, 90), (10, 16), (16, 144), (40, 16), (1, 1)]


def give_gradients(*networks: nn.Module) -> None:
    """Give the parameters of all ``networks`` the same random gradients."""
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


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
        Muon(ours.parameters(), lr=1, muon_lr=0.05, momentum=0.5, weight_decay=0.3),
        torch.optim.Muon(theirs.parameters(), lr=0.05, momentum=MOMENTUM, weight_decay=0),
    ]
    for _ in range(5):
        give_gradients(ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-5)


def test_other_parameters_move_as_with_sgd_and_convolutions_as_matrices() -> None:
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    before = copy.deepcopy(ours)
    mine = Muon(ours.parameters(), lr=0.1, muon_lr=0.05, momentum=0.9, weight_decay=0.01)
    sgd = SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        give_gradients(ours, theirs)
        mine.step()
        sgd.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.ndim == 1:
            torch.testing.assert_close(one, other, msg=name)
    step = (ours.conv4.weight - before.conv4.weight).flatten(start_dim=1)  # sum of three steps
    assert torch.linalg.svdvals(step).max() < 3 * 0.05 * 1.21


def test_both_groups_follow_one_schedule_and_the_momentum_of_muon_is_constant() -> None:
    config = replace(FAST, opt="muon", muon_lr=0.05)
    optimizer, scheduler = make_optimizer(Net(), config, 50)
    others, matrices = optimizer.param_groups
    momenta = set()
    for _ in range(50):
        assert math.isclose(matrices["lr"] / others["lr"], 0.05 / config.max_lr)
        assert matrices["momentum"] == 0  # Muon has its own, which is constant
        momenta.add(others["momentum"])
        optimizer.step()
        advance(scheduler)
    assert (min(momenta), max(momenta)) == (config.base_momentum, config.max_momentum)


def test_a_copy_goes_on_as_the_optimizer_does() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = Muon(model.parameters(), lr=0.1, muon_lr=0.05, momentum=0.9, weight_decay=0.01)
    give_gradients(model)
    optimizer.step()
    other, copied = copy.deepcopy((model, optimizer))
    give_gradients(model, other)
    optimizer.step()
    copied.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*SHORT, "--opt", "muon"]
    call(*flags, "--output-dir", str(tmp_path / "whole"))
    call_and_stop(monkeypatch, *flags, "--output-dir", str(tmp_path / "stopped"))
    call("--resume", str(tmp_path / "stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
