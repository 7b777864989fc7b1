import csv
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, Set

from config import BEST, TEACHER
from datasets import MNIST
from test import test as evaluate
from trained import load_teacher, load_trained
from utils import DeviceLoader, get_loaders

pytestmark = pytest.mark.arithmetic


def test_the_committed_teacher_is_what_its_metrics_say_and_fits_best() -> None:
    trained = load_trained(ROOT / "weights" / "teacher.pt")
    assert trained.config == replace(TEACHER, seed=12) and trained.metrics is not None
    _, loader = get_loaders(trained.config, "cpu")
    loss, accuracy = evaluate(trained.model, torch.device("cpu"), loader)
    assert abs(accuracy - trained.metrics.eval_accuracy) <= 0.02
    assert abs(loss - trained.metrics.eval_loss) < 1e-4
    teacher = load_teacher(BEST, MNIST)
    assert teacher is not None and torch.equal(teacher.conv7.weight, trained.model.conv7.weight)


def test_committed_weights_are_what_their_metrics_say(test_set: Set) -> None:
    trained = load_trained(ROOT / "weights" / "best.pt")
    with open(ROOT / "weights" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["eval_accuracy"]))
    assert trained.metrics is not None and trained.metrics.epoch == int(best["epoch"])
    loss, accuracy = evaluate(trained.model, torch.device("cpu"), DeviceLoader(*test_set, 250))
    # Another machine rounds otherwise, which may turn an image that lies on the border.
    assert abs(accuracy - float(best["eval_accuracy"])) <= 0.02
    assert abs(loss - float(best["eval_loss"])) < 1e-4
