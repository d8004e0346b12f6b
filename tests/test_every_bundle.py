# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every bundle does what docs/architecture.md and its README promise: it is checked, loaded, run, killed and resumed.

All runs are offline, on phantoms, from a folder that is not the bundle's.  What is quick runs in this process through
MONAI's ConfigWorkflow; the slow tests type the README's commands.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_wsss.bundle_scan.bundle_checks import check_bundle, metadata_schema
from monai_wsss.data import load_datalist, make_phantoms, prepare_cases, prepare_glas
from monai_wsss.engines import check_overrides
from monai_wsss.networks import ActivationNetwork, recorded_reading

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/train.json"))
WORKFLOWS = {
    "train": ("train", ["train.json"]),
    "evaluate": ("train", ["train.json", "evaluate.json"]),
    "inference": ("inference", ["inference.json"]),
}

AT_ONCE = {
    "method#ready_below": "off",
    **{f"method#{name}": 1e-3 for name in ("c2s_ramp", "s2c_ramp", "propagation_ramp")},
}
"""Overrides of BMP's bundle that let its branches teach from the second step on: a quick run ends before they would."""

# One epoch on two subjects may well end with maps that are all or nothing, or with one modality behind the others.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Epoch .* maps of positive images"),
    pytest.mark.filterwarnings("ignore:Epoch .* the segmentation marks nothing"),
    pytest.mark.filterwarnings("ignore:Epoch .* is a weak peer"),
    # Nor has a generator learned in a few steps what to change.
    pytest.mark.filterwarnings("ignore:Epoch .* the generator changes images"),
    pytest.mark.filterwarnings("ignore:Epoch .* converted images differ"),
]


def test_there_are_bundles():
    assert BUNDLES


# ---- helpers ---------------------------------------------------------------------------------------------------------


