"""Evaluate the best weights of a run on the test set, and write the report."""

import logging
import warnings
from pathlib import Path
from typing import Any, get_type_hints

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from config import choose_data_path
from datasets import MNIST, load_test
from report import scores
from runtime.errors import UserError
from runtime.files import read_table, replace_file, warn
from trained import EpochMetrics, Trained, load_trained

MAX_MISTAKES = 150  # images in their figure; the included weights make 47 mistakes, bad ones thousands


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Read the epochs of a run from its metrics.csv; none if there is no file."""
    types = get_type_hints(EpochMetrics)
    rows = read_table(path, list(types))
    try:
        return [EpochMetrics(**{name: types[name](cell) for name, cell in row.items()}) for row in rows]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged, or not the metrics.csv of a run: {error}") from None


def fill_page(trained: Trained, counts: Tensor, **values: Any) -> str:
    """Fill page.html with the numbers of ``trained`` and ``counts``, and with ``values``.

    ``counts`` is the confusion matrix of the test set, int64 (N, N). ``values`` are the ``metrics`` of all
    epochs, the ``calibration``, and the ``plots`` by name.
    """
    correct, total = counts.diagonal(), counts.sum(dim=1)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(page).render(
        trained=trained,
        dataset="MNIST" if trained.dataset == MNIST else trained.dataset.name,
        parameters=sum(p.numel() for p in trained.model.parameters()),
        correct=int(correct.sum()),
        total=int(total.sum()),
        interval=scores.wilson(correct.sum(), total.sum()),
        by_class=list(zip(trained.dataset.classes, total.tolist(), correct.tolist(), strict=True)),
        max_mistakes=MAX_MISTAKES,
        settings=vars(trained.config),
        **values,
    )


def write_report(trained: Trained, data_path: str) -> str:
    """Write the report into the run's folder, and return a line on its result.

    ``data_path`` is the folder of the data set; MNIST needs none. The first file is written when everything
    is drawn, so an error before that changes nothing.
    """
    try:
        from report import figures
    except ImportError as error:
        raise UserError(f"the figures need matplotlib: pip install matplotlib ({error})") from None
    folder, best, classes = trained.path.parent, trained.metrics, trained.dataset.classes
    if best is None or trained.config is None:
        raise UserError(f"{trained.path} holds weights alone: name a folder with a run's best.pt")
    metrics = read_metrics(folder / "metrics.csv")
    if best not in metrics:
        raise UserError(f"{folder / 'metrics.csv'} is missing, or lacks the epoch of best.pt beside it")
    images, labels = load_test(trained.dataset, data_path, trained.test_hash)
    log_prob, predictions = trained.log_probs(images).double().max(dim=1)
    confidence = log_prob.exp()
    counts = scores.confusion_matrix(labels, predictions, len(classes))
    calibration = scores.calibration(confidence, predictions == labels)
    wrong = scores.mistakes(labels, predictions, confidence)[:MAX_MISTAKES]
    shown = images[wrong], labels[wrong], predictions[wrong], confidence[wrong]
    with warnings.catch_warnings(record=True) as missing_glyphs:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "Glyph")
        plots = {
            "curves": figures.curves(metrics, best),
            "confusion": figures.confusion_matrix(counts, classes),
            "accuracy_by_class": figures.accuracy_by_class(counts, classes),
            "calibration": figures.calibration(calibration),
            "mistakes": figures.mistakes(*shown, classes),
            "filters": figures.filters(trained.model.conv1.weight.detach()),
        }
    if missing_glyphs:
        warn("no font that matplotlib finds has all characters of the class names: the figures show boxes")
    page = fill_page(trained, counts, metrics=metrics, calibration=calibration, plots=plots)
    for name, plot in plots.items():
        replace_file(folder / f"{name}.png", plot.png)
    # A file name that isn't UTF-8 has characters that can't be encoded.
    replace_file(folder / "report.html", page.encode(errors="backslashreplace"))
    correct, total = int(counts.trace()), len(labels)
    result = f"{correct:,} of {total:,} test images right ({correct / total:.2%})"
    return f"{folder / 'report.html'}: {result}, epoch {best.epoch}"


def main(run: str | None, data_path: str | None = None) -> None:
    """Write the report on ``run`` and print its result; None is the newest run."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not its remarks on fonts
    trained = load_trained(run)
    print(f"Weights: {trained}", flush=True)
    data_path = choose_data_path(data_path, trained.dataset.name, trained.data_path)
    print(write_report(trained, data_path), flush=True)
