# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare mela``: severity as label, the slice through the largest lesion, the released split, and bad tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.data.datalist import load_datalist, load_header
from monai_wsss.data.mela import lesion_boxes, prepare_mela
from monai_wsss.data.reading import read_image
from monai_wsss.data.writing import write_nifti

HEAD = "public_id,coordX,coordY,coordZ,x_length,y_length,z_length"
AFFINE = np.diag([-0.5, -0.5, 2.0, 1.0])
# Name → boxes: center, lengths in voxels of 0.5 x 0.5 x 2 mm.
SCANS = {
    "train": {
        "mela_0001": [((10, 8, 3), (4, 4, 1))],  # 2 mm
        "mela_0002": [((12, 12, 5), (16, 8, 2)), ((4, 4, 1), (2, 2, 1))],  # 8 and 2 mm
        "mela_0003": [((12, 10, 4), (8, 6, 3))],  # 6 mm, along z
    },
    "val": {"mela_0004": [((10, 10, 2), (8, 10, 1))]},  # 5 mm
    "test": {"mela_0005": [((10, 10, 2), (4, 6, 1))]},  # 3 mm
}
DIAMETERS = {"mela_0001": 2.0, "mela_0002": 8.0, "mela_0003": 6.0, "mela_0004": 5.0, "mela_0005": 3.0}


def volume(name: str) -> np.ndarray:
    rng = np.random.default_rng(int(name[-1]))
    return rng.integers(-300, 400, (24, 20, 8)).astype(np.float64)


