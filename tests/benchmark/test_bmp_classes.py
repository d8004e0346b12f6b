# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Tables II and VI of BMP for several classes, and its Fig. 7: one small run, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_wsss._checks import DataError
from monai_wsss.benchmark import make_bmp_classes
from monai_wsss.benchmark.bmp_recipes import BMP_BOUND, BMP_RECIPES, TABLE_SIX
from monai_wsss.data import make_phantoms

FULL_SUPERVISION = next(iter(BMP_BOUND))
FOLLOWED = ("classification branch only", "+ c2s", "+ s2c")
MIOU = "miou_pooled"


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    return Path(make_phantoms(folder, kind="scene", subjects=(8, 8, 0))) / "datalist.json"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")
@pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing")
@pytest.mark.filterwarnings("ignore:Epoch .* will not end in this run")
def test_a_small_run_has_both_branches_of_all_classes_and_draws_their_curves(datalist, tmp_path):
    out = tmp_path / "out"
    few = {name: TABLE_SIX[name] for name in FOLLOWED}
    table = make_bmp_classes(datalist, out, recipes=few, epochs=6, seeds=(0,), grid=(32, 32))
    rows = table.run()
    found = {(row.name, row.column): row for row in rows}
    heads = {"seeds train", "seeds", "C train", "C", "S"}
    for name in FOLLOWED:
        own = {column for of, column in found if of == name and " at " not in column}
        assert own == (heads - {"S"} if name == FOLLOWED[0] else heads)  # as in Table VI
        logged = {column.partition(" at ")[0] for of, column in found if of == name and " at " in column}
        assert logged == ({"M"} if name == FOLLOWED[0] else {"M", "S"})
    assert {column for of, column in found if of == FULL_SUPERVISION} == {"S"}
    assert found["+ s2c", "C train"].split == "training"
    metrics = found["+ s2c", "C"].metrics
    ious = [metrics[f"iou_pooled/{name}"]["mean"] for name in ("background", "bird", "train", "kite")]
    assert metrics[MIOU]["mean"] == pytest.approx(sum(ious) / 4)
    # The last measurement of a training is that of its weights.
    at_the_end = found["+ s2c", "S at 6"]
    assert at_the_end.metrics[MIOU]["mean"] == pytest.approx(found["+ s2c", "S"].metrics[MIOU]["mean"])
    assert not any(row.reads_masks for row in rows if row.name != FULL_SUPERVISION)
    for name in ("bmp_seeds.svg", "bmp_segmentation.svg"):
        assert "run small on" in (out / name).read_text(encoding="utf-8")
    text = (out / "bmp_classes.md").read_text(encoding="utf-8")
    assert "run small" in text
    assert "Not the paper's run" in text
    assert "| + s2c |" in text
    assert json.loads((out / "bmp_classes.json").read_text(encoding="utf-8"))
    assert table.run() == rows


def test_data_without_negatives_of_a_class_are_refused(datalist, tmp_path):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    for item in content["training"]:
        item["label"][0] = 1
    path = datalist.with_name("all_birds.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="None of the 8 cases is negative for class 1 of 3"):
        make_bmp_classes(path, tmp_path / "out").run()


def test_no_row_is_called_the_paper_s():
    """All rows of both tables are small networks from scratch."""
    assert not [name for name in (*BMP_RECIPES, *BMP_BOUND) if name.endswith("(paper)")]
    assert [name for name in BMP_RECIPES if "preset" in name] == [
        f"BMP, preset {preset}, run small" for preset in ("paper", "released")
    ]
