import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import test
from model import Net
from test import test as evaluate
from utils import EVALUATION_BATCH, DeviceLoader, load_mnist, normalise

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


def test_import_test_is_ours_and_pytest_leaves_it_alone(request: pytest.FixtureRequest) -> None:
    assert Path(str(test.__file__)) == ROOT / "test.py"
    assert sys.modules["test"] is test
    collected = {item.path for item in request.session.items}
    assert ROOT / "test.py" not in collected and Path(__file__) in collected
    names = [item.name for item in request.session.items if item.path == Path(__file__)]
    assert "evaluate" not in names and "test" not in names


def test_against_a_loop(data_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    images, labels = load_mnist(data_path, train=False)
    images, labels = images[:1100], labels[:1100]
    model = Net()
    loss, correct = evaluate(model, CPU, DeviceLoader(images, labels, EVALUATION_BATCH))
    model.eval()
    with torch.no_grad():
        log_probs = model(normalise(images[:, None]))
    right = sum(int(row.argmax() == label) for row, label in zip(log_probs, labels, strict=True))
    expected = F.nll_loss(log_probs.double(), labels).item()
    assert correct == right and abs(loss - expected) < 1e-5
    assert capsys.readouterr().out == (
        f"\nTest set: Average loss: {loss:.4f}, Accuracy: {right}/1100 ({right / 11:.2f}%)\n\n"
    )


def test_changes_nothing_and_does_not_depend_on_the_batch_size(data_path: str) -> None:
    images, labels = load_mnist(data_path, train=False)
    model = Net(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    results = [
        evaluate(model, CPU, DeviceLoader(images[:1000], labels[:1000], size)) for size in (7, 250, 1000)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for loss, correct in results:
        assert abs(loss - results[0][0]) < 1e-5 and abs(correct - results[0][1]) <= 1
