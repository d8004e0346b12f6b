# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of CoinGAN: what rows differ in, which of them read masks, both conventions, and small runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_wsss._checks import DataError
from monai_wsss.benchmark import Row, coingan_table, make_coingan_figures, make_coingan_table
from monai_wsss.benchmark.coingan_data import CoinganSlices
from monai_wsss.benchmark.coingan_figures import lambda_chart
from monai_wsss.benchmark.coingan_recipes import (
    ALL,
    COINGAN_BUDGET,
    LADDER,
    LAMBDAS,
    NOISY,
    PRESETS,
    SALIENCY,
    CoinganBudget,
    CoinganOptimizers,
    coingan_recipes,
    several_seeds,
)
from monai_wsss.benchmark.coingan_table import coingan_entries, coingan_sections, lambda_rows
from monai_wsss.benchmark.recipes import FULL_SUPERVISION
from monai_wsss.benchmark.rows import folder_name
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.engines import Progress
from monai_wsss.methods import CoinGAN
from monai_wsss.refinement import MaskRule
from monai_wsss.transforms import LoadImageOrderedd

pytestmark = [pytest.mark.filterwarnings("ignore:Epoch ")]
SMALL = CoinganBudget(epochs=1, batch_size=32, width=4, ndf=4, num_layers_d=1, steps=1, slices=8, generator_batch=32)
BUNDLES = Path(__file__).parents[2] / "bundles"
LATE = Progress(epoch=4, iteration=9, fraction=0.9)
RECIPES = coingan_recipes()


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("brain"), subjects=(2, 2, 0))) / "datalist.json"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(coingan_table, "COINGAN_BUDGET", SMALL)


def test_the_ladder_comes_first_and_climbs_by_one_part():
    assert list(RECIPES)[: len(LADDER)] == list(LADDER)
    on = {name: [f"use_{part}" for part in ("cconv", "ca", "sa")] for name in LADDER}
    on = {name: [part for part in parts if RECIPES[name].words["network"][part]] for name, parts in on.items()}
    assert list(on.values()) == [
        [],
        ["use_cconv"],
        ["use_cconv", "use_ca"],
        ["use_cconv", "use_sa"],
        ["use_cconv", "use_ca", "use_sa"],
    ]
    made = RECIPES["+ C-Conv and SA"].build(1, 1).network
    assert made.contrastive is not None
    assert (made.attention.use_ca, made.attention.use_sa) == (False, True)
    assert RECIPES["backbone"].build(1, 1).network.contrastive is None


