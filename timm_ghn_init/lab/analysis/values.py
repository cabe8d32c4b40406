"""Numbers by architecture, from a CSV such as timm's tables of results."""

import csv
import math
from pathlib import Path

from ...utils.checks import InputError


def read_values(path: str | Path, column: str | None = None) -> tuple[str, dict[str, float]]:
    """Read one column of numbers.

    Args:
        path: a CSV with a header; names are in its column "model" or "name", else in the first.
        column: of the numbers. Default: the first one that has a number in the first row.

    Returns:
        The column's name, and the numbers by name; rows without a number are passed over. If a name
        occurs several times, the last row counts.

    Raises:
        ValueError: no such column, or no numbers.
        OSError: the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV: {error}") from error
    key = next((n for n in names if n in ("model", "name")), names[0] if names else "")
    if column is None:
        column = next((n for n in names if n != key and rows and _number(rows[0][n]) is not None), None)
    if column is None or column not in names:
        raise InputError(f"{path} has no column {column or 'of numbers'!r}; it has {', '.join(names) or 'none'}.")
    numbers = {row[key]: number for row in rows if row[key] and (number := _number(row[column])) is not None}
    if not numbers:
        raise InputError(f"{path}: there is no number in the column {column!r}.")
    return column, numbers


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
