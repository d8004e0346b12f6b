# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss train``: the bundle's own run, more steps for few images, and a verdict without masks."""

from __future__ import annotations

import json
import logging
import shlex
import shutil

import numpy as np
import pytest
import torch
from monai.apps import get_logger
from monai.bundle import ConfigWorkflow

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.bundle_run import TRAINING_METHODS, TrainingInterrupted, choose_method, find_bundle, train_bundle
from monai_wsss.bundle_run.verdict import judge, mask_metrics
from monai_wsss.command_line.table import COMMANDS

CAM = "brain_mri_cam_segmentation"


def test_the_run_is_that_of_the_bundle_and_can_be_predicted_with(brains, tmp_path, capsys):
    out = tmp_path / "run"
    code = main(["train", str(brains), "--out", str(out), "--epochs", "1", "--device", "cpu"])
    printed = capsys.readouterr()
    assert code == 3
    assert "did not learn (" in printed.out
    assert "Take --epochs" in printed.out
    assert f"--weights {out}" in printed.out
    assert "Method cam (brain_mri_cam_segmentation): MRI of one class: plain CAM" in printed.err
    assert "Logging file" not in printed.err
    assert "nvImageCodec" not in printed.err

    told = next(line for line in printed.err.splitlines() if "python -m monai.bundle run" in line)
    words = shlex.split(told.partition("python -m monai.bundle run ")[2])
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    config = options.pop("config_file")
    whole = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    workflow = ConfigWorkflow(
        config, workflow_type="train", logging_file=False, **whole | {"output_dir": str(tmp_path / "same")}
    )
    workflow.initialize()
    workflow.run()
    states = [torch.load(folder / "model.pt", weights_only=True) for folder in (out, tmp_path / "same")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    images = shutil.copytree(brains / "images", tmp_path / "new")
    for path in images.glob("*.png"):
        path.unlink()
    predict = shlex.split(next(line for line in printed.out.splitlines() if "monai-wsss predict" in line))[1:]
    filled = [{"IMAGES": str(images), "MASKS": str(tmp_path / "masks")}.get(word, word) for word in predict]
    assert main([*filled, "--device", "cpu"]) in (0, 3)
    assert (tmp_path / "masks" / "predictions.csv").is_file()


def test_what_no_mask_tells_is_not_logged():
    from monai_wsss.bundle_run.training import _without_tracebacks  # the filter, without a training

    logger, told = get_logger("monai.handlers.StatsHandler"), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with _without_tracebacks():
            logger.info("Epoch[5] Metrics -- accuracy: 0.9173 val_dice_subject: nan presence_auroc: 0.9850 ")
            logger.info("Key metric: val_dice_subject best value: nan at epoch: 5")
            logger.info("Key metric: val_dice_subject best value: 0.5 at epoch: 5")
    finally:
        logger.removeHandler(handler)
    assert told == [
        "Epoch[5] Metrics -- accuracy: 0.9173 presence_auroc: 0.9850 ",
        "Key metric: val_dice_subject best value: 0.5 at epoch: 5",
    ]


def test_few_images_get_enough_steps_and_the_last_epoch_is_validated():
    from monai_wsss.bundle_run.training import _length  # the numbers, without their training

    config = find_bundle(CAM).config("train")
    for images in (28, 100, 450, 3000):
        length = _length(config, images, None, None)
        epochs, interval = length.get("epochs", config["epochs"]), length.get("val_interval", config["val_interval"])
        assert epochs * -(-images // config["batch_size"]) >= 300
        assert epochs % interval == 0
    assert _length(config, 3000, None, None) == {}
    assert _length(config, 28, 7, None) == {"epochs": 7, "val_interval": 1}
    assert _length(config, 64, None, 10)["epochs"] == 5


def test_masks_are_judged_without_references():
    labels = [np.array([True, False]), np.array([False, False]), np.array([True, True])]
    areas = [np.array([0.2, 0.0]), np.array([0.0, 0.0]), np.array([0.1, 0.0])]
    measured = mask_metrics(labels, areas)
    assert measured["found"] == pytest.approx(2 / 3)
    assert measured["area_auroc"] == pytest.approx(0.75)
    assert np.isnan(mask_metrics(labels[1:2], areas[1:2])["found"])
    assert mask_metrics([], []) == {}


def test_mistakes_are_told_in_one_sentence(brains, tmp_path, capsys):
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "is no prepared folder" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"`steps` to be 1 or more, got 0"):
        train_bundle(brains, tmp_path / "run", steps=0)
    with pytest.raises(DataError, match="holds data"):
        train_bundle(brains, brains, device="cpu")
    with pytest.raises(DataError, match="Expected `device` to be one of cpu"):
        train_bundle(brains, tmp_path / "run", device="nowhere")
    with pytest.raises(DataError, match="patches that are tagged with 2 tissues"):
        train_bundle(brains, tmp_path / "run", method="gland")
    tissue = json.loads((brains / "datalist.json").read_text(encoding="utf-8"))
    tissue |= {"background": False, "scored_class": tissue["classes"][0]}
    (tmp_path / "datalist.json").write_text(json.dumps(tissue), encoding="utf-8")
    with pytest.raises(DataError, match="take --method gland"):
        train_bundle(tmp_path / "datalist.json", tmp_path / "run", method="cam")
    with pytest.raises(DataError, match="give one of them"):
        train_bundle(brains, tmp_path / "run", epochs=1, steps=2)
    assert main(["train", str(brains), "--out", str(tmp_path / "run"), "--set", "epoch=3"]) == 1
    assert "epochs" in capsys.readouterr().err
    assert main(["train", str(brains), "--out", str(tmp_path / "run"), "--set", "split=nowhere", "--epochs", "1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert not (tmp_path / "run" / "model.pt").exists()


def test_stopping_says_how_to_go_on(brains, tmp_path, monkeypatch, capsys):
    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ConfigWorkflow, "run", stopped)
    with pytest.raises(TrainingInterrupted, match="no epoch was finished"):
        train_bundle(brains, tmp_path / "run", epochs=1, device="cpu")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "epoch_1.pt").touch()
    assert main(["train", str(brains), "--out", str(tmp_path / "run"), "--epochs", "1", "--device", "cpu"]) == 130
    assert "--resume to go on" in capsys.readouterr().err


def test_steps_count_the_batches_of_the_settings():
    from monai_wsss.bundle_run.training import _length  # the numbers, without their training

    config = find_bundle(CAM).config("train")
    assert _length({**config, "batch_size": 4}, 64, None, 32)["epochs"] == 2


def test_the_method_follows_the_data():
    assert choose_method({"classes": ["a", "b"], "background": False})[0] == "gland"
    assert choose_method({"classes": ["lesion"], "tiles": {}}, [[1], [0]])[0] == "cam"
    mri = {"classes": ["tumor"], "modality": {"0": "T1", "1": "FLAIR"}}
    method, reason = choose_method(mri, [[1], [0]])
    assert method == "cam"
    assert reason.startswith(
        "MRI of one class: plain CAM, the simplest, measured from some 450 images on, and these are 2"
    )
    assert "BMP was below it in tables of their own, and above it side by side" in reason
    assert "CMER is for studies that lack a sequence" in reason
    assert "CoinGAN is not for a first try" in choose_method({"classes": ["opacity"]}, [[1], [0]])[1]
    colors = {"classes": ["cat", "dog"], "modality": {"0": "red", "1": "green", "2": "blue"}}
    many = [[1, 0], [0, 1]] * 5000
    assert [choose_method(colors, many, gpu=gpu)[0] for gpu in (True, False)] == ["cosa", "cam"]
    with pytest.raises(DataError, match="All 3 training images show tumor"):
        choose_method(mri, [[1]] * 3)
    with pytest.raises(DataError, match="occur together in 99% of the 99 training images"):
        choose_method(colors, [[1, 1]] * 98 + [[1, 0], [0, 0]])
    (command,) = [command for command in COMMANDS if command.name == "train"]
    (method,) = [argument for argument in command.arguments if argument.name == "method"]
    assert method.choices == TRAINING_METHODS


@pytest.mark.parametrize(
    ("metrics", "collapse", "learned", "told"),
    [
        ({"presence_auroc": 0.93, "healthy_clean": 0.9, "dice_subject": 0.0}, [], True, "90% of the healthy"),
        ({"presence_auroc": 0.93, "healthy_clean": 0.0, "dice_subject": 0.9}, [], False, "0% of the healthy"),
        ({"presence_auroc": 0.5}, [], False, "presence AUROC 0.50"),
        ({"presence_auroc": 0.9}, ["maps of positive images are all foreground."], False, "all foreground. Take"),
        ({"presence_auroc": 0.9, "found": 0.0}, [], False, "a mask in 0% of the images with a finding"),
        ({"healthy_clean": 1.0, "found": 0.0, "area_auroc": 0.5}, [], False, "0.50, by the area of the masks"),
        ({"healthy_clean": 0.9, "found": 0.8, "area_auroc": 0.9}, [], True, "0.90, by the area of the masks"),
        ({"healthy_clean": 0.9}, [], None, "not known"),
        ({"presence_auroc": float("nan")}, [], None, "not known"),
        ({}, [], None, "not known"),
    ],
)
def test_the_verdict_asks_image_level_labels_alone(metrics, collapse, learned, told):
    verdict = judge(metrics, collapse, images=28, steps=20, epochs=20)
    assert verdict.learned is learned
    assert told in verdict.sentence


@pytest.mark.parametrize("header", [{}, {"classes": []}, {"classes": 3}])
def test_a_header_without_classes_is_refused(header):
    with pytest.raises(ValueError, match="Expected `header` to list its `classes`"):
        choose_method(header)
