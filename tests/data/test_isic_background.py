# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare isic --protocol coingan``: whole images against crops of skin, the paper's split, and what is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.isic_background import prepare_isic_background
from monai_wsss.data.reading import read_image, read_labels

NUMBERS = {"Training": range(6), "Validation": range(6, 8), "Test": range(8, 9)}
SPLITS = ("training", "validation", "test")


def make_isic(root: Path) -> Path:
    """Write ISIC 2018 with lesions right of the middle, 96 columns and 64 rows."""
    for split, numbers in NUMBERS.items():
        images, masks = root / f"ISIC2018_Task1-2_{split}_Input", root / f"ISIC2018_Task1_{split}_GroundTruth"
        images.mkdir(parents=True)
        masks.mkdir()
        for number in numbers:
            skin = np.random.default_rng(number).integers(190, 210, (64, 96, 3)).astype(np.uint8)
            skin[16:48, 40:80] //= 3
            mask = np.zeros((64, 96), dtype=np.uint8)
            mask[16:48, 40:80] = 255
            Image.fromarray(skin).save(images / f"ISIC_{number:07d}.jpg", quality=100, subsampling=0)
            Image.fromarray(mask).save(masks / f"ISIC_{number:07d}_segmentation.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_isic(tmp_path / "isic")


def labels(file: Path, split: str) -> list[float]:
    return [item["label"].item() for item in load_datalist(file, split)]


def test_training_and_validation_hold_both_kinds_and_test_whole_images_alone(root, tmp_path):
    file = prepare_isic_background(root, tmp_path / "out", size=48)
    assert {split: labels(file, split) for split in SPLITS} == {
        "training": [1.0, 0.0] * 6,
        "validation": [1.0, 0.0] * 2,
        "test": [1.0],
    }
    check_trainable(load_datalist(file, "training"))
    whole, crop = load_datalist(file, "training", masks=True)[:2]
    assert read_image(whole["image"]).shape == read_image(crop["image"]).shape == (3, 48, 48)
    mask = read_labels(whole["mask"])[0]
    assert mask.sum() == 20 * 24, "half of the columns, three quarters of the rows"
    assert "mask" not in crop
    assert (crop["subject"], crop["source"]) == (whole["subject"], whole["id"])
    assert read_image(crop["image"]).min() > 150, "the crop shows skin"
    assert read_image(whole["image"]).min() < 90


def test_the_split_of_the_paper_tests_on_the_released_validation_images(root, tmp_path):
    file = prepare_isic_background(root, tmp_path / "out", split="paper", size=32)
    assert [len(labels(file, split)) for split in SPLITS] == [12, 0, 2]
    assert {item["id"] for item in load_datalist(file, "test")} == {"ISIC_0000006", "ISIC_0000007"}
    other = prepare_isic_background(root, tmp_path / "two", split="paper", size=32, validation_share=0.34)
    assert [len(labels(other, split)) for split in SPLITS] == [8, 4, 2]


def test_what_reads_masks_is_named(root, tmp_path):
    header = load_header(prepare_isic_background(root, tmp_path / "one", size=32))
    assert (header["simulated_supervision"], header["leaks"]) == (False, [])
    header = load_header(prepare_isic_background(root, tmp_path / "two", size=32, healthy_source="mask"))
    assert header["simulated_supervision"] is True
    assert header["leaks"] == ["healthy crops were chosen by the masks of the lesions"]


def test_border_crops_do_not_depend_on_the_masks(root, tmp_path):
    first = prepare_isic_background(root, tmp_path / "one", size=32)
    for file in root.rglob("*_segmentation.png"):
        file.unlink()
    second = prepare_isic_background(root, tmp_path / "two", size=32)
    for one, two in zip(load_datalist(first, "training"), load_datalist(second, "training"), strict=True):
        assert Path(one["image"]).read_bytes() == Path(two["image"]).read_bytes()


def test_resampling_takes_the_detail_of_whole_images_alone(root, tmp_path):
    plain = load_datalist(prepare_isic_background(root, tmp_path / "one"), "training")
    header = prepare_isic_background(root, tmp_path / "two", match_resampling=True)
    matched = load_datalist(header, "training")
    assert load_header(header)["match_resampling"] is True

    def detail(item: dict) -> float:
        return float(np.abs(np.diff(read_image(item["image"]).numpy(), axis=1)).mean())

    assert detail(matched[0]) < 0.6 * detail(plain[0])
    assert detail(matched[1]) == detail(plain[1])


def test_the_command_line_chooses_the_protocol(root, tmp_path):
    arguments = ["prepare", "isic", "--root", str(root), "--out", str(tmp_path / "out"), "--protocol", "coingan"]
    assert main([*arguments, "--split", "paper", "--size", "32"]) == 0
    assert load_header(tmp_path / "out" / "datalist.json")["split"] == "paper"


def test_bad_options_and_folders_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="`healthy_source`"):
        prepare_isic_background(root, tmp_path / "out", healthy_source="oracle")
    with pytest.raises(ValueError, match="`crop_share` above 0"):
        prepare_isic_background(root, tmp_path / "out", crop_share=0.9)
    with pytest.raises(ValueError, match="`size` of at least 8"):
        prepare_isic_background(root, tmp_path / "out", size=2)
    with pytest.raises(ValueError, match="Expected no `validation_share`"):
        prepare_isic_background(root, tmp_path / "out", validation_share=0.1)
    (root / "ISIC2018_Task1-2_Validation_Input").rename(tmp_path / "away")
    with pytest.raises(DataError, match='The split "paper" needs'):
        prepare_isic_background(root, tmp_path / "out", split="paper")
    assert not (tmp_path / "out").exists()


