# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Slices of three classes in npz files, cut into tiles: how methods and bundles learn from them and are measured."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wsss import __main__ as command
from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.benchmark import make_encoder_table, make_method_benchmark
from monai_wsss.benchmark.cosa_data import CosaTiles
from monai_wsss.benchmark.encoder_table import decide_cases, rule_of_kind
from monai_wsss.benchmark.method_measures import rule_words
from monai_wsss.benchmark.tiles import Tiles
from monai_wsss.bundle_run import find_bundle
from monai_wsss.data import load_datalist, prepare_cases

pytestmark = pytest.mark.filterwarnings("ignore")  # of networks that have learned nothing in two steps

CLASSES = ("rv", "myo", "lv")
SHOWN = ((1, 2, 3), (), (2,), (1, 3))
SIDE, TILE = 48, 16


def mask_of(shown: tuple[int, ...]) -> np.ndarray:
    """Draw a mask [row, column] with a box per class, side by side."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for number in shown:
        mask[4:16, 16 * (number - 1) + 2 : 16 * number - 2] = number
    return mask


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Write four slices of four subjects; each class has a gray level of its own."""
    folder = tmp_path_factory.mktemp("heart")
    (folder / "cases").mkdir()
    rows = ["id,case,index_in_npz,rv,myo,lv,split,file"]
    rng = np.random.default_rng(0)
    masks = np.stack([mask_of(shown) for shown in SHOWN])
    for case, split in (("p1", "train"), ("p2", "train"), ("p3", "val"), ("p4", "val")):
        images = (60 * masks + rng.integers(20, 50, masks.shape)).astype(np.uint8)
        np.savez(folder / "cases" / f"{case}.npz", images=images, masks=masks)
        for index, shown in enumerate(SHOWN):
            labels = ",".join(str(int(number in shown)) for number in (1, 2, 3))
            rows.append(f"{case}_{index},{case},{index},{labels},{split},cases/{case}.npz")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def datalist(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "heart"
    return prepare_cases(
        root, out, label_columns=CLASSES, tiles=TILE, tile_stride=8, tile_margin=0, labels_from_masks=True,
        skip_dark_corners=False,
    )  # fmt: skip


class Maps(torch.nn.Module):
    """A network whose class maps are the mask itself, 1 where the class is and -1 elsewhere."""

    output_kind, pooling, topk_share = "activation", "topk", 0.25
    groups = 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        level = torch.div(image, 60, rounding_mode="floor")
        return torch.cat([2.0 * (level == number) - 1 for number in (1, 2, 3)], dim=1)

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).topk(64, dim=2)[0].mean(2)


def test_every_class_is_decided_by_itself_and_absent_ones_are_left_out(datalist):
    data, network = Tiles(datalist, scales=(1.0,), several_classes=True), Maps()
    data.check()
    cases, maps = data.whole_maps(None, network)
    words = rule_words("cam", "tiles", data)
    assert words == {"rule": "otsu", "gate": "predicted", "topk_pixels": 64}
    rule = rule_of_kind(network, words["rule"], gated=True, topk_pixels=words["topk_pixels"])
    for case, decided in zip(cases, decide_cases(cases, maps, rule, None), strict=True):
        assert torch.equal(decided.mask, torch.as_tensor(case["mask"])), case["id"]
        assert (decided.presence > 0).tolist() == [bool(value) for value in case["label"]]
    # A share that is right for tiles is far more than a class covers in a whole image.
    by_share = rule_of_kind(network, words["rule"], gated=True)
    assert not any(decided.mask.any() for decided in decide_cases(cases, maps, by_share, None))


def test_presence_on_tiles_is_that_of_each_class(datalist):
    found = Tiles(datalist, several_classes=True).presence(Maps())
    assert [found[f"tile_auroc/{name}"]["mean"] for name in CLASSES] == [1.0, 1.0, 1.0]
    assert found["tile_auroc"]["mean"] == found["tile_clean"]["mean"] == 1.0


def test_tables_of_one_class_still_refuse_several(datalist):
    for data in (Tiles(datalist), CosaTiles(datalist)):
        with pytest.raises(DataError, match="has the classes rv, myo, lv: this table is for one class"):
            data.check()


