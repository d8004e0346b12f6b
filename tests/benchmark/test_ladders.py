# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Ablation ladders: their rows are those of the tables, marks say what each row has, other data are passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_wsss.benchmark import Row
from monai_wsss.benchmark.bmp_recipes import BMP_RECIPES
from monai_wsss.benchmark.cmer_recipes import CMER_RECIPES
from monai_wsss.benchmark.coingan_table import COINGAN_ROWS
from monai_wsss.benchmark.cosa_recipes import COSA_BUDGETS, cosa_recipes
from monai_wsss.benchmark.gland_recipes import ROWS
from monai_wsss.benchmark.ladders import LADDERS, kept_ladders
from monai_wsss.benchmark.rows import folder_name, write_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "runs"
KNOWN = {
    "cmer": CMER_RECIPES,
    "gland": ROWS["gland"],
    "bmp": BMP_RECIPES,
    "cosa": cosa_recipes(COSA_BUDGETS["tiles"]),
    "coingan": COINGAN_ROWS,
}


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder.table)
def test_rungs_are_rows_of_the_table_from_nothing_to_all_parts(ladder):
    assert set(ladder.rungs) <= set(KNOWN[ladder.table])
    first, *_, last = ladder.rungs.values()
    assert not first
    assert set(last) == set(ladder.parts)
    assert len({frozenset(parts) for parts in ladder.rungs.values()}) == len(ladder.rungs)


def keep(runs: Path, table: str, row: str, seed: int, value: float, digest: str = "d", epochs: int = 3) -> None:
    own = Row(row, "S", "validation", seed, {"miou_pooled": {"mean": value}})
    other = Row(row, "CPL", "validation", seed, {"miou_pooled": {"mean": 0.9}})
    file = runs / table / "validation" / folder_name(row) / f"seed{seed}.json"
    settings = {"row": row, "seeds": [seed], "recipe": {"epochs": epochs}}
    write_rows(file, [own, other], {"data_sha256": digest}, settings=settings)


def test_a_ladder_is_read_from_rows_of_the_same_data(tmp_path):
    for seed, value in enumerate((0.5, 0.7)):
        keep(tmp_path, "cosa_some", "base", seed, value)
    keep(tmp_path, "cosa_some", "+ CSC without RAW", 0, 0.8)
    keep(tmp_path, "cosa_some", "+ GC", 0, 0.1, digest="other data")
    ((ladder, rungs),) = kept_ladders(tmp_path, "some", "validation", "d")
    assert ladder.table == "cosa"
    assert [(rung.name, rung.has, rung.values) for rung in rungs] == [
        ("base", (False,) * 5, (0.5, 0.7)),
        ("+ CSC without RAW", (True, True, False, True, False), (0.8,)),
    ]
    assert rungs[0].mean == pytest.approx(0.6)
    assert rungs[0].deviation == pytest.approx(0.2 / 2**0.5)
    assert rungs[1].deviation == 0
    assert kept_ladders(tmp_path, "some", "test", "d") == []
    assert kept_ladders(tmp_path, "another", "validation", "d") == []


def test_seeds_of_different_lengths_are_not_averaged(tmp_path):
    keep(tmp_path, "cosa_some", "base", 0, 0.5)
    keep(tmp_path, "cosa_some", "base", 1, 0.1, epochs=1)
    keep(tmp_path, "cosa_some", "+ GC", 0, 0.6, epochs=1)
    ((_, rungs),) = kept_ladders(tmp_path, "some", "validation", "d")
    assert [(rung.name, rung.values) for rung in rungs] == [("+ GC", (0.6,))]
