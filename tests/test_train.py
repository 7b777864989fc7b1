import copy
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Set
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from config import ORIGINAL
from model import Net
from runtime.cpu import speed_up
from runtime.errors import UserError
from test import test as run_test
from train import train
from utils import DeviceLoader, normalize

pytestmark = pytest.mark.arithmetic

CPU = torch.device("cpu")


def make_loader(train_set: Set, count: int, batch_size: int = 64, limit: int = 0) -> DeviceLoader:
    images, labels = train_set
    config = replace(ORIGINAL, seed=0, limit_train_batches=limit)
    return DeviceLoader(images[:count], labels[:count], batch_size, config=config)


def test_learns_from_real_images(train_set: Set) -> None:
    """The learning rate falls in the end, as batch norm's running averages need weights that have settled."""
    torch.manual_seed(0)
    model = speed_up(Net())
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=100, div_factor=10)
    loader = make_loader(train_set, 60_000, 64, limit=100)
    _, accuracy = train(model, CPU, loader, optimizer=optimizer, epoch=1, scheduler=scheduler)
    assert accuracy > 50  # chance is 10; it reaches about 68
    model.eval()
    with torch.no_grad():
        batches = torch.split(normalize(train_set[0][-2000:, None]), 250)
        predictions = torch.cat([model(batch).argmax(dim=1) for batch in batches])
    assert (predictions == train_set[1][-2000:]).float().mean() > 0.8


def test_returns_and_shows_what_happened(train_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a loop written out, with a learning rate of 0, where the order can't matter."""
    model = Net(dropout=0.0).train()
    losses, correct, last = [], 0, 0.0
    loader = make_loader(train_set, 1000, 300)
    loader.epoch = 7
    for images, target in loader:
        log_probs = model(images)
        last = F.nll_loss(log_probs, target).item()
        losses += [-row[label].item() for row, label in zip(log_probs, target, strict=True)]
        correct += sum(int(row.argmax() == label) for row, label in zip(log_probs, target, strict=True))
    optimizer = SGD(model.parameters(), lr=0.0)
    loss, accuracy = train(model, CPU, make_loader(train_set, 1000, 300), optimizer=optimizer, epoch=7)
    assert math.isclose(loss, sum(losses) / 1000, rel_tol=1e-4)
    assert math.isclose(accuracy, correct / 10)
    shown = capsys.readouterr()
    assert shown.out == ""
    bar = rf"Epoch=7 Loss={last:.4f} Batch_id=3 Accuracy={correct / 10:.2f}%: 100%\|█+\| 4/4 \["
    assert re.search(bar, shown.err)


def test_limit_takes_the_first_batches(train_set: Set) -> None:
    model = Net()
    seen: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    optimizer = SGD(model.parameters(), lr=0.01)
    train(model, CPU, make_loader(train_set, 1000, limit=3), optimizer=optimizer, epoch=1)
    assert seen == [64, 64, 64]


def test_label_smoothing_trains_but_is_not_in_the_loss_that_is_reported(
    train_set: Set, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Net(dropout=0.0).train()
    (batch,) = make_loader(train_set, 64)
    logits = model(batch[0])  # log-probabilities serve as well
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, batch[1])
    (expected,) = torch.autograd.grad(smoothed, [model.conv7.weight])
    optimizer = SGD(model.parameters(), lr=1.0)
    before = model.conv7.weight.detach().clone()
    loss, _ = train(model, CPU, make_loader(train_set, 64), optimizer=optimizer, epoch=1, label_smoothing=0.2)
    torch.testing.assert_close(before - model.conv7.weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert math.isclose(loss, F.nll_loss(logits, batch[1]).item(), rel_tol=1e-5)
    assert f"Loss={smoothed.item():.4f}" in capsys.readouterr().err


def test_running_average_by_hand(train_set: Set) -> None:
    """The recurrence written out, over weights and running statistics that a training moves."""
    model = Net()
    ema = copy.deepcopy(model)
    names = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    expected = {name: model.state_dict()[name].double() for name in names}
    optimizer = SGD(model.parameters(), lr=0.1)
    for n in range(12):  # an epoch of one step; (1 + n) / (10 + n) passes 0.5 at n = 8
        loader = make_loader(train_set, 64)
        train(model, CPU, loader, optimizer=optimizer, epoch=n + 1, ema=ema, ema_decay=0.5)
        now, keep = model.state_dict(), min(0.5, (1 + n) / (10 + n))
        expected = {name: now[name].double() * (1 - keep) + keep * expected[name] for name in names}
    averaged = ema.state_dict()
    for name in names:
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(averaged[names[0]], model.state_dict()[names[0]])
    assert averaged["bn1.num_batches_tracked"] == 12


class Logits(nn.Module):
    """Return logits, as most networks do; ``Net`` returns log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 30 * self.linear(x.flatten(start_dim=1)) + 100
        return logits


def test_a_model_that_returns_logits_any_scheduler_and_a_device_by_name(train_set: Set) -> None:
    torch.manual_seed(0)
    model = Logits()
    ((images, targets),) = make_loader(train_set, 64)
    expected = nn.CrossEntropyLoss()(model(images), targets)
    optimizer = SGD(model.parameters(), lr=1e-9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    loader = make_loader(train_set, 64)
    loss, _ = train(model, "cpu", loader, optimizer=optimizer, epoch=1, scheduler=scheduler)
    assert math.isclose(loss, expected.item(), rel_tol=1e-4) and optimizer.param_groups[0]["lr"] == 5e-10
    assert math.isclose(run_test(model, "cpu", make_loader(train_set, 64))[0], loss, rel_tol=1e-4)


def test_an_empty_loader_is_named() -> None:
    empty = DeviceLoader(torch.zeros(0, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), 64)
    model = Net()
    with pytest.raises(ValueError, match="test_loader has no batches"):
        run_test(model, CPU, empty)


def test_the_epoch_is_the_loaders_and_looking_at_it_changes_nothing(train_set: Set) -> None:
    results, config = [], replace(ORIGINAL, rotation=15.0)
    for looks in (0, 1, 2):
        torch.manual_seed(0)
        model = Net()
        loader = DeviceLoader(train_set[0][:128], train_set[1][:128], 64, config=config)
        for epoch in (2, 3):
            for _ in range(looks):
                next(iter(loader))
                list(loader)
            train(model, CPU, loader, optimizer=SGD(model.parameters(), lr=0.1), epoch=epoch)
            assert loader.epoch == epoch
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("batch", [0, 31])
def test_a_loss_that_is_not_finite_stops_at_once(train_set: Set, batch: int) -> None:
    model = Net()
    calls = 0

    def poison(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls == batch + 1 else output

    model.register_forward_hook(poison)
    with pytest.raises(UserError, match="the loss became nan in epoch 3: try a lower --lr"):
        loader, optimizer = make_loader(train_set, 8 * 60, 8), SGD(model.parameters(), lr=0.01)
        train(model, CPU, loader, optimizer=optimizer, epoch=3)
    assert calls <= batch + 26
