"""Tables with one row for each run, as the benchmarks write and read them."""

from pathlib import Path

from runtime.errors import UserError
from runtime.files import read_table

Row = dict[str, str]  # a run; accuracies are in percent, values by epoch are separated by spaces


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
