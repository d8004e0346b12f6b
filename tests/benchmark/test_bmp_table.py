# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of BMP: its recipes, its arithmetic, and one small run that trains nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_wsss.benchmark import Row
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES, TABLE_SIX
from monai_wsss.benchmark.bmp_table import make_bmp_table
from monai_wsss.data import make_phantoms
from monai_wsss.engines import Progress

RECIPES = BMP_RECIPES | BMP_BOUND
LATE = Progress(epoch=20, iteration=20, fraction=0.9)
FULL_SUPERVISION = next(iter(BMP_BOUND))


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(4, 2, 32, 32, generator=generator),
        "label": torch.tensor([[0.0], [1.0], [1.0], [0.0]]),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    method, data = RECIPES[name].build(2, 1), batch()
    assert method.uses_masks == ("masks" in name)
    if method.uses_masks:
        data["mask"] = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    torch.stack(list(method(data, LATE).values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("row", "terms", "propagation", "ofd"),
    [
        (0, set(), "par", False),
        (1, {"c2s"}, "par", False),
        (2, {"c2s", "s2c"}, "par", False),
        (3, {"c2s", "s2c"}, "bsp", False),
        (4, {"c2s", "s2c"}, "bsp", True),
        (5, {"c2s", "s2c", "affinity"}, "bsp", True),
    ],
)
def test_the_ladder_climbs_one_step_at_a_time(row, terms, propagation, ofd):
    method = list(TABLE_SIX.values())[row].build(2, 1)
    assert set(method(batch(), LATE)) - {"classification"} == terms
    assert (method.settings["propagation"], method.network.prior is not None) == (propagation, ofd)
    assert method.settings["preset"] == "scratch"


def row(name: str, column: str, dice: float, **metrics: float) -> Row:
    return Row(name, column, "validation", 0, {k: {"mean": v} for k, v in {"dice_subject": dice, **metrics}.items()})


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    return Path(make_phantoms(tmp_path / "phantoms", modalities=("T1", "FLAIR"), subjects=(2, 2, 0))) / "datalist.json"


def test_the_table_has_both_branches_and_the_ratio(datalist, tmp_path):
    rows = [
        row("+ c2s", "C train", 0.2),
        row("+ c2s", "S", 0.3),
        row("+ c2s", "S", 0.5),
        row("+ c2s", "S + CRF", 0.6, crf_seconds=0.25),
        row(FULL_SUPERVISION, "S", 0.8),
    ]
    table = make_bmp_table(datalist, tmp_path / "out")
    lines = table.format(rows).splitlines()
    assert "Table VI of Zhu et al. (BMP), run small on brain_phantoms" in lines[0]
    assert lines[0].endswith("Not the paper's run**")
    assert lines[2] == "| row | C train | S train | C | S | S + CRF | CRF, s | ratio |"
    assert lines[4] == "| + c2s | 0.200 | – | – | 0.400 ± 0.141 | 0.600 | 0.250 | 0.50 |"
    assert lines[5].endswith("| 0.800 | – | – | 1.00 |")
    assert table.format([row("+ c2s", "S", 0.3)]).endswith("| 0.300 | – | – | – |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
@pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing")
@pytest.mark.filterwarnings("ignore:Epoch .* will not end in this run")  # of three iterations
def test_a_small_run_leaves_the_table_and_trains_nothing_twice(datalist, tmp_path):
    few = {name: BMP_RECIPES[name] for name in ("classification branch only", "+ affinity (all of BMP)")}
    out = tmp_path / "out"
    table = make_bmp_table(datalist, out, recipes=few, epochs=1, seeds=(0,), grid=(32, 32))
    rows = table.run()
    for name in few:
        assert {"C train", "S train", "C", "S"} <= {row.column for row in rows if row.name == name}
    assert {row.split for row in rows if row.column.endswith("train")} == {"training"}
    refined = {row.name: row for row in rows if row.column == "S + CRF"}
    assert set(refined) == {"+ affinity (all of BMP)", FULL_SUPERVISION}  # of whole methods
    assert refined[FULL_SUPERVISION].metrics["crf_seconds"]["mean"] > 0
    assert [Row(**row) for row in json.loads((out / "bmp.json").read_text(encoding="utf-8"))] == rows
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/seed0/model.pt")}
    assert len(trained) == 3
    assert table.run() == rows
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())
