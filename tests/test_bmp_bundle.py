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
from monai_wsss.engines import WeightRamp
from monai_wsss.methods import BMP

BUNDLE = ROOT / "bundles" / "brain_mri_bmp_segmentation"
MODALITIES = ("T1", "T1c", "FLAIR")

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

pytestmark = pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images")


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
    """What a BMP was built with; lists of a configuration are tuples."""
    listed = {name: value for name, value in vars(method).items() if not name.startswith("_") and name != "training"}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in listed.items()}
    refine, decoding = method.refine, ("ofd", "ofd_activation", "ofd_detach", "detach_seeds", "pooling", "pooled")
    return plain | {
        "dilations": tuple(refine.dilations),
        "row_stochastic": refine.row_stochastic,
        "radius": method.affinity_loss.radius,
        **{name: getattr(method.network, name) for name in decoding},
    }


@pytest.mark.parametrize("preset", ["paper", "released", "afa"])
def test_each_overlay_builds_the_preset_of_its_name(preset, phantoms, tmp_path):
    method = method_of(phantoms, tmp_path, overlays=(f"{preset}.json",))
    expected = BMP.from_preset(preset)
    built, wanted = settings_of(method), settings_of(expected)
    if preset == "afa":  # has no L_s2c, and so nothing that begins with it
        built.pop("s2c_ramp"), wanted.pop("s2c_ramp")
    assert built == wanted
    assert {name: tensor.shape for name, tensor in method.network.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.network.state_dict().items()
    }


SWITCHES = {
    "use_c2s": (False, "c2s_weight", 0.0),
    "use_s2c": (False, "s2c_weight", 0.0),
    "use_affinity": (False, "affinity_weight", 0.0),
    "s2c_weight": (0.4, "s2c_weight", 0.4),
    "affinity_weight": (0.4, "affinity_weight", 0.4),
    "c2s_weight": (0.4, "c2s_weight", 0.4),
    "use_ofd": (False, "ofd", False),
    "ofd_activation": ("minmax", "ofd_activation", "minmax"),
    "ofd_detach": (False, "ofd_detach", False),
    "detach_seeds": (True, "detach_seeds", True),
    "propagation": ("par", "propagation", "par"),
    "c2s_loss": ("balanced", "c2s_loss", "balanced"),
    "s2c_loss": ("softmargin", "s2c_loss", "softmargin"),
    "s2c_input": ("scores", "s2c_input", "scores"),
    "seed_scale": ("minmax", "seed_scale", "minmax"),
    "background_scale": ("minmax", "background_scale", "minmax"),
    "score_scale": ("none", "score_scale", "none"),
    "class_confidence": (0.6, "class_confidence", 0.6),
    "segmentation_confidence": (0.6, "segmentation_confidence", 0.6),
    "confidence_of": ("logit", "confidence_of", "logit"),
    "filter_segmentation": (False, "filter_segmentation", False),
    "healthy_is_background": (False, "healthy_is_background", False),
    "healthy_affinity": (True, "healthy_affinity", True),
    "train_mode_labels": (True, "train_mode_labels", True),
    "row_stochastic": (False, "row_stochastic", False),
    "ready_below": ("off", "ready_below", None),
    "dilations": ([1, 2], "dilations", (1, 2)),
    "downscale": (2.0, "downscale", 2.0),
    "scales": ([1.0, 0.5], "scales", (1.0, 0.5)),
    "pooling": ("average", "pooling", "average"),
    "pooled": ("features", "pooled", "features"),
    "c2s_ramp#end": (0.2, "c2s_ramp", WeightRamp("step", end=0.2)),
    "s2c_ramp#end": (0.2, "s2c_ramp", WeightRamp("step", end=0.2)),
    "propagation_ramp#end": (0.2, "propagation_ramp", WeightRamp("step", end=0.2)),
}


