# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Choosing without masks: no score reads one, and the study reports on data that did not choose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark import Row, make_choice_table
from monai_wsss.benchmark.choice_study import (
    chosen_score,
    correlations,
    cut_correlations,
    format_choice,
    format_method_choice,
    model_choice,
)
from monai_wsss.benchmark.choice_table import CUTS, choice_recipes
from monai_wsss.benchmark.encoder_recipes import BUDGETS, default_lever
from monai_wsss.benchmark.label_scores import CHOICE_SCORES, label_scores, mask_scores, masks_of
from monai_wsss.data import make_phantoms
from monai_wsss.refinement import MaskRule

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


class Sealed(dict):
    """A case whose mask raises an error, whichever way it is read."""

    def __getitem__(self, key: str) -> Any:
        if key == "mask":
            raise AssertionError("A mask was read.")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        assert key != "mask", "A mask was read."
        return super().get(key, default)

    def values(self):
        raise AssertionError("All entries were read, and a mask among them.")

    items = values


def seen(images: torch.Tensor) -> torch.Tensor:
    """Maps of two classes: the brightness of each of two channels above 0.5."""
    return images[:, :2] - 0.5


def cases_of(labels, size: tuple[int, ...] = (8, 8)) -> list[Sealed]:
    """Cases with a bright block for each class, at another place each."""
    cases = []
    for n, label in enumerate(labels):
        image = torch.zeros(2, *size)
        for k, shown in enumerate(label):
            if shown:
                image[(k, *[slice(n % 2 + 3 * k, n % 2 + 3 * k + 2) for _ in size])] = 1 + n / 10
        mask = object()
        cases.append(Sealed(id=str(n), subject=str(n), label=np.array(label), image=image, mask=mask))
    return cases


LABELS = [[1, 0], [0, 1], [1, 1], [0, 0], [0, 0]]
RULE = MaskRule(pooling="max", rule="fixed", threshold=0.0)


@pytest.mark.parametrize("size", [(8, 8), (6, 6, 6)])
def test_a_perfect_network_has_perfect_scores_and_no_mask_is_read(size):
    cases = cases_of(LABELS, size)
    scores = label_scores(cases, [seen(case["image"][None]) for case in cases], RULE, seen)
    for name in ("presence_auroc", "left_clean", "found", "blanked_auroc", "blanked_accuracy"):
        assert scores[name] == 1, name
    assert scores["blanked_stay"] == pytest.approx(0, abs=1e-6)
    assert scores["blanked_fall"] > 0.1
    assert scores["equivariance_residual"] < 0.2
    assert scores["insertion_less_deletion"] == pytest.approx(scores["insertion"] - scores["deletion"])
    assert scores["insertion"] > scores["deletion"]
    assert set(scores) | {"agreement", "blanked_margin"} >= set(CHOICE_SCORES)


def test_masks_elsewhere_score_worse_than_those_that_fit():
    cases = cases_of(LABELS)[:3]
    own = masks_of(cases, [seen(case["image"][None]) for case in cases], RULE)
    right = mask_scores(cases, own, RULE, seen)
    for wrong in ([mask.roll(4, 2) for mask in own], [torch.zeros_like(mask) for mask in own]):
        found = mask_scores(cases, wrong, RULE, seen)
        assert all(found[name] < right[name] for name in ("blanked_auroc", "blanked_accuracy", "blanked_margin"))
    everything = mask_scores(cases[:1], [torch.ones(1, 8, 8, dtype=torch.uint8)], RULE, seen)
    assert everything["blanked_accuracy"] == 1, "which is why there is a margin"
    assert everything["blanked_margin"] == 0


def test_images_of_several_sizes_give_what_each_gives_alone():
    cases = [cases_of([[1, 0]], size)[0] for size in ((8, 8), (6, 9), (8, 8))]
    maps = [seen(case["image"][None]) for case in cases]
    together = mask_scores(cases, masks_of(cases, maps, RULE), RULE, seen)
    alone = [
        mask_scores([case], masks_of([case], [one], RULE), RULE, seen) for case, one in zip(cases, maps, strict=True)
    ]
    assert together["blanked_fall"] == pytest.approx(np.mean([each["blanked_fall"] for each in alone]))


