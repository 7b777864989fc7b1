"""The figures of ``python report.py``, as PNG. Importing it changes none of matplotlib's settings."""

import io
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

# Okabe and Ito's colours (2008), told apart by colour-blind readers too.
BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#8c8c8c", "#222222"
WIDTH, DPI = 5.2, 200  # inches: on a phone a point of text is then about a CSS pixel
SHOWN = 150  # wrong images in the figure at most: a trained network has some 60, a bad one thousands
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
}


def png(height: float, draw: Callable[[Figure], None]) -> bytes:
    """Return what ``draw`` puts on a figure ``height`` inches high, as a PNG that follows from it alone."""
    with style.context(["default", STYLE]):  # not the reader's own matplotlibrc
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def curves(rows: list[dict[str, float]], part: str, name: str, best: int) -> bytes:
    """Draw loss and accuracy by epoch over the learning rate.

    ``rows`` are metrics.csv's, ``part`` is 'test' or 'holdout' as in its columns and ``name`` what the
    legend calls that set; ``best`` is the epoch that is marked.
    """
    epochs = [row["epoch"] for row in rows]

    def line(axes: Axes, values: list[float], colour: str, marker: str, label: str) -> None:
        axes.plot(epochs, values, color=colour, marker=marker, label=label)

    def draw(figure: Figure) -> None:
        loss, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.4])
        loss.set(yscale="log", ylabel="loss")
        accuracy.set(yscale="log", ylabel="accuracy, %")
        for key, colour, marker, label in [("train", BLUE, "s", "training"), (part, RED, "o", name)]:
            line(loss, [row[f"{key}_loss"] for row in rows], colour, marker, label)
            # As the share of wrong answers on a logarithmic scale, or all after the third epoch would
            # be one line; an epoch without a wrong answer is drawn at the upper edge.
            wrong = [max(100 - row[f"{key}_accuracy"], 0.01) for row in rows]
            line(accuracy, wrong, colour, marker, label)
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        accuracy.set_ylim(accuracy.get_ylim()[1], min(accuracy.get_ylim()[0], 0.45))
        accuracy.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
        rate.step(epochs, [row["lr"] for row in rows], where="mid", color=INK, marker=".")
        rate.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
        rate.xaxis.set_major_locator(MaxNLocator(integer=True))
        rate.yaxis.set_major_locator(MaxNLocator(3))
        for axes in (loss, accuracy):
            axes.yaxis.set_minor_locator(NullLocator())
            axes.axvline(best, color=GREY, linestyle=":", zorder=1, label=f"best epoch, {best}")
        loss.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=3)
        figure.align_ylabels()

    return png(6.2, draw)


def confusion(counts: Tensor) -> bytes:
    """Draw ``counts``, int64 (10, 10), images by true digit (row) and answer (column)."""
    table = counts.numpy()
    mistakes = np.where(np.eye(10, dtype=bool), 0, table)
    most = max(int(mistakes.max()), 1)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        # The diagonal has one flat colour of its own: on one scale with 1,000 a count of 5 can't be seen.
        axes.imshow(np.where(mistakes > 0, mistakes, np.nan), cmap="Oranges", vmin=-most / 4, vmax=1.2 * most)
        axes.imshow(np.where(np.eye(10, dtype=bool), 1.0, np.nan), cmap=ListedColormap(["#dfe7ee"]))
        for true in range(10):
            for said in range(10):
                count = int(table[true, said])
                colour = "white" if true != said and count > 0.6 * most else INK
                if count:
                    axes.text(said, true, f"{count}", ha="center", va="center", color=colour)
        axes.set(xticks=range(10), yticks=range(10), xlabel="the network's answer", ylabel="true digit")
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_xticks(np.arange(-0.5, 10), minor=True)
        axes.set_yticks(np.arange(-0.5, 10), minor=True)
        axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)

    return png(5.0, draw)


