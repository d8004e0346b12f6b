# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What is particular to the bundle of BMP: presets, switches, runs that are too short, several classes, the CRF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from test_every_bundle import AT_ONCE, ROOT, offline, read_json, read_rows, run, start

from monai_wsss.data import make_phantoms
from monai_wsss.methods import AFA, BMP
from monai_wsss.methods.bmp_settings import BmpSettings
from monai_wsss.networks.published_weights import find_published

BUNDLE = ROOT / "bundles" / "brain_mri_bmp_segmentation"
MODALITIES = ("T1", "T1c", "FLAIR")
SMALL: dict[str, Any] = {
    "network_def#encoder": {
        "_target_": "monai_wsss.networks.ConvPyramid",
        "in_channels": "@in_channels",
        "width": 8,
    },
    "network_def#decoder_width": 16,
}

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing"),
]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diseased and a healthy subject to train on, as many to validate, and one study to segment."""
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=MODALITIES, subjects=(2, 2, 1)))


def method_of(phantoms: Path, output_dir: Path, *, overlays: tuple[str, ...] = (), **overrides: Any) -> BMP:
    """The method that the training configuration builds."""
    folders = {"dataset_dir": str(phantoms), "output_dir": str(output_dir)}
    started = start(BUNDLE, "train", overlays=overlays, **folders, **overrides)
    return started.parser.get_parsed_content("method")


def settings_of(method: BMP) -> dict[str, Any]:
    """What a BMP and its network were built with."""
    decoding = ("ofd_detach", "detach_seeds", "pooling", "pooled", "topk_share", "decoder_width")
    return {**BmpSettings().record(), **dict.fromkeys(decoding), **method.network.settings, **method.settings}


PRESETS = {"train": (BMP, "scratch"), "paper": (BMP, "paper"), "released": (BMP, "released"), "afa": (AFA, "paper")}


@pytest.mark.parametrize("name", PRESETS)
def test_each_configuration_builds_the_preset_of_its_name(name, phantoms, tmp_path):
    method = method_of(phantoms, tmp_path, overlays=() if name == "train" else (f"{name}.json",))
    kind, preset = PRESETS[name]
    expected = kind.from_preset(preset)
    assert type(method) is kind
    assert settings_of(method) == settings_of(expected)
    assert {name: tensor.shape for name, tensor in method.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.state_dict().items()
    }


SWITCHES = {
    "method#c2s_weight": (0, 0.4),
    "method#s2c_weight": (0, 0.4),
    "method#affinity_weight": (0, 0.4),
    "method#propagation": ("par",),
    "method#c2s_loss": ("balanced",),
    "method#s2c_loss": ("softmargin",),
    "method#s2c_input": ("scores",),
    "method#seed_scale": ("minmax",),
    "method#background_scale": ("minmax",),
    "method#score_scale": ("none",),
    "method#class_confidence": (0.6,),
    "method#segmentation_confidence": (0.6,),
    "method#confidence_of": ("logit",),
    "method#filter_segmentation": (False, "false"),
    "method#healthy_is_background": (False,),
    "method#healthy_affinity": (True, "true"),
    "method#train_mode_labels": (True,),
    "method#row_stochastic": (False,),
    "method#ready_below": ("off", 0.2),
    "method#dilations": ([1, 2],),
    "method#downscale": (2.0,),
    "method#scales": ([1.0, 0.5],),
    "method#c2s_ramp": (0.2,),
    "method#s2c_ramp": (0.2,),
    "method#propagation_ramp": (0.2,),
    "network_def#ofd": (False, "false"),
    "network_def#ofd_activation": ("minmax",),
    "network_def#ofd_detach": (False,),
    "network_def#detach_seeds": (True,),
    "network_def#pooling": ("average",),
    "network_def#pooled": ("features",),
    "network_def#decoder_width": (16,),
    "network_def#topk_share": (0.3,),
}
RECORDED = {"off": None, "false": False, "true": True}


def test_each_override_sets_what_it_names_and_nothing_else(phantoms, tmp_path):
    default = settings_of(method_of(phantoms, tmp_path))
    for override, values in SWITCHES.items():
        name = override.split("#")[1]
        for value in values:
            changed = settings_of(method_of(phantoms, tmp_path, **{override: value}))
            different = {key for key in default | changed if changed.get(key) != default.get(key)}
            assert different == {name}, override
            told = changed[name]
            if name.endswith("_ramp"):
                assert told == "step until 0.2"
            elif override.startswith("method"):
                assert told == (tuple(value) if isinstance(value, list) else RECORDED.get(value, value)), override


def test_readme_names_every_override():
    text = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert [name for name in SWITCHES if f"--{name}" not in text] == []


@pytest.mark.parametrize("off", ["c2s", "s2c", "affinity", "ofd"])
def test_a_part_switched_off_trains_and_is_evaluated(off, phantoms, tmp_path):
    switch = {"network_def#ofd": False} if off == "ofd" else {f"method#{off}_weight": 0}
    changes = {**switch, **SMALL}
    training = run(BUNDLE, "train", tmp_path / "run", phantoms, epochs=1, val_interval=1, **AT_ONCE, **changes)
    (row,) = read_rows(training / "training_log.csv")
    assert {"classification", "c2s", "s2c", "affinity"} - row.keys() == {off} - {"ofd"}
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, ckpt_dir=str(training), views="none", **changes)
    for output in (training, scores):
        assert read_json(output / "run.json")["config"].get("ofd", True) == (off != "ofd")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["released", "afa"])
def test_a_preset_is_trained_evaluated_and_used(preset, phantoms, tmp_path):
    """Its warm-ups are far longer than this run, which is told; test_bundle_readmes.py types `paper.json`."""
    overlay = {"overlays": (f"{preset}.json",)}
    with pytest.warns(UserWarning, match="`propagation_ramp` will not end in this run"):
        training = run(
            BUNDLE, "train", tmp_path / "run", phantoms, epochs=1, val_interval=1, pretrained="none", **overlay
        )
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, ckpt_dir=str(training), **overlay)
    masks = run(BUNDLE, "inference", tmp_path / "masks", phantoms, ckpt_dir=str(training), **overlay)
    for output in (training, scores, masks):
        assert read_json(output / "run.json")["config"]["preset"] == PRESETS[preset][1]
        assert read_json(output / "run.json")["encoder_weights"]["pretrained"] == "none"
    assert read_json(scores / "metrics.json")["accuracy"]["mean"] > 0
    assert len(list((masks / "masks").iterdir())) == 1


@pytest.mark.parametrize("overlay", ["paper", "released", "afa"])
def test_published_presets_do_not_begin_at_random_in_silence(overlay, phantoms, tmp_path):
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "run")}
    with pytest.raises(RuntimeError) as error:
        start(BUNDLE, "train", overlays=(f"{overlay}.json",), **places).run()
    assert str(error.value.__cause__) == (
        "No package has ImageNet weights of MixTransformer: give a file that you downloaded with --pretrained PATH, or "
        "train without them with --pretrained none."
    )
    assert not (tmp_path / "run").exists()


def test_published_weights_go_into_the_encoder(phantoms, tmp_path):
    encoder = {
        "_target_": "monai_wsss.networks.EfficientNetLite",
        "in_channels": "@in_channels",
        "input_range": "z_scores",
        "output_stride": 16,
    }
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    given = {"network_def#encoder": encoder, "method#affinity_weight": 0, "pretrained": "imagenet"}
    content = start(BUNDLE, "train", **places, **given).parser.get_parsed_content
    record = content("run#0")
    assert (record["pretrained"], record["encoder"]) == ("imagenet", "EfficientNet-Lite0")
    stored = torch.load(find_published("lite0"), weights_only=True)
    assert torch.equal(content("network").encoder._conv_stem.weight, stored["_conv_stem.weight"])
    assert content("method").network.encoder_weights == record


def test_a_classifier_that_has_not_learned_is_told(phantoms, tmp_path):
    quick: dict[str, Any] = {"epochs": 1, "val_interval": 1, **SMALL}
    with pytest.warns(UserWarning, match="the branches do not teach each other"):
        run(BUNDLE, "train", tmp_path / "run", phantoms, **quick, **{**AT_ONCE, "method#ready_below": 0.01})


def test_several_classes(phantoms, tmp_path):
    """Two here, of which the second says nothing about the image."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    datalist = read_json(data / "datalist.json")
    datalist["classes"] = ["tumor", "other"]
    for split in ("training", "validation", "test"):
        for index, case in enumerate(datalist[split]):
            case["label"] = [*case["label"], index % 2]
    (data / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")
    changes = {"num_classes": 2, **SMALL}
    training = run(BUNDLE, "train", tmp_path / "run", data, epochs=1, val_interval=1, **AT_ONCE, **changes)
    assert torch.load(training / "model.pt", weights_only=True)["decoder.linear_pred.weight"].shape[0] == 3
    (row,) = read_rows(training / "training_log.csv")
    assert float(row["c2s"]) > 0
    output = run(BUNDLE, "inference", tmp_path / "out", data, ckpt_dir=str(training), views="none", **changes)
    (mask,) = (output / "masks").iterdir()
    assert set(np.unique(nibabel.load(mask).dataobj)) <= {0, 1, 2}


def test_the_crf_changes_masks_and_is_recorded(phantoms, tmp_path):
    plain, refined = (
        run(BUNDLE, "evaluate", tmp_path / name, phantoms, views="none", **options)
        for name, options in (("plain", {}), ("refined", {"refine": "@crf"}))
    )
    recorded = [read_json(output / "run.json")["config"]["refine"] for output in (plain, refined)]
    assert recorded[0] == "none"
    assert {"part": "DenseCRF", "bilateral_intensity_std": 0.1, "spatial_dims": 2}.items() <= recorded[1].items()
    accuracies = [read_json(output / "metrics.json")["accuracy"]["mean"] for output in (plain, refined)]
    assert accuracies[0] != accuracies[1]
