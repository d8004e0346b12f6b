# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss predict`` on studies, pictures, slides: the bundle's own masks, without labels, and nothing lost."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss._labels import CLASS_COLORS
from monai_wsss.bundle_run import find_bundle, predict_masks
from monai_wsss.bundle_run.case_reading import CaseReader
from monai_wsss.bundle_run.runner import BundleRunner
from monai_wsss.data import make_phantoms
from monai_wsss.data.reading import read_labels
from monai_wsss.inferers import VolumeInferer
from monai_wsss.refinement import ToMaskd

CAM = "brain_mri_cam_segmentation"
SKIN = "dermoscopy_cam_segmentation"


def run_bundle(name: str, dataset: Path, out: Path, **settings) -> Path:
    """Run the inference of a bundle as `python -m monai.bundle run` does."""
    bundle = find_bundle(name).path
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(dataset),
        output_dir=str(out),
        device="cpu",
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return out


def test_masks_of_studies_are_those_of_the_bundle_in_the_geometry_of_the_studies(brains, studies, tmp_path, rows_of):
    expected = run_bundle(CAM, brains, tmp_path / "bundle")
    result = predict_masks(studies, CAM, tmp_path / "out", device="cpu")
    assert result.failures == []
    rows, theirs = rows_of(result.out / "predictions.csv"), rows_of(expected / "predictions.csv")
    items = json.loads((brains / "datalist.json").read_text(encoding="utf-8"))["test"]
    for row, other, item in zip(rows, theirs, items, strict=True):
        mine, same = nibabel.load(result.out / row["mask"]), nibabel.load(expected / other["mask"])
        image = nibabel.load(brains / item["image"][0])
        assert np.array_equal(mine.get_fdata(), same.get_fdata())
        assert np.array_equal(mine.affine, image.affine)
        assert mine.shape == image.shape
        for name in ("tumor_ml", "tumor_presence_logit"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=2e-3)
        assert row["tumor_present"] == str(int(mine.get_fdata().any()))
        assert (result.out / row["overlay"]).read_bytes().startswith(b"\x89PNG")
    page = result.report.read_text(encoding="utf-8")
    assert "TCGA-LGG" in page
    assert page.count("data:image/webp") == 2 * page.count("data:image/jpeg") == 4  # above the table, and in it
    assert "<title>Masks of 2 cases by brain_mri_cam_segmentation, " in page
    assert str(tmp_path) not in page
    record = json.loads((result.out / "run.json").read_text(encoding="utf-8"))
    assert record["classes"] == ["tumor"]


