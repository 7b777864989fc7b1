"""Read a CSV file that a command of this project wrote."""

import csv
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file that has at least ``columns``; none where there is no file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return []
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged, or no CSV file: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values() or not row.keys() >= set(columns):
            raise UserError(
                f"{path} is damaged, or of another kind: row {number} lacks a column or has too many"
            )
    return rows
