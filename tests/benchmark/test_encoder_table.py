# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of encoders on each kind of data: what it trains, that weak rows read no mask, what it measures."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.benchmark import (
    Patches,
    Tiles,
    decision_table,
    encoder_recipes,
    make_encoder_table,
    make_lever_table,
    patches,
    tiles,
)
from monai_wsss.benchmark.encoder_table import measure_cases
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.networks import EfficientNetLite, FusedSegmenter, fused_cam_network
from monai_wsss.refinement import MaskRule

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


@pytest.fixture(scope="module")
def skin(tmp_path_factory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("skin"), kind="skin", subjects=(3, 2, 0))) / "datalist.json"


@pytest.fixture
def short(monkeypatch):
    """One step per training, of few items."""
    budgets = {
        kind: replace(budget, cam=1, second_stage=1, full=1, batch_size=4, image_batch_size=2)
        for kind, budget in encoder_recipes.BUDGETS.items()
    }
    monkeypatch.setattr(encoder_recipes, "BUDGETS", budgets)
    monkeypatch.setattr("monai_wsss.benchmark.encoder_table.BUDGETS", budgets)


def test_every_row_is_trained_and_measured(skin, tmp_path, short):
    table = make_encoder_table(skin, tmp_path / "out", seeds=(0,), runs=tmp_path / "runs")
    table.data.samples = 4
    rows = table.run()
    names = {row.name for row in rows}
    assert names == {
        "CAM, from scratch",
        "CAM, ImageNet weights",
        "second stage, ImageNet weights",
        "second stage, PAR on pseudo-masks",
        "full supervision, from scratch",
        "full supervision, ImageNet weights",
        "trivial: everything",
        "trivial: Otsu on the blue channel",
    }
    assert {row.name for row in rows if row.reads_masks} == {name for name in names if name.startswith("full")}
    assert all(0 <= row.metrics["dice_pooled"]["mean"] <= 1 for row in rows)
    cams = [row for row in rows if row.name.startswith("CAM")]
    assert [row.column for row in cams] == ["as they are", "par"] * 2
    assert all({"tile_auroc", "tile_clean", "cpu_seconds_per_image"} <= set(row.metrics) for row in cams)
    seconds = [[row.metrics[f"cpu_seconds_{of}"]["mean"] for of in ("to_mask", "per_image")] for row in cams]
    assert all(0 < to_mask <= per_image for to_mask, per_image in seconds), "measuring a mask is no part of making it"
    text = (tmp_path / "out" / f"{table.name}.md").read_text(encoding="utf-8")
    assert "to the best bound" in text
    kept = list((tmp_path / "runs").rglob("*.json"))
    assert len(kept) == len(names)
    assert all(str(tmp_path) not in path.read_text(encoding="utf-8") for path in kept)
    again = make_encoder_table(skin, tmp_path / "elsewhere", seeds=(0,), runs=tmp_path / "runs")
    again.data.samples = 4
    assert again.run() == rows
    assert not (tmp_path / "elsewhere" / "cam_from_scratch").exists()


def test_weak_recipes_get_no_mask(skin):
    data = Tiles(skin)
    for name, recipe in encoder_recipes.encoder_recipes(encoder_recipes.BUDGETS["tiles"], refined="par").items():
        if "full" in name:
            continue
        items = data.items(recipe, 0)
        assert items
        assert not any("mask" in item or "region" in item for item in items)
        assert all(("source" in item) == (recipe.teacher is None) for item in items)


def test_pretrained_rows_begin_with_the_published_weights():
    recipes = encoder_recipes.encoder_recipes(encoder_recipes.BUDGETS["tiles"], refined="par")
    for name, recipe in recipes.items():
        record = recipe.build(3, 1).network.encoder_weights
        assert record["pretrained"] == ("none" if "from scratch" in name else "imagenet")
        assert recipe.settings["pretrained"] == record["pretrained"]


