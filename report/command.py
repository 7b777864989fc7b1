"""Write the report on a run."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import torch

from checkpoint import EpochMetrics, Trained, load_trained
from config import value_type
from datasets import MNIST, load_test
from report import scores
from runtime.errors import UserError
from runtime.files import read_table, replace_file

if TYPE_CHECKING:
    from report.figures import Plot  # which needs matplotlib

PAGE = Path(__file__).parent / "page.html"


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Return the epochs in the metrics.csv at ``path``. Raises ``UserError`` if it isn't one, ``OSError``."""
    types = {entry.name: value_type(EpochMetrics, entry.name) for entry in fields(EpochMetrics)}
    rows = read_table(path, list(types))
    try:
        return [EpochMetrics(**{name: types[name](text) for name, text in row.items()}) for row in rows]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged, or not a run's metrics.csv: {error}") from None


def lead(metrics: list[EpochMetrics], best: EpochMetrics, correct: int, total: int) -> str:
    """Return in HTML what the accuracy at the top of the page is, and how its epoch, ``best``, was chosen."""
    low, high = (float(end) for end in scores.wilson(torch.tensor(correct), torch.tensor(total)))
    text = f"<p>The weights of epoch {best.epoch} predict {correct:,} of the {total:,} <b>test images</b> "
    text += f"right (95% confidence interval: {low:.2%} to {high:.2%}).</p>\n"
    text += "<p>The epoch was chosen by its accuracy on "
    if best.split == "test":
        text += "these same images, so the figure is optimistic. "
        if abs(best.eval_accuracy / 100 - correct / total) > 1e-9:  # on another device: it rounds otherwise
            text += f"metrics.csv has {best.eval_accuracy:.2f}% for this epoch. "
    else:
        text += f"held-out images of the training set, {best.eval_accuracy:.2f}%; "
        text += "the test images had no part in choosing the epoch. "
    if best == (last := metrics[-1]):
        return text + "It is also the last epoch.</p>"
    text += f"The last epoch, {last.epoch}, has {last.eval_accuracy:.2f}% on the {last.split_name}."
    return f"{text}</p>"


def table(head: list[str], lines: list[list[str]], kind: str) -> str:
    """Return an HTML table of plain text; ``kind``, text or number, says how its cells are aligned."""
    names = "".join(f'<th scope="col" class="{kind}">{escape(cell)}</th>' for cell in head)
    rows = ["".join(f'<td class="{kind}">{escape(cell)}</td>' for cell in line) for line in lines]
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def epochs_table(metrics: list[EpochMetrics]) -> str:
    """Return the numbers of the curves as an HTML table behind a click."""
    formats = {"epoch": "d", "lr": ".5f", "train_loss": ".4f", "eval_loss": ".4f"}
    formats |= {"train_accuracy": ".2f", "eval_accuracy": ".2f"}
    lines = [[format(getattr(row, name), how) for name, how in formats.items()] for row in metrics]
    summary = "The numbers, by their names in metrics.csv; accuracy in percent"
    return f"<details><summary>{summary}</summary>{table(list(formats), lines, 'number')}</details>"


def values_section(title: str, values: Mapping[str, object]) -> str:
    """Return the HTML of a table of named ``values``."""
    lines = [[name, "–" if value is None else str(value)] for name, value in values.items()]
    return f"<section>\n<h2>{title}</h2>\n{table(['name', 'value'], lines, 'text')}</section>"


def section(plot: "Plot", source: str = "", more: str = "") -> str:
    """Return the HTML of ``plot``, the image within it: ``source`` before its caption, ``more`` below it."""
    width, height = struct.unpack(">II", plot.png[16:24])  # PNG's header
    image = base64.b64encode(plot.png).decode()
    return (
        f'<section>\n<h2>{escape(plot.title)}</h2>\n<figure><img src="data:image/png;base64,{image}" '
        f'width="{width}" height="{height}" alt="{escape(plot.alt)}">\n'
        f"<figcaption>{source}{plot.caption}</figcaption></figure>\n{more}</section>"
    )


def write_report(trained: Trained, data_path: str) -> str:
    """Write the report on the run of ``trained`` into its folder, and return a line on its result.

    ``data_path`` is where its data set lies, or is downloaded to, if that isn't MNIST.

    Raises ``UserError`` and ``OSError``; where it can be, before the first file is written.
    """
    try:
        from report import figures
    except ImportError as error:
        raise UserError(f"the figures need a package: pip install matplotlib ({error})") from None
    folder, best = trained.path.parent, trained.metrics
    metrics = read_metrics(folder / "metrics.csv")
    if best is None or trained.config is None or best not in metrics:
        raise UserError(f"{folder}: the epoch of best.pt is not in metrics.csv: they are not of one run")
    dataset, classes = trained.dataset, trained.dataset.classes
    images, labels = load_test(dataset, data_path)
    highest, predictions = trained.log_probs(images).double().max(dim=1)
    confidence = highest.exp()
    is_correct = predictions == labels
    counts, correct = scores.confusion_matrix(labels, predictions, len(classes)), int(is_correct.sum())

    curves = figures.curves(metrics, best.epoch, best.split_name)
    filters = figures.filters(trained.model.conv1.weight.detach(), best.epoch)
    on_test_set = [
        figures.confusion_matrix(counts, classes),
        figures.accuracy_by_class(counts, classes),
        figures.calibration(scores.calibration(confidence, is_correct)),
        figures.mistakes(images, labels, predictions, confidence, classes),
    ]
    source = f"Test set, {len(labels):,} images, epoch {best.epoch}. "
    sections = [section(curves, more=epochs_table(metrics))]
    sections += [section(plot, source) for plot in on_test_set] + [section(filters)]
    sections.append(values_section("Settings", asdict(trained.config)))
    sections.append(values_section("Versions", trained.versions))
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        name=escape(folder.resolve().name),
        dataset="MNIST" if dataset == MNIST else escape(dataset.name),
        accuracy=f"{correct / len(labels):.2%}",
        parameters=f"{sum(p.numel() for p in trained.model.parameters()):,}",
        lead=lead(metrics, best, correct, len(labels)),
        sections="\n".join(sections),
    )
    for plot in [curves, *on_test_set, filters]:
        replace_file(folder / plot.file, plot.png)
    replace_file(folder / "report.html", page.encode())
    result = f"{correct:,} of {len(labels):,} test images right ({correct / len(labels):.2%})"
    return f"{folder / 'report.html'}: {result}, epoch {best.epoch}"


def main(run: str | None, data_path: str | None = None) -> None:
    """Write the report on ``run`` and print its result. Raises ``UserError`` and ``OSError``."""
    path = None if run is None else Path(run)
    trained = load_trained(path / "best.pt" if path and path.is_dir() else path)
    print(f"Weights: {trained}", flush=True)
    print(write_report(trained, data_path or trained.data_path), flush=True)
