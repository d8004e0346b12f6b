# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The ablation ladders of the papers as they draw them: a row per training, a mark per part that it has, its number.

The rows are those that the papers' own tables (``--table cosa`` and its like) keep in a folder of runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss.benchmark.bmp_recipes import TABLE_SIX
from monai_wsss.benchmark.coingan_recipes import LADDER
from monai_wsss.benchmark.cosa_recipes import ADDITIVE
from monai_wsss.benchmark.rows import Row, read_kept

__all__ = ["LADDERS", "Ladder", "Rung", "kept_ladders"]


@dataclass(frozen=True)
class Ladder:
    """An ablation of a paper.

    Attributes:
        title: method, paper's table, and what is measured.
        table: the word of ``--table`` that trains it.
        parts: names of the parts, in the order of the paper's columns.
        rungs: name of a row to the parts that it has, in the order of the paper's rows.
        metric: what is measured.
        column: of the rows, see :attr:`~monai_wsss.benchmark.Row.column`.
    """

    title: str
    table: str
    parts: Sequence[str]
    rungs: Mapping[str, Collection[str]]
    metric: str
    column: str = ""

    def climbed(self, rows: Sequence[Row]) -> list[Rung]:
        """Give the rungs that have rows."""
        found = []
        for name, parts in self.rungs.items():
            own = [row for row in rows if row.name == name and row.column == self.column]
            values = [float(row.metrics[self.metric]["mean"]) for row in own if self.metric in row.metrics]
            if values:
                found.append(Rung(name, tuple(part in parts for part in self.parts), tuple(values)))
        return found


@dataclass(frozen=True)
class Rung:
    """A row of a ladder.

    Attributes:
        name: of the row.
        has: whether it has each part.
        values: of its seeds.
    """

    name: str
    has: tuple[bool, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Average the seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Give the standard deviation over the seeds, 0 for one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def _upward(names: Sequence[str], parts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give rows each of which has one part more than the row above it; the first has none."""
    return {name: tuple(parts[:count]) for count, name in enumerate(names)}


_COSA = ("GC", "SA", "RAW", "CSC", "DT")
_COINGAN = {"C-Conv": "use_cconv", "CA": "use_ca", "SA": "use_sa"}
_BMP = ("C2S", "S2C", "BSP", "OFD", "affinity")
_ER, _CMER, _KD = _TERMS = ("ER", "CMER", "KD")

LADDERS = (
    Ladder(
        "CMER, terms of Tables I to III: Dice per subject, all modalities fused",
        "cmer",
        _TERMS,
        {
            "plain CAM": (),
            "SEAM's equivariance, all transforms": (_ER,),
            "KD": (_KD,),
            "KD + ER": (_KD, _ER),
            "ER + CMER": (_ER, _CMER),
            "all terms": _TERMS,
        },
        "dice_subject",
        "fused",
    ),
    Ladder(
        "Glands, Table 2: mIoU",
        "gland",
        ("CCA", "MPFP", "PLF"),
        {
            "baseline, average pooling": (),
            "+ CCA": ("CCA",),
            "+ MPFP (Eq. 9)": ("MPFP",),
            "CCA + MPFP (Eq. 9)": ("CCA", "MPFP"),
            "CCA + MPFP (Eq. 9), PLF (paper)": ("CCA", "MPFP", "PLF"),
        },
        "miou_pooled",
    ),
    Ladder("BMP, Table VI: Dice per subject", "bmp", _BMP, _upward(list(TABLE_SIX), _BMP), "dice_subject", "S"),
    Ladder(
        "CoSA, Table 3: mIoU of the segmentation",
        "cosa",
        _COSA,
        {name: [part for part in _COSA if words.get(part.lower(), True)] for name, words in ADDITIVE.items()},
        "miou_pooled",
        "S",
    ),
    Ladder(
        "CoinGAN, Table 6: DSC of the paper",
        "coingan",
        tuple(_COINGAN),
        {name: [part for part, word in _COINGAN.items() if words.get(word, True)] for name, words in LADDER.items()},
        "paper_dice_macro_pooled",
        "mask",
    ),
)
"""The ladders of the five papers."""


def kept_ladders(runs: Path, data: str, split: str, data_sha256: str) -> list[tuple[Ladder, list[Rung]]]:
    """Read the ladders whose rows lie in a folder of runs.

    Args:
        runs: the folder.
        data: name of the data, as the folders of the tables have it.
        split: what was measured.
        data_sha256: digest of the data; rows of other data are passed over.

    Returns:
        The ladders that have rows, each with its rungs; rows whose seeds were made with different settings, such as
        another length, have none.
    """
    found = []
    for ladder in LADDERS:
        contents = read_kept(runs / f"{ladder.table}_{data}" / split)
        own = [content for content in contents if content["source"].get("data_sha256") == data_sha256]
        mixed = _mixed(own)
        rows = [Row(**row) for content in own for row in content["rows"]]
        rungs = ladder.climbed([row for row in rows if row.name not in mixed])
        if rungs:
            found.append((ladder, rungs))
    return found


def _mixed(contents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Give the names of rows whose seeds differ in more than the seed."""
    settings: dict[str, Any] = {}
    mixed = set()
    for content in contents:
        told = {key: value for key, value in content["settings"].items() if key != "seeds"}
        mixed |= {row["name"] for row in content["rows"] if settings.setdefault(row["name"], told) != told}
    return mixed
