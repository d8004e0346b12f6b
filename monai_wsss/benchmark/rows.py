# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one row of every table: what was measured for one seed, and its form as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monai_wsss._files import make_directory, write_json

__all__ = ["Measured", "Row", "folder_name", "read_kept", "read_kept_rows", "read_rows", "write_rows"]


@dataclass(frozen=True)
class Row:
    """The metrics of one seed; plain data, without paths and without identifiers of cases.

    Attributes:
        name: the row's name in the table.
        column: what of the row was measured: a decision rule, a modality, a branch; empty where there is one thing.
        split: the images that were measured.
        seed: the seed of the training; None where no seed, or several together, made the row.
        metrics: metric name to ``{"mean": …, "ci95": …, "n": …}``, see :meth:`monai_wsss.metrics.CaseTable.summary`.
        seconds: time of all trainings behind the row, in seconds; None where no training or no record of it exists.  A
            training that was killed and resumed counts all steps at the pace of its last process.
        reads_masks: whether masks were read to train or to decide, not only to measure.
        simulated_supervision: whether the image-level labels of the data were made from masks on request.
    """

    name: str
    column: str
    split: str
    seed: int | None
    metrics: Mapping[str, Mapping[str, Any]]
    seconds: float | None = None
    reads_masks: bool = False
    simulated_supervision: bool = False

    @property
    def label(self) -> str:
        """Join the name and the column."""
        return f"{self.name} / {self.column}" if self.column else self.name

    def to_json(self) -> dict[str, Any]:
        """Give the row as JSON-able content; ``Row(**content)`` is the row again.

        Example:
            >>> row = Row("max", "logit", "validation", 0, {"dice_subject": {"mean": 0.5}})
            >>> Row(**row.to_json()) == row
            True
        """
        return dataclasses.asdict(self)


class Measured(NamedTuple):
    """What a table measures of one training: a row without its name and seed.

    Attributes:
        column: as :attr:`Row.column`.
        metrics: as :attr:`Row.metrics`.
        split: as :attr:`Row.split`; None for the table's own.
        oracle: whether masks were read to decide.
    """

    column: str
    metrics: dict[str, dict[str, Any]]
    split: str | None = None
    oracle: bool = False


def folder_name(row: str) -> str:
    """Turn a row's name into the name of a folder.

    Example:
        >>> folder_name("+ MPFP (Eq. 9)")
        'mpfp_eq_9'
    """
    return re.sub(r"[^a-z0-9]+", "_", row.lower()).strip("_")


def read_rows(path: Path, source: dict[str, Any]) -> list[Row] | None:
    """Read finished rows, or give None where there are none of this source.

    Args:
        path: file of :func:`write_rows`.
        source: what the rows follow from, such as digests of weights.
    """
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["source"] != source:
        return None
    return [Row(**row) for row in content["rows"]]


def read_kept_rows(folder: Path) -> list[Row]:
    """Read all rows that a table keeps in a folder, in alphabetical order of the rows, then by seed.

    Args:
        folder: ``<runs>/<table>/<split>``.
    """
    return [Row(**row) for content in read_kept(folder) for row in content["rows"]]


def read_kept(folder: Path) -> list[dict[str, Any]]:
    """Read all files of rows that a table keeps in a folder, in alphabetical order of the rows, then by seed.

    Args:
        folder: ``<runs>/<table>/<split>``.
    """
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]


def write_rows(path: Path, rows: Iterable[Row], source: dict[str, Any], **told: Any) -> None:
    """Write finished rows with what they follow from.

    Args:
        path: the file to write.
        rows: the rows.
        source: what the rows follow from, as :func:`read_rows` compares it.
        told: further entries of the file, for readers.
    """
    make_directory(path.parent)
    write_json(path, {"source": source, **told, "rows": [row.to_json() for row in rows]})