def test_degenerate_inputs():
    healthy = cases_of([[0, 0], [0, 0]])
    maps = [seen(case["image"][None]) for case in healthy]
    assert label_scores(healthy, maps, RULE, seen) == {"left_clean": 1.0}
    (single,) = cases_of([[1, 0]])
    one = label_scores([single], [seen(single["image"][None])], RULE, seen)
    assert one["found"] == 1
    assert "presence_auroc" not in one
    flat = label_scores([single], [torch.zeros(1, 2, 8, 8)], RULE, lambda x: 0 * x)
    assert flat["equivariance_residual"] == 1, "an empty map fails where there is a finding"
    assert flat["deletion"] == flat["insertion"] == 0.5
    assert flat["found"] == 0
    assert label_scores([], [], RULE, seen) == {}
    with pytest.raises(ValueError, match="no classifier"):
        label_scores([single], [torch.zeros(1, 3, 8, 8)], MaskRule(output_kind="segmentation"), seen)


def test_the_table_scores_what_it_trains_and_says_what_it_measured(tmp_path, monkeypatch):
    data = Path(make_phantoms(tmp_path / "brain", kind="brain", modalities=("FLAIR",), subjects=(3, 2, 0)))
    rows = ["small_max_1_epochs", "small_average_1_epochs"]
    words: dict[str, Any] = {"seeds": (0,), "side": 32, "runs": tmp_path / "runs", "rows": rows}
    table = make_choice_table(data / "datalist.json", tmp_path / "out", **words)
    made = table.run()
    assert [row.column for row in made] == ["", *(f"cut {cut:g}" for cut in CUTS)] * 2
    whole = [row for row in made if not row.column]
    assert all(
        {"dice_subject", "presence_auroc", "insertion", "equivariance_residual"} <= set(row.metrics) for row in whole
    )
    assert not any(row.reads_masks for row in made)
    kept = list((tmp_path / "runs").rglob("*.json"))
    assert len(kept) == 2
    assert json.loads(kept[0].read_text())["settings"]["measured"]["peers"] == [row.name for row in whole]
    assert make_choice_table(data / "datalist.json", tmp_path / "elsewhere", **words).run() == made


def test_recipes_hold_the_default_classifier_once():
    budget = BUDGETS["slices"]
    names = choice_recipes(budget, small=False, in_channels=3)
    assert default_lever(budget) not in names
    assert "CAM, ImageNet weights" in names
    assert len(choice_recipes(budget, small=True, in_channels=3)) == len(names) + 12


def test_data_without_a_background_are_refused(tmp_path):
    folder = Path(make_phantoms(tmp_path, kind="gland", subjects=(1, 1, 0)))
    with pytest.raises(DataError, match="no background"):
        make_choice_table(folder / "datalist.json", tmp_path / "out")


def row(name: str, column: str = "", **metrics: float) -> Row:
    return Row(name, column, "validation", 0, {key: {"mean": value} for key, value in metrics.items()})


def rows_of(good: str, other: str, cuts: bool = True) -> list[Row]:
    """Five models: one score in the order of Dice, the other against it."""
    rows = []
    for n in range(5):
        values = {good: CHOICE_SCORES[good] * n, other: -CHOICE_SCORES[other] * n, "dice_subject": n / 10}
        rows.append(row(str(n), **values))
        rows += [row(str(n), f"cut {c}", blanked_fall=-(c**2), dice_subject=c) for c in (0.3, 0.5, 0.7)] if cuts else []
    return rows


def test_signs_are_those_of_good_scores():
    rows = rows_of("deletion", "insertion")
    assert correlations(rows)["deletion"] == 1
    assert correlations(rows)["insertion"] == -1
    assert math.isnan(correlations(rows)["found"])
    assert cut_correlations(rows)["blanked_fall"] == -1
    assert model_choice([each for each in rows if not each.column], "deletion") == (0.4, pytest.approx(0.2), 0.4)
    assert model_choice(rows, "found") is None
    assert chosen_score({}) == "presence_auroc"


def with_an_odd_one(make: Callable[[str, str], list[Row]], good: str, other: str) -> dict[str, list[Row]]:
    """Phantoms and two data sets where one score is in the order of Dice, and one where the other is."""
    return {**{name: make(good, other) for name in ("phantoms", "a", "b")}, "odd": make(other, good)}


def test_the_left_out_data_set_does_not_choose():
    tables = with_an_odd_one(rows_of, "deletion", "found")
    sections = format_choice(tables, phantoms="phantoms")
    left_out = sections["Chosen on all data sets but one, reported on that one"].splitlines()
    assert "| odd | deletion | -1.00 | 0.000 | 0.200 | 0.400 |" in left_out
    assert "| a | deletion | +1.00 | 0.400 | 0.200 | 0.400 |" in left_out
    one = sections["Chosen on phantoms and one data set, reported on the others"].splitlines()
    assert "| phantoms and a | deletion | – | +1.00 | -1.00 |" in one
    assert sections["Verdict on models"].startswith("None works")
    tables.pop("odd")
    assert format_choice(tables, phantoms="phantoms")["Verdict on models"].startswith("It works")
    cuts = next(text for title, text in sections.items() if title.startswith("Cuts: rank"))
    assert "| cut 0.5 for all | Dice 0.500 |" in cuts
    assert "| best cut of each model (reads masks) | Dice 0.700 |" in cuts


