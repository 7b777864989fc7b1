"""The figures of a sweep, against ones worked out by hand."""

import pytest

pytest.importorskip("matplotlib")

from benchmarks import summary, sweep
from benchmarks.summary import Row


def row(seed: int, *accuracies: float) -> Row:
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= 99.4), None)
    result = {"seed": str(seed), "epoch_reached": str(reached or ""), "last": str(accuracies[-1])}
    result |= {"seconds_to_target": str(10 * reached) if reached else "", "seconds": "30"}
    return dict.fromkeys(sweep.COLUMNS, "") | result


def diverged(seed: int) -> Row:
    columns = dict.fromkeys(sweep.COLUMNS, "")
    return columns | {"seed": str(seed), "error": "the loss became nan"}


def test_figures_by_hand() -> None:
    rows = [row(1, 99.3, 99.41, 99.39), row(2, 99.2, 99.3, 99.35), row(3, 99.1, 99.39, 99.46)]
    figures = summary.figures(rows, 99.4)
    # mean 99.4, deviation sqrt((0.01² + 0.05² + 0.06²) / 2) = 0.0557, half-width 4.303 · 0.0557 / √3 = 0.138
    assert (figures["n"], figures["mean, %"], figures["standard deviation"]) == ("3", "99.400", "0.056")
    assert figures["95 % interval (Student)"] == "99.262 to 99.538"
    assert figures["p of a t-test against 99.4 %"] == "0.5"  # it is the mean itself
    medians = [value for name, value in figures.items() if name.startswith("median ")]
    assert medians == ["2.5", "25.0", "30.0"]
    # (99.4 - 99.3) / (0.0557 / √3) = 3.11; Student with 2 degrees: 0.5 - 3.11 / (2 √(2 + 3.11²)) = 0.045
    assert summary.figures(rows, 99.3)["p of a t-test against 99.3 %"] == "0.045"
    figures = summary.figures([*rows, diverged(4)], 99.4)
    assert figures["n"] == "3" and figures["mean, %"] == "99.400 (1 of 4 diverged)"
    assert figures["95 % interval (Student)"] == figures["p of a t-test against 99.4 %"] == "–"
    # Wilson, z = 1.96: (0.5 + z²/8 ± z √(0.25/4 + z²/64)) / (1 + z²/4)
    assert figures["reached 99.4 % (Wilson)"] == "2 of 4, 15% to 85%"


def test_markdown_is_sorted_and_compares_with_the_first() -> None:
    low, high = [row(1, 99.1), row(2, 99.3)], [row(1, 99.4), row(2, 99.6), row(3, 99.5)]
    results = {"--a=0": [diverged(1)], "--a=1": [row(1, 99.9), diverged(2)], "--a=2": low, "--a=3": high}
    lines = summary.markdown(results, 99.4).splitlines()
    # Without its diverged run, --a=1 would be the first.
    assert [line.split(" | ")[0][-6:-1] for line in lines[2:]] == ["--a=3", "--a=2", "--a=0", "--a=1"]
    # 99.5 - 99.2 ± √(0.1² / 3 + 0.1414² / 2)
    assert "0.300 ± 0.115" in lines[3] and not any("±" in line for line in (lines[2], *lines[4:]))
    assert "| – (1 of 1 diverged) |" in lines[4] and "| 99.900 (1 of 2 diverged) |" in lines[5]
    assert len({line.count("|") for line in lines}) == 1 and "nan" not in "".join(lines)