def test_each_override_sets_what_it_names_and_nothing_else(phantoms, tmp_path):
    default = settings_of(method_of(phantoms, tmp_path))
    for override, (value, name, expected) in SWITCHES.items():
        changed = settings_of(method_of(phantoms, tmp_path, **{override: value}))
        assert changed[name] == expected != default[name], override
        assert {key for key in default if changed[key] != default[key]} == {name}, override


def test_readme_names_every_override():
    text = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert [name for name in SWITCHES if f"--{name}" not in text] == []


@pytest.mark.parametrize("off", ["use_c2s", "use_s2c", "use_affinity", "use_ofd"])
def test_a_part_switched_off_trains_and_is_evaluated(off, phantoms, tmp_path):
    changes = {off: False, "width": 8, "decoder_width": 16}
    training = run(BUNDLE, "train", tmp_path / "run", phantoms, epochs=1, val_interval=1, **AT_ONCE, **changes)
    (row,) = read_rows(training / "training_log.csv")
    terms = {"use_c2s": "c2s", "use_s2c": "s2c", "use_affinity": "affinity"}
    assert {"classification", *terms.values()} - row.keys() == ({terms[off]} if off in terms else set())
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, ckpt_dir=str(training), views="none", **changes)
    assert read_json(scores / "run.json")["config"]["use_ofd"] == (off != "use_ofd")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "released", "afa"])
def test_a_preset_is_trained_evaluated_and_used(preset, phantoms, tmp_path):
    """Its warm-ups are far longer than this run, which is told."""
    overlay = {"overlays": (f"{preset}.json",)}
    with pytest.warns(UserWarning, match="`propagation_ramp` will not end in this run"):
        training = run(BUNDLE, "train", tmp_path / "run", phantoms, epochs=1, val_interval=1, **overlay)
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, ckpt_dir=str(training), **overlay)
    masks = run(BUNDLE, "inference", tmp_path / "masks", phantoms, ckpt_dir=str(training), **overlay)
    for output in (training, scores, masks):
        assert read_json(output / "run.json")["config"]["preset"] == preset
    assert read_json(scores / "metrics.json")["accuracy"]["mean"] > 0
    assert len(list((masks / "masks").iterdir())) == 1


def test_a_classifier_that_has_not_learned_is_told(phantoms, tmp_path):
    quick = {"epochs": 1, "val_interval": 1, "width": 8, "decoder_width": 16}
    with pytest.warns(UserWarning, match="the branches do not teach each other"):
        run(BUNDLE, "train", tmp_path / "run", phantoms, **quick, **{**AT_ONCE, "ready_below": 0.01})


def test_several_classes(phantoms, tmp_path):
    """Two here, of which the second says nothing about the image."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    datalist = read_json(data / "datalist.json")
    datalist["classes"] = ["tumor", "other"]
    for split in ("training", "validation", "test"):
        for index, case in enumerate(datalist[split]):
            case["label"] = [*case["label"], index % 2]
    (data / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")
    changes = {"num_classes": 2, "width": 8, "decoder_width": 16}
    training = run(BUNDLE, "train", tmp_path / "run", data, epochs=1, val_interval=1, **AT_ONCE, **changes)
    assert torch.load(training / "model.pt", weights_only=True)["decoder.linear_pred.weight"].shape[0] == 3
    (row,) = read_rows(training / "training_log.csv")
    assert float(row["c2s"]) > 0
    output = run(BUNDLE, "inference", tmp_path / "out", data, ckpt_dir=str(training), views="none", **changes)
    (mask,) = (output / "masks").iterdir()
    assert set(np.unique(nibabel.load(mask).dataobj)) <= {0, 1, 2}


def test_the_crf_changes_masks_and_is_recorded(phantoms, tmp_path):
    plain, refined = (
        run(BUNDLE, "evaluate", tmp_path / name, phantoms, views="none", use_crf=flag)
        for name, flag in (("plain", False), ("refined", True))
    )
    assert read_json(refined / "run.json")["config"]["use_crf"] is True
    accuracies = [read_json(output / "metrics.json")["accuracy"]["mean"] for output in (plain, refined)]
    assert accuracies[0] != accuracies[1]
