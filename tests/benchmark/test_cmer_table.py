# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Our table of CMER: its recipes, its arithmetic, and one small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_wsss.benchmark import Row
from monai_wsss.benchmark.cmer_recipes import (
    BOUND_RECIPES,
    CMER_RECIPES,
    FULL_RESOLUTION_RECIPES,
)
from monai_wsss.benchmark.cmer_table import make_cmer_table
from monai_wsss.benchmark.table import Trained
from monai_wsss.data import make_phantoms
from monai_wsss.engines import Progress

RECIPES = CMER_RECIPES | FULL_RESOLUTION_RECIPES | BOUND_RECIPES
(FULL_SUPERVISION,) = BOUND_RECIPES
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
        ("SEAM's equivariance, scale", {"equivariance"}),
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


def seeds_of(name: str, column: str, *dice: float) -> list[Row]:
    return [Row(name, column, "validation", seed, {"dice_subject": {"mean": value}}) for seed, value in enumerate(dice)]


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    folder = make_phantoms(tmp_path / "phantoms", modalities=("T1", "FLAIR"), subjects=(2, 2, 0))
    return Path(folder) / "datalist.json"


def test_the_table_has_a_column_per_modality_and_the_ratio(datalist, tmp_path):
    rows = [
        *seeds_of("plain CAM", "T1", 0.2, 0.4),
        *seeds_of("plain CAM", "FLAIR", 0.5, 0.5),
        *seeds_of("plain CAM", "fused", 0.3, 0.3),
        *seeds_of("plain CAM", "fused, reliable", 0.4, 0.4),
    ]
    table = make_cmer_table(datalist, tmp_path / "out")
    lines = table.format([*rows, *seeds_of(FULL_SUPERVISION, "fused", 0.8)]).splitlines()
    assert (
        lines[0]
        == "| row | T1 dice | FLAIR dice | fused dice | fused, reliable dice | ratio, fused | ratio, fused, reliable |"
    )
    cells = "0.300 ± 0.141 | 0.500 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 | 0.37 | 0.50"
    assert lines[2] == f"| plain CAM | {cells} |"
    assert lines[3] == f"| {FULL_SUPERVISION} | – | – | 0.800 | – | 1.00 | – |"
    nothing = table.format([*rows, *seeds_of(FULL_SUPERVISION, "fused", 0.0)])
    assert nothing.splitlines()[2].endswith("| – | – |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer", "ignore:Epoch .* maps of positive images")
def test_a_small_run_leaves_its_rows(datalist, tmp_path):
    settings = {"epochs": 1, "seeds": (0,), "grid": (32, 32)}
    out = tmp_path / "out"
    rows = make_cmer_table(datalist, out, **settings).run()
    labels = {row.label for row in rows}
    for group in ("T1", "FLAIR", "fused", "fused, reliable"):
        assert all(f"{name} / {group}" in labels for name in CMER_RECIPES)
        assert f"plain CAM, Grad-CAM++ (one view, half of the maximum) / {group}" in labels
        assert f"plain CAM, mixture, all images / {group}" in labels
    assert [Row(**row) for row in json.loads((out / "cmer.json").read_text(encoding="utf-8"))] == rows


def test_the_mixture_cuts_each_modality_and_the_fusions(datalist, tmp_path):
    table = make_cmer_table(datalist, tmp_path / "out", grid=(32, 32))
    (entry,) = [entry for entry in table.entries if entry.name == "plain CAM, mixture, all images"]
    recipe = CMER_RECIPES["plain CAM"]
    method = recipe.build(2, 1).eval()
    measured = list(entry.measure(table, [Trained(recipe, 0, method)]))
    assert [one.column for one in measured] == ["T1", "FLAIR", "fused", "fused, reliable"]
    assert not any(one.oracle for one in measured)
    assert all("dice_subject" in one.metrics for one in measured)
