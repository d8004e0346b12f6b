# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare prog`` and ``prepare ebhi``: the grid, the splits by image, table and specimen, and bad input."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.data.ebhi import prepare_ebhi
from monai_wsss.data.prog import PAPER_FRACTIONS, PAPER_NUMBERS, prepare_prog
from monai_wsss.data.reading import read_image, read_labels
from monai_wsss.data.splits import split_by_subject

SPLITS = ("training", "validation", "test")


def write_pair(image: Path, mask: Path, size: int, gland: int, seed: int) -> None:
    """Write a square image whose first columns are gland, and its mask."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(30, 220, (size, size, 3)).astype(np.uint8)
    labels = np.zeros((size, size), dtype=np.uint8)
    labels[:, :gland] = 255
    Image.fromarray(pixels).save(image)
    Image.fromarray(labels).save(mask)


def prog(root: Path, count: int) -> Path:
    for number in range(count):
        name = f"img_{number}.png"
        write_pair(root / "images" / name, root / "masks" / name, 20, 9, number)
    return root


def ebhi(root: Path) -> Path:
    """Write two kinds of tissue; specimen 1 is in both, with a name that occurs twice."""
    for kind in ("Normal", "Low-grade IN"):
        for specimen in (1, 2, 3, 4):
            for number in (1, 2):
                name = f"GT{specimen}-1-400-00{number}.png"
                write_pair(root / kind / "image" / name, root / kind / "label" / name, 16, 16 * (number % 2), specimen)
    (root / "readme.txt").write_text("six kinds of tissue")
    return root


def test_prog_is_a_grid_without_overlap_split_by_image(tmp_path, caplog):
    root = prog(tmp_path / "prog", 15)
    with caplog.at_level(logging.INFO):
        path = prepare_prog(root, tmp_path / "out", patch=6)
    items = {split: load_datalist(path, split, masks=True) for split in SPLITS}
    assert [len(items[split]) for split in SPLITS] == [10 * 9, 2, 3]
    assert sorted({tuple(item["origin"]) for item in items["training"]}) == [
        (x, y) for x in (0, 6, 12) for y in (0, 6, 12)
    ]
    for item in items["training"][:12]:
        x, y = item["origin"]
        whole = read_image(root / "images" / f"{item['source']}.png").numpy()
        np.testing.assert_array_equal(read_image(item["image"]).numpy(), whole[:, x : x + 6, y : y + 6])
        assert item["label"].tolist() == {0: [1, 0], 6: [1, 1], 12: [0, 1]}[x]
        assert item["subject"] == item["source"]
    assert read_image(items["test"][0]["image"]).shape == (3, 20, 20)
    assert "images of a patient may be in several splits" in caplog.text
    assert load_header(path)["patches"] == {"size": 6, "stride": 6}


def test_prog_measures_patches_as_the_paper_does(tmp_path, caplog):
    """8 244 and 9 756 patches: those of validation and test lie on the same grid, without the rim."""
    path = prepare_prog(prog(tmp_path / "prog", 15), tmp_path / "out", patch=6, measure="patches", white=0.0)
    assert [len(load_datalist(path, split)) for split in SPLITS] == [10 * 9, 2 * 9, 3 * 9]
    item = load_datalist(path, "test", masks=True)[-1]
    assert (item["origin"], item["id"]) == ([12, 12], f"{item['source']}_12_12")
    assert read_image(item["image"]).shape == (3, 6, 6)
    assert "90 training, not 36000, 18 validation, not 8244, 27 test, not 9756" in caplog.text
    with pytest.raises(ValueError, match="`measure` to be one of whole, patches"):
        prepare_prog(tmp_path / "prog", tmp_path / "out2", measure="rim")


def test_the_papers_numbers_of_prog(tmp_path):
    """Check that 36 000, 8 244 and 9 756 patches are 36 per image of 1000, 229 and 271 images."""
    names = [str(number) for number in range(1500)]
    splits = split_by_subject(names, np.ones((1500, 1)), fractions=PAPER_FRACTIONS)
    assert {split: 36 * splits.count(split) for split in SPLITS} == PAPER_NUMBERS
    assert list(PAPER_NUMBERS.values()) == [36_000, 8_244, 9_756]


def test_prog_by_table_keeps_patients_together(tmp_path):
    root = prog(tmp_path / "prog", 4)
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "case", "split"], *([f"img_{n}", f"p{n // 2}", ("train", "test")[n // 2]] for n in range(4))]
        )
    path = prepare_prog(root, tmp_path / "out", patch=6, split="table")
    assert {item["subject"] for item in load_datalist(path, "training")} == {"p0"}
    assert [item["id"] for item in load_datalist(path, "test")] == ["img_2", "img_3"]
    assert load_header(path)["subjects"] == "patients"


def test_prog_bad_input(tmp_path):
    with pytest.raises(DataError, match=r"images is no folder with images"):
        prepare_prog(tmp_path / "nothing", tmp_path / "out")
    root = prog(tmp_path / "prog", 3)
    with pytest.raises(DataError, match=r"Cannot read the label table .*labels.csv"):
        prepare_prog(root, tmp_path / "out", patch=6, split="table")
    with pytest.raises(DataError, match=r"img_0.png is of 20 x 20 pixels, smaller than a patch of 224"):
        prepare_prog(root, tmp_path / "out", fractions=(1, 0, 0))
    for folder in ("images", "masks"):
        with Image.open(root / folder / "img_2.png") as whole:
            whole.crop((0, 0, 5, 20)).save(root / folder / "img_2.png")
    with pytest.raises(DataError, match=r"img_2.png is of 5 x 20 pixels, smaller than a patch of 6"):
        prepare_prog(root, tmp_path / "out", patch=6, fractions=(1, 0, 0))
    (root / "masks" / "img_1.png").unlink()
    with pytest.raises(DataError, match=r'the image "img_1" has no mask in .*masks'):
        prepare_prog(root, tmp_path / "out", patch=6)
    with pytest.raises(ValueError, match="`split` to be one of image, table"):
        prepare_prog(root, tmp_path / "out", split="patient")


def test_ebhi_images_are_patches_and_specimens_stay_together(tmp_path):
    path = prepare_ebhi(ebhi(tmp_path / "ebhi"), tmp_path / "out", fractions=(0.5, 0.25, 0.25))
    items = {split: load_datalist(path, split, masks=True) for split in SPLITS}
    assert sum(map(len, items.values())) == 16
    assert {item["subject"] for split in SPLITS for item in items[split]} == {"GT1", "GT2", "GT3", "GT4"}
    for item in items["training"]:
        assert (item["source"], item["origin"]) == (item["id"], [0, 0])
        is_gland = item["id"].endswith("001")
        assert item["label"].tolist() == [is_gland, not is_gland]
        assert set(np.unique(read_labels(item["mask"]))) == {1 if is_gland else 2}
    assert load_header(path)["subjects"] == "specimens"
    assert "patches" not in load_header(path)


def test_ebhi_by_image_is_stratified_by_kind(tmp_path):
    path = prepare_ebhi(ebhi(tmp_path / "ebhi"), tmp_path / "out", split="image", fractions=(0.5, 0.25, 0.25))
    for split, count in zip(SPLITS, (4, 2, 2), strict=True):
        kinds = [item["id"].split("_")[0] for item in load_datalist(path, split)]
        assert (kinds.count("Normal"), kinds.count("Low-grade-IN")) == (count, count)


def test_ebhi_takes_the_images_with_glands_alone(tmp_path, caplog):
    path = prepare_ebhi(ebhi(tmp_path / "ebhi"), tmp_path / "out", split="image", glands_only=True)
    items = [item for split in SPLITS for item in load_datalist(path, split)]
    assert len(items) == 8
    assert all(item["id"].endswith("001") for item in items)
    assert "8 images with glands, not 1169" in caplog.text


def test_ebhi_bad_input(tmp_path):
    with pytest.raises(DataError, match=r"has no folders with image/ and label/, one for each kind of tissue"):
        prepare_ebhi(tmp_path, tmp_path / "out")
    root = ebhi(tmp_path / "ebhi")
    (root / "Normal" / "label" / "GT1-1-400-001.png").unlink()
    with pytest.raises(DataError, match=r'the image "GT1-1-400-001" has no mask in .*label'):
        prepare_ebhi(root, tmp_path / "out")
    with pytest.raises(ValueError, match="`split` to be one of specimen, image"):
        prepare_ebhi(root, tmp_path / "out", split="patient")