def make_mela(root: Path) -> Path:
    for split, scans in SCANS.items():
        lines = [HEAD]
        for name, boxes in scans.items():
            write_nifti(root / split.capitalize() / f"{name}.nii.gz", volume(name), AFFINE)
            lines += [",".join([name, *map(str, center), *map(str, lengths)]) for center, lengths in boxes]
        (root / f"{split}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mela(tmp_path / "mela")


def labels(file: Path) -> dict[str, float]:
    splits = ("training", "validation", "test")
    return {item["id"]: item["label"].item() for split in splits for item in load_datalist(file, split)}


def test_smaller_lesions_are_mild_by_the_median_of_training(root, tmp_path):
    file = prepare_mela(root, tmp_path / "out", split="paper")
    header = load_header(file)
    assert header["severe_from_mm"] == 6.0  # of 2, 6 and 8 mm; with the other splits it were 5
    assert header["levels"] == {"0": "severe", "1": "mild"}
    assert header["simulated_supervision"] is True
    assert header["leaks"] == ["labels and slices come from the boxes of the lesions"]
    assert labels(file) == {name: float(diameter < 6.0) for name, diameter in DIAMETERS.items()}


def test_the_limit_can_be_given(root, tmp_path):
    file = prepare_mela(root, tmp_path / "out", split="paper", severe_from=2.5)
    assert labels(file) == {name: float(diameter < 2.5) for name, diameter in DIAMETERS.items()}


def test_the_released_split_is_that_of_the_paper(root, tmp_path):
    file = prepare_mela(root, tmp_path / "out", split="paper")
    found = [[item["id"] for item in load_datalist(file, split)] for split in ("training", "validation", "test")]
    assert found == [list(scans) for scans in SCANS.values()]


def test_the_slice_runs_through_the_largest_lesion_in_the_window(root, tmp_path):
    file = prepare_mela(root, tmp_path / "out", split="paper", window=(-100.0, 100.0))
    items = {item["id"]: item for item in load_datalist(file, "training")}
    for name, z in (("mela_0001", 3), ("mela_0002", 5), ("mela_0003", 4)):
        expected = np.rint(np.clip((volume(name)[..., z] + 100) / 200, 0, 1) * 65535)
        np.testing.assert_array_equal(read_image(items[name]["image"])[0], expected)
    header = load_header(file)
    assert (header["order"], header["slicing_axis"], header["in_plane_axes"]) == ("xy", "SI", "LP")


def test_boxes_are_kept_for_figures_and_no_training_reads_them(root, tmp_path):
    file = prepare_mela(root, tmp_path / "out", split="paper")
    boxes = lesion_boxes(file)
    assert boxes["mela_0001"] == (8, 6, 12, 10)
    assert boxes["mela_0002"] == (4, 8, 20, 16)
    assert not any("box" in key for item in load_datalist(file, "training", masks=True) for key in item)


def test_a_drawn_split_needs_no_folders(root, tmp_path):
    for file in (*root.glob("*/*.nii.gz"), *root.glob("*.csv")):
        file.rename(root / f"{file.name.replace('train', 'a').replace('val', 'b').replace('test', 'c')}")
    assert len(labels(prepare_mela(root, tmp_path / "out"))) == 5
    with pytest.raises(DataError, match='take the split "drawn"'):
        prepare_mela(root, tmp_path / "two", split="paper")


def test_scans_without_box_are_left_out_and_counted(root, tmp_path, caplog):
    write_nifti(root / "Test" / "mela_0009.nii.gz", volume("mela_0009"), AFFINE)
    with caplog.at_level("WARNING"):
        file = prepare_mela(root, tmp_path / "out", split="paper")
    assert "mela_0009" not in labels(file)
    assert "1 of 6 scans have no box" in caplog.text


def test_the_command_line_prepares_it(root, tmp_path):
    arguments = ["prepare", "mela", "--root", str(root), "--split", "paper", "--window=-100,300"]
    assert main([*arguments, "--severe-from", "4", "--out", str(tmp_path / "out")]) == 0
    assert load_header(tmp_path / "out" / "datalist.json")["window"] == [-100.0, 300.0]


def test_bad_tables_and_options_are_refused(root, tmp_path):
    out = tmp_path / "out"
    for options, sentence in (
        ({"split": "mine"}, "`split`"),
        ({"window": (5.0, 5.0)}, "`window` as two rising"),
        ({"severe_from": 0.0}, "`severe_from` above 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            prepare_mela(root, out, **options)
    for text, sentence in (
        (f"{HEAD}\nmela_0001,1,2,x,4,5,6", r"train.csv, row 2: .* no number"),
        (f"{HEAD}\nmela_0001,1,2,3,4,5,0", r"train.csv, row 2: .* no positive size"),
    ):
        (root / "train.csv").write_text(text)
        with pytest.raises(DataError, match=sentence):
            prepare_mela(root, out)
    assert not out.exists()
    (root / "train.csv").write_text(f"{HEAD}\nmela_0001,100,8,3,4,4,1")
    with pytest.raises(DataError, match=r"The box of mela_0001 lies outside of"):
        prepare_mela(root, out)
    for file in root.glob("*.csv"):
        file.unlink()
    with pytest.raises(DataError, match="holds no table of boxes"):
        prepare_mela(root, tmp_path / "other")


@pytest.mark.parametrize(("unit", "signs"), [("ras", (1, 1, 1)), ("lps", (-1, -1, 1))])
def test_boxes_may_be_in_millimeters(root, tmp_path, unit, signs):
    voxels = prepare_mela(root, tmp_path / "voxels", split="paper")
    affine = np.array(AFFINE)
    affine[:3, 3] = 40, -30, 100
    for split, scans in SCANS.items():
        lines = [HEAD]
        for name, boxes in scans.items():
            write_nifti(root / split.capitalize() / f"{name}.nii.gz", volume(name), affine)
            for center, lengths in boxes:
                placed = (affine[:3, :3] @ center + affine[:3, 3]) * signs
                sizes = np.abs(affine[:3, :3]) @ lengths
                lines.append(",".join([name, *map(str, placed), *map(str, sizes)]))
        (root / f"{split}.csv").write_text("\n".join(lines))
    file = prepare_mela(root, tmp_path / unit, split="paper", box_unit=unit)
    assert labels(file) == labels(voxels)
    assert lesion_boxes(file) == lesion_boxes(voxels)
    assert load_header(file)["box_unit"] == unit
    for one, two in zip(load_datalist(file, "training"), load_datalist(voxels, "training"), strict=True):
        np.testing.assert_array_equal(read_image(one["image"]), read_image(two["image"]))
    with pytest.raises(DataError, match=r"lies outside of .* if its unit is voxel: .* voxel, ras, lps"):
        prepare_mela(root, tmp_path / "wrong", split="paper")
    with pytest.raises(ValueError, match="`box_unit`"):
        prepare_mela(root, tmp_path / "wrong", box_unit="mm")


def test_tables_of_spreadsheets_are_read(root, tmp_path, caplog):
    expected = labels(prepare_mela(root, tmp_path / "one", split="paper"))
    text = (root / "train.csv").read_text(encoding="utf-8").replace(",", ";").replace("mela_0001;", "mela_0001.nii.gz;")
    (root / "train.csv").write_text(f"{text}\nmela_0077;1;1;1;2;2;2\n", encoding="utf-8-sig")
    (root / "bbox_values.csv").write_text("age,sex\n3,f\n")
    assert labels(prepare_mela(root, tmp_path / "two", split="paper")) == expected
    assert "1 scans of the tables have no volume, first mela_0077" in caplog.text
    assert "3 training, not 770, 1 validation, not 110, 1 test, not 220" in caplog.text


def test_all_faults_of_tables_and_scans_are_told_at_once(root, tmp_path):
    (root / "again.csv").write_text((root / "val.csv").read_text(encoding="utf-8"))
    (root / "train.csv").write_text(f"{HEAD}\nmela_0001,1,2,x,4,5,6\nmela_0002,1,2,3,4,5,-1\nmela_0003,1")
    (root / "notes.csv").write_bytes(b"public_id\xff,coordX\n")
    with pytest.raises(DataError) as caught:
        prepare_mela(root, tmp_path / "out")
    text = str(caught.value)
    for words in ("row 2: the box has a field", "row 3: the box has no positive size", "row 4: the box has a field"):
        assert words in text
    assert "both hold boxes of mela_0004: keep one of them" in text
    assert "notes.csv is no table that can be read" in text
    assert not (tmp_path / "out").exists()


def test_all_faults_of_volumes_are_told_at_once(root, tmp_path):
    write_nifti(root / "Val" / "mela_0004.nii.gz", volume("mela_0004"), np.eye(4)[[2, 0, 1, 3]])
    (root / "Test" / "mela_0005.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        prepare_mela(root, tmp_path / "out", split="paper")
    first, second = str(caught.value).splitlines()
    assert "mela_0005.nii.gz" in first + second
    assert "does not run along the body" in first + second


def test_boxes_of_other_folders_are_empty_or_refused(tmp_path):
    with pytest.raises(DataError, match="Cannot read the datalist"):
        lesion_boxes(tmp_path / "datalist.json")
    (tmp_path / "datalist.json").write_text('{"training": [{"id": "a"}]}')
    assert lesion_boxes(tmp_path / "datalist.json") == {}