def refuse(*arguments: Any, **options: Any) -> NoReturn:
    raise OSError("The tests of the bundles run offline.")


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """No name is resolved and no connection opened in this process; the random state is left as it was found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
    set_determinism(None)


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def modalities(bundle: Path) -> list[str]:
    return read_json(bundle / "configs" / "train.json")["modalities"]


def phantom_kind(bundle: Path) -> str:
    """The kind of phantoms that it runs on by default: "brain", "chest", "gland" or "skin"."""
    drawn = re.search(r"kind='(\w+)'", read_json(bundle / "configs" / "train.json")["dataset_dir"])
    return drawn[1] if drawn else "brain"


@pytest.fixture(scope="module")
def kind(bundle: Path) -> str:
    return phantom_kind(bundle)


@pytest.fixture(scope="module")
def drawing(kind: str, modalities: list[str]) -> dict[str, Any]:
    """What `make_phantoms` is told, but for the subjects."""
    return {"modalities": modalities} if kind == "brain" else {"kind": kind}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory, kind: str, drawing: dict[str, Any]) -> Path:
    """Two subjects to train on, of brains a healthy one, as many to validate, and one to segment; of X-rays more."""
    subjects = (8, 4, 1) if kind == "chest" else (2, 2, 1)
    return Path(make_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=subjects, **drawing))


@pytest.fixture(scope="module")
def quick(bundle: Path, kind: str) -> dict[str, Any]:
    """Overrides for a training of one epoch in which every loss takes part."""
    more: dict[str, Any] = {"samples": 64} if kind in PATCHES else AT_ONCE if "bmp" in bundle.name else {}
    more |= {"method#warm_up": 1e-3} if "cosa" in bundle.name else {}
    return {"epochs": 1, "val_interval": 1, **more}


PATCHES = ("gland", "skin")
"""Kinds of phantoms in colors, of which patches with tags are what is trained on."""
MASK_VALUES = {"brain": {0, 1}, "chest": {0, 1}, "gland": {1, 2}, "skin": {0, 1}}
SUPERVISION = {kind: ["simulated supervision"] for kind in PATCHES}
"""What `uses_masks` of a record begins with, by the kind of the phantoms: tags of patches are made from masks."""


def supervision(record: dict[str, Any]) -> list[str]:
    return [use.partition(",")[0] for use in record["uses_masks"]]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def configs(bundle: Path, *names: str) -> list[str]:
    return [str(bundle / "configs" / name) for name in names]


def start(bundle: Path, workflow: str, *, overlays: tuple[str, ...] = (), **overrides: Any) -> ConfigWorkflow:
    """A workflow, initialized as `python -m monai.bundle run` does it, with further files of ``configs/``."""
    kind, names = WORKFLOWS[workflow]
    check_overrides(configs(bundle, *names, *overlays), overrides)  # nor do the tests set what is not there
    started = ConfigWorkflow(
        configs(bundle, *names, *overlays),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **{"device": "cpu", **overrides},
    )
    started.initialize()
    return started


def run(bundle: Path, workflow: str, output_dir: Path, dataset_dir: Path, **overrides: Any) -> Path:
    """Run a workflow from an empty folder; returns ``output_dir``.

    Nothing may be written but there: neither in the bundle nor beside the data nor where the process stands.
    """
    elsewhere = output_dir.with_name(f"{output_dir.name}_elsewhere")
    elsewhere.mkdir()
    before, search_path = (fingerprint(bundle), fingerprint(dataset_dir)), list(sys.path)
    with contextlib.chdir(elsewhere):
        started = start(bundle, workflow, output_dir=str(output_dir), dataset_dir=str(dataset_dir), **overrides)
        started.run()
        started.finalize()
    sys.path[:] = search_path
    assert (fingerprint(bundle), fingerprint(dataset_dir)) == before
    assert list(elsewhere.iterdir()) == []
    return output_dir


def same_weights(first: Path, second: Path) -> bool:
    """Whether two state dicts are equal bit for bit (NaN equals NaN)."""
    states = [torch.load(path, weights_only=True) for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    return all(np.array_equal(states[0][name], states[1][name], equal_nan=True) for name in states[0])


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_it_has_no_static_faults(bundle):
    assert check_bundle(bundle) == []


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_its_properties_are_those_that_other_programs_look_for(bundle, phantoms, workflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = start(bundle, workflow, dataset_dir=str(phantoms), output_dir=str(tmp_path / "out"))
    assert started.check_properties() == []
    assert started.workflow_type == ("infer" if workflow == "inference" else "train")
    assert Path(started.bundle_root) == bundle


def entries(state: dict[str, torch.Tensor]) -> set[str]:
    """Name the entries of weights, but for the buffers that older ones lack."""
    return {name for name in state if name.rpartition(".")[2] not in ("filled", "reading_order", "reading_axes")}


def test_monai_loads_the_network_from_anywhere(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", device="cpu")
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    expected = start(bundle, "inference").network_def
    expected.load_state_dict(shipped)
    state = network.state_dict()
    assert state.keys() == expected.state_dict().keys() >= shipped.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())
    if isinstance(network, ActivationNetwork):
        assert bool(network.filled.all())
    assert list(tmp_path.iterdir()) == []


def test_monai_verifies_the_metadata_offline(bundle, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(metadata_schema()), encoding="utf-8")
    monai.bundle.verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json")
    )


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_monai_verifies_what_goes_in_and_out(bundle, name):
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / name),
        device="cpu",
    )


def test_the_exported_network_gives_the_same_maps(bundle, tmp_path):
    exported = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        "network_def",
        filepath=str(exported),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )
    network = monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", device="cpu")
    image = torch.randn(2, network_channels(bundle), 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, maps = network.eval()(image), torch.jit.load(exported).eval()(image)
    assert torch.allclose(maps, expected, atol=1e-5)


def network_channels(bundle: Path) -> int:
    return read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]["num_channels"]


# ---- one setting, one home -------------------------------------------------------------------------------------------


def generator() -> Any:
    """The module that writes what the bundles have in common."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "bundles" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_bundles_have_in_common_is_as_generated():
    content = generator().generate()
    assert {path.parent.name if path.name == "LICENSE" else path.parent.parent.name for path in content} == {
        bundle.name for bundle in BUNDLES
    }
    differing = [str(path) for path, text in content.items() if path.read_text(encoding="utf-8") != text]
    assert not differing, "run `make bundles`"