def test_a_set_without_even_skin_is_refused(root, tmp_path):
    for file in root.rglob("*.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)).save(file)
    with pytest.raises(DataError, match=r"No image of .* has an even square"):
        prepare_isic_background(root, tmp_path / "out", size=32)


def test_the_split_of_the_paper_is_that_of_2018(root, tmp_path, caplog):
    prepare_isic_background(root, tmp_path / "out", split="paper", size=32)
    assert "6 training, not 2594, 2 test, not 100" in caplog.text
    other = tmp_path / "isic2017"
    other.mkdir()
    for split in ("Training", "Validation"):
        (root / f"ISIC2018_Task1-2_{split}_Input").rename(other / f"ISIC-2017_{split}_Data")
    with pytest.raises(DataError, match="is of ISIC 2018, but the folder holds ISIC 2017"):
        prepare_isic_background(other, tmp_path / "two", split="paper")


def test_a_test_image_needs_no_mask_since_it_gives_no_crop(root, tmp_path):
    next(root.glob("ISIC2018_Task1_Test_GroundTruth/*.png")).unlink()
    file = prepare_isic_background(root, tmp_path / "out", size=32, healthy_source="mask")
    assert labels(file, "test") == [1.0]
    next(root.glob("ISIC2018_Task1_Training_GroundTruth/*.png")).unlink()
    with pytest.raises(DataError, match="has no mask to choose a crop by"):
        prepare_isic_background(root, tmp_path / "two", size=32, healthy_source="mask")


def test_all_faults_are_told_at_once(root, tmp_path):
    images, masks = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
    (images / "ISIC_0000000.jpg").write_bytes(b"\xff\xd8broken")
    (images / "ISIC_0000001.jpg").unlink()
    Image.fromarray(np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)).save(images / "ISIC_0000001.png")
    Image.fromarray(np.zeros((32, 96), dtype=np.uint8)).save(masks / "ISIC_0000002_segmentation.png")
    with pytest.raises(DataError) as caught:
        prepare_isic_background(root, tmp_path / "out", size=32)
    lines = str(caught.value).splitlines()
    for name, words in (
        ("ISIC_0000000.jpg", "copy or export it again"),
        ("ISIC_0000001.png", "save it as RGB of 8 bits"),
        ("ISIC_0000002_segmentation.png", "its image of 96 x 64"),
    ):
        assert [words in line for line in lines if name in line] == [True], name
    assert len(lines) == 3


def test_masks_with_gray_edges_are_cut_at_half(root, tmp_path):
    expected = load_datalist(prepare_isic_background(root, tmp_path / "one", size=48), "training", masks=True)
    for file in root.rglob("*_segmentation.png"):
        mask = np.asarray(Image.open(file)).copy()
        mask[16:48, 39], mask[16:48, 40] = 90, 200
        Image.fromarray(mask).save(file)
    found = load_datalist(prepare_isic_background(root, tmp_path / "two", size=48), "training", masks=True)
    for one, two in zip(expected, found, strict=True):
        if "mask" in one:
            np.testing.assert_array_equal(read_labels(one["mask"]), read_labels(two["mask"]))
