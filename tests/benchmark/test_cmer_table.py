# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The tables of CMER: their recipes, their arithmetic, and one small run of a table and of each figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_wsss.benchmark import CmerErrors, CmerTable, CmerThresholds, CmerTransforms
from monai_wsss.benchmark.cmer_recipes import (
    BOUND_RECIPES,
    CMER_RECIPES,
    FULL_RESOLUTION_RECIPES,
    FULL_SUPERVISION,
    TRANSFORM_RECIPES,
)
from monai_wsss.data import make_phantoms
from monai_wsss.engines import Progress

RECIPES = CMER_RECIPES | FULL_RESOLUTION_RECIPES | TRANSFORM_RECIPES | BOUND_RECIPES
LATE = Progress(epoch=20, iteration=20, fraction=0.9)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    method = RECIPES[name].build(2, 1)
    assert method.uses_masks == ("masks" in name)
    batch = {"image": torch.rand(4, 2, 16, 16), "label": torch.tensor([[0.0], [1.0], [1.0], [0.0]])}
    if method.uses_masks:
        batch["mask"] = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    total = torch.stack(list(method(batch, LATE).values())).sum()
    total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("plain CAM", set()),
        ("SEAM, scale", {"equivariance"}),
        ("KD", {"distillation"}),
        ("KD + ER", {"distillation", "equivariance"}),
        ("ER + CMER", {"equivariance", "cross_modal"}),
        ("all terms", {"distillation", "equivariance", "cross_modal"}),
    ],
)
def test_a_row_has_the_terms_that_it_names(name, terms):
    batch = {"image": torch.rand(4, 2, 16, 16), "label": torch.tensor([[0.0], [1.0], [1.0], [0.0]])}
    losses = RECIPES[name].build(2, 1)(batch, LATE)
    assert {key for key in losses if not key.startswith("classification")} == terms


def row(dice: float, r_under: float = 1.0) -> dict:
    return {"dice_subject": {"mean": dice}, "r_under": {"mean": r_under}, "r_over": {"mean": 2.0}}


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    folder = make_phantoms(tmp_path / "phantoms", modalities=("T1", "FLAIR"), subjects=(2, 2, 0))
    return Path(folder) / "datalist.json"


def test_the_table_has_a_column_a_modality_and_the_ratio(datalist, tmp_path):
    rows = {
        "plain CAM / T1": [row(0.2), row(0.4)],
        "plain CAM / FLAIR": [row(0.5), row(0.5)],
        "plain CAM / fused": [row(0.3), row(0.3)],
        "plain CAM / fused, reliable": [row(0.4), row(0.4)],
        f"{FULL_SUPERVISION} / fused": [row(0.8)],
    }
    lines = CmerTable(datalist, tmp_path / "out").format(rows).splitlines()
    assert (
        lines[0]
        == "| row | T1 dice | FLAIR dice | fused dice | fused, reliable dice | ratio, fused | ratio, fused, reliable |"
    )
    cells = "0.300 ± 0.141 | 0.500 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 | 0.37 | 0.50"
    assert lines[2] == f"| plain CAM | {cells} |"
    assert lines[3] == f"| {FULL_SUPERVISION} | – | – | 0.800 | – | 1.00 | – |"
    nothing = CmerTable(datalist, tmp_path / "out").format({**rows, f"{FULL_SUPERVISION} / fused": [row(0.0)]})
    assert nothing.splitlines()[2].endswith("| – | – |")
    errors = CmerErrors(datalist, tmp_path / "out").format({"plain CAM / T1": [row(0.2)]}).splitlines()
    assert errors[0].startswith("| row | T1 r_under | T1 r_over |")
    assert errors[2].startswith("| plain CAM | 1.000 | 2.000 |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer", "ignore:Epoch .* maps of positive images")
def test_small_runs_leave_tables_and_figures_and_train_nothing_twice(datalist, tmp_path, caplog):
    settings = {"epochs": 1, "seeds": (0,), "grid": (32, 32)}
    out = tmp_path / "out"
    rows = CmerTable(datalist, out, **settings).run()
    for group in ("T1", "FLAIR", "fused", "fused, reliable"):
        assert all(f"{name} / {group}" in rows for name in CMER_RECIPES)
        assert f"plain CAM, Grad-CAM++ (one view, half of the maximum) / {group}" in rows
    assert json.loads((out / "cmer.json").read_text()) == rows
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*/seed0/model.pt")}
    for table in (CmerErrors, CmerThresholds, CmerTransforms):
        table(datalist, out, **settings).run()
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())
    curves = json.loads((out / "cmer_thresholds_curves.json").read_text())
    assert all(len(curve["threshold"]) == len(curve["dice_subject"]) for curve in curves.values())
    for figure in ("cmer_thresholds.svg", "cmer_transforms.svg"):
        assert (out / figure).read_text(encoding="utf-8").startswith("<svg")
