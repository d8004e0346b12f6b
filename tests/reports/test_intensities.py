# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a conversion does to an evaluation's images: numbers, sentence, chart and grid, in a whole run folder."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, ScaleIntensityRanged
from PIL import Image
from scipy.stats import wasserstein_distance

from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.engines import SegmentationScores
from monai_wsss.inferers import AddConversiond, VolumeInferer
from monai_wsss.networks import CycleGenerator
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import InferenceLog, RunFolder
from monai_wsss.reports.intensities import ConversionRecord, intensity_view
from monai_wsss.transforms import LoadImageOrderedd, SaveImageMapd, SaveImageMaskd

RNG = np.random.default_rng(0)


def gray(mean: float, *size: int) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(mean, 0.1, (1, *(size or (32, 32)))))


def test_numbers_are_distances_to_the_healthy_images_that_were_evaluated():
    record = ConversionRecord()
    assert not record
    finding, converted, healthy = (torch.stack([gray(mean) for _ in range(3)]) for mean in (0.3, 0.1, 0.0))
    mask = torch.zeros(1, 32, 32)
    for one, other in zip(finding, converted, strict=True):
        record.add([1.0], one, other, mask)
    for one in healthy:
        record.add(torch.zeros(1), one, one, mask)
    assert record
    content = record.content()
    assert content["images"] == {"finding": 3, "healthy": 3}
    assert content["healthy_images"] == "of this evaluation, not of the training"
    for name, values in (("finding", finding), ("finding_converted", converted)):
        expected = wasserstein_distance(values.numpy().ravel(), healthy.numpy().ravel())
        assert content["distance_to_healthy"][name] == pytest.approx(expected, abs=0.01)  # bins of 1/128
        assert sum(content["pmf"][name]) == pytest.approx(1)
    assert content["distance_to_healthy"]["healthy_converted"] == 0
    (note,) = record.notes()
    assert "3 images with a finding to those of 3 healthy images of this evaluation: before conversion" in note
    assert f"{content['distance_to_healthy']['finding']:.3g}, after it" in note
    view = intensity_view(json.dumps(content))
    assert view["svg"].count("<polyline") == 3
    assert view["text"] == note


def test_without_one_kind_there_is_no_distance():
    for label, sentence in ((1.0, "no healthy image was evaluated"), (0.0, "no image with a finding was evaluated")):
        record = ConversionRecord()
        record.add([label], gray(0.0), gray(0.0), torch.zeros(1, 32, 32))
        (note,) = record.notes()
        assert sentence in note
        assert "<svg" in intensity_view(json.dumps(record.content()))["svg"]


def test_the_grid_marks_the_box_of_a_lesion(tmp_path):
    image, mask = gray(0.0), torch.zeros(1, 32, 32)
    grids = []
    for name, box in (("plain", None), ("boxed", [torch.tensor(8), torch.tensor(10), torch.tensor(20), 24])):
        record = ConversionRecord()
        record.add([1.0], image, image, mask, box=box)
        (tmp_path / name).mkdir()
        record.write(tmp_path / name)
        grids.append(np.asarray(Image.open(tmp_path / name / "conversions.png")).astype(int))
    changed = grids[1][grids[0] != grids[1]]
    assert changed.size > 100
    assert (changed == 255).all(), "a white frame, and nothing else"


def test_the_grid_shows_the_first_cases_and_the_telling_slice(tmp_path):
    record = ConversionRecord()
    reference = torch.zeros(1, 24, 32, 5)
    reference[:, 4:9, 4:9, 3] = 1
    for number in range(9):
        record.add([1.0], gray(0.0, 24, 32, 5), gray(0.0, 24, 32, 5), torch.zeros(1, 24, 32, 5), reference)
        if number < 3:  # healthy ones among them, which are drawn last
            record.add([0.0], gray(0.0, 24, 32, 5), gray(0.0, 24, 32, 5), torch.zeros(1, 24, 32, 5))
    record.write(tmp_path)
    grid = Image.open(tmp_path / "conversions.png")
    assert grid.size == (4 * 124 - 4, 20 + 8 * 164 - 4), "six with a finding, two healthy ones; 24 : 32 = 120 : 160"
    blue = (np.asarray(grid) == [77, 163, 255]).all(axis=2)
    assert blue[20 : 20 + 6 * 164].any(), "the slice of the reference"
    assert not blue[20 + 6 * 164 :].any()
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8").count("Wasserstein-1") == 1