MOST_LINES = {"train.json": 305, "inference.json": 155, "evaluate.json": 55, "multi_gpu_train.json": 30}
LONGER = {
    ("brain_mri_coingan_segmentation", "train.json"): 320,  # two players, each with its optimizer and schedule
    ("brain_mri_bmp_segmentation", "paper_voc.json"): 40,  # augmentation, normalization and inference of photographs
    ("brain_mri_bmp_segmentation", "paper_coco.json"): 55,  # the same, weights and warm-ups
    **{("brain_mri_bmp_segmentation", f"{name}_branches.json"): 50 for name in ("evaluate", "log")},
    **{  # both networks, both optimizers, range of intensities and decision
        (f"{data}_coingan_segmentation", "paper.json"): 65 for data in ("brain_mri", "chest_xray")
    },
    **{  # heat map and converted image, each with its writer
        (f"{data}_coingan_segmentation", name): most
        for data in ("brain_mri", "chest_xray")
        for name, most in {"evaluate.json": 85, "inference.json": 180}.items()
    },
    ("dermoscopy_cam_segmentation", "frozen.json"): 40,  # another dataset around another encoder
    **{
        ("dermoscopy_cosa_segmentation", f"{name}.json"): most
        for name, most in {
            "train": 310,  # a strong view beside the weak one
            "paper": 100,  # optimizer, schedule, views, normalization and inference of photographs
            "released": 100,
            "evaluate_branches": 50,  # what measures, and on what
            "log_branches": 50,
        }.items()
    },
    ("histology_gland_segmentation", "train.json"): 482,  # two stages, and the pseudo-masks between them
    ("histology_gland_segmentation", "paper.json"): 125,  # another input pipeline, both networks and optimizers
}


def test_configurations_stay_short(bundle):
    for path in sorted(set((bundle / "configs").glob("*.json")) - {bundle / "configs" / "metadata.json"}):
        most = LONGER.get((bundle.name, path.name), MOST_LINES.get(path.name, 30))
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= most, path.name
        assert not [line for line in lines if "'true'" in line or '"settings": "' in line]


