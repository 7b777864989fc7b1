"""Summarise rows of runs, and plot their accuracy."""

import io
import math
import shlex
import sys
from pathlib import Path
from statistics import mean, median

import numpy as np

from runtime.errors import UserError
from runtime.files import replace_file

try:
    from matplotlib.figure import Figure
    from scipy import stats
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}: pip install {error.name}")

Row = dict[str, str]  # a run; accuracies are in percent, values by epoch are separated by spaces
Results = dict[str, list[Row]]  # the runs to compare, by the name of what was trained
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
    if diverged or count < 2:
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
    return {name: text.replace("nan", NONE) for name, text in cells.items()}


def markdown(results: Results, target: float) -> str:
    """Make a table of ``results``: highest mean first, and last those with diverged runs."""
    means = {name: mean(numbers(rows, "last")) for name, rows in results.items()}
    diverged = {name: any(row["error"] for row in rows) for name, rows in results.items()}
    names = sorted(results, key=lambda name: (diverged[name], -means[name]))
    lines = [{"": f"`{name}`"} | figures(results[name], target, results[names[0]]) for name in names]
    cells = [lines[0], ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def print_results(results: Results, target: float) -> None:
    """Print the command, what it ran on, and the figures: a line each, or a table of several names."""
    rows = [row for group in results.values() for row in group]
    sources = {f"{row['device']}, torch {row['torch']}, {row['split']} images" for row in rows if row["last"]}
    print(f"\n`{shlex.join(sys.argv[1:])}`; {' and '.join(sorted(sources))}\n")
    if len(results) > 1:
        print(markdown(results, target), flush=True)
    else:
        print("\n".join(f"{name:38s}{value}" for name, value in figures(rows, target).items()), flush=True)
    errors = [f"seed {row['seed']}: {row['error']}" for row in rows if row["error"]]
    if errors:
        raise UserError(f"{len(errors)} of {len(rows)} runs diverged, {errors[0]} (all: column error)")


def plot(results: Results, path: Path, seconds: bool = False) -> None:
    """Draw to ``path``, a PNG, mean accuracies by epoch, or over ``seconds``; a single name's runs, too."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in results.items():
        accuracy, time = (
            np.array([row[column].split() for row in rows], dtype=float)  # (runs, epochs)
            for column in ("accuracy_by_epoch", "seconds_by_epoch")
        )
        x = time.mean(axis=0) if seconds else np.arange(1, accuracy.shape[1] + 1)
        (line,) = axes.plot(x, accuracy.mean(axis=0), label=name)
        axes.plot(x[-1], accuracy[:, -1].mean(), "o", color=line.get_color())  # the end of the schedule
        if len(results) == 1:
            axes.plot(x, accuracy.T, color=line.get_color(), linewidth=0.7, alpha=0.4)
    label, scale = ("seconds of training, with evaluation", "log") if seconds else ("epoch", "linear")
    best = axes.dataLim.ymax
    axes.set(xlabel=label, xscale=scale, ylabel="accuracy, %", ylim=(best - 1.2, best + 0.1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    replace_file(path, buffer.getvalue())
