import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from model import Net
from train import DivergedError, make_ema, train
from utils import DeviceLoader, normalise

CPU = torch.device("cpu")
Set = tuple[Tensor, Tensor]


def loader(train_set: Set, count: int, batch_size: int = 64) -> DeviceLoader:
    images, labels = train_set
    return DeviceLoader(images[:count], labels[:count], batch_size, torch.Generator().manual_seed(0), 7.0)


def test_learns_from_real_images(train_set: Set, data_path: str) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    _, accuracy = train(model, CPU, loader(train_set, 60_000, 128), optimizer, 1, limit_batches=200)
    assert accuracy > 60  # chance is 10; it reaches about 80
    model.eval()
    with torch.no_grad():
        held_out = model(normalise(train_set[0][-2000:, None])).argmax(dim=1) == train_set[1][-2000:]
    assert held_out.float().mean() > 0.85


def test_returns_and_shows_what_happened(train_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a loop written out, with a learning rate of 0, where the order can't matter."""
    model = Net(dropout=0.0)
    data = loader(train_set, 1000, 300)
    data.rotation = 0.0
    model.train()
    losses, correct, last = [], 0, 0.0
    state = data.generator.get_state() if data.generator is not None else None
    for images, target in data:
        log_probs = model(images)
        last = F.nll_loss(log_probs, target).item()
        losses += [-row[label].item() for row, label in zip(log_probs, target, strict=True)]
        correct += sum(int(row.argmax() == label) for row, label in zip(log_probs, target, strict=True))
    assert data.generator is not None and state is not None
    data.generator.set_state(state)
    loss, accuracy = train(model, CPU, data, SGD(model.parameters(), lr=0.0), 7)
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
    train(model, CPU, loader(train_set, 1000), SGD(model.parameters(), lr=0.01), 1, limit_batches=3)
    assert seen == [64, 64, 64]


def test_label_smoothing_is_pytorchs(train_set: Set) -> None:
    model = Net(dropout=0.0)
    model.train()
    data = loader(train_set, 64)
    assert data.generator is not None
    state = data.generator.get_state()
    images, target = next(iter(data))
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(model(images), target).item()
    data.generator.set_state(state)
    loss, _ = train(model, CPU, data, SGD(model.parameters(), lr=0.0), 1, label_smoothing=0.2)
    assert math.isclose(loss, expected, rel_tol=1e-5)


def test_running_average_by_hand(train_set: Set) -> None:
    """The recurrence written out, over weights and running statistics that a training moves."""
    model = Net()
    ema = make_ema(model, 0.5)
    assert ema is not None and make_ema(model, 0.0) is None
    names = [name for name, value in model.state_dict().items() if value.is_floating_point()]
    expected: dict[str, Tensor] = {}
    for n in range(12):  # (1 + n) / (10 + n) passes 0.5 at n = 8
        train(model, CPU, loader(train_set, 64), SGD(model.parameters(), lr=0.1), 1, ema=ema)
        now = model.state_dict()
        keep = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = {
            name: now[name].double() * (1 - keep) + (keep * expected[name] if n else 0) for name in names
        }
    averaged = ema.module.state_dict()
    for name in names:
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(averaged[names[0]], model.state_dict()[names[0]])


@pytest.mark.parametrize("batch", [0, 5, 31])
def test_a_loss_that_is_not_finite_stops_at_once(train_set: Set, batch: int) -> None:
    model = Net()
    calls = 0

    def poison(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls == batch + 1 else output

    model.register_forward_hook(poison)
    with pytest.raises(DivergedError, match=f"nan in epoch 3, batch {batch}, at learning rate 0.01:"):
        train(model, CPU, loader(train_set, 64 * 60), SGD(model.parameters(), lr=0.01), 3)
    assert calls <= batch + 26
