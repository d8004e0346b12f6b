# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Numbers that a paper prints, of itself and of others: they were published and not run here.

They stand in ``published/<paper>.json`` beside this file, table by table, as the paper has them. A row may name the
method of the package that is its counterpart (``here``), which our own tables train, on other data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from monai_wsss._checks import check_choice

__all__ = ["PublishedRow", "PublishedTable", "not_rebuilt", "published_tables"]

PAPERS = ("coingan", "cosa", "gland")
_NOTHING = "–"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a paper's table.

    Attributes:
        name: of the method, with its venue where the paper tells it.
        supervision: what the method was trained on.
        network: the paper's short name of the segmentation network, or None.
        values: by the columns of the table; None where the paper has a dash.
        here: the method of this package that is its counterpart, or None.
        note: what has to be known, or an empty string.
    """

    name: str
    supervision: str
    network: str | None
    values: tuple[float | None, ...]
    here: str | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One table of a paper.

    Attributes:
        title: what it measures, with the unit.
        columns: names of the values.
        rows: in the paper's order.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    def markdown(self) -> str:
        """Format the table as Markdown: each value stands in a column that says "published, not run"."""
        heads = ["row", "supervision", "network", *(f"{name} (published, not run)" for name in self.columns), "here"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        notes = []
        for row in self.rows:
            values = [_NOTHING if value is None else f"{value:g}" for value in row.values]
            mark = ""
            if row.note:
                notes.append(row.note)
                mark = f" [{len(notes)}]"
            cells = [row.name + mark, row.supervision, row.network or _NOTHING, *values, row.here or _NOTHING]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n[{number}] {note}" for number, note in enumerate(notes, 1))])


def published_tables(paper: str = "cosa") -> dict[str, PublishedTable]:
    """Read the tables of a paper, by its own numbers of them.

    Args:
        paper: ``"coingan"``, ``"cosa"`` or ``"gland"``.

    Raises:
        ValueError: another paper.

    Example:
        >>> tables = published_tables("cosa")
        >>> [row.values for row in tables["1"].rows if row.here == "AFA"]
        [(66.0, 66.3, 38.9)]
        >>> sum(row.here is None for row in tables["1"].rows)
        22
    """
    return {number: _table(told) for number, told in _content(paper)["tables"].items()}


def not_rebuilt(paper: str) -> dict[str, str]:
    """Tell which tables and figures of a paper are not rebuilt here, each with the reason.

    Args:
        paper: see :func:`published_tables`.

    Example:
        >>> list(not_rebuilt("coingan"))
        ['Figure 3', 'Table 6, last row']
    """
    told: dict[str, str] = _content(paper).get("not_rebuilt", {})
    return told


def _content(paper: str) -> dict[str, Any]:
    check_choice("paper", paper, PAPERS)
    text = resources.files("monai_wsss.benchmark").joinpath("published", f"{paper}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _table(told: dict) -> PublishedTable:
    columns = tuple(told["columns"])
    rows = tuple(PublishedRow(**{**row, "values": tuple(row["values"])}) for row in told["rows"])
    return PublishedTable(told["title"], columns, rows)