def mistakes(images: Tensor, labels: Tensor, said: Tensor, sure: Tensor) -> bytes:
    """Draw ``images``, uint8 (N, 28, 28), in their order, five to a line, at most ``SHOWN``.

    Under each stand its ``labels`` entry, the answer ``said``, int64 (N,), and ``sure``, its probability.
    """
    columns, pitch_x, pitch_y = 5, 32, 37  # pixels of MNIST from one image to the next
    count = min(len(images), SHOWN)
    lines = max(-(-count // columns), 1)

    def draw(figure: Figure) -> None:
        sheet = np.zeros((lines * pitch_y, columns * pitch_x), dtype=np.uint8)
        axes = figure.add_subplot()
        for i in range(count):
            top, left = i // columns * pitch_y, i % columns * pitch_x + 2
            sheet[top : top + 28, left : left + 28] = images[i].numpy()
            text = f"{labels[i]} → {said[i]}, {100 * sure[i]:.1f} %"
            axes.text(left + 13.5, top + 31.5, text, ha="center", va="center", fontsize=8.5)
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
        if not count:
            axes.text(columns * pitch_x / 2, pitch_y / 2, "none", ha="center", va="center")

    return png(WIDTH * lines * pitch_y / (columns * pitch_x), draw)


def digits(right: Tensor, total: Tensor, low: Tensor, high: Tensor) -> bytes:
    """Draw each digit's accuracy, ``right`` of ``total`` images, (10,), with its interval in [0, 1]."""
    accuracy = 100 * (right / total).numpy()
    ends = 100 * torch.stack([low, high]).numpy()

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(10)
        axes.hlines(rows, *ends, color=BLUE, alpha=0.35, linewidth=5)
        axes.plot(accuracy, rows, "o", color=BLUE, markersize=6)
        overall = 100 * float(right.sum() / total.sum())
        axes.axvline(overall, color=GREY, linestyle=":", zorder=1)
        axes.text(overall, -0.75, f"all: {overall:.2f}", ha="center", va="bottom", color=GREY)
        beside = axes.get_yaxis_transform()
        for row in rows:
            text = f"{accuracy[row]:.2f}, {total[row] - right[row]} of {total[row]} wrong"
            axes.text(1.02, row, text, transform=beside, va="center", fontsize=8)
        axes.set(yticks=rows, ylim=(9.6, -0.7), xlabel="accuracy, %", ylabel="digit")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    return png(3.8, draw)


def filters(weights: Tensor) -> bytes:
    """Draw the filters of the first layer, ``weights``, float32 (10, 1, 3, 3), on one scale."""
    most = float(weights.abs().max()) or 1.0

    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, 5)
        for number, (axes, weight) in enumerate(zip(grid.flat, weights[:, 0].numpy(), strict=True), 1):
            image = axes.imshow(weight, cmap="RdBu_r", vmin=-most, vmax=most)
            axes.set_title(f"{number}")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(True)
        bar = figure.colorbar(image, ax=grid, orientation="horizontal", fraction=0.06, aspect=40)
        bar.outline.set_visible(False)
        bar.set_label("weight")

    return png(3.3, draw)


def reliability(
    counts: Tensor, sure: Tensor, accuracy: Tensor, low: Tensor, high: Tensor, ece: float
) -> bytes:
    """Draw accuracy against mean confidence, and below it the images in each bin.

    All are (bins,): ``counts`` int64, the others in [0, 1] and NaN in an empty bin; ``low`` and ``high``
    bound the accuracy; ``ece`` is the expected calibration error in [0, 1].
    """
    bins = len(counts)
    edges = 100 * np.arange(bins) / bins
    x, y, bottom, top = 100 * torch.stack([sure, accuracy, low, high]).numpy()

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="as sure as it is right")
        upper.vlines(x, bottom, top, color=BLUE, alpha=0.35, linewidth=5)
        upper.plot(x, y, "o", color=BLUE, markersize=6, label="the network")
        upper.set(ylabel="right answers, %", ylim=(-3, 103), xlim=(-1, 101))
        upper.legend(loc="lower right", title=f"expected calibration error: {100 * ece:.2f} %")
        lower.bar(edges, counts.numpy(), 100 / bins, align="edge", color=BLUE, edgecolor="white")
        lower.set(yscale="log", ylabel="images", xlabel="how sure the network is, %", ylim=(0.7, None))
        lower.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000]))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return png(5.0, draw)