def blocks(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary of a configuration, at any depth."""
    if isinstance(config, dict):
        yield config
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from blocks(part)


def test_random_transforms_run_where_it_is_told(bundle):
    config = read_json(bundle / "configs" / "train.json")
    assert config["transform_device"] == "cpu"
    datasets = [block for block in blocks(config) if block.get("_target_") == "monai_wsss.data.EpochCacheDataset"]
    assert datasets
    assert all(block["device"] == "@transform_device" for block in datasets)


def test_wrong_labels_are_those_of_training_alone_and_are_recorded(bundle, phantoms, tmp_path):
    config = read_json(bundle / "configs" / "train.json")
    records = [block for block in blocks(config["train"]) if block.get("_target_") == "monai_wsss.reports.RunRecord"]
    assert records
    assert all("@noise" in block["parts"] for block in records)
    folders = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    clean, noisy = (start(bundle, "train", label_noise=share, seed=1, **folders) for share in (0.0, 0.5))
    trained = "patches" if "patches" in config else "train_datalist"
    labels = [
        [np.asarray(item["label"]).tolist() for item in started.parser.get_parsed_content(trained)]
        for started in (clean, noisy)
    ]
    wrong = sum(one != other for one, other in zip(*labels, strict=True))
    assert wrong == round(0.5 * len(labels[0]))
    record = noisy.parser.get_parsed_content("noise").settings["label_noise"]
    assert (record["share"], record["seed"], record["lost"] + record["gained"]) == (0.5, 1, wrong)
    validated = [
        [np.asarray(item["label"]).tolist() for item in started.parser.get_parsed_content("val_datalist")]
        for started in (clean, noisy)
    ]
    assert validated[0] == validated[1]


def test_mixed_precision_follows_the_device_and_no_paper_uses_it(bundle):
    for name in ("train.json", "inference.json"):
        config = read_json(bundle / "configs" / name)
        parser = ConfigParser({"imports": ["$import torch"], "amp": config["amp"], "device": "cuda:0"})
        assert parser.get_parsed_content("amp") is True
        parser["device"] = "cpu"
        assert parser.get_parsed_content("amp") is False
        runs = [block for block in blocks(config) if str(block.get("_target_", "")).endswith(("Trainer", "Evaluator"))]
        assert runs
        assert all(block["amp"] == "@amp" for block in runs)
    for path in (bundle / "configs").glob("*.json"):
        config = read_json(path)
        published = path.stem in ("paper", "released") or config.get("preset") in ("paper", "released")
        assert not published or config["amp"] is False, path.name


WRONG = {
    "epoch": "`epoch` is no setting of this bundle: did you mean `epochs`?",
    "network_def#chanels": "`chanels` is no argument of `network_def`, which is ",
    "train#trainer#max_epoch": "`max_epoch` is no argument of `train#trainer`, which is monai_wsss.engines.WSSSTrainer",
    "evaluator#devise": "`devise` is no argument of `evaluator`, which is monai.engines.SupervisedEvaluator",
    "rule": "`rule` is now `to_mask#rule`: write --to_mask#rule",
}


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_name_that_it_does_not_have_is_refused_before_anything_is_written(
    bundle, workflow, phantoms, tmp_path, monkeypatch
):
    program = str(Path(monai.bundle.__file__).with_name("__main__.py"))
    files = str(configs(bundle, *WORKFLOWS[workflow][1]))
    places = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "out")}
    monkeypatch.chdir(tmp_path)
    for name, sentence in WRONG.items():
        if name.split("#")[0] in ("train", "evaluator") and (name[0] == "t") == (workflow == "inference"):
            continue
        monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", files, f"--{name}", "3"])
        with pytest.raises(SystemExit) as end:
            start(bundle, workflow, **places)
        assert sentence in str(end.value)
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", files, "--epochs", "3", "--split", "test"])
    start(bundle, workflow, **places)
    assert list(tmp_path.iterdir()) == []


# ---- inference and evaluation ----------------------------------------------------------------------------------------


def test_inference_writes_masks_in_the_geometry_of_the_studies(bundle, phantoms, kind, tmp_path):
    output = run(bundle, "inference", tmp_path / "out", phantoms, views="none")
    case, *_ = load_datalist(phantoms / "datalist.json", "test")
    if kind != "brain":
        picture, mask = Image.open(case["image"]), Image.open(output / "masks" / f"{case['id']}.png")
        assert mask.size == picture.size
        assert set(np.unique(np.asarray(mask))) <= MASK_VALUES[kind]
    else:
        study = nibabel.load(case["image"] if isinstance(case["image"], str) else case["image"][0])
        mask = nibabel.load(output / "masks" / f"{case['id']}.nii.gz")
        assert mask.shape == study.shape
        assert np.allclose(mask.affine, study.affine)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= MASK_VALUES[kind]
    row, *_ = read_rows(output / "predictions.csv")
    assert row["id"] == case["id"]
    assert (output / row["mask"]).is_file()
    record = read_json(output / "run.json")
    assert record["weights_sha256"] == fingerprint(bundle)["models/model.pt"]
    assert record["datalist_sha256"] == fingerprint(phantoms)["datalist.json"]


def test_a_missing_modality_is_replaced_on_request_alone(bundle, modalities, kind, tmp_path):
    if len(modalities) < 2 or kind != "brain":
        pytest.skip("one modality, or color, cannot stand in for another")
    data = Path(make_phantoms(tmp_path / "data", modalities=modalities[1:], subjects=(0, 0, 1)))
    with pytest.raises(RuntimeError) as error:
        run(bundle, "inference", tmp_path / "refused", data, views="none")
    assert f"lacks the modality {modalities[0]}" in str(error.value.__cause__)
    stand_in = {modalities[0]: modalities[-1]}
    output = run(bundle, "inference", tmp_path / "out", data, views="none", replace_missing=stand_in)
    assert read_json(output / "run.json")["config"]["replace_missing"] == stand_in
    assert len(list((output / "masks").iterdir())) == 1


@pytest.fixture(scope="module")
def evaluation(bundle: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an evaluation with the shipped weights."""
    return run(bundle, "evaluate", tmp_path_factory.mktemp("evaluation") / "out", phantoms, views="none")


def test_evaluation_fills_the_run_folder(evaluation, phantoms, bundle, modalities, kind):
    assert {"metrics.csv", "run.json", "metrics.json", "per_case.csv", "per_subject.csv", "masks", "report.html"} <= {
        path.name for path in evaluation.iterdir()
    }
    cases = load_datalist(phantoms / "datalist.json", "validation")
    assert [row["id"] for row in read_rows(evaluation / "per_case.csv")] == [case["id"] for case in cases]
    assert {row["subject"] for row in read_rows(evaluation / "per_subject.csv")} == {case["subject"] for case in cases}
    assert len(list((evaluation / "masks").iterdir())) == len(cases)
    record = read_json(evaluation / "run.json")
    assert supervision(record) == SUPERVISION.get(kind, [])
    told = {"bundle": bundle.name, "split": "validation", "views": "none", "modalities": modalities}
    presets = {"bmp": "scratch", "cosa": "default", "cmer": "default", "gland": "default"}
    presets |= {"coingan": "default"}
    told |= next(({"preset": preset} for part, preset in presets.items() if part in bundle.name), {})
    assert told.items() <= record["config"].items()
    assert {"rule", "gate", "refine"} <= record["config"].keys()


def test_masks_are_refined_on_request(evaluation, phantoms, bundle, tmp_path):
    """One override does it or undoes it, the record tells of it, and presence stays that of the raw maps."""
    default = read_json(bundle / "configs" / "train.json")["refine"]
    other = {"none": "par", "par": "none"}[default]
    words = {"views": "none", "refine": other}
    if bundle.name == "brain_mri_coingan_segmentation":  # where the gate lets no phantom pass
        words["to_mask#gate"] = "none"
        evaluation = run(bundle, "evaluate", tmp_path / "ungated", phantoms, **{**words, "refine": default})
    changed = run(bundle, "evaluate", tmp_path / "changed", phantoms, **words)
    outputs = (evaluation, changed) if default == "none" else (changed, evaluation)
    plain, told = (read_json(output / "run.json")["config"]["refine"] for output in outputs)
    assert plain == "none"
    assert {"part": "PixelAdaptiveRefinement", "row_stochastic": True, "spatial_dims": 2}.items() <= told.items()
    before, after = (read_json(output / "metrics.json") for output in outputs)
    assert before["accuracy"]["mean"] != after["accuracy"]["mean"]
    assert before.get("presence_auroc") == after.get("presence_auroc")


def test_both_metric_files_say_the_same(evaluation, bundle, kind):
    metrics = read_json(evaluation / "metrics.json")
    listed = dict(line.split(",") for line in (evaluation / "metrics.csv").read_text(encoding="utf-8").splitlines())
    # Among images of skin, none is healthy.
    expected = {"dice_subject", "miou_pooled" if kind in PATCHES else "healthy_clean"}
    if kind not in PATCHES and start(bundle, "inference").network_def.output_kind == "activation":
        expected.add("presence_auroc")  # a segmenter has no logit of the whole image
    assert expected <= metrics.keys()
    for name, value in metrics.items():
        assert float(listed[name]) == pytest.approx(value["mean"])
        assert value["ci95"][0] <= value["ci95"][1]


def test_what_metadata_states_is_measured(evaluation, bundle):
    stated = read_json(bundle / "configs" / "metadata.json")["eval_metrics"]
    assert "phantom" in stated
    for block in stated.values():
        assert block.keys() <= read_json(evaluation / "metrics.json").keys()


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(bundle: Path, phantoms: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one epoch of training."""
    return run(bundle, "train", tmp_path_factory.mktemp("training") / "out", phantoms, **quick)


def test_training_writes_a_checkpoint_and_the_network(training, bundle, phantoms, kind):
    (checkpoint,) = (training / "checkpoints").iterdir()
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    network = start(bundle, "inference").network_def
    network.load_state_dict(torch.load(training / "model.pt", weights_only=True))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
    if isinstance(network, ActivationNetwork):
        assert bool(torch.isfinite(network.negative_reference).all())
    (row,) = read_rows(training / "training_log.csv")
    assert float(row["loss"]) > 0
    assert all(float(row[name]) > 0 for name in ("c2s", "auxiliary_c2s", "s2c", "affinity") if name in row)
    assert "val_dice_subject" in row
    record = read_json(training / "run.json")
    assert record["weights_sha256"] is None
    assert supervision(record) == SUPERVISION.get(kind, [])
    read = ("xy", "SI", "LP") if kind == "brain" else ("rows_columns", None, None)
    assert tuple(record["reading"].values()) == read
    assert recorded_reading(network) == record["reading"]
    evaluator = start(bundle, "inference", ckpt_dir=str(training), dataset_dir=str(phantoms)).parser
    assert evaluator.get_parsed_content("preprocessing").transforms[0].order == read[0]
    assert record["encoder_weights"]["pretrained"] == ("imagenet" if kind in ("skin", "gland") else "none")
    told = {"epochs": 1, "batch_size": 32, "optimizer": "AdamW", "learning_rate": 0.001, "lr_scheduler": "OneCycleLR"}
    if "coingan" in bundle.name:
        adam, players = (
            {"optimizer": "Adam", "learning_rate": 0.0005, "weight_decay": 0},
            ("generator", "discriminator"),
        )
        told = {"batch_size": 8, "method": "CoinGAN", "preset": "default"}
        told |= {"optimizers": dict.fromkeys(players, adam), "lr_schedulers": dict.fromkeys(players, "PolynomialLR")}
        assert all(f"generator/{name}" in row for name in ("identity", "difference_ratio", "gate_open"))
    own: dict[str, dict[str, Any]] = {
        "bmp": {"batch_size": 16, "method": "BMP"},
        "gland": {"learning_rate": [0.0003, 0.002]},
        "cosa": {"learning_rate": [0.0003, 0.002], "method": "CoSA", "preset": "default"},
        "dermoscopy": {"learning_rate": [0.0003, 0.002], "encoder": "EfficientNetLite"},
    }
    told |= next((changes for part, changes in own.items() if part in bundle.name), {})
    told |= {"label_noise": {"share": 0.0}}
    assert told.items() <= record["config"].items()


def curves(output: Path) -> list[set[str]]:
    """The names of the curves in each TensorBoard file that holds any."""
    tags = [set(EventAccumulator(str(path)).Reload().Tags()["scalars"]) for path in output.glob("events.*")]
    return [names for names in tags if names]


def test_tensorboard_shows_loss_and_validation(training):
    names = set().union(*curves(training))
    assert any("loss" in name for name in names), names
    assert "val_dice_subject" in names


def test_training_never_reads_masks_and_repeats_itself(bundle, training, phantoms, quick, tmp_path):
    """Without any mask of the training split the same seed gives the same losses and, bit for bit, the same weights."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    masks = [case["mask"] for case in load_datalist(data / "datalist.json", "training", masks=True)]
    assert masks
    for mask in masks:
        os.remove(mask)
    again = run(bundle, "train", tmp_path / "again", data, **quick)
    assert (again / "training_log.csv").read_text(encoding="utf-8") == (training / "training_log.csv").read_text(
        encoding="utf-8"
    )
    assert same_weights(again / "model.pt", training / "model.pt")


# ---- the README's commands -------------------------------------------------------------------------------------------

OFFLINE_SITE = """
import socket

connect = socket.socket.connect


def local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost", socket.gethostname()):
        raise OSError(f"offline: no connection to {address}")
    return connect(self, address)


socket.socket.connect = local_only
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One thread, no GPU, no network but this machine's own."""
    site = tmp_path_factory.mktemp("offline")
    (site / "sitecustomize.py").write_text(OFFLINE_SITE, encoding="utf-8")
    search_path = os.pathsep.join([str(site), str(ROOT)])
    return {**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(*config_files: str, **overrides: Any) -> list[str]:
    """``python -m monai.bundle run`` with several configurations and overrides."""
    flags = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(list(config_files)), *flags]


def call(words: list[str], environment: dict[str, str], cwd: Path) -> str:
    """Run a command to its end, which must be a good one; returns what it printed."""
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_as_the_other(bundle, phantoms, quick, environment, tmp_path):
    three = {**quick, "epochs": 3, "val_interval": 2}
    places = {"bundle_root": bundle, "dataset_dir": phantoms, "output_dir": tmp_path / "killed", "device": "cpu"}
    words = command(*configs(bundle, "train.json"), **places, **three)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = fingerprint(bundle), fingerprint(phantoms)
    with subprocess.Popen(
        words, cwd=elsewhere, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        first = tmp_path / "killed" / "checkpoints" / "epoch_0001.pt"
        deadline = time.monotonic() + 300
        while not first.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    printed = call([*words, "--resume", "true"], environment, elsewhere)
    assert "after epoch" in printed
    # It writes where it is told to, and nowhere else.
    assert list(elsewhere.iterdir()) == []
    assert (fingerprint(bundle), fingerprint(phantoms)) == before
    written = {path.name for path in (tmp_path / "killed").iterdir()}
    assert written >= {"checkpoints", "model.pt", "run.json", "training_log.csv"}
    # In this process, without interruption and with as many threads, the same workflow trains to the same bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(bundle, "train", tmp_path / "whole", phantoms, **three)
    finally:
        torch.set_num_threads(threads)
    logs = [(folder / "training_log.csv").read_text(encoding="utf-8") for folder in (tmp_path / "killed", whole)]
    assert logs[0] == logs[1]
    assert same_weights(tmp_path / "killed" / "model.pt", whole / "model.pt")


@pytest.mark.slow
def test_two_processes_train_together(bundle, phantoms, quick, kind, environment, tmp_path):
    single = command(
        *configs(bundle, "train.json", "multi_gpu_train.json"),
        bundle_root=bundle,
        dataset_dir=phantoms,
        output_dir=tmp_path / "out",
        **{**quick, "epochs": 2},
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    printed = call([*launcher, *single[1:]], environment, tmp_path)
    assert printed.count("Wrote the deployable network") == (2 if kind == "gland" else 1)  # of two stages, of one
    output = tmp_path / "out"
    assert [row["epoch"] for row in read_rows(output / "training_log.csv")] == ["1", "2"]
    assert len(curves(output)) <= 2  # one for training, one for validation, all of one process
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["epoch_0001.pt", "epoch_0002.pt"]
    state = torch.load(output / "model.pt", weights_only=True)
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert entries(state) == entries(shipped)  # no prefix of the wrapper
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.fixture
def best_threshold(bundle: Path, phantoms: Path, kind: str, tmp_path: Path) -> Any:
    """The best that a threshold on one channel can do, chosen with the masks: the trivial reference."""

    def score(pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> float:
        """Dice, mean over subjects; of glands the mean IoU of both classes over all pixels."""
        if kind == "gland":
            found, truth = (np.concatenate([np.ravel(p[n]) for ps in pairs.values() for p in ps]) for n in (0, 1))
            return float(np.mean([(f & t).sum() / (f | t).sum() for f, t in ((found, truth), (~found, ~truth))]))
        dice = []
        for slices in pairs.values():
            found, truth = (np.stack([pair[number] for pair in slices]) for number in (0, 1))
            if truth.any():
                dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        return float(np.mean(dice))

    def best(dataset_dir: Path) -> float:
        started = start(bundle, "evaluate", dataset_dir=str(dataset_dir), output_dir=str(tmp_path / "unused"))
        items = [
            (item["subject"], np.asarray(item["image"]), np.asarray(item["mask"])[0] == 1)
            for item in started.parser.get_parsed_content("validate#dataset")
        ]
        scores = []
        for channel in range(items[0][1].shape[0]):
            lowest, highest = (-1, 1) if "coingan" in bundle.name else (0, 255) if kind == "skin" else (-2, 4)
            for threshold in np.linspace(lowest, highest, 25):
                for sign in (1,) if kind == "brain" else (1, -1):
                    pairs: dict[str, list[Any]] = {}
                    for subject, image, truth in items:
                        pairs.setdefault(subject, []).append((sign * image[channel] > sign * threshold, truth))
                    scores.append(score(pairs))
        return max(scores)

    return best


WANTED = {
    "brain": ("dice_subject", 0.2, 0.5),
    # The shipped weights of glands reach 0.79 on phantoms, the best threshold 0.42.
    "gland": ("miou_pooled", 0.05, 0.45),
    # The shipped weights of X-rays reach 0.74 on phantoms, Otsu's threshold 0.12.
    "chest": ("dice_subject", 0.15, 0.4),
    # Lesions of skin are dark: a threshold finds most of each.
    "skin": ("dice_subject", 0.03, 0.85),
}
"""Kind of the phantoms -> metric of a short training, how far it lies above the best trivial answer, and its least."""

SHORT = 8
"""Epochs that suffice to beat trivial rules by far: the default number would take the tests a quarter of an hour."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch .* the branches do not teach each other")
def test_a_short_training_beats_no_training_and_trivial_rules(bundle, drawing, best_threshold, kind, tmp_path):
    if bundle.name == "brain_mri_coingan_segmentation":
        pytest.skip(
            "its README says that on phantoms not even the shipped weights, of a longer training, beat trivial rules"
        )
    metric, margin, least = WANTED[kind]
    more: dict[str, Any] = {"subjects": (160, 16, 1)} if kind == "chest" else {}
    data = Path(make_phantoms(tmp_path / "phantoms", **drawing, **more))
    # Smaller networks where the default ones would take minutes.  Narrow ones learn at a higher rate.
    narrow: dict[str, Any] = {}
    small: dict[str, Any] = {}
    few: dict[str, Any] = {
        "train_datalist": "$monai_wsss.data.load_datalist(@datalist, 'training', modalities=@modalities)[::4]"
    }
    epochs = SHORT
    if "cosa" in bundle.name:
        # Its first steps train the classifier alone; unrefined, 160 of them had a Dice of 0.81.
        epochs, small, few, narrow = 8, {"samples": 160, "batch_size": 8}, {"samples": 64}, {"refine": "par"}
    elif "coingan" in bundle.name:
        epochs, few = 20, {"pairs": 8, "discriminator_rate": 1e-12}  # 400 steps
    elif kind == "skin":
        epochs, few = 3, {"samples": 64}  # ImageNet's weights learn the tiles of 16 images by heart soon after
    elif kind == "gland":
        epochs, small, few = 6, {"samples": 320}, {"samples": 64, "encoder_learning_rate": 1e-12}
    elif "cmer" in bundle.name:
        narrow, small = {"network_def#width": 8}, {"learning_rate": 0.004}
    elif "bmp" in bundle.name:
        epochs = 20  # the default: the segmentation learns in the second half alone
        encoder = {"_target_": "monai_wsss.networks.ConvPyramid", "width": 8, "strides": [1, 2, 2, 1]}
        narrow, small = {"network_def#encoder": {**encoder, "in_channels": 3}}, {"learning_rate": 0.002}
    elif "cam" in bundle.name:
        narrow = {"network_def#members": 1}

    def quality(output: str, **overrides: Any) -> float:
        trained = run(bundle, "train", tmp_path / output, data, **narrow, **overrides)
        options = {"ckpt_dir": str(trained), "views": "none", **narrow}
        scores = run(bundle, "evaluate", tmp_path / f"{output}_scores", data, **options)
        return read_json(scores / "metrics.json")[metric]["mean"]

    trained = quality("trained", epochs=epochs, val_interval=epochs, **small)
    # One epoch at a rate of nothing: initial weights whose normalization and healthy level are fitted to the data.
    untrained = quality("untrained", epochs=1, val_interval=1, learning_rate=1e-12, **few)
    trivial = best_threshold(data)
    assert trained > max(untrained, trivial) + margin
    assert trained > least
    assert not same_weights(tmp_path / "trained" / "model.pt", tmp_path / "untrained" / "model.pt")


PREPARE = {
    "glas_gland": prepare_glas,
    "ph2_dermoscopy": partial(prepare_cases, longest_side=256, tiles=64, labels_from_masks=True),
}
"""Real data -> how its README prepares it; the other is prepared as cases."""


@pytest.mark.slow
@pytest.mark.skipif("WSSS_DATA" not in os.environ, reason="WSSS_DATA does not point to the folder with the real data")
def test_real_data_gives_the_stated_metrics(bundle, tmp_path):
    stated = read_json(bundle / "configs" / "metadata.json")["eval_metrics"]
    blocks = stated.keys() - {"phantom"}
    if bundle.name == "chest_xray_coingan_segmentation":
        assert not blocks
        pytest.skip("its README says that the shipped weights have seen phantoms alone")
    assert blocks, "the metadata states no metric on real data"
    for block in blocks:
        prepare = PREPARE.get(block, prepare_cases)
        data = Path(prepare(Path(os.environ["WSSS_DATA"]) / block, tmp_path / block)).parent
        output = run(bundle, "evaluate", tmp_path / f"{block}_scores", data, split="validation")
        measured = read_json(output / "metrics.json")
        for name, value in stated[block].items():
            assert measured[name]["mean"] == pytest.approx(value, abs=1e-3), (block, name)