def test_levers_differ_in_what_their_names_say():
    levers = encoder_recipes.lever_recipes(encoder_recipes.BUDGETS["tiles"])
    networks = {name: recipe.build(3, 1).network for name, recipe in levers.items()}
    assert networks["max"].pooling == "max"
    assert networks["top 10 %"].topk_share == 0.1
    assert networks["stride 8"].backbone.stride == 8
    assert networks["to stride 32"].backbone.encoder.feature_channels[-1] == 320
    assert networks["output stride 8"].backbone.encoder.feature_strides == (4, 8, 8)
    frozen = [parameter.requires_grad for parameter in networks["frozen encoder"].backbone.encoder.parameters()]
    assert not any(frozen)
    settings = [json.dumps(recipe.settings, sort_keys=True) for recipe in levers.values()]
    assert len(set(settings)) == len(settings)
    assert not [name for name in levers if "stem" in name], "three channels need no other stem"


@pytest.mark.parametrize("channels", [2, 4])
def test_the_stem_is_a_lever_of_images_of_other_than_one_and_three_channels(channels):
    """Both stems begin alike, from the same filters; one row then learns three channels from all."""
    recipes = encoder_recipes.lever_recipes(encoder_recipes.BUDGETS["slices"], in_channels=channels)
    average, learned = (recipes[f"{stem} stem"].build(channels, 1).network.eval() for stem in ("average", "learned"))
    assert average.backbone.encoder.channel_mix is None
    assert learned.backbone.encoder.channel_mix.weight.shape == (3, channels, 1, 1)
    assert {record["pretrained"] for record in (average.encoder_weights, learned.encoder_weights)} == {"imagenet"}
    image = torch.rand(1, channels, 48, 48)
    for own, other in zip(average.backbone.encoder(image), learned.backbone.encoder(image), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
    assert recipes["average stem"].settings != recipes["learned stem"].settings


def test_both_stems_are_trained_and_measured(tmp_path, short):
    folder = Path(make_phantoms(tmp_path / "brain", subjects=(1, 1, 0), modalities=("T1", "T1c", "T2", "FLAIR")))
    rows = ("average_stem", "learned_stem")
    table = make_lever_table(folder / "datalist.json", tmp_path / "out", seeds=(0,), side=32, rows=rows)
    measured = {row.name: row.metrics for row in table.run() if row.column == "as they are"}
    assert set(measured) == {"average stem", "learned stem"}
    assert all({"presence_auroc", "healthy_clean", "dice_pooled"} <= set(metrics) for metrics in measured.values())
    weights = torch.load(table.folder("learned stem", 0) / "model.pt", weights_only=True)
    mix = weights["backbone.encoder.channel_mix.weight"]
    assert not torch.allclose(mix, torch.full_like(mix, 0.25), atol=1e-6), "the mix of the channels must learn"


def test_regions_are_measured_alone(skin):
    """A mask that is right inside the region is perfect, whatever is outside."""
    data = Tiles(skin)
    case = dict(data.cases()[0])
    mask = torch.as_tensor(case["mask"])
    region = torch.zeros_like(mask)
    region[:, :, : mask.shape[2] // 2] = 1
    case["region"] = region
    wrong_outside = torch.where(region > 0, mask > 0, mask == 0)[None].float()
    rule = MaskRule(rule="fixed", threshold=0.5, gate="none")
    assert measure_cases(data, [case], [wrong_outside], rule, None)["dice_pooled"]["mean"] == 1.0


def test_everything_is_of_the_scored_class(tmp_path):
    folder = Path(make_phantoms(tmp_path / "gland", kind="gland", subjects=(1, 1, 0)))
    content = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    sensitivity = []
    for scored in content["classes"]:
        (folder / "scored.json").write_text(json.dumps({**content, "scored_class": scored}))
        table = make_encoder_table(folder / "scored.json", tmp_path / scored, seeds=(0,), rows=("trivial_everything",))
        (row,) = table.run()
        sensitivity.append(row.metrics["sensitivity"]["mean"])
    assert sensitivity == [1.0, 1.0]


def test_windows_of_patches_are_as_large_as_the_network_s_patches(tmp_path):
    """Both ways of measuring show a network the scale that trained it."""
    folder = Path(make_phantoms(tmp_path / "gland", kind="gland", subjects=(1, 1, 0)))
    data = Patches(folder / "datalist.json", grid=48, window=96)
    seen = set()

    class Seeing(torch.nn.Module):
        def forward(self, image):
            seen.add(tuple(image.shape[2:]))
            return torch.cat([image.mean(1, keepdim=True), -image.mean(1, keepdim=True)], dim=1)

    cases, maps = data.whole_maps(None, Seeing())
    assert all(each.shape[2:] == case["image"].shape[1:] for each, case in zip(maps, cases, strict=True))
    data.measure(Seeing(), "activation")
    assert seen == {(48, 48)}


def test_tables_of_other_settings_have_other_names(skin, tmp_path):
    brain = Path(make_phantoms(tmp_path / "brain", subjects=(1, 1, 0))) / "datalist.json"
    tables = [
        make_encoder_table(brain, tmp_path),
        make_encoder_table(brain, tmp_path, side=128),
        make_encoder_table(brain, tmp_path, refine="crf"),
        make_lever_table(brain, tmp_path),
    ]
    name = "brain_phantoms"
    expected = [f"encoder_{name}", f"encoder_{name}_128", f"encoder_{name}_crf", f"levers_{name}"]
    assert [table.name for table in tables] == expected


def test_levers_have_no_ratio(skin, tmp_path):
    assert not [column for column in make_lever_table(skin, tmp_path).columns if "ratio" in column.kind]


def test_a_refinement_that_would_fail_after_the_trainings_is_refused_before(skin, tmp_path):
    content = json.loads(skin.read_text(encoding="utf-8"))
    content["tiles"]["region"] = "lung"
    in_regions = skin.with_name("regions.json")
    in_regions.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Expected `refine` 'par' for findings in regions, got 'crf'"):
        make_encoder_table(in_regions, tmp_path, refine="crf")
    with pytest.raises(ValueError, match="Expected `refine` to be one of par, crf, got 'none'"):
        make_lever_table(skin, tmp_path, refine="none")


def test_data_that_a_table_is_not_for_is_refused(skin, tmp_path):
    content = json.loads(skin.read_text(encoding="utf-8"))
    content["training"] = [item for item in content["training"] if any(item["label"])]
    broken = skin.with_name("broken.json")
    broken.write_text(json.dumps(content))
    with pytest.raises(DataError, match="negative"):
        make_lever_table(broken, tmp_path, seeds=(0,)).run()
    content = json.loads(skin.read_text(encoding="utf-8"))
    content["validation_tiles"] = [item for item in content["validation_tiles"] if any(item["label"])]
    broken.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tiles of the split validation of .* must be with and without the finding"):
        make_lever_table(broken, tmp_path, seeds=(0,)).run()
    with pytest.raises(DataError, match="not cut from: choose another `split`"):
        make_lever_table(skin, tmp_path, split="training").run()


@pytest.mark.parametrize("kind", ["brain", "gland"])
def test_slices_and_patches_give_maps_of_whole_cases(kind, tmp_path):
    folder = Path(make_phantoms(tmp_path / kind, kind=kind, subjects=(2, 2, 0)))
    table = make_encoder_table(folder / "datalist.json", tmp_path / "out", seeds=(0,))
    recipe = table.recipes["CAM, ImageNet weights"]
    items = load_datalist(folder / "datalist.json", "validation")
    table.data.split = "validation"
    network = recipe.build(len(table.data.modalities), len(table.data.header["classes"])).network.eval()
    cases, maps = table.data.whole_maps(recipe, network)
    assert len(cases) == len(maps) == len(items)
    for scores, case in zip(maps, cases, strict=True):
        assert scores.shape[2:] == case["image"].shape[1:]
        assert np.isfinite(scores.numpy()).all()


def test_chosen_rows_alone_are_made(skin, tmp_path, short):
    words = {"seeds": (0,), "runs": tmp_path / "runs"}
    table = make_encoder_table(skin, tmp_path / "out", rows=("trivial_everything", "cam_from_scratch"), **words)
    table.data.samples = 4
    rows = table.run()
    assert {row.name for row in rows} == {"trivial: everything", "CAM, from scratch"}
    again = make_encoder_table(skin, tmp_path / "out", rows=("trivial_otsu_on_the_blue_channel",), **words)
    again.data.samples = 4
    assert {row.name for row in again.run()} == {row.name for row in rows} | {"trivial: Otsu on the blue channel"}
    with pytest.raises(ValueError, match=r"cam_from_scratch.*got nothing_such"):
        make_encoder_table(skin, tmp_path / "out", rows=("nothing_such",)).run()


def test_standardized_colors_are_alike_in_all_images(skin, tmp_path):
    table = make_lever_table(skin, tmp_path / "out", colors="standardized")
    assert table.name.endswith("_standardized")
    assert table.data.settings["colors"] == "standardized"
    images = torch.stack([torch.as_tensor(case["image"]).flatten(1) for case in table.data.cases()])
    torch.testing.assert_close(images.mean(2), torch.full(images.shape[:2], 150.0), atol=15.0, rtol=0)
    as_they_are = torch.stack([torch.as_tensor(case["image"]).flatten(1) for case in Tiles(skin).cases()])
    assert (images.mean(2).std(0) < as_they_are.mean(2).std(0)).all()
    with pytest.raises(ValueError, match="`colors` 'as_they_are'"):
        make_lever_table(_slices(tmp_path), tmp_path / "slices", colors="standardized")
    with pytest.raises(ValueError, match="no `side` for tiles"):
        make_lever_table(skin, tmp_path / "sized", side=96)


def _slices(folder: Path) -> Path:
    return Path(make_phantoms(folder / "brains", subjects=(2, 2, 0))) / "datalist.json"


def _defaults(*parts: Any) -> dict[str, Any]:
    """Give the defaults of callables by ``name.argument``."""
    return {
        f"{inspect.unwrap(part).__qualname__}.{name}": one.default
        for part in parts
        for name, one in inspect.signature(part).parameters.items()
        if one.default not in (one.empty, None)
    }


def test_what_kept_rows_do_not_tell_is_as_it_was():
    """A kept row is found by the settings that it tells: a change of any other must be told, or the rows made anew.

    Tell it in ``words`` or ``unusual`` where it differs from the value here; then the rows that lie in
    ``docs/results/runs`` stay what they are, and the new value gets rows of its own.
    """
    # Settings that nothing else tells, so that no public name holds them.
    assert (tiles._SCALES, tiles._STANDARD, tiles._JITTER) == ((0.5, 1.0), (150.0, 50.0), 0.15)
    assert patches._WINDOW == 112  # likewise
    assert decision_table._BEHIND == 0.05  # likewise
    assert _defaults(fused_cam_network, FusedSegmenter, EfficientNetLite) == {
        "fused_cam_network.num_classes": 1,
        "fused_cam_network.width": 48,
        "fused_cam_network.stride": 4,
        "fused_cam_network.dropout": 0.1,
        "fused_cam_network.pooling": "topk",
        "fused_cam_network.topk_share": 0.25,
        "fused_cam_network.lse_sharpness": 5.0,
        "fused_cam_network.norm": "batch",
        "FusedSegmenter.out_channels": 2,
        "FusedSegmenter.width": 48,
        "FusedSegmenter.stride": 4,
        "FusedSegmenter.dropout": 0.1,
        "FusedSegmenter.norm": "batch",
        "EfficientNetLite.name": "lite0",
        "EfficientNetLite.in_channels": 3,
        "EfficientNetLite.spatial_dims": 2,
        "EfficientNetLite.levels": (2, 3, 4, 5),
        "EfficientNetLite.output_stride": 32,
        "EfficientNetLite.input_range": "pixels",
        "EfficientNetLite.stem": "average",
    }
    assert _defaults(Patches, Tiles) == {
        "Patches.split": "validation",
        "Patches.every": 1,
        "Patches.samples": 1600,
        "Patches.share_of": "items",
        "Patches.window": 112,
        "Tiles.split": "validation",
        "Tiles.samples": 480,
        "Tiles.crop": 160,
        "Tiles.scales": (0.5, 1.0),
        "Tiles.colors": "as_they_are",
        "Tiles.several_classes": False,  # whether other tables may refuse them; weights do not depend on it
    }
    network = encoder_recipes.encoder_recipes(encoder_recipes.BUDGETS["tiles"], refined="par")["CAM, from scratch"]
    norms = [part for part in network.build(3, 1).network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    # The rows' words show it, but not on their own.
    assert {norm.momentum for norm in norms} == {encoder_recipes._NETWORK["norm_momentum"]}
