import csv
from pathlib import Path

import torch

from checkpoint import load_net
from exports import web
from recipes import DEFAULT_RECIPE, RECIPES
from test import test as evaluate
from utils import DeviceLoader, load_mnist

WEIGHTS = Path(__file__).parent.parent / "weights"


def test_committed_weights_are_what_their_metrics_claim(data_path: str) -> None:
    model, checkpoint = load_net(WEIGHTS / "best.pt")
    with open(WEIGHTS / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["test_accuracy"]))
    assert checkpoint["epoch"] == int(best["epoch"])
    for name, value in RECIPES[DEFAULT_RECIPE].items():
        assert checkpoint["settings"][name] == value or name == "target_accuracy"
    images, labels = load_mnist(data_path, train=False)
    loss, correct = evaluate(model, torch.device("cpu"), DeviceLoader(images, labels, 250))
    # Another machine rounds otherwise, which may turn an image that lies on the border.
    assert abs(correct - 100 * float(best["test_accuracy"])) <= 2
    assert abs(loss - float(best["test_loss"])) < 1e-4


def test_committed_page_is_made_of_the_committed_weights() -> None:
    model, _ = load_net(WEIGHTS / "best.pt")
    assert (WEIGHTS.parent / "docs" / "index.html").read_bytes() == web.write(model)
