"""Tables with a row for each run, of a sweep or of peers: read and summarise them, and plot accuracy."""

import io
import math
from pathlib import Path
from statistics import mean, median

from runtime.errors import UserError
from runtime.files import read_table, replace_file

try:
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    raise UserError(f"{error}: pip install matplotlib scipy") from None

Row = dict[str, str]  # a run; accuracies are in percent, values by epoch are separated by spaces
NONE = "–"


def read_runs(path: Path, columns: list[str], numbers: list[str]) -> list[Row]:
    """Read the table at ``path``, which must have these ``columns``; only numbers are in ``numbers``."""
    rows = read_table(path, columns)
    try:
        for row in rows:
            int(row["seed"])
            [float(number) for column in numbers for number in row[column].split()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; move it away or choose another --output-dir") from None
    return rows


def numbers(rows: list[Row], column: str) -> list[float]:
    """Return the values in ``column``, or a single NaN if there is none."""
    return [float(row[column]) for row in rows if row[column]] or [math.nan]


def standard_error(values: list[float]) -> float:
    """Return the standard error of the mean; NaN for less than two values."""
    return float(stats.sem(values)) if len(values) > 1 else math.nan


def figures(rows: list[Row], target: float, column: str, first: list[Row] | None = None) -> dict[str, str]:
    """Summarise the accuracies in ``column``, and compare their mean with that of ``first``, if it is given.

    A diverged run counts as one that did not reach ``target``. The mean of the other runs alone is biased,
    so its cell says how many diverged, and interval, p and difference are left out. The table has epochs and
    seconds to ``target`` only for the accuracy ``last``, by epoch, and not for ``best_on_test``.
    """
    values = numbers(rows, column)
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
        top = numbers(first, column)
        below = f"{mean(top) - average:.3f} ± {math.hypot(error, standard_error(top)):.3f}"
        inference["below the first, ± standard error"] = NONE if first is rows else below
    diverged = sum(row["error"] != "" for row in rows)
    if diverged:
        inference = dict.fromkeys(inference, NONE)
    to_target = {
        f"reached {target:g} % (Wilson)": f"{reached} of {len(rows)}, {low:.0%} to {high:.0%}",
        "median epoch to it": f"{median(numbers(rows, 'epoch_reached')):g}",
        "median seconds to it": f"{median(numbers(rows, 'seconds_to_target')):.1f}",
    }
    cells = {
        "n": str(sum(row[column] != "" for row in rows)),
        "mean, %": f"{average:.3f}" + (f" ({diverged} of {len(rows)} diverged)" if diverged else ""),
        "standard deviation": f"{error * math.sqrt(count):.3f}",
        **inference,
        **(to_target if column == "last" else {}),
        "median seconds in all": f"{median(numbers(rows, 'seconds')):.1f}",
    }
    return {name: text.replace("nan", NONE) for name, text in cells.items()}


def markdown(results: dict[str, list[Row]], target: float) -> str:
    """Make a table of ``results``, by their flags: highest mean first, and last those with diverged runs."""
    complete = [flags for flags, rows in results.items() if not any(row["error"] for row in rows)]
    complete.sort(key=lambda flags: mean(numbers(results[flags], "last")), reverse=True)
    order = complete + [flags for flags in results if flags not in complete]
    first = results[order[0]]
    lines = [{"flags": f"`{flags}`"} | figures(results[flags], target, "last", first) for flags in order]
    cells = [lines[0], ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    replace_file(path, buffer.getvalue())


def plot(rows: list[Row], target: float, path: Path) -> None:
    """Draw accuracy by epoch to ``path``, a PNG: a thin line for each seed, a thick one for the median."""
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
    save(figure, path)


def plot_by_seconds(curves: dict[str, list[list[tuple[float, float]]]], path: Path) -> None:
    """Draw accuracy over seconds to ``path``, a PNG: for each name, the mean of its ``curves``."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in curves.items():
        points = [[mean(column) for column in zip(*epoch, strict=True)] for epoch in zip(*runs, strict=True)]
        (line,) = axes.plot(*zip(*points, strict=True), linewidth=1, label=name)
        axes.plot(*points[-1], "o", color=line.get_color())  # the end of the schedule
    axes.set(xlabel="seconds of training, with evaluation", ylabel="test accuracy, %", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(98.4, 99.7)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save(figure, path)
