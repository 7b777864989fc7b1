"""Summarise the rows of a sweep, and plot accuracy."""

import io
import math
import sys
from pathlib import Path
from statistics import mean, median

from runtime.files import replace_file

try:
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    sys.exit(f"error: {error}: pip install matplotlib scipy")

Row = dict[str, str]  # a run; accuracies are in percent, values by epoch are separated by spaces
Curve = list[tuple[float, float]]  # after each epoch: seconds or the epoch, and accuracy in percent
NONE = "–"


def numbers(rows: list[Row], column: str) -> list[float]:
    """Return the values in ``column``, or a single NaN if there is none."""
    return [float(row[column]) for row in rows if row[column]] or [math.nan]


def standard_error(values: list[float]) -> float:
    """Return the standard error of the mean; NaN for less than two values."""
    return float(stats.sem(values)) if len(values) > 1 else math.nan


def figures(rows: list[Row], target: float, first: list[Row] | None = None) -> dict[str, str]:
    """Summarise the accuracies after the last epoch, and compare their mean with that of ``first``.

    A diverged run counts as one that did not reach ``target``. The mean of the other runs alone is biased,
    so its cell says how many diverged, and interval, p and difference are left out.
    """
    values = numbers(rows, "last")
    count, average, error = len(values), mean(values), standard_error(values)
    half = stats.t.ppf(0.975, count - 1) * error
    p = stats.t.sf((average - target) / (error or 1e-9), count - 1)
    reached = sum(row["epoch_reached"] != "" for row in rows)
    low, high = stats.binomtest(reached, len(rows)).proportion_ci(method="wilson")
    inference = {
        "95 % interval (Student)": f"{average - half:.3f} to {average + half:.3f}",
        f"p of a t-test against {target:g} %": f"{p:.2g}",
    }
    if first is not None:
        top = numbers(first, "last")
        below = f"{mean(top) - average:.3f} ± {math.hypot(error, standard_error(top)):.3f}"
        inference["below the first, ± standard error"] = NONE if first is rows else below
    diverged = sum(row["error"] != "" for row in rows)
    if diverged:
        inference = dict.fromkeys(inference, NONE)
    cells = {
        "n": str(len(rows) - diverged),
        "mean, %": f"{average:.3f}" + (f" ({diverged} of {len(rows)} diverged)" if diverged else ""),
        "standard deviation": f"{error * math.sqrt(count):.3f}",
        **inference,
        f"reached {target:g} % (Wilson)": f"{reached} of {len(rows)}, {low:.0%} to {high:.0%}",
        "median epoch to it": f"{median(numbers(rows, 'epoch_reached')):g}",
        "median seconds to it": f"{median(numbers(rows, 'seconds_to_target')):.1f}",
        "median seconds in all": f"{median(numbers(rows, 'seconds')):.1f}",
    }
    if any(row["best_on_test"] for row in rows):
        best = numbers(rows, "best_on_test")
        deviation = standard_error(best) * math.sqrt(len(best))
        cells["best.pt on the test set, mean ± sd, %"] = f"{mean(best):.3f} ± {deviation:.3f}"
    return {name: text.replace("nan", NONE) for name, text in cells.items()}


def markdown(results: dict[str, list[Row]], target: float) -> str:
    """Make a table of ``results``, by their flags: highest mean first, and last those with diverged runs."""
    complete = [flags for flags, rows in results.items() if not any(row["error"] for row in rows)]
    complete.sort(key=lambda flags: mean(numbers(results[flags], "last")), reverse=True)
    order = complete + [flags for flags in results if flags not in complete]
    first = results[order[0]]
    lines = [{"flags": f"`{flags}`"} | figures(results[flags], target, first) for flags in order]
    cells = [lines[0], ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plot(curves: dict[str, list[Curve]], xlabel: str, path: Path, xscale: str = "linear") -> None:
    """Draw to ``path``, a PNG, the mean of the ``curves`` of each name; those of a single name, too."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in curves.items():
        points = [[mean(column) for column in zip(*epoch, strict=True)] for epoch in zip(*runs, strict=True)]
        (line,) = axes.plot(*zip(*points, strict=True), label=name)
        axes.plot(*points[-1], "o", color=line.get_color())  # the end of the schedule
        for run in runs if len(curves) == 1 else []:
            axes.plot(*zip(*run, strict=True), color=line.get_color(), linewidth=0.7, alpha=0.4)
    best = max(y for runs in curves.values() for run in runs for _, y in run)
    axes.set(xlabel=xlabel, xscale=xscale, ylabel="accuracy, %", ylim=(best - 1.2, best + 0.1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    replace_file(path, buffer.getvalue())
