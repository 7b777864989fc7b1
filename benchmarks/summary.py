"""What the runs of a sweep come to: their table's columns, its figures, and the plot."""

import math
from pathlib import Path
from statistics import mean, median

from runtime.errors import UserError

try:
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    raise UserError(f"{error}: pip install matplotlib scipy") from None

Row = dict[str, str]  # a run's line of its table; accuracies are in percent, those by epoch joined by spaces
COLUMNS = [
    *("seed", "split", "target", "epoch_reached", "seconds_to_target", "best", "last", "best_on_test"),
    *("seconds", "device", "python", "torch", "torchvision", "machine", "accuracy_by_epoch", "error"),
]


def numbers(rows: list[Row], column: str) -> list[float]:
    """Return what ``column`` holds, or NaN alone where it holds nothing."""
    return [float(row[column]) for row in rows if row[column]] or [math.nan]


def figures(
    rows: list[Row], target: float, column: str = "last", first: list[Row] | None = None
) -> dict[str, str]:
    """Say what ``rows`` come to, and how far below ``first``; runs that failed are short of ``target``."""
    values, top = numbers(rows, column), numbers(first or rows, column)
    error, top_error = (stats.sem(those) if len(those) > 1 else math.nan for those in (values, top))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    p = stats.t.sf((mean(values) - target) / (error or 1e-9), len(values) - 1)
    reached = sum(row["epoch_reached"] != "" for row in rows)
    low, high = stats.binomtest(reached, len(rows)).proportion_ci(method="wilson")
    below = f"{mean(top) - mean(values):.3f} ± {math.hypot(error, top_error):.3f}"
    found = {
        "n": str(sum(row[column] != "" for row in rows)),
        "mean, %": f"{mean(values):.3f}",
        "standard deviation": f"{error * math.sqrt(len(values)):.3f}",
        "95 % interval (Student)": f"{mean(values) - half:.3f} to {mean(values) + half:.3f}",
        f"p of a mean <= {target:g} (t-test)": f"{p:.2g}",
        f"reached {target:g} % (Wilson)": f"{reached} of {len(rows)}, {low:.0%} to {high:.0%}",
        "median epoch to it": f"{median(numbers(rows, 'epoch_reached')):g}",
        "median seconds to it": f"{median(numbers(rows, 'seconds_to_target')):.1f}",
        "median seconds in all": f"{median(numbers(rows, 'seconds')):.1f}",
    }
    if first:
        found["below the first, ± standard error"] = "–" if first is rows else below
    return {name: text.replace("nan", "–") for name, text in found.items()}


def markdown(results: dict[str, list[Row]], target: float) -> str:
    """Make a table of ``results``, by their flags, from the highest mean to the lowest."""
    # max(0, NaN) is 0: settings whose runs all failed come last.
    order = sorted(results, key=lambda flags: max(0.0, mean(numbers(results[flags], "last"))), reverse=True)
    lines = [
        {"flags": f"`{flags}`"} | figures(results[flags], target, first=results[order[0]]) for flags in order
    ]
    cells = [lines[0], ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plot(rows: list[Row], target: float, path: Path) -> None:
    """Draw accuracy by epoch to ``path``, a PNG: a thin line a seed, the median thick."""
    curves = [[float(value) for value in row["accuracy_by_epoch"].split()] for row in rows if row["last"]]
    by_epoch = list(zip(*curves, strict=True))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(by_epoch) + 1), by_epoch, color="tab:blue", linewidth=0.7, alpha=0.5)
    axes.plot(range(1, len(by_epoch) + 1), [*map(median, by_epoch)], color="tab:blue", linewidth=3)
    axes.axhline(target, color="tab:orange")
    best = max(map(max, by_epoch), default=target)
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(best - 1.2, best + 0.1))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_by_seconds(curves: dict[str, list[list[tuple[float, float]]]], path: Path) -> None:
    """Draw to ``path``, a PNG, the mean of each one's ``curves``: seconds and accuracy after each epoch."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in curves.items():
        points = [[mean(column) for column in zip(*epoch, strict=True)] for epoch in zip(*runs, strict=True)]
        (line,) = axes.plot(*zip(*points, strict=True), linewidth=1, label=name)
        axes.plot(*points[-1], "o", color=line.get_color())  # the end of the schedule
    axes.set(xlabel="seconds of training, with evaluation", ylabel="test accuracy, %", xscale="log")
    axes.set_ylim(98.4, 99.7)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