def test_a_class_that_no_measured_tile_shows_is_named(datalist, tmp_path):
    folder = shutil.copytree(datalist.parent, tmp_path / "copy")
    content = json.loads((folder / "datalist.json").read_text())
    content["validation_tiles"] = [item for item in content["validation_tiles"] if not item["label"][2]]
    (folder / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="must be with and without lv"):
        Tiles(folder / "datalist.json", several_classes=True).check()


def test_what_covers_all_is_measured_class_by_class(datalist, tmp_path):
    table = make_encoder_table(datalist, tmp_path, seeds=(0,))
    trivial = {entry.name: entry for entry in table.entries if entry.recipe is None}
    assert list(trivial) == [f"trivial: all {name}" for name in CLASSES]
    (measured,) = trivial["trivial: all myo"].measure(table, [])
    values = [measured.metrics[f"dice_pooled/{name}"]["mean"] for name in CLASSES]
    share = 144 / SIDE**2 / 2  # a box of 12 x 12 pixels in two of the four slices
    assert values == [0.0, pytest.approx(2 * share / (1 + share)), 0.0]


def test_gray_tiles_have_a_strong_view_that_differs_visibly(datalist):
    data = CosaTiles(datalist, several_classes=True)
    recipe = make_method_benchmark(datalist, datalist.parent / "none", methods=("cosa",), seeds=(0,), budget="2-steps")
    pair = recipe.pairs[0]
    (recipe,) = recipe.table(pair, 0).recipes.values()
    batch = next(iter(data.loader(data.items(recipe, 0), recipe, 0)))
    difference = (batch["strong"] - batch["image"]).abs().flatten(1).mean(1)
    assert difference.max() > 5  # gray levels, of 255


@pytest.mark.slow
def test_every_method_is_measured_class_by_class(datalist, tmp_path):
    methods = ("cam", "bmp", "cosa", "cmer", "gland", "coingan", "full")
    outcomes = make_method_benchmark(datalist, tmp_path, methods=methods, seeds=(0,), budget="2-steps").run()
    states = {one.pair.method: one.state for one in outcomes}
    assert [method for method in methods if states[method] == "measured"] == ["cam", "bmp", "cosa", "full"]
    assert {states[method] for method in ("cmer", "gland", "coingan")} == {"refused"}
    for row in (one.row for one in outcomes if one.row is not None):
        assert row.simulated_supervision
        of_class = [row.metrics[f"dice_subject/{name}"]["mean"] for name in CLASSES]
        assert row.metrics["dice_subject"]["mean"] == pytest.approx(np.mean(of_class))
    run = json.loads((tmp_path / "runs/methods_heart/validation/cam_small/seed0.json").read_text(encoding="utf-8"))
    assert run["settings"]["measured"] == {"method": "cam", "rule": "otsu", "gate": "predicted", "topk_pixels": 64}
    for name in ("leaderboard.md", "comparison.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "imulated supervision" in text
        assert "present above 5 % of a tile" in text


@pytest.mark.slow
def test_a_bundle_trains_and_segments_slices_with_its_gate(datalist, root, tmp_path, capsys, caplog):
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        words = [
            "--epochs",
            "1",
            "--pretrained",
            "none",
            "--device",
            "cpu",
            "--set",
            "samples=8",
            "--set",
            "batch_size=8",
        ]
        code = main(["train", str(datalist.parent), "--out", str(run), *words])
    assert code in (0, 3)
    printed = capsys.readouterr()
    assert "--gate predicted --topk_pixels 64" in printed.err
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["gate"] == "predicted"
    assert record["config"]["topk_pixels"] == 64
    assert any(text.startswith("simulated supervision, tags of tiles from masks") for text in record["uses_masks"])

    images = tmp_path / "images"
    images.mkdir()
    for item in load_datalist(datalist, "validation"):
        shutil.copy(item["image"], images / Path(item["image"]).name)
    masks = tmp_path / "masks"
    words = ["--bundle", "dermoscopy_cam_segmentation", "--weights", str(run), "--device", "cpu"]
    assert main(["predict", str(images), "--out", str(masks), *words]) == 0
    told = json.loads((masks / "run.json").read_text(encoding="utf-8"))
    assert told["config"]["gate"] == "predicted"
    assert told["config"]["topk_pixels"] == 64
    for path in (masks / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3}
            assert mask.size == (SIDE, SIDE)


def test_the_command_of_the_bundle_has_the_share_of_the_bundle():
    assert find_bundle("dermoscopy_cam_segmentation").config("train")["network_def"]["topk_share"] == command.TILE_SHARE
