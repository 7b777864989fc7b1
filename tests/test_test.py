import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Set

import test
from model import Net
from test import test as evaluate
from utils import EVALUATION_BATCH, DeviceLoader, normalize

pytestmark = pytest.mark.arithmetic

CPU = torch.device("cpu")
test_by_name = evaluate  # a name that pytest collects, if the function lets it


def test_import_test_is_ours_and_pytest_leaves_it_alone(request: pytest.FixtureRequest) -> None:
    assert Path(str(test.__file__)) == ROOT / "test.py"
    assert sys.modules["test"] is test
    collected = {item.path for item in request.session.items}
    assert ROOT / "test.py" not in collected and Path(__file__) in collected
    names = [item.name for item in request.session.items if item.path == Path(__file__)]
    assert request.node.name in names and "test_by_name" not in names


def test_against_a_loop(test_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    images, labels = test_set[0][:1100], test_set[1][:1100]
    model = Net()
    loss, accuracy = evaluate(model, CPU, DeviceLoader(images, labels, EVALUATION_BATCH))
    model.eval()
    with torch.no_grad():
        log_probs = model(normalize(images[:, None]))
    right = sum(int(row.argmax() == label) for row, label in zip(log_probs, labels, strict=True))
    expected = F.nll_loss(log_probs.double(), labels).item()
    assert accuracy == right / 11 and abs(loss - expected) < 1e-5
    assert capsys.readouterr().out == (
        f"\nTest set: Average loss: {loss:.4f}, Accuracy: {right}/1100 ({right / 11:.2f}%)\n\n"
    )


def test_changes_nothing_and_does_not_depend_on_the_batch_size(test_set: Set) -> None:
    model = Net(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    results = [
        evaluate(model, CPU, DeviceLoader(test_set[0][:400], test_set[1][:400], size))
        for size in (50, 250, 400)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for loss, accuracy in results:  # a tie between two classes may fall either way
        assert abs(loss - results[0][0]) < 1e-5 and abs(accuracy - results[0][1]) <= 0.25