def test_a_broken_case_is_listed_and_stops_nothing(studies, tmp_path, capsys, rows_of):
    for name in ("T1", "T1c", "FLAIR"):
        (studies / f"bad_{name}.nii.gz").write_bytes(b"nothing")
    arguments = ["predict", str(studies), "--bundle", CAM, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 3
    told = capsys.readouterr().out
    assert "1 case could not be read" in told
    (failure,) = rows_of(tmp_path / "out" / "failures.csv")
    assert failure["case"] == "bad"
    assert "damaged" in failure["why"]
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Not read" in page
    assert str(studies) not in page

    for file in studies.glob("bad_*"):
        file.unlink()
    assert main(arguments) == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_killed_run_goes_on_and_repeats_nothing(studies, tmp_path, monkeypatch):
    out, first = tmp_path / "out", sorted(path.name for path in studies.iterdir())[0]
    original, asked = BundleRunner.__call__, []

    def interrupted(self, item):
        asked.append(item["id"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(self, item)

    monkeypatch.setattr(BundleRunner, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_masks(studies, CAM, out, device="cpu")
    assert asked[0] == first
    mask = next((out / "masks").glob(f"{first}*"))
    before = mask.stat().st_mtime_ns
    result = predict_masks(studies, CAM, out, device="cpu")
    assert asked == [first, asked[1], asked[1]]
    assert mask.stat().st_mtime_ns == before
    assert len(result.rows) == 2

    shutil.rmtree(studies / first)  # what is gone from the input is gone from the results
    assert [row["id"] for row in predict_masks(studies, CAM, out, device="cpu").rows] == [asked[1]]
    assert not mask.exists()

    with pytest.raises(DataError, match="results of another run"):
        predict_masks(studies, CAM, out, device="cpu", settings={"views": "identity"})
    with pytest.raises(DataError, match="holds data"):
        predict_masks(studies, CAM, studies)


def test_a_sequence_is_missing_or_another_stands_in(studies, tmp_path, rows_of):
    folder = sorted(studies.iterdir())[0]
    (folder / "T1c.nii.gz").unlink()
    result = predict_masks(studies, CAM, tmp_path / "out", device="cpu")
    ((name, why),) = result.failures
    assert name == folder.name
    assert "T1c of the case is missing (there is FLAIR, T1)" in why
    result = predict_masks(studies, CAM, tmp_path / "other", device="cpu", replace_missing={"T1c": "T1"})
    rows = rows_of(result.out / "predictions.csv")
    assert [row["replaced"] for row in rows] == ["T1c<-T1", ""]
    assert "T1c is missing: T1 was given in its place" in result.report.read_text(encoding="utf-8")


def test_some_of_the_sequences_are_enough_for_a_bundle_of_one_network_per_sequence(studies, tmp_path):
    folder = sorted(studies.iterdir())[0]
    (folder / "T1c.nii.gz").unlink()
    result = predict_masks(studies, "brain_mri_cmer_segmentation", tmp_path / "out", device="cpu")
    assert result.failures == []
    assert "T1c is missing: segmented with T1, FLAIR" in result.report.read_text(encoding="utf-8")


def test_masks_of_pictures_are_seen_and_read_back(skin, tmp_path, rows_of):
    result = predict_masks(skin, SKIN, tmp_path / "out", device="cpu")
    assert [name for name, _ in result.failures] == ["broken"]
    rows = rows_of(result.out / "predictions.csv")
    assert [row["id"] for row in rows] == ["color", "gray"]
    for row in rows:
        path = result.out / row["mask"]
        with Image.open(path) as mask:
            assert mask.mode == "P"
            assert mask.size == (128, 96)
            assert mask.getpalette()[:6] == [0, 0, 0, 255, 159, 28]
        labels = read_labels(path)
        assert set(labels.unique().tolist()) <= {0, 1}
        assert int((labels == 1).sum()) == int(float(row["lesion_px"]))
    page = result.report.read_text(encoding="utf-8")
    assert "a gray image, given as color" in page
    assert "of the images of the training 256" in page


def test_a_single_picture_is_enough(skin, tmp_path):
    result = predict_masks(skin / "color.png", SKIN, tmp_path / "out", device="cpu")
    assert [row["id"] for row in result.rows] == ["color"]


def test_overlays_have_the_colors_of_the_picture_however_the_bundle_normalizes_it(skin, tmp_path):
    (skin / "gray.jpg").unlink()
    run = tmp_path / "run"
    run.mkdir()
    bundle = find_bundle(CAM)
    shutil.copy(bundle.path / "models" / "model.pt", run)
    record = {"config": {"bundle": bundle.name, "modalities": ["red", "green", "blue"]}, "classes": ["lesion"]}
    record |= {"background": True, "versions": {"monai_wsss": "0.1.0"}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    result = predict_masks(skin, bundle.name, tmp_path / "out", weights=run, device="cpu")
    with Image.open(result.out / result.rows[0]["overlay"]) as drawn, Image.open(skin / "color.png") as picture:
        shown = np.asarray(drawn.convert("RGB"))[20:300, 20:400].reshape(-1, 3).mean(axis=0)
        wanted = np.asarray(picture)[6:90, 6:120].reshape(-1, 3).mean(axis=0)
    assert np.abs(shown - wanted).max() < 25, "stretched a little from its darkest to its lightest"


@pytest.mark.parametrize(("score", "noted"), [(-0.5, True), (0.5, False)])
def test_a_mask_that_its_score_speaks_against_is_noted(skin, tmp_path, monkeypatch, score, noted):
    """No gate leaves a mask out in dermoscopy; a reader of the table would wonder."""
    usual = ToMaskd.__call__

    def call(self, data):
        return usual(self, data) | {"presence": torch.full((1,), score)}

    monkeypatch.setattr(ToMaskd, "__call__", call)
    result = predict_masks(skin / "color.png", SKIN, tmp_path / "out", device="cpu")
    assert result.rows[0]["lesion_present"] == 1
    page = result.report.read_text(encoding="utf-8")
    assert ("the score speaks against lesion, and yet it has a mask: the score does not decide here" in page) == noted
    assert "a note says where the score contradicts it" in page


def test_where_a_gate_decides_no_score_contradicts_its_mask():
    runner = object.__new__(BundleRunner)
    runner.network = torch.nn.Identity()
    runner.postprocessing = Compose([ToMaskd("pred", gate="predicted")])
    result = {"presence": torch.tensor([-0.5]), "pred": torch.ones(1, 4, 4)}
    assert runner.contradictions(result, ["lesion"]) == []


def test_pictures_of_an_own_training_are_normalized_as_the_bundle_does(tmp_path, brains):
    slices = make_phantoms(tmp_path / "slices", subjects=(1, 1, 1), modalities=["FLAIR"])
    header = json.loads((Path(slices) / "datalist.json").read_text(encoding="utf-8"))
    run = tmp_path / "run"
    run.mkdir()
    bundle = find_bundle("brain_mri_coingan")
    shutil.copy(bundle.path / "models" / "model.pt", run)
    record = {"config": {"bundle": bundle.name, "modalities": ["FLAIR"]}, "classes": ["oedema"], "background": True}
    record["versions"] = {"monai_wsss": "0.1.0"}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    subject = header["training"][0]["subject"]
    items = [item for item in header["training"] if item["subject"] == subject][:2]
    folder = tmp_path / "new" / subject
    folder.mkdir(parents=True)
    for item in items:
        shutil.copy(Path(slices) / np.atleast_1d(item["image"])[0], folder / f"{item['id']}.png")
    result = predict_masks(folder.parent, bundle.name, tmp_path / "out", weights=run, device="cpu")
    assert [name for name in result.rows[0] if name.startswith("oedema")] != []
    assert "normalized by itself" not in result.report.read_text(encoding="utf-8")
    assert "your own data" in result.report.read_text(encoding="utf-8")
    alone = predict_masks(folder, bundle.name, tmp_path / "alone", weights=run, device="cpu")
    assert "normalized by itself" in alone.report.read_text(encoding="utf-8"), "no folder names a subject"
    with pytest.raises(DataError, match=f"was trained by the bundle {bundle.name}"):
        predict_masks(folder, CAM, tmp_path / "wrong", weights=run)
    with pytest.raises(DataError, match="No weights at"):
        predict_masks(folder, CAM, tmp_path / "wrong", weights=tmp_path / "nowhere")


def test_a_slide_gives_a_pyramid_outlines_and_areas(tmp_path, rows_of):
    make_phantoms(tmp_path / "glands", kind="gland", subjects=(1, 1, 1))
    section = json.loads((tmp_path / "glands" / "datalist.json").read_text(encoding="utf-8"))["test"][0]
    with Image.open(tmp_path / "glands" / np.atleast_1d(section["image"])[0]) as picture:
        tissue = np.asarray(picture.convert("RGB"))[:256, :256]
    slide = tmp_path / "slide.tif"
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 micrometers
    whole = np.tile(tissue, (4, 4, 1))
    with tifffile.TiffWriter(slide) as file:
        file.write(whole, tile=(256, 256), photometric="rgb", subifds=0, **resolution)
        file.write(whole[::4, ::4].copy(), tile=(64, 64), photometric="rgb", subfiletype=1)
    result = predict_masks(slide, "histology_gland", tmp_path / "out", device="cpu")
    assert result.failures == []
    (row,) = rows_of(result.out / "predictions.csv")
    outlines = json.loads((result.out / row["outlines"]).read_text(encoding="utf-8"))
    names = {feature["properties"]["classification"]["name"] for feature in outlines["features"]}
    assert names <= {"gland", "other tissue"}
    assert names
    for name in names:
        areas = [
            feature["properties"]["measurements"]["Area mm^2"]
            for feature in outlines["features"]
            if feature["properties"]["classification"]["name"] == name
        ]
        assert sum(areas) == pytest.approx(float(row[f"{name}_mm2"]), rel=0.05)
    assert (result.out / row["mask"]).suffix in (".tif", ".tiff")
    colors = {tuple(one["properties"]["classification"]["color"]) for one in outlines["features"]}
    with Image.open(result.out / row["overlay"]) as drawn:
        legend = np.asarray(drawn.convert("RGB"))[-30:].reshape(-1, 3)
        pair = np.asarray(drawn.convert("RGB"))[:-30].astype(float)
    width = (pair.shape[1] - 4) // 2  # a gap of 4 pixels lies between them
    plain, over = pair[:, :width], pair[:, -width:]
    changed = np.abs(over - plain).max(axis=-1) > 20
    mixed = ((over - 0.55 * plain) / 0.45)[changed]  # what was laid over the slide, about
    for color in colors:
        assert (legend == color).all(axis=1).any(), "the legend names the colors of the outlines"
    nearest = np.abs(mixed[:, None] - np.array(CLASS_COLORS)).sum(axis=-1).argmin(axis=1)
    counted = np.bincount(nearest, minlength=len(CLASS_COLORS))
    assert {*counted.argsort()[-2:].tolist()} == {0, 1}
    with Image.open(result.out / row["overlay"]) as drawn:
        tissue = np.asarray(drawn.convert("RGB"))[:-30, : drawn.width // 2 - 8].astype(float)
    assert np.abs(tissue.mean(axis=(0, 1)) - whole.mean(axis=(0, 1))).max() < 3, "the slide itself stands beside it"


def test_slides_without_resolution_or_content_are_told_in_one_sentence(tmp_path):
    pixels = np.full((512, 512, 3), 200, np.uint8)
    with tifffile.TiffWriter(tmp_path / "nowhere.tif") as file:
        file.write(pixels, tile=(256, 256), photometric="rgb", subifds=0)
        file.write(pixels[::4, ::4].copy(), tile=(64, 64), photometric="rgb", subfiletype=1)
    (tmp_path / "broken.svs").write_bytes(b"II*\0nothing")
    result = predict_masks(tmp_path, "histology_gland", tmp_path / "out", device="cpu")
    told = dict(result.failures)
    assert sorted(told) == ["broken", "nowhere"]
    assert not any("ConfigExpression" in why for why in told.values())
    assert "slide_mpp" in told["nowhere"]


def test_where_all_cases_fail_the_table_is_empty_and_the_page_says_it(tmp_path, capsys, rows_of):
    (tmp_path / "in").mkdir()
    for number in range(12):
        (tmp_path / "in" / f"{number:02d}.png").write_bytes(b"")
    assert main(["predict", str(tmp_path / "in"), "--bundle", SKIN, "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr().out
    assert "12 cases could not be read" in printed
    assert "and 2 more" in printed
    assert "Masks:" not in printed
    assert rows_of(tmp_path / "out" / "predictions.csv") == []
    assert (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").strip() == "id"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"settings": {"refine": "foo"}}, "Expected `refine`"),
        ({"settings": {"refined": "par"}}, "refine"),
        ({"device": "nowhere"}, "Expected `device` to be one of cpu"),
    ],
)
def test_settings_that_are_none_are_told_in_one_sentence_before_anything_is_written(skin, tmp_path, more, told):
    with pytest.raises(ValueError, match=told):
        predict_masks(skin, SKIN, tmp_path / "out", **{"device": "cpu", **more})
    assert not (tmp_path / "out" / "run.json").exists()


def test_what_is_unlike_the_training_is_said():
    reader = CaseReader(["FLAIR"], grid=(64, 64), slicing=3)
    volume = MetaTensor(torch.zeros(1, 24, 240, 150), affine=np.diag([6.0, 1.0, 1.0, 1.0]))
    volume.affine[:3, :3] = torch.tensor([[0.0, -1, 0], [0, 0, -1], [6, 0, 0]], dtype=torch.float64)
    first, second = reader._departures(volume)
    assert first.startswith("240 x 150 pixels, brought to 64 x 64")
    assert second.startswith("a field of view of 240 x 150 mm looks stretched")
    tissue = CaseReader(["red", "green", "blue"], micrometers=0.62)
    picture = MetaTensor(torch.zeros(3, 32, 32), meta={"unit": "px"})
    assert "the weights know images of 0.62 micrometers" in tissue._departures(picture)[0]
    assert tissue._pixel_size(0.6) == []
    assert "0.25 micrometers per pixel" in tissue._pixel_size(0.25)[0]


def test_sequences_that_nobody_needs_are_not_read(studies, tmp_path):
    for folder in studies.iterdir():
        (folder / "T2.nii.gz").write_bytes(b"damaged")
    assert predict_masks(studies, CAM, tmp_path / "out", device="cpu").failures == []


class Hungry(torch.nn.Module):
    """An inferer's network that has no memory for more than some pixels at once."""

    def __init__(self, network: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[0] * image[0, 0].numel() > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.network(image)


@pytest.mark.parametrize(("most", "noted"), [(64 * 64 * 4, False), (64 * 64, True), (10, None)])
def test_want_of_memory_is_met_with_less_at_once(most, noted, caplog):
    runner = BundleRunner.__new__(BundleRunner)
    runner.device, runner.amp = torch.device("cpu"), False
    shape = (1, 1, 64, 64, 9) if noted is False else (1, 1, 128, 128)
    runner.inferer = VolumeInferer(2, slice_batch=8)
    runner.network = Hungry(torch.nn.Conv2d(1, 1, 1), most)
    image = torch.rand(shape)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        if noted is None:
            with pytest.raises(DataError, match="not even in parts"):
                runner._maps(image)
            return
        maps, notes = runner._maps(image)
        runner.network.most = 10**9
        assert torch.allclose(maps, runner.inferer(image, runner.network), atol=1e-5)
    assert bool(notes) == noted
    assert runner.inferer.windows is None
