# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""An evaluation and an inference on phantoms end in whole run folders."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss._files import file_sha256
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.engines import SegmentationScores, save_weights
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import ClassActivationMapping, FullSupervision
from monai_wsss.networks import ActivationNetwork, load_encoder_weights, record_reading
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import InferenceLog, RunFolder, RunRecord, run_folder, write_report
from monai_wsss.transforms import NormalizeSubjectd, SaveImageMaskd


class Bright(ActivationNetwork):
    """Sees a finding where the one sequence is brighter than 1.5 standard deviations."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.head = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.head.weight)
        nn.init.constant_(self.head.bias, -1.5)
        self.set_healthy_level(-1.5, -1.5)

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
        postprocessing=Compose([ToMaskd("pred", network), SaveImageMaskd("pred", output_dir)]),
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
        settings={"bundle": "a_bundle"},
        modalities=["FLAIR"],
        replace_missing={"T1": "FLAIR"},
        training_dir=tmp_path,
        uses_masks=[],
    )
    items = evaluate(phantoms, "validation", run, [folder], masks=True, scores=scores)

    with open(run / "per_case.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [item["id"] for item in items]
    assert len(list((run / "masks").iterdir())) == len(list((run / "panels").iterdir())) == len(items)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["dice_subject"]["mean"] == pytest.approx(scores.summary["dice_subject"]["mean"])
    assert {"dice_pooled", "assd_px", "healthy_clean", "presence_auroc", "r_under", "r_over"} <= set(metrics)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == file_sha256(weights)
    assert record["uses_masks"] == []
    assert record["config"] == {
        "bundle": "a_bundle",
        "modalities": ["FLAIR"],
        "replace_missing": {"T1": "FLAIR"},
        **{"grid": None, "views": "none", "scales": [1.0], "amp": False},
    }
    assert record["seed"] == 7
    assert (run / "training_log.csv").read_text(encoding="utf-8") == "epoch,loss\n1,0.5\n"
    report = (run / "report.html").read_text(encoding="utf-8")
    assert items[0]["id"] not in report, "a report names no case"
    assert "http" + "://" not in report.replace("http://www.w3.org", "")


def test_an_inference_lists_its_masks_with_volumes(phantoms, tmp_path):
    log = InferenceLog(tmp_path, f"{phantoms}/datalist.json", split="test")
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
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] is None
    assert record["uses_masks"] is None
    assert row["replaced"] == ""


def test_without_any_mask_presence_is_all_that_is_measured(phantoms, tmp_path, caplog):
    datalist = f"{phantoms}/datalist.json"
    scores = SegmentationScores(datalist, bootstrap=20)
    run = RunFolder(tmp_path, datalist, scores)
    evaluate(phantoms, "validation", tmp_path, [run], masks=False, scores=scores)
    assert "No reference mask of a positive image in this split" in caplog.text
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert "dice_subject" not in metrics
    assert {"presence_auroc", "healthy_clean"} <= set(metrics)
    assert "dice_pooled" not in metrics, "healthy images alone have no overlap"
    assert (tmp_path / "report.html").is_file()


# ---- what read pixel masks -------------------------------------------------------------------------------------------


def started(record, core=None, network=None):
    """``run.json`` of a record whose engine started, and nothing more."""
    engine = Engine(lambda *_: None)
    if network is not None:
        engine.network = network
    if core is not None:
        engine.core = core
    record.attach(engine)
    engine.fire_event(Events.STARTED)
    return json.loads((record.output_dir / "run.json").read_text(encoding="utf-8"))


@pytest.fixture
def datalist(phantoms):
    return f"{phantoms}/datalist.json"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (FullSupervision, "training by FullSupervision"),
        (ClassActivationMapping, "image-level labels"),
    ],
)
def test_an_evaluation_says_what_its_training_recorded(method, words, datalist, tmp_path):
    training = started(RunRecord(tmp_path / "training", datalist), core=method.tiny())
    assert bool(training["uses_masks"]) is method.uses_masks
    weights = tmp_path / "training" / "model.pt"
    weights.write_bytes(b"weights")
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(b"weights")
    scores = SegmentationScores(datalist)
    for number, record in enumerate(
        (
            RunFolder(tmp_path / "0", datalist, scores, weights=weights),
            RunFolder(tmp_path / "1", datalist, scores, weights=elsewhere, training_dir=weights.parent),
            InferenceLog(tmp_path / "2", datalist, weights=weights),
            RunFolder(tmp_path / "training", datalist, scores, weights=weights),
            RunFolder(tmp_path / "training", datalist, scores, weights=weights),  # reads the one before
        )
    ):
        assert started(record)["uses_masks"] == training["uses_masks"], number
        assert words in write_report(record.output_dir).read_text(encoding="utf-8")


def test_the_published_weights_that_a_training_began_with_are_recorded_and_taken_over(datalist, tmp_path):
    method = ClassActivationMapping.tiny()
    assert started(RunRecord(tmp_path / "silent", datalist), core=method)["encoder_weights"] is None
    record = load_encoder_weights(method.network, "none")
    weights = tmp_path / "training" / "model.pt"
    assert started(RunRecord(weights.parent, datalist), core=method)["encoder_weights"] == record
    weights.write_bytes(b"weights")
    assert started(InferenceLog(tmp_path / "masks", datalist, weights=weights))["encoder_weights"] == record
    evaluation = RunFolder(tmp_path / "scores", datalist, SegmentationScores(datalist), weights=weights)
    assert started(evaluation)["encoder_weights"] == record
    old = tmp_path / "old.pt"
    old.write_bytes(b"others")
    assert started(InferenceLog(tmp_path / "unknown", datalist, weights=old))["encoder_weights"] is None


def test_labels_made_from_masks_stand_in_the_record_and_the_report(tmp_path):
    skin = f"{make_phantoms(tmp_path / 'skin', kind='skin', subjects=(2, 1, 0))}/datalist.json"
    training = started(RunRecord(tmp_path / "training", skin), core=ClassActivationMapping.tiny())
    weights = tmp_path / "training" / "model.pt"
    weights.write_bytes(b"weights")
    evaluation = RunFolder(tmp_path / "evaluation", skin, SegmentationScores(skin), weights=weights)
    assert started(evaluation)["uses_masks"] == training["uses_masks"]
    (phrase,) = training["uses_masks"]
    assert phrase.startswith("simulated supervision, tags of tiles from masks (present above 5 % of a tile")
    assert phrase in write_report(evaluation.output_dir).read_text(encoding="utf-8")


def test_leaks_of_the_data_stand_in_the_record_and_the_report(tmp_path):
    file = Path(make_phantoms(tmp_path / "chest", kind="chest", subjects=(2, 1, 0))) / "datalist.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"leaks": []}))
    assert started(RunRecord(tmp_path / "none", file), core=ClassActivationMapping.tiny())["uses_masks"] == []
    file.write_text(json.dumps(content | {"leaks": ["crops chosen by masks", "labels from boxes"]}))
    training = started(RunRecord(tmp_path / "training", file), core=ClassActivationMapping.tiny())
    phrases = ["simulated supervision, crops chosen by masks", "simulated supervision, labels from boxes"]
    assert training["uses_masks"] == phrases
    weights = tmp_path / "training" / "model.pt"
    weights.write_bytes(b"weights")
    evaluation = RunFolder(tmp_path / "evaluation", file, SegmentationScores(file), weights=weights)
    assert started(evaluation)["uses_masks"] == phrases
    assert all(phrase in write_report(evaluation.output_dir).read_text(encoding="utf-8") for phrase in phrases)


def test_training_and_evaluation_say_how_images_are_read(datalist, tmp_path):
    method = ClassActivationMapping.tiny()
    nothing = {"order": None, "slicing_axis": None, "in_plane_axes": None}
    assert started(RunRecord(tmp_path / "before", datalist), core=method)["reading"] == nothing
    header = {"order": "xy", "slicing_axis": "SI", "in_plane_axes": "LP"}
    record_reading(method, header)
    assert started(RunRecord(tmp_path / "training", datalist), core=method)["reading"] == header
    scores = SegmentationScores(datalist)
    for record in (RunFolder(tmp_path / "0", datalist, scores), InferenceLog(tmp_path / "1", datalist)):
        assert started(record, network=method.network)["reading"] == header


def test_an_evaluation_records_whether_the_data_have_a_background(datalist, tmp_path):
    record = started(RunFolder(tmp_path / "brain", datalist, SegmentationScores(datalist)))
    assert (record["background"], record["scored_class"]) == (True, None)
    glands = f"{make_phantoms(tmp_path / 'glands', kind='gland', subjects=(0, 1, 0))}/datalist.json"
    record = started(RunFolder(tmp_path / "gland", glands, SegmentationScores(glands)))
    assert (record["background"], record["scored_class"]) == (False, "gland")


def test_weights_without_a_record_are_not_called_weakly_supervised(datalist, tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"of a segmentation network")
    (tmp_path / "run.json").write_text('{"uses_masks": []}')  # of another program
    run = tmp_path / "run"
    assert started(RunFolder(run, datalist, SegmentationScores(datalist), weights=weights))["uses_masks"] is None
    report = write_report(run).read_text(encoding="utf-8")
    assert "not recorded with these weights" in report
    assert "image-level labels only" not in report
    assert started(InferenceLog(run, datalist, weights=weights, uses_masks=["pseudo"]))["uses_masks"] == ["pseudo"]
    assert started(InferenceLog(run, datalist, weights=weights, uses_masks=[]))["uses_masks"] == []


def test_the_record_of_a_run_with_other_weights_says_nothing(datalist, tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    started(InferenceLog(tmp_path, datalist, weights=old, uses_masks=[]))
    assert started(InferenceLog(tmp_path / "a", datalist, weights=old))["uses_masks"] == []
    assert started(InferenceLog(tmp_path / "b", datalist, weights=new))["uses_masks"] is None


# ---- a folder that was used before -----------------------------------------------------------------------------------

LEFT = (
    *("masks/old.png", "panels/99.png", "sweep.json", "metrics.json", "per_case.csv", "per_subject.csv"),
    *("predictions.csv", "notes.txt", "report.html"),
)
KEPT = ("model.pt", "mine.txt", "checkpoints/epoch_1.pt", "metrics.csv")


def litter(folder):
    for name in (*LEFT, *KEPT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")


def test_what_an_earlier_evaluation_left_goes_and_nothing_else(datalist, tmp_path):
    training, run = tmp_path / "training", tmp_path / "run"
    training.mkdir()
    scores = SegmentationScores(datalist)
    litter(run)
    started(RunFolder(run, datalist, scores))
    assert all((run / name).exists() for name in LEFT), "without a run.json of ours nothing is removed"
    started(RunFolder(run, datalist, scores))
    assert not [name for name in LEFT if (run / name).exists()]
    assert all((run / name).exists() for name in KEPT)


def test_an_inference_renews_its_masks_and_its_table_alone(datalist, tmp_path):
    started(InferenceLog(tmp_path, datalist))
    litter(tmp_path)
    started(InferenceLog(tmp_path, datalist))
    gone = [name for name in (*LEFT, *KEPT) if not (tmp_path / name).exists()]
    assert gone == ["masks/old.png", "predictions.csv"]


def beside(data):
    return data


def through_a_link(data):
    (data.parent / "link").symlink_to(data)
    return data.parent / "link"


def with_linked_masks(data):
    (data.parent / "run").mkdir()
    (data.parent / "run" / "masks").symlink_to(data / "masks")
    return data.parent / "run"


def with_the_list_elsewhere(data):
    """The datalist lies beside its folder: the paths in it lead there."""
    content = json.loads((data / "datalist.json").read_text())
    for item in (item for name in ("training", "validation", "test") for item in content[name]):
        for key in ("image", "mask"):
            paths = item[key] if isinstance(item[key], list) else [item[key]]
            item[key] = [f"data/{path}" for path in paths] if isinstance(item[key], list) else f"data/{paths[0]}"
    (data.parent / "datalist.json").write_text(json.dumps(content))
    (data / "datalist.json").unlink()
    return data


@pytest.mark.parametrize("kind", [InferenceLog, RunFolder])
@pytest.mark.parametrize("place", [beside, through_a_link, with_linked_masks, with_the_list_elsewhere])
def test_masks_beside_the_datalist_are_data_and_stay(phantoms, tmp_path, place, kind):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    output = place(data)
    (datalist,) = tmp_path.glob("**/datalist.json")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    arguments = (output, datalist, *([SegmentationScores(datalist)] if kind is RunFolder else []))
    with pytest.raises(
        DataError, match=r"output folder .* holds data: results would replace the masks of .*--output_dir"
    ):
        started(kind(*arguments))
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_an_output_folder_below_the_data_is_fine(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    started(InferenceLog(tmp_path / "data" / "results", tmp_path / "data" / "datalist.json"))
    assert (tmp_path / "data" / "results" / "run.json").is_file()


def test_a_folder_that_another_process_writes_to_is_refused(datalist, tmp_path):
    (tmp_path / ".in_use").write_text("1-1-00000000 elsewhere")
    with pytest.raises(DataError, match="is in use by process 1 on elsewhere"):
        started(InferenceLog(tmp_path, datalist))
    assert [path.name for path in tmp_path.iterdir()] == [".in_use"]


def test_a_training_keeps_its_log_whoever_evaluates_into_its_folder(datalist, tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, text in ((own, "epoch,loss\n1,0.5\n"), (other, "epoch,loss\n1,0.25\n")):
        started(RunRecord(folder, datalist), core=ClassActivationMapping.tiny())
        (folder / "training_log.csv").write_text(text)
    scores = SegmentationScores(datalist)
    for _ in range(2):
        started(RunFolder(own, datalist, scores, training_dir=own))
        assert "last 0.5" in write_report(own).read_text(encoding="utf-8")
    for _ in range(2):
        started(RunFolder(own, datalist, scores, training_dir=other))
        assert "training_log.csv in this folder is of another training" in write_report(own).read_text(encoding="utf-8")
    assert (own / "training_log.csv").read_text(encoding="utf-8") == "epoch,loss\n1,0.5\n"


def test_the_copy_of_a_training_log_goes_with_its_evaluation(phantoms, datalist, tmp_path):
    training, run = tmp_path / "training", tmp_path / "run"
    training.mkdir()
    for text in ("epoch,loss\n1,0.5\n", "epoch,loss\n1,0.25\n"):
        (training / "training_log.csv").write_text(text)
        scores = SegmentationScores(datalist, bootstrap=5)
        folder = RunFolder(run, datalist, scores, training_dir=training)
        evaluate(phantoms, "validation", run, [folder], masks=True, scores=scores)
        assert (run / "training_log.csv").read_text(encoding="utf-8") == text
    started(RunFolder(run, datalist, SegmentationScores(datalist)))
    assert not (run / "training_log.csv").exists()


# ---- stand-ins, empty splits, formulas -------------------------------------------------------------------------------


def test_a_stand_in_is_named_wherever_it_shows(phantoms, datalist, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(run_folder, "render_panel", lambda *_, channel_names: captions.append(channel_names) or b"")
    asked: dict[str, Any] = {"modalities": ["t1"], "replace_missing": {"T1": "flair"}, "split": "test"}
    scores = SegmentationScores(datalist, bootstrap=5)
    folder = RunFolder(tmp_path / "run", datalist, scores, **asked)
    evaluate(phantoms, "test", tmp_path / "run", [folder], masks=True, scores=scores)
    assert captions == [["t1 (FLAIR instead)"]]
    assert "These data lack T1: <b>FLAIR was given" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    log = InferenceLog(tmp_path / "out", datalist, **asked)
    evaluate(phantoms, "test", tmp_path / "out", [log], masks=False)
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert [row["replaced"] for row in csv.DictReader(file)] == ["T1<-FLAIR"]


@pytest.mark.parametrize(
    ("modalities", "stand_ins"), [(["FLAIR"], {"FLAIR": "T2"}), (["FLAIR"], {"T1": "FLAIR"}), (["FLAIR"], None)]
)
def test_what_the_data_have_or_nobody_wants_is_not_replaced(modalities, stand_ins, datalist, tmp_path):
    asked = {"modalities": modalities, "replace_missing": stand_ins}
    folder = RunFolder(tmp_path, datalist, SegmentationScores(datalist), **asked)
    assert started(folder)["replaced"] == {}
    assert folder.channel_names == ["FLAIR"]


def test_an_empty_split_is_refused(datalist, phantoms, tmp_path):
    words = r'The split "training" of datalist.json holds no case: choose another with --split.'
    scores = SegmentationScores(datalist)
    for handler in (
        RunFolder(tmp_path, datalist, scores, split="training"),
        InferenceLog(tmp_path, datalist, split="training"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(phantoms, "training", tmp_path, [handler], masks=False, scores=scores)
    with pytest.raises(DataError, match=r"The split of datalist.json holds no case"):
        evaluate(phantoms, "training", tmp_path, [InferenceLog(tmp_path, datalist)], masks=False)


def test_a_formula_as_an_id_is_quoted_and_the_label_filter_named(datalist, tmp_path):
    log = InferenceLog(tmp_path, datalist)
    engine = Engine(lambda *_: None)
    log.attach(engine)
    engine.fire_event(Events.STARTED)
    engine.state.batch = [{"id": "=1+1"}]
    image = torch.zeros(1, 4, 4)
    paths = {"pred_path": str(tmp_path / "masks" / "a.png")}
    engine.state.output = [{"image": image, "pred": image, "label_filter": "given", **paths}]
    engine.fire_event(Events.ITERATION_COMPLETED)
    engine.fire_event(Events.COMPLETED)
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert [(row["id"], row["label_filter"]) for row in csv.DictReader(file)] == [("'=1+1", "given")]