def test_rows_differ_in_what_their_names_say():
    settings = [json.dumps(recipe.settings, sort_keys=True) for recipe in RECIPES.values()]
    assert len(set(settings)) == len(settings)
    for name, (preset, optimizers) in PRESETS.items():
        method = RECIPES[name].build(1, 1)
        assert method.settings["preset"] == preset
        assert "run small" in name
        assert RECIPES[name].settings["optimizer"]["generator"] == {"paper": "sgd", "adam": "adam"}[optimizers]
    lams = {value: RECIPES[name].words["network"]["lam"] for value, name in LAMBDAS.items()}
    assert list(lams) == [0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
    assert all(lam == value for value, lam in lams.items())
    for name, noisy in NOISY.items():
        assert RECIPES[noisy].words == {**RECIPES[name].words, "label_noise": 0.1}
        assert RECIPES[noisy].epochs == RECIPES[name].epochs


def test_others_have_the_steps_of_coingan():
    pairs = 774
    own = COINGAN_BUDGET.epochs * -(-2 * pairs // COINGAN_BUDGET.batch_size)
    assert own == COINGAN_BUDGET.steps
    for name, recipe in RECIPES.items():
        if recipe.words["method"] != "coingan":
            steps = recipe.epochs * -(-COINGAN_BUDGET.slices // recipe.batch_size)
            assert own <= steps < 1.1 * own, name
        assert recipe.views == "none"


def test_only_full_supervision_reads_masks_in_training(brain):
    data = CoinganSlices(brain)
    for name, recipe in RECIPES.items():
        method = recipe.build(1, 1)
        assert method.uses_masks == name.startswith(FULL_SUPERVISION), name
    assert not any("mask" in item for item in data.items(RECIPES[ALL], 0))


def test_pairs_of_one_sequence_in_the_range_of_the_generator(brain):
    data = CoinganSlices(brain)
    data.check()
    assert data.modalities == ["FLAIR"]
    recipe = RECIPES[ALL]
    items = data.items(recipe, 0)
    assert len(items[0]["image"]) == 1
    assert "FLAIR" in str(items[0]["image"][0])
    loader = data.loader(items, recipe, 0)
    batch = next(iter(loader))
    assert batch["image"].shape == (8, 1, 64, 64)
    assert batch["label"].flatten().tolist() == [1, 0] * 4
    assert -1 <= batch["image"].min() < -0.9
    assert 0 < batch["image"].max() <= 1
    plain = next(iter(data.loader(data.items(RECIPES["plain CAM"], 0), RECIPES["plain CAM"], 0)))
    assert plain["image"].min() < -2
    case, other = (data.measured_cases(RECIPES[name])[0]["image"] for name in (ALL, "plain CAM"))
    torch.testing.assert_close(case, (other.clamp(-2.5, 4.0) + 2.5) / 3.25 - 1)
    with pytest.raises(DataError, match="needs T9"):
        CoinganSlices(brain, sequence="T9").check()


def test_intensities_are_those_of_the_bundle(brain):
    config = ConfigParser()
    config.read_config(BUNDLES / "brain_mri_coingan_segmentation" / "configs" / "train.json")
    item = load_datalist(brain, "validation")[0]
    read = LoadImageOrderedd("image")(CoinganSlices(brain).of_recipe([item], RECIPES[ALL])[0])
    of_bundle = config.get_parsed_content("normalization")(read)["image"]
    torch.testing.assert_close(CoinganSlices(brain).measured_cases(RECIPES[ALL])[0]["image"], of_bundle)


def test_slices_are_not_turned_for_the_mean_of_healthy_ones(brain):
    data = CoinganSlices(brain)
    names = [type(each).__name__ for each in data.augmentation(["image"], RECIPES[ALL])]
    assert names == ["RandFlipd", "ScaleIntensityRanged"]
    assert "RandRotate90d" in [type(each).__name__ for each in data.augmentation(["image"], RECIPES["plain CAM"])]


def test_a_tenth_of_the_labels_is_wrong_in_training_alone(brain):
    data = CoinganSlices(brain)
    clean, noisy = (data.items(RECIPES[name], 0) for name in (ALL, NOISY[ALL]))
    labels = [np.array([float(item["label"][0]) for item in items]) for items in (clean, noisy)]
    assert (labels[0] != labels[1]).sum() == round(0.1 * len(clean))
    again = [float(item["label"][0]) for item in data.items(RECIPES[NOISY["plain CAM"]], 0)]
    assert again == labels[1].tolist(), "methods get the same wrong labels"
    assert labels[0].sum() != labels[1].sum()
    steps = {len(data.loader(items, RECIPES[ALL], 0)) for items in (clean, noisy)}
    assert len(steps) == 1, "wrong labels change no budget"
    cases = [data.measured_cases(RECIPES[name]) for name in (ALL, NOISY[ALL])]
    assert [case["label"] for case in cases[0]] == [case["label"] for case in cases[1]]


def test_both_optimizers_decay_by_step():
    method = CoinGAN.tiny()
    optimizers, schedules = CoinganOptimizers("paper")(method, 2, [0] * 5)
    assert list(optimizers) == list(schedules) == ["generator", "discriminator"]
    for schedule in schedules.values():
        for _ in range(5):
            schedule.optimizer.step()
            schedule.step()
    rates = {player: one.param_groups[0]["lr"] for player, one in optimizers.items()}
    assert rates == pytest.approx({"generator": 2.5e-4 * 0.5**0.9, "discriminator": 1e-4 * 0.5**0.9})


def row(name: str, column: str = "mask", seed: int = 0, **metrics: float) -> Row:
    return Row(name, column, "validation", seed, {key: {"mean": value} for key, value in metrics.items()})


def of(dice: float, **more: float) -> dict[str, float]:
    return {"dice_pooled": dice, "paper_dice_macro_pooled": (dice + 1) / 2, "paper_miou_pooled": dice / 2, **more}


def test_sections_show_both_conventions_and_the_row_without_a_value():
    rows = [
        row(ALL, **of(0.4, heat_auroc=0.9)),
        row(ALL, "best cut (chosen with masks)", **of(0.5)),
        Row(SALIENCY, "mask", "validation", None, {}),
        row(f"{FULL_SUPERVISION} (masks), same network", **of(0.8)),
    ]
    sections = coingan_sections(rows)
    main, paper, heat, cuts = sections.values()
    assert main.splitlines()[2].endswith("| 0.50 |")
    assert paper.splitlines()[2].startswith(f"| {ALL} | 0.700 | 0.200 |")
    assert [SALIENCY in text for text in (main, paper, heat, cuts)] == [True, True, False, False]
    assert set(main.splitlines()[3].replace(SALIENCY, "").replace(" ", "")) == {"|", "–"}


def test_lambda_is_compared_by_the_seeds_that_all_values_have():
    rows = [row(ALL, seed=seed, **of(0.4 + seed / 10)) for seed in range(3)]
    assert not lambda_rows(rows)
    rows += [row(LAMBDAS[value], **of(value / 10)) for value in (0.9, 0.01)]
    assert [(one.name, one.metrics["dice_pooled"]["mean"]) for one in lambda_rows(rows)] == [
        ("0.01", 0.001),
        ("0.3", 0.4),
        ("0.9", pytest.approx(0.09)),
    ]


def test_label_noise_is_shown_with_its_change():
    rows = [row(ALL, seed=seed, **of(0.4 + seed / 10)) for seed in range(3)]
    rows += [row(NOISY[ALL], **of(0.35)), row(NOISY["BMP"], **of(0.2))]
    text = next(text for title, text in coingan_sections(rows).items() if "wrong labels" in title)
    assert text.splitlines()[2:] == [
        f"| {ALL} | 0.400 | 0.700 | 0.200 | – | – |",
        f"| {NOISY[ALL]} | 0.350 (-0.050) | 0.675 (-0.025) | 0.175 (-0.025) | – | – |",
    ]


def test_trivial_references_say_when_they_read_masks(brain, tmp_path, short):
    entries = {entry.name: entry for entry in coingan_entries(CoinganSlices(brain))}
    free = [name for name, entry in entries.items() if entry.recipe is None]
    table = make_coingan_table(brain, tmp_path, seeds=(0,), rows=[folder_name(name) for name in free])
    rows = table.run()
    assert {row.name for row in rows} == set(free)
    for one in rows:
        assert one.reads_masks == ("ORACLE" in one.name or "chosen with masks" in one.column), one.label
    masks = {one.name: one.metrics for one in rows if one.column == "mask"}
    empty = next(metrics for name, metrics in masks.items() if "no lesion" in name)
    assert empty["paper_sensitivity"]["mean"] == 0
    assert empty["healthy_clean"]["mean"] == 1
    assert 0.45 < empty["paper_dice_macro_pooled"]["mean"] < 0.5, "half of it for nothing"
    best, otsu = (
        next(masks[name]["dice_pooled"]["mean"] for name in masks if word in name) for word in ("ORACLE", "Otsu")
    )
    assert best >= otsu
    distance = next(metrics for name, metrics in masks.items() if "distance" in name)
    assert {"heat_auroc", "heat_auroc_pooled", "difference_healthy", "difference_diseased"} <= set(distance)


def test_without_contrast_no_decision_finds_anything_but_the_cut_chosen_with_masks(brain):
    data = CoinganSlices(brain)
    cases = data.measured_cases(RECIPES[ALL])
    faint = [
        0.09 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(place)) for place in range(len(cases))
    ]
    contrast = RECIPES[ALL].build(1, 1).network.min_contrast
    assert contrast == coingan_table.CONTRAST, "the distance to the mean is decided alike"
    rule = MaskRule(rule="otsu", pooling="max", presence_level=0.01, min_contrast=contrast)
    sensitivity = {
        one.column: one.metrics["sensitivity"]["mean"]
        for one in coingan_table.rows_of_differences(data, cases, faint, rule)
    }
    best = sensitivity.pop("best cut (chosen with masks)")
    assert best > 0
    assert list(sensitivity) == ["mask", "mask, no gate", "Otsu, all images", "smoothed"]
    assert set(sensitivity.values()) == {0}


def test_one_threshold_for_all_images_leaves_the_fainter_ones_empty(brain):
    data = CoinganSlices(brain)
    cases = [case for case in data.measured_cases(RECIPES[ALL]) if np.any(case["mask"])][:4]
    strength = [1.0, 1.0, 1.0, 0.2]
    maps = [scale * torch.as_tensor(case["mask"])[None].float() for scale, case in zip(strength, cases, strict=True)]
    rule = MaskRule(rule="otsu", pooling="max", presence_level=0.1)
    found = {one.column: one.metrics for one in coingan_table.rows_of_differences(data, cases, maps, rule)}
    assert found["mask"]["sensitivity"]["mean"] == 1
    assert 0 < found["Otsu, all images"]["sensitivity"]["mean"] < 1


def test_a_small_run_measures_all_decisions_and_is_found_again(brain, tmp_path, short):
    few = [folder_name(name) for name in ("backbone", NOISY[ALL], f"{FULL_SUPERVISION} (masks), same network")]
    table = make_coingan_table(brain, tmp_path / "out", seeds=(0,), runs=tmp_path / "runs", rows=few)
    rows = table.run()
    columns = [one.column for one in rows if one.name == "backbone"]
    assert columns[:3] == ["mask", "mask, no gate", "Otsu, all images"]
    assert columns[3:-1] == ["smoothed", "healthy level", "healthy quantile"]
    assert "chosen with masks" in columns[-1]
    assert all("paper_assd_px" in one.metrics or one.metrics["paper_sensitivity"]["mean"] == 0 for one in rows)
    text = (tmp_path / "out" / f"{table.name}.md").read_text(encoding="utf-8")
    assert "Read masks in training: full supervision (masks), same network." in text
    again = make_coingan_table(brain, tmp_path / "elsewhere", seeds=(0,), runs=tmp_path / "runs", rows=few)
    assert again.run() == rows
    assert not (tmp_path / "elsewhere" / "backbone").exists()


def test_the_first_seed_alone_but_for_the_ladder_plain_cam_and_the_bounds(brain):
    each = {entry.name for entry in coingan_entries(CoinganSlices(brain)) if entry.draws == "each" and entry.recipe}
    assert each == {name for name in RECIPES if several_seeds(name)}
    assert each == {*LADDER, "plain CAM", *(f"{FULL_SUPERVISION} (masks), {of}" for of in ("same network", "U-Net"))}


def test_the_chart_of_lambda_has_two_axes():
    rows = [row(name, **of(value / 2)) for value, name in LAMBDAS.items()]
    chart = str(lambda_chart(rows))
    assert ">DSC, left<" in chart
    assert ">JC, right<" in chart
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 2, "a ring at 0.3 on both"


def test_figures_take_the_rows_and_weights_of_the_table(brain, tmp_path, short):
    table = make_coingan_figures(brain, tmp_path, seeds=(0, 1), rows=[folder_name(LAMBDAS[0.9]), folder_name(ALL)])
    assert [entry.name for entry in table.entries] == sorted(LAMBDAS.values(), key=list(RECIPES).index)
    assert (table.name, table.seeds) == (make_coingan_table(brain, tmp_path).name, (0,))
    rows = table.run()
    assert {one.name for one in rows} == {ALL, LAMBDAS[0.9]}
    assert (tmp_path / "lambda.svg").read_text(encoding="utf-8").startswith("<svg")
    for name in ("conversions", "switches"):
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
    assert list((tmp_path / "panels").glob("*.png"))
    assert not (tmp_path / f"{table.name}.md").exists(), "that is the table's"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    method = coingan_recipes(SMALL)[name].build(1, 1)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": 2 * torch.rand(4, 1, 64, 64, generator=generator) - 1,
        "label": torch.tensor([[1.0], [0.0], [1.0], [0.0]]),
    }
    if method.uses_masks:
        batch["mask"] = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    for player in method.players:
        torch.stack(list(method(batch, LATE, player).values())).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
