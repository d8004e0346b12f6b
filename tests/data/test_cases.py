# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare cases``: slices in npz files, and images with masks; channel order, statistics, and bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics
from monai_wsss.data.cases import prepare_cases
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.data.reading import read_image, read_labels

RNG = np.random.default_rng(0)


def brain_root(root: Path, channels: int = 3) -> dict[str, np.ndarray]:
    """Write two subjects with three slices each, in the layout of the brain MRI sets."""
    (root / "cases").mkdir(parents=True)
    rows, stored = ["id,case,index_in_npz,slice,label,brain_px,split,file"], {}
    for patient, split in (("p1", "train"), ("p2", "heldout")):
        images = RNG.integers(0, 255, (3, 6, 8, channels)).astype(np.uint8)
        images[0] = 0  # a slice above the head is kept
        masks = np.zeros((3, 6, 8), dtype=np.uint8)
        masks[2, 1:3, 4:7] = 255
        np.savez(root / "cases" / f"{patient}.npz", images=images, masks=masks, slices=np.arange(3))
        stored[patient] = images
        rows += [f"{patient}_{i},{patient},{i},{i + 1},{int(i == 2)},100,{split},cases/{patient}.npz" for i in range(3)]
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return stored


def datalist_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("channels", "stored", "written"),
    [
        (3, ("T1", "FLAIR", "T1c"), ["T1", "T1c", "FLAIR"]),
        (4, ("T1", "T1c", "T2", "FLAIR"), ["T1", "T1c", "T2", "FLAIR"]),
    ],
)
def test_brain_slices_are_stored_by_name_in_canonical_order(tmp_path, channels, stored, written):
    arrays = brain_root(tmp_path / "root", channels)
    path = prepare_cases(tmp_path / "root", tmp_path / "out")
    assert list(datalist_of(path)["modality"].values()) == written
    items = load_datalist(path, "training", masks=True)
    assert [item["id"] for item in items] == ["p1_0", "p1_1", "p1_2"]
    for index, item in enumerate(items):
        assert item["label"].tolist() == [float(index == 2)]
        for file, name in zip(item["image"], written, strict=True):
            expected = arrays["p1"][index, ..., stored.index(name)]
            with Image.open(file) as picture:
                assert picture.mode == "L"
                np.testing.assert_array_equal(np.asarray(picture), expected)
    image = read_image(items[2]["image"][0])
    assert image.shape == (1, 8, 6)  # column, row
    mask = read_labels(items[2]["mask"]).numpy()[0]
    assert mask.shape == (8, 6)
    assert mask[4:7, 1:3].all()
    assert mask.sum() == 6


def test_statistics_pool_all_slices_of_a_subject(tmp_path):
    arrays = brain_root(tmp_path / "root")
    item = load_datalist(prepare_cases(tmp_path / "root", tmp_path / "out"), "training")[1]
    volume = np.moveaxis(arrays["p1"], -1, 0)[[0, 2, 1]]
    mean, std = foreground_statistics(volume)
    np.testing.assert_allclose(item["intensity_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(item["intensity_std"], std, rtol=1e-6)


def test_heldout_goes_to_test_and_a_root_with_test_rows_only_is_fine(tmp_path):
    brain_root(tmp_path / "root")
    table = tmp_path / "root" / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(",train,", ",test,"))
    path = prepare_cases(tmp_path / "root", tmp_path / "out")
    assert [len(load_datalist(path, split)) for split in ("training", "validation", "test")] == [0, 0, 6]


def test_named_channels_override(tmp_path):
    arrays = brain_root(tmp_path / "root")
    path = prepare_cases(tmp_path / "root", tmp_path / "out", modalities=("ADC", "T2", "t1"))
    assert list(datalist_of(path)["modality"].values()) == ["T1", "T2", "ADC"]
    item = load_datalist(path, "training")[1]
    with Image.open(item["image"][0]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), arrays["p1"][1, ..., 2])
    with pytest.raises(DataError, match=r"row 2: the slice has 3 channels, but 2 modalities are named \(T1, FLAIR\)"):
        prepare_cases(tmp_path / "root", tmp_path / "other", modalities=("T1", "FLAIR"))


