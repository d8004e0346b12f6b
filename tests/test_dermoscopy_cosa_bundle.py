# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the bundle of CoSA has to itself: presets, rows of the paper's tables as overrides, photographs, filters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_bmp_photographs import SIZES, make_coco, make_voc
from test_every_bundle import ROOT, offline, read_json, read_rows, run, same_weights, start

import monai_wsss.data
from monai_wsss.data import make_phantoms, prepare_coco, prepare_voc
from monai_wsss.engines import Progress
from monai_wsss.methods import CoSA

BUNDLE = ROOT / "bundles" / "dermoscopy_cosa_segmentation"
LATE = Progress(epoch=99, iteration=10**6, fraction=0.99)
SMALL: dict[str, Any] = {
    "network_def#encoder": {"_target_": "monai_wsss.networks.EfficientNetLite", "name": "tiny", "in_channels": 3},
    "network_def#decoder_width": 8,
    "pretrained": "none",
}
"""An encoder that learns nothing, but at once."""
TINY_VIT: dict[str, Any] = {
    "network_def#encoder": {"_target_": "monai_wsss.networks.VisionTransformer.tiny", "in_channels": 3},
    "network_def#decoder_width": 8,
    "crop": 48,
    "batch_size": 2,
}
"""The paper's crops of 448 pixels and its ViT-B take a GPU."""
SHORT_RUN: dict[str, Any] = {"warm_up": 0.4, "momentum": 0.95, "dt_momentum": 0.95, "scales": (0.5, 1.0)}
"""What 375 steps on tiles need, unlike the preset."""
AT_ONCE: dict[str, Any] = {"method#warm_up": 1e-3}
"""The branches teach from the second step on."""

__all__ = ["offline"]  # the fixture that keeps this file's runs off the network

pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing"),
]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_phantoms(tmp_path_factory.mktemp("skin"), kind="skin", subjects=(2, 2, 1)))


def built(phantoms: Path, output: Path, *, overlays: tuple[str, ...] = (), **overrides: Any) -> Any:
    """Give what looks up the contents of the training's configuration."""
    folders = {"dataset_dir": str(phantoms), "output_dir": str(output)}
    return start(BUNDLE, "train", overlays=overlays, **folders, **overrides).parser.get_parsed_content


# ---- presets and the rows of tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "paper", "released"])
def test_each_configuration_builds_the_preset_of_its_name(name, phantoms, tmp_path):
    overlays = () if name == "train" else (f"{name}.json",)
    method = built(phantoms, tmp_path, overlays=overlays, **SMALL)("method")
    preset, own = ("default", SHORT_RUN) if name == "train" else (name, {})
    assert isinstance(method, CoSA)
    assert method.settings == CoSA.from_preset(preset, network=copy.deepcopy(method.online), **own).settings


ROWS: dict[str, dict[str, Any]] = {
    # Table 3 (a), from the base on; CSC without RAW is the fifth.
    "base": {"gc": False, "sa": False, "raw": False, "csc": False, "dt": False},
    "+GC": {"sa": False, "raw": False, "csc": False, "dt": False},
    "+SA": {"raw": False, "csc": False, "dt": False},
    "+RAW": {"csc": False, "dt": False},
    "+CSC without RAW": {"raw": False, "dt": False},
    "+CSC": {"dt": False},
    "+DT": {},
    # Table 3 (b)
    "-CSC": {"csc": False},
    "-RAW": {"raw": False},
    "-SA": {"sa": False},
    "-GC": {"gc": False},
    # Table 4 (a): what L_s2c trains, and what guides the class maps.
    "F detached": {"detach_seeds": "features"},
    "W detached": {"detach_seeds": "weights"},
    "no guidance": {"guide": "none"},
    "noise": {"guide": "noise"},
    # Ours
    "no second L_c2s": {"aux_c2s": False},
    "energy": {"energy": True},
    "rectified": {"s2c_relu": True},
}


def terms(row: dict[str, Any]) -> set[str]:
    """The losses of a row of the preset `paper`."""
    found = {"classification", "auxiliary_classification", "c2s"}
    found |= {"auxiliary_c2s"} if row.get("aux_c2s", True) else set()
    found |= {"s2c"} if row.get("gc", True) and row.get("guide") != "none" else set()
    found |= {"csc"} if row.get("csc", True) else set()
    return found | ({"energy"} if row.get("energy") else set())


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_paper_s_tables_is_an_override_and_steps(name, phantoms, tmp_path):
    row = ROWS[name]
    changes = {f"method#{word}": value for word, value in row.items()}
    content = built(phantoms, tmp_path, overlays=("paper.json",), **{**SMALL, **TINY_VIT, **changes})
    trainer = content("train#trainer")
    method, optimizer = content("method"), content("optimizers")["online"]
    losses = method(next(iter(trainer.data_loader)), LATE)
    assert set(losses) == terms(row)
    assert (method.network is method.online) == (row.get("sa") is False)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    method.after_step(LATE)
    state = method.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point())


