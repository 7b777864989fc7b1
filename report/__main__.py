"""Draw a run: ``python report.py [RUN]`` writes report.html and its figures into the run's folder."""

import argparse

if (
    __name__ == "__main__"
):  # before torch is imported, which takes seconds: --help and mistakes answer at once
    parser = argparse.ArgumentParser(
        description="Draw a run: report.html and its figures.", allow_abbrev=False
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of the run (default: the newest)")
    text = "where MNIST lies, or is downloaded to (default: %(default)s)"
    parser.add_argument("--data-path", default="data", metavar="DIR", help=text)
    args = parser.parse_args()

import base64
import csv
import struct
import sys
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoint import Row, RunError, load_net, newest_weights, replace_file
from model import Net
from scores import answers, calibration, confusion_matrix, wilson, wrong_images
from utils import DataError, load_mnist

try:
    import plots  # and with it matplotlib
except ImportError as error:
    sys.exit(f"report.py: error: the figures need a package: pip install matplotlib ({error})")


class Figure(NamedTuple):
    """A picture of the page: its file's name and content, and what stands around it."""

    name: str
    png: bytes
    title: str
    caption: str  # HTML
    alt: str


def read_metrics(path: Path) -> tuple[list[Row], str]:
    """Return the epochs in ``path`` and the set it measured beside training's: 'test' or 'holdout'.

    Raises ``RunError`` when it isn't there, holds no epoch, or isn't what main.py writes.
    """
    try:
        with open(path, newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: name a run's folder, with best.pt and metrics.csv") from None
    except (ValueError, TypeError, csv.Error) as error:  # TypeError: a line with a value too few or many
        raise RunError(f"{path} is damaged: {error}") from None
    if not rows:
        raise RunError(f"{path} holds no epoch yet: try again after the first")
    part = "holdout" if "holdout_accuracy" in rows[0] else "test"
    columns = ["epoch", "lr", *(f"{of}_{what}" for of in ("train", part) for what in ("loss", "accuracy"))]
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise RunError(f"{path} lacks the column {missing[0]}: it is not a run's metrics.csv")
    return rows, part


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$accuracy: $name</title>
<style>
:root { --page: #f4f4f1; --card: #fff; --ink: #222; --soft: #5f5f5f; --line: #dcdcd7; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0a0a0a; --card: #141414; --ink: #e4e4e4; --soft: #a3a3a3; --line: #303030; }
  figure img { filter: invert(.92) hue-rotate(180deg); } /* white to the cards' colour, hues kept */
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
header { max-width: 44rem; margin-bottom: 1.5rem; }
h1 { margin: 0; font-size: clamp(2.5rem, 12vw, 4rem); line-height: 1.1; letter-spacing: -.02em; }
h2 { margin: 0 0 .5rem; font-size: 1.1rem; }
p { margin: .5rem 0; }
.run, figcaption, summary { color: var(--soft); }
.run { overflow-wrap: anywhere; }
main { columns: 2 24rem; column-gap: 1rem; }
section { break-inside: avoid; margin: 0 0 1rem; padding: 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .75rem; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem .2rem 0; border-top: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { border-top: 0; overflow-wrap: normal; }
th { font-weight: 600; }
td.number, th.number { padding-right: .3rem; font-size: .8rem; text-align: right;
  overflow-wrap: normal; }
details { margin-top: .75rem; }
summary { cursor: pointer; font-size: .9rem; }
.scroll { overflow-x: auto; }
</style>
<header>
<p class="run">MNIST by a network of $parameters parameters, run <b>$name</b></p>
<h1>$accuracy</h1>
$lead
</header>
<main>
$sections
</main>
</html>
""")


def percent(share: float) -> str:
    """Write ``share``, in [0, 1], in percent."""
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def lead(rows: list[Row], part: str, epoch: int, right: int, total: int) -> str:
    """Say in HTML what the figure at the top is, how it was chosen, and what the last epoch had."""
    low, high = (float(end) for end in wilson(torch.tensor(right), torch.tensor(total)))
    last, column = rows[-1], f"{part}_accuracy"
    of_epoch = next(row[column] for row in rows if row["epoch"] == epoch) / 100
    text = f"The weights of epoch {epoch} read {right:,} of the {total:,} <b>test images</b> right "
    text += f"(95 % confidence interval for so many: {percent(low)} to {percent(high)})."
    text += "</p>\n<p>The epoch was chosen by its accuracy on "
    if part == "test":
        text, ending = f"{text}these same images, so the figure is optimistic. ", "on the test set"
        if abs(of_epoch - right / total) > 1e-9:  # trained on another device, which rounds otherwise?
            text += f"metrics.csv has {percent(of_epoch)} for this epoch. "
    else:
        text += f"a held-out part of the training set, {percent(of_epoch)}; the test images had no part in "
        text, ending = f"{text}it and were first seen here. ", "on the held-out part"
    if last["epoch"] == epoch:
        text += "It is the last epoch too."
    else:
        text += f"The last epoch, {last['epoch']:.0f}, has {percent(last[column] / 100)} {ending}."
    return f"<p>{text}</p>"


def table(head: list[str], lines: list[list[str]], number: bool = False) -> str:
    """Return an HTML table of plain text."""
    kind = ' class="number"' if number else ""
    text = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell in head)
    rows = ["".join(f"<td{kind}>{escape(cell)}</td>" for cell in line) for line in lines]
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{text}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def epochs_table(rows: list[Row], part: str) -> str:
    """Return the numbers of the curves as an HTML table behind a click."""
    name = "test" if part == "test" else "held out"
    head = ["epoch", "rate", "loss, training", f"loss, {name}", "%, training", f"%, {name}"]
    lines = [
        [f"{row['epoch']:.0f}", f"{row['lr']:.5f}"]
        + [f"{row[f'{of}_loss']:.4f}" for of in ("train", part)]
        + [f"{row[f'{of}_accuracy']:.2f}" for of in ("train", part)]
        for row in rows
    ]
    return f"<details><summary>The numbers</summary>{table(head, lines, number=True)}</details>"


def run_figures(model: Net, rows: list[Row], part: str, epoch: int) -> list[Figure]:
    """Draw the training, ``rows`` and ``part`` as by ``read_metrics``, and the first layer."""
    name = "test set" if part == "test" else "held-out part"
    first, last = rows[0], rows[-1]
    return [
        Figure(
            "curves.png",
            plots.curves(rows, part, name, epoch),
            "Training",
            f"Training set and {name}, from metrics.csv; loss and wrong answers on logarithmic scales. "
            "Training's are of images as seen in training: distorted, with dropout, before each step. "
            "The learning rate is that at the epoch's start.",
            f"Loss, accuracy and learning rate in epochs 1 to {last['epoch']:.0f}; accuracy on the {name} "
            f"from {first[f'{part}_accuracy']:.2f} % to {last[f'{part}_accuracy']:.2f} %.",
        ),
        Figure(
            "filters.png",
            plots.filters(model.state_dict()["layers.0.0.weight"]),
            "The first layer",
            f"Its ten filters of 3×3 weights in best.pt (epoch {epoch}), on one scale.",
            "The ten 3×3 filters of the first convolution, positive weights red, negative blue.",
        ),
    ]


def answer_figures(images: Tensor, labels: Tensor, said: Tensor, sure: Tensor, source: str) -> list[Figure]:
    """Draw what ``answers`` returned for ``images``; each caption begins with ``source``, their name."""
    counts, wrong = confusion_matrix(labels, said), wrong_images(labels, said, sure)
    right, total = counts.diagonal(), counts.sum(dim=1)
    ece, binned, hits, confidence = calibration(sure, said == labels)
    mistakes = counts - right.diag()
    true, taken = divmod(int(mistakes.argmax()), 10)
    by_digit = ", ".join(f"{digit}: {percent(float(right[digit] / total[digit]))}" for digit in range(10))
    shown = "All of them" if len(wrong) <= plots.SHOWN else f"The {plots.SHOWN} it was surest of"
    pairs = ", ".join(f"{labels[i]} as {said[i]}" for i in wrong[: plots.SHOWN].tolist())
    return [
        Figure(
            "confusion.png",
            plots.confusion(counts),
            "What it takes for what",
            f"{source} The stronger a mistake's colour, the more frequent it is; an empty field is 0.",
            f"Confusion matrix with {len(wrong):,} mistakes; the most frequent, {int(mistakes.max())} times: "
            f"{true} taken for {taken}.",
        ),
        Figure(
            "digits.png",
            plots.digits(right, total, *wilson(right, total)),
            "Digit by digit",
            f"{source} The bars are 95 % confidence intervals: chance may part digits whose bars overlap.",
            f"Accuracy by digit: {by_digit}.",
        ),
        Figure(
            "reliability.png",
            plots.reliability(binned, confidence, hits / binned, *wilson(hits, binned), ece),
            "How sure, and how right",
            f"{source} Its answers in {len(binned)} bins by the probability it gave them. Expected "
            f"calibration error: <b>{percent(ece)}</b> (Guo et al. 2017, “On Calibration of Modern Neural "
            "Networks”). The bars are 95 % confidence intervals.",
            f"Reliability diagram: expected calibration error {percent(ece)}; {int(binned[-1]):,} of "
            f"{len(labels):,} answers are in the surest bin.",
        ),
        Figure(
            "mistakes.png",
            plots.mistakes(images[wrong], labels[wrong], said[wrong], sure[wrong]),
            f"What it gets wrong: {len(wrong):,} of {len(labels):,}",
            f"{source} {shown}, the surest first: true digit → its answer, and how sure it was.",
            f"Images read wrong: {pairs or 'none'}.",
        ),
    ]


def section(figure: Figure, more: str = "") -> str:
    """Return the HTML of ``figure``, which holds the picture itself, with ``more`` under it."""
    width, height = struct.unpack(">II", figure.png[16:24])  # PNG's header
    source = base64.b64encode(figure.png).decode()
    return (
        f'<section>\n<h2>{escape(figure.title)}</h2>\n<figure><img src="data:image/png;base64,{source}" '
        f'width="{width}" height="{height}" alt="{escape(figure.alt)}">\n'
        f"<figcaption>{figure.caption}</figcaption></figure>\n{more}</section>"
    )


def write_report(folder: Path, data_path: str) -> str:
    """Write the report on the run in ``folder`` into it, and return a line on what came of it.

    Raises ``RunError``, ``DataError`` and ``OSError``; before the first file is written, if it can be.
    """
    model, checkpoint = load_net(folder / "best.pt")
    rows, part = read_metrics(folder / "metrics.csv")
    epoch = checkpoint.get("epoch")
    if not isinstance(epoch, int) or epoch not in [row["epoch"] for row in rows]:
        raise RunError(f"{folder}: best.pt is of epoch {epoch}, which metrics.csv lacks: not of one run")
    images, labels = load_mnist(data_path, train=False)
    said, sure = answers(model, images)
    right = int((said == labels).sum())

    source = f"Test set, {len(labels):,} images, epoch {epoch}."
    training, filters = run_figures(model, rows, part, epoch)
    figures = [training, *answer_figures(images, labels, said, sure, source), filters]
    sections = [section(training, epochs_table(rows, part)), *map(section, figures[1:])]
    for title, name in [("Settings in best.pt", "settings"), ("Versions in best.pt", "versions")]:
        entries = checkpoint.get(name)
        pairs = entries.items() if isinstance(entries, dict) else []
        lines = [[str(key), "–" if value is None else str(value)] for key, value in pairs]
        sections.append(f"<section>\n<h2>{title}</h2>\n{table(['name', 'value'], lines)}</section>")
    page = PAGE.substitute(
        name=escape(folder.resolve().name),
        accuracy=percent(right / len(labels)),
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        lead=lead(rows, part, epoch, right, len(labels)),
        sections="\n".join(sections),
    )
    for figure in figures:
        replace_file(folder / figure.name, figure.png)
    replace_file(folder / "report.html", page.encode())
    return f"{folder / 'report.html'}: {right:,} of {len(labels):,} test images right, epoch {epoch}"


def main(args: argparse.Namespace) -> int:
    """Carry out the command line ``args``; return the exit status, after one line on stderr if not 0."""
    try:
        print(write_report(Path(args.run) if args.run else newest_weights().parent, args.data_path))
    except (DataError, RunError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(args))