def multi_class_root(root: Path, masks: np.ndarray) -> Path:
    """Write one file with gray slices of 16 bits and masks, K = 2."""
    (root / "cases").mkdir(parents=True)
    images = RNG.integers(0, 4000, masks.shape).astype(np.uint16)
    np.savez(root / "cases" / "x.npz", images=images, masks=masks)
    rows = ["id,case,index_in_npz,lv,rv,label,split,file"]
    for index, mask in enumerate(masks):
        rows.append(f"s{index},x,{index},{int(1 in mask)},{int(2 in mask)},1,val,cases/x.npz")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_several_classes_in_one_channel(tmp_path):
    masks = RNG.integers(0, 3, (2, 5, 4)).astype(np.uint8)
    path = prepare_cases(multi_class_root(tmp_path / "root", masks), tmp_path / "out", label_columns=("lv", "rv"))
    datalist = datalist_of(path)
    assert datalist["classes"] == ["lv", "rv"]
    assert datalist["modality"] == {"0": "image"}
    items = load_datalist(path, "validation", masks=True)
    np.testing.assert_array_equal(read_labels(items[1]["mask"]).numpy()[0], masks[1].T)
    assert read_image(items[1]["image"]).max() > 255


def test_label_columns_in_the_wrong_order_are_noticed(tmp_path, caplog):
    masks = np.ones((2, 5, 4), dtype=np.uint8)
    root = multi_class_root(tmp_path / "root", masks)
    with caplog.at_level(logging.WARNING):
        prepare_cases(root, tmp_path / "out", label_columns=("rv", "lv"))
    assert "2 masks show other classes than their labels say, first that of s0." in caplog.text


def test_one_class_of_several_in_the_masks_is_refused(tmp_path):
    masks = np.array([[[0, 1], [1, 1]], [[0, 1], [3, 2]]], dtype=np.uint8)
    root = multi_class_root(tmp_path / "root", masks)
    message = (
        r'row 3: the mask holds the values 1, 2, 3, but "lv" is the only class: name the label columns of all classes'
    )
    with pytest.raises(DataError, match=message):
        prepare_cases(root, tmp_path / "out", label_columns=("lv",))
    path = prepare_cases(root, tmp_path / "whole")  # the column `label`: everything above 0
    item = load_datalist(path, "validation", masks=True)[1]
    np.testing.assert_array_equal(read_labels(item["mask"]).numpy()[0], masks[1].T > 0)