@pytest.fixture(scope="module")
def training(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of three short epochs of a small network, whose branches are logged after each but the first.

    The class maps have a healthy level then.
    """
    options = {"epochs": 3, "samples": 32, "val_interval": 1, **SMALL, **AT_ONCE}
    with pytest.MonkeyPatch.context() as patch:  # tiles have masks, of which four are enough here
        patch.setattr(monai_wsss.data, "load_datalist", few_training_items(monai_wsss.data.load_datalist))
        output = tmp_path_factory.mktemp("training") / "run"
        return run(BUNDLE, "train", output, phantoms, overlays=("log_branches.json",), **options)


def few_training_items(load: Callable[..., Any]) -> Callable[..., Any]:
    def few(path: Any, split: str, **options: Any) -> Any:
        items = load(path, split, **options)
        if split == "training" and options.get("masks"):
            return [item for item in items if item["label"].any()][:4]
        return items

    return few


def test_the_assignment_network_is_deployed_and_used_as_ever(training, phantoms, tmp_path):
    rows = read_rows(training / "training_log.csv")
    assert all(float(rows[-1][name]) > 0 for name in ("c2s", "auxiliary_c2s", "s2c", "csc"))
    assert "val_dice_subject" in rows[-1]
    checkpoint = torch.load(training / "checkpoints" / "epoch_0003.pt", weights_only=True)
    deployed = torch.load(training / "model.pt", weights_only=True)
    own = {k.removeprefix("network."): v for k, v in checkpoint["method"].items() if k.startswith("network.")}
    assert own.keys() == deployed.keys()
    assert all(torch.equal(own[name], value) for name, value in deployed.items())
    # It lags behind the one that is trained.
    assert not torch.equal(checkpoint["method"]["online.classifier.weight"], deployed["classifier.weight"])
    small = {name: value for name, value in SMALL.items() if name != "pretrained"}
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, ckpt_dir=str(training), **small)
    assert 0 <= read_json(scores / "metrics.json")["dice_subject"]["mean"] <= 1
    masks = run(BUNDLE, "inference", tmp_path / "masks", phantoms, ckpt_dir=str(training), **small)
    assert len(read_rows(masks / "predictions.csv")) == 1


def test_the_record_says_where_each_value_comes_from(phantoms, tmp_path):
    options = {**SMALL, **TINY_VIT, "iterations": 2, "val_interval": 1}
    with pytest.warns(UserWarning, match="will not end in this run"):
        training = run(BUNDLE, "train", tmp_path / "run", phantoms, overlays=("paper.json",), **options)
    told = read_json(training / "run.json")["config"]
    assert told["preset"] == "paper"
    assert told["amp"] is False
    assert "Sec. 4.1" in json.dumps(told)
    assert "ours" in json.dumps(told)


def test_a_resumed_training_ends_as_the_other(phantoms, tmp_path):
    options = {"epochs": 2, "samples": 32, "val_interval": 2, **SMALL, **AT_ONCE}
    whole = run(BUNDLE, "train", tmp_path / "whole", phantoms, **options)
    part = tmp_path / "part" / "checkpoints"
    part.mkdir(parents=True)
    (part / "epoch_0001.pt").write_bytes((whole / "checkpoints" / "epoch_0001.pt").read_bytes())
    resumed = run(BUNDLE, "train", tmp_path / "part", phantoms, resume=True, **options)
    assert same_weights(resumed / "model.pt", whole / "model.pt")


# ---- branches --------------------------------------------------------------------------------------------------------


def test_branches_are_logged_by_interval(training):
    rows = read_rows(training / "branches.csv")
    assert {row["epoch"] for row in rows} == {"2", "3"}
    assert {row["split"] for row in rows} == {"training", "validation"}
    assert {row["network"] for row in rows} == {"assignment", "online"}
    assert {row["branch"] for row in rows} == {"M", "M_aux", "M+M_aux", "S"}
    assert {row["label_filter"] for row in rows} == {"none", "predicted", "given"}
    assert {row["crf"] for row in rows} == {"False", "True"}


def test_the_log_and_several_processes_go_together():
    """Of two overlays that set one id the later one alone would count."""
    log, several = (read_json(BUNDLE / "configs" / f"{name}.json") for name in ("log_branches", "multi_gpu_train"))
    assert not log.keys() & several.keys()
    # The first process measures alone: the loader that several processes share would give it some images only.
    assert "@validate#dataloader" not in json.dumps(log)


def test_branches_are_measured_by_one_command(training, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(monai_wsss.data, "load_datalist", few_training_items(monai_wsss.data.load_datalist))
    small = {name: value for name, value in SMALL.items() if name != "pretrained"}
    options = {"overlays": ("evaluate_branches.json",), "ckpt_dir": str(training), **small}
    measured = run(BUNDLE, "train", tmp_path / "branches", phantoms, **options)
    rows = read_json(measured / "branches.json")["rows"]
    assert {(row["split"], row["network"]) for row in rows} == {
        (split, network) for split in ("training", "validation") for network in ("assignment", "online")
    }
    logged = {
        (row["split"], row["network"], row["branch"], row["label_filter"], row["crf"]): float(row["miou"])
        for row in read_rows(training / "branches.csv")
        if row["epoch"] == "3"
    }
    assert len(rows) == len(logged)
    for row in rows:
        key = (row["split"], row["network"], row["branch"], row["label_filter"], str(row["crf"]))
        assert logged[key] == pytest.approx(row["miou"])
        assert set(row["iou"]) == {"background", "foreground"}


@pytest.mark.parametrize("gate", ["none", "predicted", "given"])
def test_the_label_filter_is_named_in_the_output(gate, training, phantoms, tmp_path):
    small = {name: value for name, value in SMALL.items() if name != "pretrained"}
    options = {"ckpt_dir": str(training), "to_mask#gate": gate, **small}
    scores = run(BUNDLE, "evaluate", tmp_path / "scores", phantoms, **options)
    assert read_json(scores / "run.json")["config"]["gate"] == gate


# ---- weights that it begins with -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["paper", "released"])
def test_published_presets_do_not_begin_at_random_in_silence(overlay, phantoms, tmp_path):
    tiny = {name: value for name, value in TINY_VIT.items() if "network" in name}
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "run")}
    with pytest.raises(RuntimeError) as error:
        start(BUNDLE, "train", overlays=(f"{overlay}.json",), **places, **tiny).run()
    assert "No package has ImageNet weights of VisionTransformer" in str(error.value.__cause__)
    assert "--pretrained none" in str(error.value.__cause__)
    assert not (tmp_path / "run").exists()


def test_published_weights_go_into_both_networks(phantoms, tmp_path):
    training = run(
        BUNDLE, "train", tmp_path / "run", phantoms, iterations=1, epochs=1, samples=32, batch_size=4, val_interval=1,
        **{"network_def#decoder_width": 8, "learning_rate": 1e-12, "encoder_learning_rate": 1e-12},
    )  # fmt: skip
    record = read_json(training / "run.json")["encoder_weights"]
    assert (record["pretrained"], record["encoder"]) == ("imagenet", "EfficientNet-Lite0")
    method = torch.load(training / "checkpoints" / "epoch_0001.pt", weights_only=True)["method"]
    (stem,) = (name for name in method if name.startswith("network.") and name.endswith("_conv_stem.weight"))
    torch.testing.assert_close(method[stem], method[stem.replace("network.", "online.", 1)])


# ---- photographs -----------------------------------------------------------------------------------------------------

OVERLAYS = {
    "voc": (("paper.json",), {"num_classes": 20}),
    "coco": (("paper.json", "paper_coco.json"), {}),
    "released": (("released.json",), {"num_classes": 20}),
}


@pytest.fixture(scope="module", params=OVERLAYS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def photographs(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with three training images, two to validate, and of VOC one to predict without a label."""
    folder = tmp_path_factory.mktemp(kind)
    if kind == "coco":
        make_coco(folder / "raw")
        prepare_coco(folder / "raw", folder / "prepared", masks=True, annotated_only=True)
    else:
        make_voc(folder / "raw")
        prepare_voc(folder / "raw", folder / "prepared", test="test")
    return folder / "prepared"


def test_one_epoch_on_a_toy_tree_by_overrides_alone(kind, photographs, tmp_path):
    overlays, words = OVERLAYS[kind]
    words = {**words, **TINY_VIT}
    training = run(
        BUNDLE, "train", tmp_path / "run", photographs, overlays=overlays, iterations=2, val_interval=1,
        pretrained="none", **words, **AT_ONCE,
    )  # fmt: skip
    (row, *_) = read_rows(training / "training_log.csv")[-1:]
    assert all(float(row[name]) > 0 for name in ("c2s", "auxiliary_c2s", "s2c"))
    assert ("energy" in row) == (kind == "released")
    assert ("csc" in row) == (kind != "released")
    record = read_json(training / "run.json")
    assert record["uses_masks"] == []
    assert record["encoder_weights"]["pretrained"] == "none"
    classes = words.get("num_classes", 80)
    scores = run(
        BUNDLE, "evaluate", tmp_path / "scores", photographs, overlays=overlays, ckpt_dir=str(training), **words
    )
    assert 0 <= read_json(scores / "metrics.json")["miou_pooled"]["mean"] <= 1
    for name in "de":
        mask = np.asarray(Image.open(scores / "masks" / f"{name}.png"))
        assert mask.shape == SIZES[name]  # squeezed into a square, and back
        assert mask.max() <= classes
    if kind == "coco":
        return
    output = run(
        BUNDLE, "inference", tmp_path / "test", photographs, overlays=overlays, ckpt_dir=str(training), **words
    )
    with Image.open(output / "masks" / "f.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [128, 0, 0]  # an aeroplane, as VOC colors it
        assert np.asarray(mask).shape == SIZES["d"]
    assert read_json(output / "run.json")["config"]["label_filter"] == "none"