def cuts_of(good: str, other: str) -> list[Row]:
    """Three models without cuts, and one at three cuts: one score in the order of Dice, the other against it."""
    rows = [row(str(n), presence_auroc=n, dice_subject=n / 10) for n in range(3)]
    for c in (0.3, 0.5, 0.7):
        scores = {good: CHOICE_SCORES[good] * c, other: -CHOICE_SCORES[other] * c}
        rows.append(row("0", f"cut {c}", dice_subject=c, **scores))
    return rows


def test_a_score_of_cuts_is_reported_on_data_that_did_not_choose_it():
    tables = with_an_odd_one(cuts_of, "agreement", "blanked_fall")
    sections = format_choice(tables, phantoms="phantoms")
    lines = sections["Cuts: a score chosen on some data sets, reported on the others"].splitlines()
    assert {
        "| phantoms and a | agreement | – | +1.00, Dice 0.700 | -1.00, Dice 0.300 |",
        "| all but odd | agreement | – | – | -1.00, Dice 0.300 |",
        "| all but a | agreement | +1.00, Dice 0.700 | – | – |",
    } <= set(lines)
    assert lines[-1] == "| – | cut 0.5, the simplest | Dice 0.500 | Dice 0.500 | Dice 0.500 |"
    verdict = sections["Verdict on cuts"]
    assert verdict.startswith("None works")
    assert verdict.endswith("+1.00 on a, +1.00 on b, -1.00 on odd. The simplest is kept, a cut of 0.5 for all.")
    tables.pop("odd")
    assert format_choice(tables, phantoms="phantoms")["Verdict on cuts"].startswith("It works")
    # Data without rows at cuts choose none.
    tables["b"] = [each for each in tables["b"] if not each.column]
    text = format_choice(tables, phantoms="phantoms")["Cuts: a score chosen on some data sets, reported on the others"]
    assert text.splitlines()[0] == "| chosen on | score | a |"


def compared(*methods: tuple[str, float, float], ensemble: str = "ensemble of all weak methods, small") -> list[Row]:
    """Rows of methods by name, agreement and Dice: two seeds with both around their means, one that is no member."""
    rows, metrics = [], {"dice_subject": {"mean": 0.99}}
    for name, agreement, dice in methods:
        for seed, step in ((0, -0.01), (1, 0.01)):
            rows.append(Row(f"{name}, small", "", "validation", seed, {"dice_subject": {"mean": dice + step}}))
            metrics[f"agreement/{name}, small, seed {seed}"] = {"mean": agreement - step}
        rows.append(Row(f"{name}, small", "", "validation", 2, {"dice_subject": {"mean": 0.0}}))
    rows.append(Row("full supervision, small", "", "validation", 0, {"dice_subject": {"mean": 0.95}}))
    return [*rows, Row(ensemble, "", "validation", None, metrics)]


def test_agreement_between_methods_is_held_against_their_dice():
    follows = compared(("cam", 0.5, 0.4), ("seam", 0.6, 0.5), ("bmp", 0.7, 0.6))
    against = compared(("cam", 0.7, 0.4), ("seam", 0.6, 0.5), ("bmp", 0.5, 0.6))
    text = format_method_choice({"one": follows, "without": [follows[0]], "two": follows})
    lines = text.splitlines()
    assert "| one | 3 | +1.00 | bmp, small | 0.600 | 0.500 | 0.600 |" in lines
    assert "without" not in text
    assert lines[-1].startswith("Agreement follows the Dice of methods by the rule")
    text = format_method_choice({"one": follows, "odd": against})
    assert "| odd | 3 | -1.00 | cam, small | 0.400 | 0.500 | 0.600 |" in text.splitlines()
    assert "Agreement does not follow the Dice of methods" in text
    assert text.endswith("(at least 0.5 on each): +1.00 on one, -1.00 on odd.")
    few = format_method_choice({"few": compared(("cam", 0.5, 0.4), ("seam", 0.6, 0.5))})
    assert "| few | 2 | – |" in few
    assert "no data set has enough methods" in few
    assert format_method_choice({"without": [follows[0]]}) == ""
