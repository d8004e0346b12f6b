# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""VOC's test list through a bundle's inference: no labels are needed, and masks come out in VOC's colors."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data import prepare_voc
from monai_wsss.engines import SegmentationScores, check_overrides

BUNDLE = Path(__file__).parents[1] / "bundles" / "dermoscopy_cam_segmentation"
SIZES = {"2008_000001": (40, 56), "2008_000002": (64, 48)}  # rows, columns


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Two test images without annotation, beside one to train on."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, size in {**SIZES, "a": (32, 32)}.items():
        pixels = np.random.default_rng(len(name)).integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations" / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a")
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(SIZES))
    return prepare_voc(root, tmp_path / "prepared", test="test").parent


def test_masks_of_the_test_list_are_pictures_with_vocs_palette(prepared, tmp_path):
    overrides = {
        "dataset_dir": str(prepared),
        "output_dir": str(tmp_path / "out"),
        "num_classes": 20,
        "load_pretrain": False,
        "scales": [1.0],
        "refine": "none",
        "device": "cpu",
        "postprocessing#transforms#1#palette": "voc",
    }
    configs = [str(BUNDLE / "configs" / "inference.json")]
    check_overrides(configs, overrides)
    workflow = ConfigWorkflow(configs, logging_file=False, bundle_root=str(BUNDLE), **overrides)
    workflow.initialize()
    # Otsu finds something in the maps of random weights, too.
    torch.manual_seed(0)
    workflow.run()
    workflow.finalize()
    for name, size in SIZES.items():
        with Image.open(tmp_path / "out" / "masks" / f"{name}.png") as picture:
            assert picture.mode == "P"
            assert picture.size == size[::-1]
            assert np.asarray(picture).max() <= 20
            palette = np.reshape(picture.getpalette(), (-1, 3))
            assert palette[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == list(SIZES)


def test_what_has_no_label_is_not_measured(prepared):
    scores = SegmentationScores(prepared / "datalist.json")
    with pytest.raises(DataError, match='The case "2008_000001" has no label, so it cannot be measured'):
        scores.update(([{"id": "2008_000001", "subject": "2008_000001"}], [{"pred": torch.zeros(1, 4, 4)}]))
