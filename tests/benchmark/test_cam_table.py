# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The benchmark's table: its arithmetic, and one small run of it that goes on where it stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from monai_wsss.benchmark import RECIPES, CamTable, format_table
from monai_wsss.data import make_phantoms


def row(dice: float) -> dict:
    return {"dice_subject": {"mean": dice}, "assd_px": {"mean": 2.0}}


def test_the_table_gives_mean_spread_and_ratio():
    lines = format_table({"max": [row(0.4), row(0.6)], "full supervision (masks)": [row(0.8)]}).splitlines()
    assert lines[2] == "| max | 0.500 ± 0.141 | – | 2.000 ± 0.000 | – | – | – | – | 0.62 |"
    assert lines[3] == "| full supervision (masks) | 0.800 | – | 2.000 | – | – | – | – | 1.00 |"


def test_recipes_that_read_masks_say_so():
    for name, recipe in RECIPES.items():
        assert recipe.build(1, 1).uses_masks == ("masks" in name)


@pytest.mark.slow
def test_a_small_table_is_whole_and_is_not_trained_twice(tmp_path, caplog):
    datalist = Path(make_phantoms(tmp_path / "phantoms", subjects=(2, 2, 0))) / "datalist.json"
    table = CamTable(datalist, tmp_path / "out", epochs=1, seeds=(0, 1))
    rows = table.run()
    assert len(rows["max / negative_reference"]) == 2
    assert len(rows["max, mean of 2 seeds / negative_reference"]) == 1
    for part in ("Grad-CAM++", "full supervision (masks)", "trivial: FLAIR", "trivial: whole slice", "plain (paper)"):
        assert any(part in name for name in rows)
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == rows
    with caplog.at_level(logging.INFO, "monai_wsss"):
        assert table.run() == rows
    assert "an epoch" not in caplog.text
