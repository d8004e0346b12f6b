# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tables as CSV, in which no name of a user becomes a formula of a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from monai_wsss._files import atomic_path

__all__ = ["table_text", "write_csv", "write_table"]

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a formula begins with in spreadsheets, also in full width."""


def table_text(name: str) -> str:
    """Give a name as a cell of a table: a leading ``'`` keeps spreadsheets from reading it as a formula.

    Spreadsheets pass over blanks, tabs and line ends before a formula.

    Example:
        >>> table_text("=1+1"), table_text("case-1")
        ("'=1+1", 'case-1')
    """
    return f"'{name}" if name.lstrip()[:1] in _FORMULA or name[:1] in ("\t", "\r", "\n") else name


def write_table(file: IO[str], rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table as CSV; names of columns and texts in cells never become formulas, see :func:`table_text`.

    Args:
        file: open for writing, with ``newline=""``.
        rows: cells by the name of their column; others are left out, missing ones are empty.
        columns: names of the columns, in order.
    """
    writer = csv.writer(file)
    writer.writerow([table_text(name) for name in columns])
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        writer.writerow([table_text(cell) if isinstance(cell, str) else cell for cell in cells])


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file, whole or not at all, see :func:`write_table`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        write_table(file, rows, columns)
