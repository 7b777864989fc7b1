import csv

import pytest
import torch
from conftest import ROOT, Set

from test import test as evaluate
from trained import load_trained
from utils import DeviceLoader

pytestmark = pytest.mark.arithmetic


def test_committed_weights_are_what_their_metrics_say(test_set: Set) -> None:
    trained = load_trained(ROOT / "weights" / "best.pt")
    with open(ROOT / "weights" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["eval_accuracy"]))
    assert trained.run is not None and trained.run.best is not None
    assert trained.run.best.epoch == int(best["epoch"])
    loss, accuracy = evaluate(trained.model, torch.device("cpu"), DeviceLoader(*test_set, 250))
    # Another machine rounds otherwise, which may turn an image that lies on the border.
    assert abs(accuracy - float(best["eval_accuracy"])) <= 0.02
    assert abs(loss - float(best["eval_loss"])) < 1e-4
