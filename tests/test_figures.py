"""The figures of a report: extreme values are drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint import EpochMetrics, Run
from config import DEFAULT
from datasets import MNIST
from report import scores

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from report import figures


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 20)  # faster


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("right", [0, 400])
def test_extreme_predictions_are_drawn(right: int) -> None:
    labels = torch.arange(400) % 10
    predictions = torch.where(torch.arange(400) < right, labels, (labels + 1) % 10)
    counts = scores.confusion_matrix(labels, predictions)
    wrong = scores.mistakes(labels, predictions, torch.ones(400))[:20]
    images, confidence = torch.zeros(400, 28, 28, dtype=torch.uint8), torch.ones(400, dtype=torch.float64)
    plots = [
        figures.confusion_matrix(counts, MNIST.classes),
        figures.accuracy_by_class(counts, MNIST.classes),
        figures.calibration(scores.calibration(confidence, predictions == labels)),
        figures.mistakes(images[wrong], labels[wrong], predictions[wrong], confidence[wrong], MNIST.classes),
    ]
    assert [plot.png[:8] for plot in plots] == [b"\x89PNG\r\n\x1a\n"] * 4
    assert plots[3].alt.count(" as ") == len(wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 60])
def test_any_number_of_classes_with_any_names_is_drawn(count: int) -> None:
    classes = [f"${i} a class_{i} with a name that is much too long" for i in range(count)]
    labels = torch.arange(4 * count) % count
    predictions = (labels + torch.arange(4 * count) % 2) % count
    counts, confidence = scores.confusion_matrix(labels, predictions, count), torch.ones(4 * count).double()
    assert counts.shape == (count, count) and int(counts.sum()) == 4 * count
    images = torch.zeros(4 * count, 28, 28, dtype=torch.uint8)
    plots = [
        figures.confusion_matrix(counts, classes),
        figures.accuracy_by_class(counts, classes),
        figures.mistakes(images[:20], labels[:20], predictions[:20], confidence[:20], classes),
    ]
    assert all(plot.png[:4] == b"\x89PNG" and classes[1] in plot.alt for plot in plots)


def test_the_filters_are_drawn_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []

    def to_png(figure: Figure) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(figures, "to_png", to_png)
    weights = torch.randn(10, 1, 3, 3)
    figures.filters(weights)
    axes = [axes for axes in drawn[0].axes if axes.images]
    assert [each.get_title() for each in axes] == [str(number) for number in range(1, 11)]
    shown = np.stack([np.asarray(each.images[0].get_array()) for each in axes])
    np.testing.assert_array_equal(shown, weights[:, 0].numpy())


def test_a_class_without_images_has_no_accuracy() -> None:
    plot = figures.accuracy_by_class(torch.tensor([[3, 1], [0, 0]]), ["a", "b"])
    assert plot.alt == "Accuracy by class: a: 75.00%."


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("loss", "accuracy"), [(1e-9, 100.0), (float("nan"), 0.0)])
def test_extreme_epochs_are_drawn(loss: float, accuracy: float) -> None:
    row = EpochMetrics(1, 0.0, loss, accuracy, "test", loss, accuracy, 1.0)
    run = Run(Path("run"), DEFAULT, MNIST, "cpu", {}, [row])
    assert figures.curves(run).png[:4] == b"\x89PNG"
