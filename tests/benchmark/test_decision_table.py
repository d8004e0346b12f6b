# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is decided from the same classifiers: every row, and ensembles without the seeds that fall behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark import Trained, decision_table, encoder_recipes, make_decision_table
from monai_wsss.benchmark.decision_table import CLASSIFIER
from monai_wsss.data import make_phantoms

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Trainings of one epoch, of few items."""
    budgets = {
        kind: replace(budget, cam=1, second_stage=1, batch_size=4, image_batch_size=2, grid=budget.grid and 32)
        for kind, budget in encoder_recipes.BUDGETS.items()
    }
    for module in ("encoder_recipes", "encoder_table", "decision_table"):
        monkeypatch.setattr(f"monai_wsss.benchmark.{module}.BUDGETS", budgets)


def make(kind: str, tmp_path: Path, seeds: tuple[int, ...] = (0, 1)):
    folder = Path(make_phantoms(tmp_path / kind, kind=kind, subjects=(2, 2, 0)))
    table = make_decision_table(folder / "datalist.json", tmp_path / "out", seeds=seeds, runs=tmp_path / "runs")
    table.data.samples = 4
    return table


def test_every_decision_is_measured_for_photographs(tmp_path):
    rows = make("skin", tmp_path).run()
    names = list(dict.fromkeys(row.name for row in rows))
    assert names == [
        "scales 1",
        "scales 0.5, 1",
        "scales 0.5, 1, 1.5",
        "rule minmax",
        "rule max",
        "ensemble of 2 seeds",
        "self-training on label-consistent masks",
    ]
    assert not any(row.reads_masks for row in rows)
    by_scale = [row.metrics["dice_pooled"]["mean"] for row in rows if row.name.startswith("scales") and row.seed == 0]
    assert len(by_scale) == 9
    assert len({row.column for row in rows if row.name == "scales 1"}) == 3


def test_slices_have_quantiles_of_their_healthy_pixels(tmp_path):
    table = make("brain", tmp_path, seeds=(0,))
    quantiles = [entry for entry in table.entries if entry.name.startswith("healthy")]
    assert [entry.name for entry in quantiles] == [f"healthy quantile {q}" for q in ("0.5", "0.99", "0.999")]
    one = table.trained(decision_table.CLASSIFIER, 0)
    levels = [float(entry.measure._level(one, q)[0]) for entry, q in zip(quantiles, (0.5, 0.99, 0.999), strict=True)]
    assert levels == sorted(levels)
    assert levels[0] < levels[-1]


def test_a_seed_that_falls_behind_takes_no_part(tmp_path, monkeypatch):
    table = make("skin", tmp_path)
    (ensemble,) = [entry for entry in table.entries if entry.draws == "all"]
    trained = [table.trained(decision_table.CLASSIFIER, seed) for seed in (0, 1)]
    scores = {0: 0.9, 1: 0.84}
    monkeypatch.setattr(type(ensemble.measure), "_auroc", lambda self, one: scores[one.seed])
    assert next(measured.column for measured in ensemble.measure(table, trained)) == "as they are of 1 kept"
    scores[1] = 0.86
    assert next(measured.column for measured in ensemble.measure(table, trained)) == "as they are of 2 kept"


def test_a_failed_training_of_patches_takes_no_part(tmp_path):
    """Whole images of tissue hold every class, so the patches of the training tell."""
    table = make("gland", tmp_path)
    (ensemble,) = [entry for entry in table.entries if entry.draws == "all"]

    class Telling(torch.nn.Module):
        """Answers by the brightness of an image: the label itself, or its opposite."""

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, image):
            return self.sign * image[:, :2]

        def pool(self, maps):
            return maps.flatten(2).mean(2)

    batches = [
        {"image": torch.tensor(label, dtype=torch.float32)[:, :, None, None], "label": torch.tensor(label)}
        for label in ([[1, 0], [0, 1]], [[1, 1], [1, 0]])
    ]
    table.data.loader = lambda *_: batches
    trained = [
        Trained(table.recipes[CLASSIFIER], seed, SimpleNamespace(network=Telling(sign)))
        for seed, sign in ((0, 1.0), (1, -1.0))
    ]
    assert [ensemble.measure._auroc(one) for one in trained] == [1.0, 0.0]
    assert ensemble.measure._kept(trained) == trained[:1]
    table.data.loader = lambda *_: batches[1:]
    with pytest.raises(DataError, match=r"with and without the class, and the split validation of .* lacks"):
        ensemble.measure._kept(trained)
