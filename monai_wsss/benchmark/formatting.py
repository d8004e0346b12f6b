# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one Markdown table: rows over seeds, and columns that are data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from monai_wsss.benchmark.recipes import FULL_SUPERVISION
from monai_wsss.benchmark.rows import Row
from monai_wsss.metrics import welch_t_test

__all__ = ["Column", "format_rows", "values_of"]

_NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """One column of a Markdown table.

    Attributes:
        head: the column's title.
        metric: name of the metric; ``_mm`` or ``_px`` at its end may be left out.
        of: the :attr:`~monai_wsss.benchmark.Row.column` of the rows to show; None shows those of the whole line.
        kind: ``"value"``: mean over seeds, and standard deviation of several; ``"patients"``: mean and standard
            deviation over patients, of several seeds the means of both; ``"ratio"``: mean divided by that of the best
            line of full supervision in the column ``bound``; ``"ratio alike"``: in the line's own column; ``"ratio
            best"``: in any column; ``"p"``: p-value of Welch's t-test against a line; ``"count"``: the number
            of rows, which is that of the seeds; ``"rate"``: as ``"value"``, of 1 / value, such as images per second.
        bound: for ``"ratio"``, the column of full supervision's rows to divide by; None takes any.
        against: for ``"p"``, the name of the line to compare with; None takes the first line.
    """

    head: str
    metric: str
    of: str | None = None
    kind: Literal["value", "patients", "ratio", "ratio alike", "ratio best", "p", "count", "rate"] = "value"
    bound: str | None = None
    against: str | None = None


def format_rows(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Format rows as a Markdown table.

    Where a column shows one column of the rows (:attr:`Column.of`), each name is one line; else each name and column.

    Args:
        rows: the rows of all seeds.
        columns: the columns to show, from left to right.

    Returns:
        The lines of the table; a dash where nothing was measured.

    Example:
        >>> rows = [Row("max", "logit", "validation", seed, {"f1": {"mean": 0.5 + seed}}) for seed in (0, 1)]
        >>> print(format_rows(rows, [Column("F1", "f1")]))
        | row | F1 |
        |---|---|
        | max / logit | 1.000 ± 0.707 |
    """
    by_name = any(column.of is not None for column in columns)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.name if by_name else row.label, []).append(row)
    first = next(iter(lines.values()), [])
    bounds = [row for row in rows if FULL_SUPERVISION in row.name]
    text = [f"| {' | '.join(['row', *(column.head for column in columns)])} |", "|---" * (len(columns) + 1) + "|"]
    for name, own in lines.items():
        others = [first if column.against is None else lines.get(column.against, []) for column in columns]
        cells = [_cell(column, own, bounds=bounds, other=other) for column, other in zip(columns, others, strict=True)]
        text.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(text)


def _cell(column: Column, rows: Sequence[Row], *, bounds: Sequence[Row], other: Sequence[Row]) -> str:
    values = values_of(rows, column.metric, column.of)
    if not values:
        return _NOTHING
    if column.kind == "count":
        return str(len(values))
    if column.kind in ("ratio", "ratio alike", "ratio best"):
        of = {"ratio": column.bound, "ratio alike": column.of or rows[0].column, "ratio best": None}[column.kind]
        best = _best_line(bounds if of is None else [row for row in bounds if row.column == of], column.metric)
        return f"{np.mean(values) / best:.2f}" if best > 0 else _NOTHING
    if column.kind == "p":
        baseline = values_of(other, column.metric, column.of)
        comparable = min(len(values), len(baseline)) > 1 and values != baseline
        return f"{welch_t_test(baseline, values).p:.2f}" if comparable else _NOTHING
    if column.kind == "patients":
        spreads = values_of(rows, column.metric, column.of, "std")
        return f"{np.mean(values):.3f} ± {np.mean(spreads):.3f}" if spreads else f"{np.mean(values):.3f}"
    if column.kind == "rate":
        values = [1 / value for value in values if value > 0]
        if not values:
            return _NOTHING
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _best_line(rows: Sequence[Row], metric: str) -> float:
    """Give the highest mean of a metric among lines, 0 where none has it."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.label, []).append(row)
    found = [values_of(line, metric) for line in lines.values()]
    return max((float(np.mean(values)) for values in found if values), default=0.0)


def values_of(rows: Sequence[Row], metric: str, column: str | None = None, part: str = "mean") -> list[float]:
    """Give the means of a metric in those rows that have it.

    Args:
        rows: rows of any seeds.
        metric: name of the metric, with or without ``_mm`` or ``_px``.
        column: the column of the rows; None takes all.
        part: another entry of the metric in the place of its mean, such as ``"std"``.
    """
    chosen = [row.metrics for row in rows if column is None or row.column == column]
    names = (metric, f"{metric}_mm", f"{metric}_px")
    return [metrics[name][part] for metrics in chosen for name in names if part in metrics.get(name, {})]
