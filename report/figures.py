"""Draw the figures of a run, within matplotlib's ``style.context(STYLE)``."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from torch import Tensor

from checkpoint import Run
from report import scores
from runtime.errors import printable

# The colours of Okabe and Ito (2008): colour-blind readers can tell them apart.
BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#8c8c8c", "#222222"
WIDTH, DPI = 5.2, 200  # in inches; on a phone, a point of text is then about one CSS pixel
MAX_NAME = 12  # characters of a class name in a figure
STYLE = "default", Path(__file__).with_suffix(".mplstyle")  # the first undoes the user's own matplotlibrc


class Plot(NamedTuple):
    """A figure as PNG, and as text for those who can't see it."""

    png: bytes
    alt: str


def shorten(classes: Sequence[str]) -> list[str]:
    """Make names short enough for a figure, and escape control characters."""
    return [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in map(printable, classes)]


def to_png(figure: Figure) -> bytes:
    """Render ``figure`` as PNG. The same drawing gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def curves(run: Run) -> Plot:
    """Draw loss, accuracy and learning rate by epoch, and mark the best epoch."""
    metrics, best = run.metrics, run.best
    assert best is not None
    figure, epochs = Figure(figsize=(WIDTH, 6.2)), [row.epoch for row in metrics]
    loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.4])
    names = [("train", "training set", BLUE, "s"), ("eval", best.split_name, RED, "o")]
    for name, label, color, marker in names:
        losses = [getattr(row, f"{name}_loss") for row in metrics]
        # The error rate on a logarithmic scale: on a linear one, all epochs after the third look the same.
        # An epoch without errors is drawn at the upper edge.
        errors = [max(100 - getattr(row, f"{name}_accuracy"), 0.01) for row in metrics]
        for axes, values in [(loss, losses), (accuracy, errors)]:
            axes.plot(epochs, values, color=color, marker=marker, label=label)
    for axes, label in [(loss, "loss"), (accuracy, "accuracy, %")]:
        axes.set(yscale="log", ylabel=label)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.axvline(best.epoch, color=GREY, linestyle=":", zorder=1, label=f"best epoch, {best.epoch}")
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=3)
    bottom, top = accuracy.get_ylim()
    accuracy.set(ylim=(top, min(bottom, 0.45)))
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 - value:g}")
    rate.step(epochs, [row.lr for row in metrics], where="mid", color=INK, marker=".")
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.yaxis.set_major_locator(MaxNLocator(3))
    figure.align_ylabels()
    first, last = (f"{row.eval_accuracy:.2f}% in epoch {row.epoch}" for row in (metrics[0], metrics[-1]))
    alt = f"Loss, accuracy and learning rate by epoch; accuracy on the {best.split_name}: {first}, {last}."
    return Plot(to_png(figure), alt)


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Plot:
    """Draw ``counts``, int64 (N, N), images by label (row) and prediction (column), of N ``classes``."""
    names, size, table = shorten(classes), len(classes), counts.numpy()
    wrong = np.where(np.eye(size), 0, table)
    most = max(int(wrong.max()), 1)
    figure, font = Figure(figsize=(WIDTH, 5.0)), min(9, 120 / size)
    axes = figure.add_subplot()
    # The diagonal has a flat colour of its own: next to 1,000 on one scale, a count of 5 is invisible.
    colors = colormaps["Oranges"].with_extremes(bad="#dfe7ee", under="white")
    axes.imshow(np.where(np.eye(size), np.nan, wrong - 0.5), cmap=colors, vmin=0, vmax=1.2 * most)
    for row, column in np.argwhere(table):
        color = "white" if wrong[row, column] > 0.6 * most else INK
        axes.text(column, row, table[row, column], ha="center", va="center", color=color, fontsize=font)
    axes.set(xlabel="prediction", ylabel="label")
    axes.set_xticks(range(size), names, fontsize=font, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(False)
    axes.grid(which="minor", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    label, prediction = divmod(int(wrong.argmax()), size)
    alt = f"Confusion matrix with {wrong.sum():,} mistakes; the most frequent, {wrong.max()} times: "
    alt += f"{classes[label]} predicted as {classes[prediction]}."
    return Plot(to_png(figure), alt)


def accuracy_by_class(counts: Tensor, classes: Sequence[str]) -> Plot:
    """Draw the accuracy of each of N ``classes`` from ``counts``, a confusion matrix, int64 (N, N)."""
    correct, total = counts.diagonal(), counts.sum(dim=1)
    accuracy = 100 * (correct / total).numpy()
    overall = 100 * float(correct.sum() / total.sum())
    figure = Figure(figsize=(WIDTH, 3.8 * max(len(classes), 4) / 10))
    axes = figure.add_subplot()
    rows = range(len(classes))
    low, high = (100 * end.numpy() for end in scores.wilson(correct, total))
    axes.hlines(rows, low, high, color=BLUE, alpha=0.35, linewidth=5)
    axes.plot(accuracy, rows, "o", color=BLUE, markersize=6)
    axes.axvline(overall, color=GREY, linestyle=":", zorder=1)
    axes.text(overall, -0.75, f"all: {overall:.2f}", ha="center", va="bottom", color=GREY)
    for row in rows:
        wrong = f"{accuracy[row]:.2f}, {total[row] - correct[row]} of {total[row]} wrong"
        result = wrong if total[row] else "no image"
        axes.text(1.02, row, result, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set(ylim=(len(classes) - 0.4, -0.7), xlabel="accuracy, %", ylabel="label")
    axes.set_yticks(rows, shorten(classes))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    by_class = ", ".join(f"{classes[row]}: {accuracy[row]:.2f}%" for row in rows if total[row])
    return Plot(to_png(figure), f"Accuracy by class: {by_class}.")


def calibration(bins: scores.Calibration) -> Plot:
    """Draw accuracy against mean confidence, and below it the number of images in each bin."""
    count = len(bins.total)
    accuracy, interval = bins.correct / bins.total, scores.wilson(bins.correct, bins.total)
    x, y, low, high = 100 * torch.stack([bins.confidence, accuracy, *interval]).numpy()
    figure = Figure(figsize=(WIDTH, 5.0))
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="perfect calibration")
    upper.vlines(x, low, high, color=BLUE, alpha=0.35, linewidth=5)
    upper.plot(x, y, "o", color=BLUE, markersize=6, label="the network")
    upper.set(ylabel="accuracy, %", ylim=(-3, 103), xlim=(-1, 101))
    upper.legend(loc="lower right", title=f"expected calibration error: {bins.error:.2%}")
    edges = 100 * np.arange(count) / count
    lower.bar(edges, bins.total.numpy(), 100 / count, align="edge", color=BLUE, edgecolor="white")
    lower.set(yscale="log", ylabel="images", xlabel="confidence, %", ylim=(0.7, None))
    lower.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000]))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    alt = f"Reliability diagram: expected calibration error {bins.error:.2%}; {int(bins.total[-1]):,} of "
    alt += f"{int(bins.total.sum()):,} predictions are in the bin of the highest confidence."
    return Plot(to_png(figure), alt)


def mistakes(
    images: Tensor, labels: Tensor, predictions: Tensor, confidence: Tensor, classes: Sequence[str]
) -> Plot:
    """Draw ``images``, uint8 (N, 28, 28), with label, prediction and confidence below them.

    ``labels`` and ``predictions`` are int64 (N,), ``confidence`` is float64 (N,) in (0, 1].
    """
    names = shorten(classes)
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    # Five images in a row with digits below them, three with names; the pitch is in pixels of the images.
    columns, pitch_x, pitch_y, font = (5, 32, 37, 8.5) if max(map(len, names)) <= 2 else (3, 53, 37, 7.0)
    rows = max(-(-len(pairs) // columns), 1)
    sheet = np.zeros((rows * pitch_y, columns * pitch_x), dtype=np.uint8)
    figure = Figure(figsize=(WIDTH, WIDTH * rows * pitch_y / (columns * pitch_x)))
    axes = figure.add_subplot()
    for i, (label, prediction) in enumerate(pairs):
        top, left = i // columns * pitch_y, i % columns * pitch_x + (pitch_x - 28) // 2
        sheet[top : top + 28, left : left + 28] = images[i].numpy()
        description = f"{names[label]} → {names[prediction]}, {confidence[i]:.1%}"
        axes.text(left + 13.5, top + 31.5, description, ha="center", va="center", fontsize=font)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    described = ", ".join(f"{classes[label]} as {classes[prediction]}" for label, prediction in pairs)
    return Plot(to_png(figure), f"Wrongly predicted images: {described or 'none'}.")


def filters(weights: Tensor) -> Plot:
    """Draw the ten filters of the first layer, ``weights``, float32 (10, 1, 3, 3), on one scale."""
    most = float(weights.abs().max()) or 1.0
    figure = Figure(figsize=(WIDTH, 3.3))
    grid = figure.subplots(2, 5)
    for number, (axes, weight) in enumerate(zip(grid.flat, weights[:, 0].numpy(), strict=True), 1):
        image = axes.imshow(weight, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set(xticks=[], yticks=[], title=f"{number}")
        axes.grid(False)
        axes.spines[:].set_visible(True)
    bar = figure.colorbar(image, ax=grid, orientation="horizontal", fraction=0.06, aspect=40, label="weight")
    bar.outline.set_visible(False)
    alt = "The ten 3×3 filters of the first convolution, positive weights red, negative blue."
    return Plot(to_png(figure), alt)
