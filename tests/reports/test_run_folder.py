# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""An evaluation and an inference on phantoms end in whole run folders."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged
from torch import nn

from monai_wsss._files import file_sha256
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.engines import SegmentationScores, save_weights
from monai_wsss.inferers import VolumeInferer
from monai_wsss.networks import ActivationNetwork
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import InferenceLog, RunFolder
from monai_wsss.transforms import NormalizeSubjectd, SaveMaskd


class Bright(ActivationNetwork):
    """Sees a finding where the one sequence is brighter than 1.5 standard deviations."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.head = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.head.weight)
        nn.init.constant_(self.head.bias, -1.5)
        self.negative_reference.fill_(-1.5)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("phantoms"), modalities=["FLAIR"], subjects=(0, 2, 1))


def evaluate(phantoms, split, output_dir, handlers, *, masks, scores=None):
    network = Bright()
    keys = ["image", "mask"]
    items = load_datalist(f"{phantoms}/datalist.json", split, masks=masks)
    read = Compose([LoadImaged(keys, ensure_channel_first=True, allow_missing_keys=True), NormalizeSubjectd("image")])
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, read), batch_size=1),
        network=network,
        inferer=VolumeInferer(),
        postprocessing=Compose([ToMaskd("pred", network), SaveMaskd("pred", output_dir)]),
        key_val_metric={"val_dice_subject": scores} if scores else None,
        val_handlers=handlers,
    ).run()
    return items


def test_an_evaluation_fills_the_run_folder(phantoms, tmp_path):
    datalist = f"{phantoms}/datalist.json"
    weights = tmp_path / "model.pt"
    save_weights(weights, Bright())
    (tmp_path / "training_log.csv").write_text("epoch,loss\n1,0.5\n")
    run = tmp_path / "run"
    scores = SegmentationScores(datalist, bootstrap=50)
    folder = RunFolder(
        run,
        datalist,
        scores,
        weights=weights,
        seed=7,
        settings={"modalities": ["FLAIR"], "replace_missing": {"T1": "FLAIR"}},
        training_dir=tmp_path,
    )
    items = evaluate(phantoms, "validation", run, [folder], masks=True, scores=scores)

    with open(run / "per_case.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [item["id"] for item in items]
    assert len(list((run / "masks").iterdir())) == len(list((run / "panels").iterdir())) == len(items)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dice_subject"]["mean"] == pytest.approx(scores.summary["dice_subject"]["mean"])
    assert {"dice_pooled", "assd_px", "healthy_clean", "presence_auroc", "r_under", "r_over"} <= set(metrics)
    record = json.loads((run / "run.json").read_text())
    assert record["weights_sha256"] == file_sha256(weights)
    assert record["uses_masks"] == []
    assert record["config"]["replace_missing"] == {"T1": "FLAIR"}
    assert record["seed"] == 7
    assert (run / "training_log.csv").read_text() == "epoch,loss\n1,0.5\n"
    report = (run / "report.html").read_text()
    assert items[0]["id"] not in report, "a report names no case"
    assert "http" + "://" not in report.replace("http://www.w3.org", "")


def test_an_inference_lists_its_masks_with_volumes(phantoms, tmp_path):
    log = InferenceLog(tmp_path, f"{phantoms}/datalist.json", settings={"split": "test"})
    (item,) = evaluate(phantoms, "test", tmp_path, [log], masks=False)
    with open(tmp_path / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    mask = nibabel.load(tmp_path / row["mask"])
    source = nibabel.load(item["image"])
    np.testing.assert_allclose(mask.affine, source.affine)
    assert mask.shape == source.shape
    milliliters = np.asanyarray(mask.dataobj).sum() * np.prod(mask.header.get_zooms()) / 1000
    assert float(row["tumor_ml"]) == pytest.approx(milliliters, rel=1e-3)
    assert float(row["tumor_presence_logit"]) > 0
    assert json.loads((tmp_path / "run.json").read_text())["weights_sha256"] is None


def test_without_any_mask_presence_is_all_that_is_measured(phantoms, tmp_path, caplog):
    datalist = f"{phantoms}/datalist.json"
    scores = SegmentationScores(datalist, bootstrap=20)
    run = RunFolder(tmp_path, datalist, scores)
    evaluate(phantoms, "validation", tmp_path, [run], masks=False, scores=scores)
    assert "No reference mask of a positive image in this split" in caplog.text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "dice_subject" not in metrics
    assert {"presence_auroc", "healthy_clean"} <= set(metrics)
    assert (tmp_path / "report.html").is_file()
