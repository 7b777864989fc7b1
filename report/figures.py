"""The figures of a run, as PNG with their captions. Importing it changes none of matplotlib's settings."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from checkpoint import EpochMetrics
from datasets import MNIST
from report import scores

# Okabe and Ito's colours (2008), told apart by colour-blind readers too.
BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#8c8c8c", "#222222"
WIDTH, DPI = 5.2, 200  # inches: on a phone a point of text is then about a CSS pixel
MOST_MISTAKES = 150  # in their figure: a trained network has some 50, a bad one thousands
LONGEST_NAME = 12  # characters of a class's name in a figure
INTERVALS = "The bars are 95% confidence intervals (Wilson 1927)."
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "text.parse_math": False,  # a class may have a dollar sign in its name
}
styled = style.context(["default", STYLE])  # a decorator: not the style of the reader's own matplotlibrc


@dataclass(frozen=True)
class Plot:
    """A figure of the page: the file's name and content, and the text that goes with it."""

    file: str
    png: bytes
    title: str
    caption: str  # HTML
    alt: str


def shorten(classes: Sequence[str]) -> list[str]:
    """Return the names of the ``classes`` as a figure has room for them."""
    return [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in classes]


def new_figure(height: float) -> Figure:
    """Return an empty figure, ``height`` inches high."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))


def to_png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG that depends on nothing but what was drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@styled
def curves(metrics: list[EpochMetrics], best: int, split: str) -> Plot:
    """Draw the ``metrics`` of a run by epoch; ``best`` is marked, ``split`` names what was evaluated."""
    figure = new_figure(6.2)
    epochs = [row.epoch for row in metrics]
    loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.4])
    for name, label, color, marker in [("train", "training set", BLUE, "s"), ("eval", split, RED, "o")]:
        losses = [getattr(row, f"{name}_loss") for row in metrics]
        # As the share of wrong predictions on a logarithmic scale, or all after the third epoch would be one
        # line; an epoch without a wrong one is drawn at the upper edge.
        errors = [max(100 - getattr(row, f"{name}_accuracy"), 0.01) for row in metrics]
        for axes, values in [(loss, losses), (accuracy, errors)]:
            axes.plot(epochs, values, color=color, marker=marker, label=label)
    for axes in (loss, accuracy):
        axes.set(yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.axvline(best, color=GREY, linestyle=":", zorder=1, label=f"best epoch, {best}")
    loss.set_ylabel("loss")
    loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=3)
    bottom, top = accuracy.get_ylim()
    accuracy.set(ylabel="accuracy, %", ylim=(top, min(bottom, 0.45)))
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
    rate.step(epochs, [row.lr for row in metrics], where="mid", color=INK, marker=".")
    rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.yaxis.set_major_locator(MaxNLocator(3))
    figure.align_ylabels()
    caption = (
        "From metrics.csv. Both losses are the mean negative log-likelihood without label smoothing, so they "
        "can be compared. Loss and accuracy of the training set are of images as they were trained on "
        "(augmented, with dropout if the settings have any), each before its step; those of the "
        f"{split} are of the network after the epoch, or of the running average of its weights if the "
        "settings have one. Their scales are logarithmic. The learning rate is that at the epoch's start."
    )
    first, last = (f"{row.eval_accuracy:.2f}% in epoch {row.epoch}" for row in (metrics[0], metrics[-1]))
    alt = f"Loss, accuracy and learning rate by epoch; accuracy on the {split}: {first}, {last}."
    return Plot("curves.png", to_png(figure), "Training", caption, alt)


@styled
def confusion_matrix(counts: Tensor, classes: Sequence[str] = MNIST.classes) -> Plot:
    """Draw ``counts``, int64 (N, N), images by label (row) and prediction (column), of N ``classes``."""
    names, size = shorten(classes), len(classes)
    table, diagonal = counts.numpy(), np.eye(size, dtype=bool)
    wrong = np.where(diagonal, 0, table)
    most = max(int(wrong.max()), 1)
    figure, font = new_figure(5.0), min(9, 120 / size)
    axes = figure.add_subplot()
    # The diagonal has one flat colour of its own: on one scale with 1,000 a count of 5 can't be seen.
    axes.imshow(np.where(wrong > 0, wrong, np.nan), cmap="Oranges", vmin=-most / 4, vmax=1.2 * most)
    axes.imshow(np.where(diagonal, 1.0, np.nan), cmap=ListedColormap(["#dfe7ee"]))
    for label, prediction in np.argwhere(table):
        color = "white" if wrong[label, prediction] > 0.6 * most else INK
        text = f"{table[label, prediction]}"
        axes.text(prediction, label, text, ha="center", va="center", color=color, fontsize=font)
    axes.set(xlabel="prediction", ylabel="label")
    axes.set_xticks(range(size), names, fontsize=font, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(False)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    label, prediction = divmod(int(wrong.argmax()), size)
    alt = f"Confusion matrix with {wrong.sum():,} mistakes; the most frequent, {wrong.max()} times: "
    alt += f"{classes[label]} predicted as {classes[prediction]}."
    caption = "The stronger a mistake's colour, the more frequent it is; an empty field is 0."
    return Plot("confusion.png", to_png(figure), "Confusion matrix", caption, alt)


@styled
def accuracy_by_class(counts: Tensor, classes: Sequence[str] = MNIST.classes) -> Plot:
    """Draw the accuracy of each of N ``classes`` from ``counts``, a confusion matrix, int64 (N, N)."""
    correct, total = counts.diagonal(), counts.sum(dim=1)
    accuracy = 100 * (correct / total).numpy()
    overall = 100 * float(correct.sum() / total.sum())
    figure = new_figure(3.8 * max(len(classes), 4) / 10)
    axes = figure.add_subplot()
    rows = range(len(classes))
    low, high = (100 * end.numpy() for end in scores.wilson(correct, total))
    axes.hlines(rows, low, high, color=BLUE, alpha=0.35, linewidth=5)
    axes.plot(accuracy, rows, "o", color=BLUE, markersize=6)
    axes.axvline(overall, color=GREY, linestyle=":", zorder=1)
    axes.text(overall, -0.75, f"all: {overall:.2f}", ha="center", va="bottom", color=GREY)
    for row in rows:
        text = f"{accuracy[row]:.2f}, {total[row] - correct[row]} of {total[row]} wrong"
        text = text if total[row] else "no image"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set(ylim=(len(classes) - 0.4, -0.7), xlabel="accuracy, %", ylabel="label")
    axes.set_yticks(rows, shorten(classes))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    found = [f"{classes[row]}: {accuracy[row]:.2f}%" for row in rows if total[row]]
    alt = f"Accuracy by class: {', '.join(found)}."
    caption = f"{INTERVALS} Where they overlap, the difference may be chance."
    return Plot("accuracy_by_class.png", to_png(figure), "Accuracy by class", caption, alt)


@styled
def calibration(values: scores.Calibration) -> Plot:
    """Draw accuracy against mean confidence, and below it the images in each bin."""
    bins = len(values.total)
    ends = scores.wilson(values.correct, values.total)
    accuracy = values.correct / values.total
    x, y, bottom, top = 100 * torch.stack([values.confidence, accuracy, *ends]).numpy()
    figure = new_figure(5.0)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="perfect calibration")
    upper.vlines(x, bottom, top, color=BLUE, alpha=0.35, linewidth=5)
    upper.plot(x, y, "o", color=BLUE, markersize=6, label="the network")
    upper.set(ylabel="accuracy, %", ylim=(-3, 103), xlim=(-1, 101))
    upper.legend(loc="lower right", title=f"expected calibration error: {values.error:.2%}")
    edges = 100 * np.arange(bins) / bins
    lower.bar(edges, values.total.numpy(), 100 / bins, align="edge", color=BLUE, edgecolor="white")
    lower.set(yscale="log", ylabel="images", xlabel="confidence, %", ylim=(0.7, None))
    lower.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000]))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    caption = (
        f"The predictions in {bins} bins by their confidence, the probability that the network gives them. "
        f"Expected calibration error: <b>{values.error:.2%}</b> (Guo et al. 2017, “On Calibration of Modern "
        f"Neural Networks”). {INTERVALS}"
    )
    alt = f"Reliability diagram: expected calibration error {values.error:.2%}; {int(values.total[-1]):,} of "
    alt += f"{int(values.total.sum()):,} predictions are in the bin of the highest confidence."
    return Plot("calibration.png", to_png(figure), "Calibration", caption, alt)


@styled
def mistakes(
    images: Tensor,
    labels: Tensor,
    predictions: Tensor,
    confidence: Tensor,
    classes: Sequence[str] = MNIST.classes,
) -> Plot:
    """Draw the ``images``, uint8 (N, 28, 28), that are predicted wrong, at most 150.

    ``labels`` and ``predictions`` are int64 (N,), ``confidence`` float64 (N,) in (0, 1].
    """
    names = shorten(classes)
    wrong = scores.mistakes(labels, predictions, confidence)
    drawn = wrong[:MOST_MISTAKES].tolist()
    # To a line five images with digits below them, three with names; pixels from one image to the next.
    columns, pitch_x, pitch_y, font = (5, 32, 37, 8.5) if max(map(len, names)) <= 2 else (3, 53, 37, 7.0)
    lines = max(-(-len(drawn) // columns), 1)
    sheet = np.zeros((lines * pitch_y, columns * pitch_x), dtype=np.uint8)
    figure = new_figure(WIDTH * lines * pitch_y / (columns * pitch_x))
    axes = figure.add_subplot()
    for place, i in enumerate(drawn):
        top, left = place // columns * pitch_y, place % columns * pitch_x + (pitch_x - 28) // 2
        sheet[top : top + 28, left : left + 28] = images[i].numpy()
        text = f"{names[int(labels[i])]} → {names[int(predictions[i])]}, {confidence[i]:.1%}"
        axes.text(left + 13.5, top + 31.5, text, ha="center", va="center", fontsize=font)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    if not drawn:
        axes.text(columns * pitch_x / 2, pitch_y / 2, "none", ha="center", va="center")
    which = "All of them" if len(drawn) == len(wrong) else f"The {MOST_MISTAKES} of the highest confidence"
    caption = f"{which}, by descending confidence: label → prediction, its confidence."
    pairs = ", ".join(f"{classes[int(labels[i])]} as {classes[int(predictions[i])]}" for i in drawn)
    title = f"Mistakes: {len(wrong):,} of {len(labels):,}"
    return Plot("mistakes.png", to_png(figure), title, caption, f"Images predicted wrong: {pairs or 'none'}.")


@styled
def filters(weights: Tensor, epoch: int) -> Plot:
    """Draw the filters of the first layer, ``weights``, float32 (10, 1, 3, 3), on one scale."""
    most = float(weights.abs().max()) or 1.0
    figure = new_figure(3.3)
    grid = figure.subplots(2, 5)
    for number, (axes, weight) in enumerate(zip(grid.flat, weights[:, 0].numpy(), strict=True), 1):
        image = axes.imshow(weight, cmap="RdBu_r", vmin=-most, vmax=most)
        axes.set(xticks=[], yticks=[], title=f"{number}")
        axes.grid(False)
        axes.spines[:].set_visible(True)
    bar = figure.colorbar(image, ax=grid, orientation="horizontal", fraction=0.06, aspect=40, label="weight")
    bar.outline.set_visible(False)
    caption = f"Its ten filters of 3×3 weights in best.pt (epoch {epoch}), on one scale."
    alt = "The ten 3×3 filters of the first convolution, positive weights red, negative blue."
    return Plot("filters.png", to_png(figure), "The first layer", caption, alt)
