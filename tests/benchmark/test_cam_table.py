# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The benchmark's table: its arithmetic, and one small run of it that goes on where it stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from monai_wsss.benchmark import Row, format_rows
from monai_wsss.benchmark.cam_recipes import CAM_RECIPES
from monai_wsss.benchmark.cam_table import make_cam_table
from monai_wsss.data import make_phantoms


def row(name: str, dice: float, seed: int = 0) -> Row:
    return Row(name, "", "validation", seed, {"dice_subject": {"mean": dice}, "assd_px": {"mean": 2.0}})


def test_the_table_gives_mean_spread_and_ratio(tmp_path):
    rows = [row("max", 0.4, 0), row("max", 0.6, 1), row("full supervision (masks)", 0.8)]
    table = make_cam_table(tmp_path / "datalist.json", tmp_path)
    lines = table.format(rows).splitlines()
    assert lines == format_rows(rows, table.columns).splitlines()
    assert lines[2] == "| max | 0.500 ± 0.141 | – | 2.000 ± 0.000 | – | – | – | – | 0.62 |"
    assert lines[3] == "| full supervision (masks) | 0.800 | – | 2.000 | – | – | – | – | 1.00 |"


def test_recipes_that_read_masks_say_so():
    for name, recipe in CAM_RECIPES.items():
        assert recipe.build(1, 1).uses_masks == ("masks" in name)


@pytest.mark.slow
def test_a_small_table_is_whole_and_is_not_trained_twice(tmp_path, caplog):
    datalist = Path(make_phantoms(tmp_path / "phantoms", subjects=(2, 2, 0))) / "datalist.json"
    table = make_cam_table(datalist, tmp_path / "out", epochs=1, seeds=(0, 1))
    rows = table.run()
    seeds: dict[str, list[int | None]] = {}
    for row in rows:
        seeds.setdefault(row.label, []).append(row.seed)
    assert seeds["max / negative_reference"] == [0, 1]
    assert seeds["max, mean of 2 seeds / negative_reference"] == [None]
    for rule in ("mixture", "mixture, all images"):
        assert seeds[f"max / {rule}"] == seeds[f"average / {rule}"] == [0, 1]
    assert "plain (paper): average / mixture" not in seeds
    assert seeds["trivial: FLAIR > 0.0 SD"] == [None]
    for part in ("Grad-CAM++", "full supervision (masks)", "trivial: FLAIR", "trivial: whole slice", "plain (paper)"):
        assert any(part in label for label in seeds)
    assert [Row(**row) for row in json.loads((tmp_path / "out" / "cam.json").read_text(encoding="utf-8"))] == rows
    for row in rows:
        assert row.reads_masks == ("masks" in row.label)
        assert (row.seconds is None) == ("FLAIR" in row.name)
    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert table.run() == rows
    assert "per epoch" not in caplog.text
