# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare isic``: the layouts of three challenges, their masks and splits, files of other tasks, and bad input."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.isic import prepare_isic
from monai_wsss.data.reading import read_labels

SIZE = (96, 64)  # columns, rows

# Year -> split -> folder of the images, folder of the masks, end of the names of the masks.
FOLDERS = {
    2016: {
        "training": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "_Segmentation"),
        "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "_Segmentation"),
    },
    2017: {
        "training": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
        "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth", "_segmentation"),
        "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "_segmentation"),
    },
    2018: {
        "training": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation"),
        "validation": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth", "_segmentation"),
        "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", "_segmentation"),
    },
}
NUMBERS = {"training": (0, 1), "validation": (20,), "test": (30,)}


def name_of(number: int) -> str:
    return f"ISIC_{number:07d}"


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw skin with a dark lesion of 32 x 32 pixels right of the middle, and its mask of 0 and 255."""
    rng = np.random.default_rng(number)
    skin = rng.integers(160, 220, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    skin[16:48, 48:80] //= 3
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    mask[16:48, 48:80] = 255
    return skin, mask


def make_isic(root: Path, year: int, *, inside: str = "") -> Path:
    """Write a challenge with the files that lie beside its images and masks."""
    for split, (images, masks, end) in FOLDERS[year].items():
        for folder in (root / inside / images, root / inside / masks):
            folder.mkdir(parents=True)
            (folder / "LICENSE.txt").write_text("CC-0")
        for number in NUMBERS[split]:
            skin, mask = draw(number)
            name = name_of(number)
            Image.fromarray(skin).save(root / inside / images / f"{name}.jpg", quality=100, subsampling=0)
            Image.fromarray(mask).save(root / inside / masks / f"{name}{end}.png")
            if year == 2017:
                Image.fromarray(skin).save(root / inside / images / f"{name}_superpixels.png")
    (root / inside / f"ISIC-{year}_Training_Part3_GroundTruth.csv").write_text("image_id,melanoma\n")
    other = root / inside / "ISIC2018_Task2_Training_GroundTruth_v3"
    other.mkdir()
    Image.fromarray(draw(0)[1]).save(other / f"{name_of(0)}_attribute_globules.png")
    return root


def prepare(root: Path, **options: object) -> Path:
    return prepare_isic(
        root, root.parent / "out", **{"tiles": 32, "longest_side": 96, "labels_from_masks": True, **options}
    )


@pytest.mark.parametrize("year", sorted(FOLDERS))
def test_each_challenge_gives_tiles_to_train_on_and_whole_images_to_measure(tmp_path, year):
    path = prepare(make_isic(tmp_path / "isic", year))
    header = load_header(path)
    assert (header["challenge"], header["classes"], header["order"]) == (f"ISIC {year}", ["lesion"], "rows_columns")
    assert header["simulated_supervision"] is True
    tiles = load_datalist(path, "training")
    check_trainable(tiles)
    assert {item["source"] for item in tiles} == {name_of(0), name_of(1)}
    for split in ("validation", "test"):
        items = load_datalist(path, split, masks=True)
        assert [item["id"] for item in items] == [name_of(n) for n in NUMBERS[split] if split in FOLDERS[year]]
        for item in items:
            mask = read_labels(item["mask"]).numpy()[0].T
            np.testing.assert_array_equal(mask, draw(int(item["id"][5:]))[1] // 255)
            assert item["label"].tolist() == [1]
            assert item["subject"] == item["id"]


def test_images_are_scaled_to_256_pixels_unless_asked(tmp_path):
    root = make_isic(tmp_path / "isic", 2018)
    path = prepare_isic(root, tmp_path / "default", labels_from_masks=True)
    assert load_header(path)["tiles"]["longest_side"] == 256
    assert load_header(path)["tiles"]["tiles"] == 64
    (item,) = load_datalist(path, "test")
    with Image.open(item["image"]) as picture:
        assert picture.size == (256, 171)
    path = prepare_isic(root, tmp_path / "half", labels_from_masks=True, tiles=16, scale=0.5)
    assert load_header(path)["tiles"]["longest_side"] is None


def test_folders_in_folders_and_capitals_are_found(tmp_path):
    root = make_isic(tmp_path / "isic", 2017, inside="archive/ISIC-2017_Training_Data")
    folder = root / "archive" / "ISIC-2017_Training_Data"
    (folder / "ISIC-2017_Test_v2_Data").rename(folder / "isic-2017_test_v2_data")
    path = prepare(root)
    assert len(load_datalist(path, "training_images")) == 2
    assert len(load_datalist(path, "test")) == 1


def test_2016_takes_validation_images_from_the_training_images_on_request_alone(tmp_path, caplog):
    root = make_isic(tmp_path / "isic", 2016)
    with caplog.at_level(logging.INFO):
        assert load_datalist(prepare(root), "validation") == []
    assert "ISIC 2016 has no validation images: --validation-share 0.1 takes some for training." in caplog.text
    shutil.rmtree(tmp_path / "out")
    path = prepare(root, validation_share=0.5)
    parts = {split: {item["id"] for item in load_datalist(path, split)} for split in ("training_images", "validation")}
    assert sorted(parts["training_images"] | parts["validation"]) == [name_of(0), name_of(1)]
    assert len(parts["validation"]) == 1
    with pytest.raises(ValueError, match="since ISIC 2018 has validation images"):
        prepare_isic(make_isic(tmp_path / "other", 2018), tmp_path / "none", validation_share=0.1)


def test_tags_never_come_from_masks_by_default(tmp_path):
    root = make_isic(tmp_path / "isic", 2018)
    with pytest.raises(DataError, match="Nothing says what the tiles show"):
        prepare(root, labels_from_masks=False)
    shutil.rmtree(tmp_path / "out")
    name = name_of(0)
    (root / "tiles.csv").write_text(f"id,x,y,lesion\n{name},0,32,0\n{name},48,16,1\n")
    path = prepare(root, labels_from_masks=False)
    assert load_header(path)["simulated_supervision"] is False
    assert [(item["origin"], item["label"].tolist()) for item in load_datalist(path, "training")] == [
        ([0, 32], [0]),
        ([48, 16], [1]),
    ]


def test_images_without_masks_and_masks_without_images_are_counted(tmp_path, caplog):
    root = make_isic(tmp_path / "isic", 2018)
    _, masks, _ = FOLDERS[2018]["training"]
    (root / masks / f"{name_of(1)}_segmentation.png").rename(root / masks / f"{name_of(9)}_segmentation.png")
    shutil.rmtree(root / FOLDERS[2018]["test"][1])
    path = prepare(root)
    assert f"training: 1 of 2 images have no mask, first {name_of(1)}." in caplog.text
    assert "training: 1 masks belong to no image, first" in caplog.text
    assert "test: no masks were found, so nothing can be measured there." in caplog.text
    assert {item["source"] for item in load_datalist(path, "training")} == {name_of(0)}
    (item,) = load_datalist(path, "test", masks=True)
    assert "mask" not in item


def test_what_is_wrong_is_said_in_one_sentence(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds no images of ISIC, e\.g\. in ISBI2016_ISIC_Part1_Training_Data"):
        prepare(empty)
    root = make_isic(tmp_path / "isic", 2018)
    with pytest.raises(DataError, match="holds no images of ISIC 2017: unpack its archives there"):
        prepare(root, edition=2017)
    with pytest.raises(ValueError, match="Expected `edition` to be one of 2016, 2017, 2018, got 2019"):
        prepare(root, edition=2019)
    shutil.copytree(root / FOLDERS[2018]["training"][0], tmp_path / "isic" / "again" / FOLDERS[2018]["training"][0])
    with pytest.raises(DataError, match="both hold such files: keep one of them"):
        prepare(root)
    shutil.rmtree(root / "again")
    make_isic(tmp_path / "isic" / "older", 2016)
    with pytest.raises(DataError, match=r"holds several challenges, 2016, 2018: name one of them \(`edition`\)"):
        prepare(root)
    assert load_header(prepare(root, edition=2016))["challenge"] == "ISIC 2016"


def test_an_image_stands_in_one_split(tmp_path):
    root = make_isic(tmp_path / "isic", 2018)
    name = f"{name_of(0)}.jpg"
    shutil.copy(root / FOLDERS[2018]["training"][0] / name, root / FOLDERS[2018]["test"][0] / name)
    with pytest.raises(DataError, match="keep it in one split"):
        prepare(root)


def test_the_command_prepares_and_names_the_bundle(tmp_path, capsys):
    root = make_isic(tmp_path / "isic", 2018)
    arguments = ["--tiles", "32", "--longest-side", "96", "--labels-from-masks", "--out", str(tmp_path / "out")]
    assert main(["prepare", "isic", "--root", str(root), *arguments]) == 0
    assert "bundles/dermoscopy_cam_segmentation" in capsys.readouterr().out