def test_an_npz_file_that_is_something_else(tmp_path):
    brain_root(tmp_path / "root")
    file = tmp_path / "root" / "cases" / "p1.npz"
    file.write_text("a note")
    with pytest.raises(DataError, match="no npz file of plain numeric arrays") as caught:
        prepare_cases(tmp_path / "root", tmp_path / "out")
    assert "pickle" not in str(caught.value)
    with open(file, "wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="no npz file of plain numeric arrays"):
        prepare_cases(tmp_path / "root", tmp_path / "out")


def test_a_mask_value_beyond_the_classes(tmp_path):
    root = multi_class_root(tmp_path / "root", np.full((2, 5, 4), 3, dtype=np.uint8))
    with pytest.raises(DataError, match=r"row 2: the mask holds the value 3, but there are 2 classes"):
        prepare_cases(root, tmp_path / "out", label_columns=("lv", "rv"))


def picture_root(root: Path) -> Path:
    """Write three images with masks; the third mask is no truth."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.fromarray(RNG.integers(0, 255, (6, 8)).astype(np.uint8)).save(root / "images" / f"{name}.png")
        mask = np.zeros((6, 8), dtype=np.uint8)
        mask[2, 5] = 255 * (name == "a")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "labels.csv").write_text(
        "id,case,label,has_pixel_truth,split\na,p,1,1,train\nb,p,0,1,train\nc,q,0,0,heldout\n"
    )
    return root


def test_images_and_masks(tmp_path):
    path = prepare_cases(picture_root(tmp_path / "root"), tmp_path / "out")
    first, second = load_datalist(path, "training", masks=True)
    assert (tmp_path / "root" / "images" / "a.png").read_bytes() == Path(first["image"]).read_bytes()
    assert read_labels(first["mask"]).nonzero().tolist() == [[0, 5, 2]]
    assert read_labels(first["mask"]).max() == 1
    assert read_labels(second["mask"]).sum() == 0
    assert "mask" not in load_datalist(path, "test", masks=True)[0]
    pixels = np.stack([np.asarray(Image.open(tmp_path / "root" / "images" / f"{name}.png")) for name in "ab"])
    mean, std = foreground_statistics(pixels[None])  # subject p has both
    for item in (first, second):
        np.testing.assert_allclose(item["intensity_mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(item["intensity_std"], std, rtol=1e-6)


def test_photographs_have_no_statistics(tmp_path):
    root = picture_root(tmp_path / "root")
    for name in "abc":
        Image.fromarray(RNG.integers(0, 255, (6, 8, 3)).astype(np.uint8)).save(root / "images" / f"{name}.png")
    assert "intensity_mean" not in load_datalist(prepare_cases(root, tmp_path / "out"), "training")[0]


def test_images_without_a_mask_folder(tmp_path):
    root = picture_root(tmp_path / "root")
    (root / "masks").rename(root / "elsewhere")
    assert "mask" not in load_datalist(prepare_cases(root, tmp_path / "out"), "training", masks=True)[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p1_1,p1,1,", "p1_1,p1,3,", r'row 3: index_in_npz is "3", but cases/p1.npz holds slices 0 to 2'),
        ("p1_1,p1,1,", "p1_1,p1,-1,", r'row 3: index_in_npz is "-1", but'),
        ("p1_1,p1,1,", "p1_1,p1,x,", r'row 3: index_in_npz is "x", but'),
        ("cases/p2.npz", "cases/p9.npz", r"row 5: cannot read `images` in .*p9.npz \(.*No such file.*restore"),
        ("p1_1,p1", "p1_0,p1", r'row 3: the id "p1_0" is also in'),
        ("p1_1,p1", "p1_1,p2", r'subject "p2" is in test, but in training'),
        ("cases/p2.npz", "../p2.npz", r'row 5: the file "../p2.npz" is outside .*root: give a path below this folder'),
        ("cases/p2.npz", "cases/../../p2.npz", r"row 5: the file .* is outside"),
        ("cases/p2.npz", "/p2.npz", r"row 5: the file .* is outside"),
        (",split,", ",fold,", r'labels.csv has no column "split", it has id, case'),
        (",train,", ",fold 1,", r'row 2: the split is "fold 1": write train, val or test'),
    ],
)
def test_mistakes_in_the_table(tmp_path, old, new, message):
    brain_root(tmp_path / "root")
    table = tmp_path / "root" / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(old, new))
    with pytest.raises(DataError, match=message):
        prepare_cases(tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out" / "datalist.json").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((3, 4, 4), np.uint8)}, r"row 2: cannot read `images` in .*p1.npz"),
        ({"images": np.zeros((3, 4, 4), np.float32)}, r"`images` is float32 of shape \(3, 4, 4\): store unsigned 8 or"),
        ({"images": np.zeros((3, 4), np.uint8)}, r"`images` is uint8 of shape \(3, 4\)"),
        (
            {"images": np.array([{}, {}, {}])},
            r"row 2: cannot read `images` in .*\(it is no npz file of plain numeric arrays\): restore",
        ),
        (
            {"images": np.zeros((3, 4, 4), np.uint8), "masks": np.zeros((2, 4, 4), np.uint8)},
            r"`masks` has shape \(2, 4, 4\), `images` \(3, 4, 4\): store one mask per slice",
        ),
    ],
)
def test_mistakes_in_the_arrays(tmp_path, arrays, message):
    brain_root(tmp_path / "root")
    np.savez(tmp_path / "root" / "cases" / "p1.npz", **arrays)
    with pytest.raises(DataError, match=message):
        prepare_cases(tmp_path / "root", tmp_path / "out")


def test_a_truncated_npz_and_files_with_other_channels(tmp_path):
    brain_root(tmp_path / "root")
    file = tmp_path / "root" / "cases" / "p2.npz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"row 5: cannot read `images` in .*p2.npz .*restore the npz file"):
        prepare_cases(tmp_path / "root", tmp_path / "out")
    np.savez(file, images=np.zeros((3, 6, 8), np.uint8))
    with pytest.raises(DataError, match=r"row 5: the slice has the channels image, the first one T1, T1c, FLAIR"):
        prepare_cases(tmp_path / "root", tmp_path / "out")


def test_a_root_without_a_table(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the label table .*labels.csv \(No such file"):
        prepare_cases(tmp_path, tmp_path / "out")


def test_slices_keep_the_order_of_their_volume_and_pictures_are_rows_and_columns(tmp_path):
    brain_root(tmp_path / "brain")
    assert load_header(prepare_cases(tmp_path / "brain", tmp_path / "a"))["order"] == "xy"
    picture_root(tmp_path / "pictures")
    path = prepare_cases(tmp_path / "pictures", tmp_path / "b")
    assert load_header(path)["order"] == "rows_columns"