def test_pictures_of_rows_and_columns_are_drawn_upright():
    image = MetaTensor(torch.zeros(1, 20, 40), meta={"order": "rows_columns"})
    record = ConversionRecord()
    record.add([1.0], image, image.as_tensor(), torch.zeros(1, 20, 40), torch.zeros(1, 20, 40))
    *parts, boxes = record._cases["finding"][0]
    assert [part.shape for part in parts] == [(1, 40, 20), (1, 40, 20), (40, 20), (40, 20)]
    assert boxes is None


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("chest"), kind="chest", subjects=(0, 6, 2))


def run(chest, split, folder, handlers, *, masks, scores=None):
    torch.manual_seed(0)
    network = CycleGenerator.tiny()
    network.presence_level.fill_(0.0)
    inferer = VolumeInferer()
    keys = ["image", "mask"]
    read = Compose(
        [LoadImageOrderedd(keys, allow_missing_keys=True), ScaleIntensityRanged("image", 0, 255, -1, 1, clip=True)]
    )
    items = load_datalist(f"{chest}/datalist.json", split, masks=masks)
    after = [
        AddConversiond("pred", network, inferer),
        ToMaskd("pred", network),
        SaveImageMaskd("pred", folder),
        SaveImageMapd("heat", folder, (0, 2)),
        SaveImageMapd("converted", folder, (-1, 1), "_normalized"),
    ]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, read), batch_size=1),
        network=network,
        inferer=inferer,
        postprocessing=Compose(after),
        key_val_metric={"val_dice_subject": scores} if scores else None,
        val_handlers=handlers,
    ).run()
    return items


def test_an_evaluation_reports_what_the_conversion_does(chest, tmp_path):
    scores = SegmentationScores(f"{chest}/datalist.json", bootstrap=20)
    folder = RunFolder(tmp_path, f"{chest}/datalist.json", scores)
    items = run(chest, "validation", tmp_path, [folder], masks=True, scores=scores)
    for kind in ("masks", "heat", "converted"):
        assert len(list((tmp_path / kind).iterdir())) == len(items)
    assert all(path.stem.endswith("_normalized") for path in (tmp_path / "converted").iterdir())
    content = json.loads((tmp_path / "intensities.json").read_text(encoding="utf-8"))
    assert content["images"] == {"finding": 3, "healthy": 3}
    assert "Wasserstein-1" in (tmp_path / "notes.txt").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Conversion</h2>" in page
    assert "share of the pixels" in page
    assert page.count("A row per case: image, converted image") == 1
    run(chest, "validation", tmp_path, [RunFolder(tmp_path, f"{chest}/datalist.json", scores)], masks=True)


def test_an_inference_names_heat_map_and_converted_image(chest, tmp_path):
    log = InferenceLog(tmp_path, f"{chest}/datalist.json", split="test")
    items = run(chest, "test", tmp_path, [log], masks=False)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(items)
    for row, item in zip(rows, items, strict=True):
        files = [tmp_path / row[name] for name in ("mask", "heat", "converted")]
        source = item["image"][0] if isinstance(item["image"], list) else item["image"]
        if str(source).endswith(".png"):
            assert {Image.open(path).size for path in files} == {Image.open(source).size}
        else:
            affines = [nibabel.load(path).affine for path in (source, *files)]
            assert all(np.array_equal(affine, affines[0]) for affine in affines)
