# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare folder`` on tables and names as people have them: forgiven, refused all at once, or told in the log."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import load_datalist
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.reading import read_image, read_labels
from monai_wsss.data.tile_table import read_tile_table
from monai_wsss.data.writing import scale_to_16_bit
from monai_wsss.transforms import LoadImageOrderedd

RNG = np.random.default_rng(5)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (6, 8)).astype(np.uint8)).save(path)


def draw(path: Path) -> None:
    """Write a mask of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(48).reshape(6, 8) < 16).astype(np.uint8) * 255).save(path)


def make(root: Path, names: tuple[str, ...], text: str | bytes) -> Path:
    for name in names:
        picture(root / "images" / name)
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def run(root: Path, **options: Any) -> dict[str, Mapping[str, Any]]:
    """Prepare, and give the items of all splits by their ids."""
    path = prepare_folder(root / "images", root / "labels.csv", root / "out", **options)
    splits = ("training", "validation", "test")
    return {item["id"]: item for split in splits for item in load_datalist(path, split, masks=True)}


# Forgiven ----------------------------------------------------------------------------------------------------------

AB = ("a.png", "b.png")


@pytest.mark.parametrize(
    "text",
    [
        "id,label\na,yes\nb,no\n",
        "id,label\na,TRUE\nb,False\n",
        "id,label\na,y\nb,N\n",
        "id,label\na,pos\nb,negative\n",
        "id;label\na;1,0\nb;0,0\n",
        "sep=;\nid;label\na;1\nb;0\n",
        "id|label\na|1\nb|0\n",
        "id,label,,\na,1,,\nb,0,,\n,,,\n",
        "\n\nid,label\n\n a , 1 \n\n b , 0 \n\n",
        " ID , Label \na,1\nb,0\n",
        "id,label\na.png,1\nb.PNG,0\n",
        ",id,label\n0,a,1\n1,b,0\n",
        "id,label\na,1\nb,0\n".encode("utf-16-le"),
        "id,label\na,1\nb,0\n".encode("utf-16-be"),
        "id,label\nA,1\nB,0\n",
        "id,label\r\na\u200b,1\r\n\ufeffb\u00a0,0\r\n",
        "id,label\ra,1\rb,0\r",
        '\ufeff"id","label"\n"a","1"\n="b",0\n',
        "id,label\na,1\nb,0\n".encode("utf-16"),
        "id,label\n'a,1\n'b,0\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    found = run(make(tmp_path, AB, text), fractions=(1, 0, 0))
    assert [int(item["label"][0]) for _, item in sorted(found.items(), key=lambda pair: pair[0].lower())] == [1, 0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Müller", "Ångström_1", "José", "각", "Crème brûlée"])
def test_names_in_any_unicode_form(tmp_path, form, name):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    files = tuple(unicodedata.normalize(form, f"{name}{suffix}.png") for suffix in ("", "2"))
    rows = "".join(unicodedata.normalize(other, f"{name}{suffix},{n}\n") for n, suffix in enumerate(("", "2")))
    root = make(tmp_path, files, f"id,label\n{rows}")
    draw(root / "masks" / unicodedata.normalize(form, f"{name}_mask.png"))
    found = run(root, masks=root / "masks", fractions=(1, 0, 0))
    assert sorted(found) == sorted(unicodedata.normalize("NFC", f"{name}{suffix}") for suffix in ("", "2"))
    assert sum("mask" in item for item in found.values()) == 1


def test_zeros_of_ids_as_text_are_kept(tmp_path):
    root = make(tmp_path, ("001.png", "002.png"), 'id,label\n"=""001""",1\n\'002,0\n')
    assert sorted(run(root)) == ["001", "002"]


def test_names_that_differ_in_case_alone_stay_two(tmp_path):
    text = "id,subject,label\na,p,1\nA,q,0\n"
    found = run(make(tmp_path, ("a.png", "A.png"), text), fractions=(1, 0, 0))
    for name in "aA":
        np.testing.assert_array_equal(
            read_image(found[name]["image"]).numpy(), read_image(tmp_path / "images" / f"{name}.png").numpy()
        )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("A.NII.GZ", "A.nii.gz"),
        ("A.NII", "A.nii"),
        ("A.Nii.Gz", "A.nii.gz"),
        ("A.Nii", "A.nii"),
        ("A.nii.Gz", "A.nii.gz"),
        ("A.nii.GZ", "A.nii.gz"),
    ],
)
def test_volumes_with_suffixes_in_capitals(tmp_path, name, written):
    (tmp_path / "images").mkdir()
    values = RNG.integers(0, 99, (4, 5, 6)).astype(np.int16)
    plain = tmp_path / name.lower()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), plain)
    plain.rename(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("id,label,split\nA,1,train\n")
    item = run(tmp_path)["A"]
    assert Path(item["image"]).name == written
    np.testing.assert_array_equal(LoadImageOrderedd("image")(dict(item))["image"].numpy()[0], values)


@pytest.mark.parametrize("name", ["A.PNG", "A.JPG", "A.JPEG", "A.Bmp", "A.TIFF", "A.TIF"])
def test_pictures_with_suffixes_in_capitals(tmp_path, name):
    item = run(make(tmp_path, (name,), "id,label,split\nA,1,train\n"))["A"]
    assert Path(item["image"]).suffix == Path(item["image"]).suffix.lower()
    np.testing.assert_array_equal(read_image(item["image"]).numpy(), read_image(tmp_path / "images" / name).numpy())


@pytest.mark.parametrize("name", ["a_mask.png", "a-mask.png", "a.mask.png", "a mask.png", "A_Mask.PNG", "a-seg-1.png"])
def test_names_of_masks(tmp_path, name):
    root = make(tmp_path, AB, "id,label\na,1\nb,0\n")
    draw(root / "masks" / name)
    assert "mask" in run(root, masks=root / "masks", fractions=(1, 0, 0))["a"]


# Refused -----------------------------------------------------------------------------------------------------------


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(root, **options)
    assert not (root / "out" / "datalist.json").exists()
    return str(caught.value)


def test_all_faults_at_once(tmp_path):
    rows = ["a,maybe,train", "b,0,train", "c,1,somewhere", "d,1,train", "e,1", "b,1,train", "f,1,val", "g,0,val"]
    root = make(tmp_path, ("a.png", "b.png", "c.png", "e.png", "h.png", "g.png"), "id,label,split\n" + "\n".join(rows))
    (root / "images" / "f.png").write_bytes((root / "images" / "a.png").read_bytes()[:60])
    (root / "images" / "h.nrrd").write_text("NRRD")
    draw(root / "masks" / "g.png")
    (root / "masks" / "b.mgz").write_text("mgz")
    text = refused(root, masks=root / "masks")
    for words in (
        'row 2: the label in column "label" is "maybe"',
        'row 4: the split is "somewhere"',
        "row 6 has more or fewer fields than the header",
        'row 7: the id "b" is also in',
        'row 5: .* has no image for the id "d"',
        "h.png has no row in",
        "h.nrrd is of a kind that is not read: save it as NIfTI",
        "b.mgz is of a kind that is not read: save it as NIfTI",
        "Cannot read .*f.png as picture",
    ):
        (line,) = [line for line in text.splitlines() if re.search(words, line)]
        assert line.endswith(".")
    assert len(text.splitlines()) == 9


def test_every_fault_of_a_row_and_every_row_of_a_column(tmp_path):
    rows = ["a,,55,maybe,x", "images/b,p,60,1,train", "c,p,61,0,val"] + [f"n{n},q,,1,train" for n in range(40)]
    text = refused(make(tmp_path, ("a.png",), "id,subject,age,tumor,split\n" + "\n".join(rows)))
    for words in (
        'row 2: the field in column "subject" is empty: write a name',
        'row 2: the split is "x": write train',
        'row 2: the label in column "tumor" is "maybe": write 0 or 1',
        'rows 2 to 44: the label in column "age" is "55", "60", "61", …: write 0 or 1, or name the label columns',
        'row 3: "images/b" in column "id" names a folder: write the name alone',
    ):
        assert len([line for line in text.splitlines() if words in line]) == 1


def test_all_columns_that_are_lacking_are_named(tmp_path):
    text = refused(make(tmp_path, AB, "name,x\na,1\nb,0\n"), label_columns=["tumor", "edema"])
    assert 'has no column "id", "tumor", "edema", it has name, x: name the right column' in text


def test_many_faults_of_a_kind_hide_none_of_another(tmp_path):
    rows = "".join(f"n{n},1\n" for n in range(40))
    root = make(tmp_path, ("a.png",), f"id,label\na,1\n{rows}")
    (root / "images" / "a.png").write_bytes(b"\x89PNG")
    lines = refused(root).splitlines()
    assert len(lines) == 22
    assert lines[20] == "20 more faults are of this kind."
    assert "Cannot read" in lines[21]


def test_folders_of_splits_and_rows_that_are_lacking_are_named(tmp_path):
    root = make(tmp_path, ("train/a.png", "b.png", "b_1.png"), "id,label\na,1\nb,0\n")
    text = refused(root)
    assert f"The folder {root / 'images' / 'train'} holds images of {root / 'labels.csv'}: put them into" in text
    assert "keep one of them, or add a row for the one whose name is longer" in text


def test_masks_are_not_looked_for_among_the_images(tmp_path):
    root = make(tmp_path, AB, "id,label\na,1\nb,0\n")
    assert "The masks and the images are in one folder" in refused(root, masks=root / "images")


def test_numbers_alone_count_as_lost_zeros(tmp_path):
    text = refused(make(tmp_path, ("1_0.png", "infinity.png", "b.png"), "id,label\n10,1\ninf,0\nb,0\n"))
    assert "are one number" not in text
    assert len(text.splitlines()) == 4


def test_two_files_may_be_what_a_spreadsheet_made_of_one_id(tmp_path):
    text = refused(make(tmp_path, ("007.png", "07.png"), "id,label\n7,1\n"))
    assert '"7" and "007" and "07" are one number' in text


@pytest.mark.parametrize(("name", "id"), [("001", "1"), ("0100", "1.00E+02"), ("007", "7.0"), ("0012", "12")])
def test_lost_zeros_are_named(tmp_path, name, id):
    text = refused(make(tmp_path, (f"{name}.png",), f"id,label\n{id},1\n"))
    assert f'no image for the id "{id}", but "{id}" and "{name}" are one number: a spreadsheet may have taken' in text
    assert "has no row" not in text


@pytest.mark.parametrize(
    "name", ["a.nrrd", "a.NHDR", "a.mgz", "a.img", "a.hdr", "a.webp", "a.jp2", "a.gif", "a.heic", "a.npy", "a.xyz"]
)
def test_kinds_that_are_not_read_are_named(tmp_path, name):
    root = make(tmp_path, ("b.png",), "id,label\na,1\nb,0\n")
    (root / "images" / name).write_bytes(b"content")
    assert f'{name} of "a" is of a kind that is not read' in refused(root)


def test_a_case_folder_of_a_kind_that_is_not_read(tmp_path):
    root = make(tmp_path, ("b.png",), "id,label\na,1\nb,0\n")
    (root / "images" / "a").mkdir()
    (root / "images" / "a" / "flair.nrrd").write_bytes(b"content")
    assert 'flair.nrrd of "a" is of a kind that is not read: save it as NIfTI' in refused(root)


def test_a_column_twice_and_a_mask_without_background(tmp_path):
    assert 'has the column "label" twice' in refused(make(tmp_path, AB, "id,label,label\na,1,0\nb,0,0\n"))
    make(tmp_path, AB, "id,label\na,1\nb,0\n")
    (tmp_path / "masks").mkdir()
    Image.fromarray(RNG.integers(1, 3, (6, 8)).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    text = refused(tmp_path, masks=tmp_path / "masks")
    assert "a.png holds the values 1, 2 and no 0, so it is not clear what its foreground is" in text


# Told --------------------------------------------------------------------------------------------------------------


def told(root: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    with caplog.at_level(logging.WARNING):
        run(root, **options)
    return caplog.text


def test_masks_without_row_and_images_without_mask_are_told(tmp_path, caplog):
    root = make(tmp_path, AB, "id,label\na,1\nb,0\n")
    for name in ("a.png", "mask_b.png", "c.png"):
        draw(root / "masks" / name)
    text = told(root, caplog, masks=root / "masks")
    assert "2 of 3 masks in" in text
    assert "belong to no row of the label table and are left out, first c.png, mask_b.png" in text
    assert "1 of 2 images have no mask" in text


def test_masks_that_are_foreground_at_all_corners_are_told(tmp_path, caplog):
    for black_on_white in (False, True):
        root = make(tmp_path / str(black_on_white), AB, "id,label\na,1\nb,0\n")
        (root / "masks").mkdir()
        lesion = np.zeros((6, 8), dtype=bool)
        lesion[2:4, 2:5] = True
        Image.fromarray(((lesion ^ black_on_white) * 255).astype(np.uint8)).save(root / "masks" / "a.png")
        Image.fromarray(np.full((6, 8), 255, dtype=np.uint8)).save(root / "masks" / "b.png")
        text = told(root, caplog, masks=root / "masks")
        assert ("foreground at all corners, first a.png: if black marks the object" in text) == black_on_white


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,1\nb,1\n", "none of the 2 images is negative for foreground"),
        ("a,0\nb,0\n", "none of the 2 images is positive for foreground"),
        ("a,1\nb,0\n", "training: there are few images, 2"),
    ],
)
def test_labels_that_teach_nothing_are_told(tmp_path, caplog, rows, words):
    assert words in told(make(tmp_path, AB, f"id,label\n{rows}"), caplog, fractions=(1, 0, 0))


def test_several_kinds_of_pictures_are_told(tmp_path, caplog):
    text = told(make(tmp_path, ("a.png", "b.jpg"), "id,label\na,1\nb,0\n"), caplog)
    assert "The images are of several kinds (1 PNG in gray, 1 JPEG in gray)" in text


@pytest.mark.parametrize(
    "column", ["patient", "Patient ID", "PatientID", "PatientenNr", "Subj", "subject_id", "pid", "case"]
)
def test_a_column_of_subjects_that_was_not_used_is_told(tmp_path, caplog, column):
    rows = "a,p1,1,train\nb,p1,0,val\nc,p2,1,train\nd,p2,0,train\n"
    root = make(tmp_path, tuple(f"{name}.png" for name in "abcd"), f"id,{column},label,split\n{rows}")
    text = told(root, caplog)
    assert f'The column "{column}" seems to hold the subjects, but it was not used: 1 of its 2 subjects' in text
    assert "first p1" in text


@pytest.mark.parametrize(("one", "other"), [("Anna", "anna"), ("007", "7"), ("7.0", "7")])
def test_a_subject_written_in_two_ways_is_told_where_it_is_in_several_splits(tmp_path, caplog, one, other):
    rows = f"a,{one},1,{{}}\nb,{other},0,{{}}\n"
    root = make(tmp_path, AB, "id,subject,label,split\n" + rows.format("train", "val"))
    assert f"first {' and '.join(sorted((one, other)))}: write a subject always in the same way" in told(root, caplog)
    caplog.clear()
    root = make(tmp_path / "two", AB, "id,subject,label,split\n" + rows.format("train", "train"))
    assert "may be one each" not in told(root, caplog)


def test_a_column_of_subjects_that_was_used_or_tells_nothing_is_not_told(tmp_path, caplog):
    rows = "a,p1,1,train\nb,p1,0,train\n"
    text = told(make(tmp_path, AB, f"id,patient,label,split\n{rows}"), caplog, subject_column="patient")
    assert "seems to hold the subjects" not in text


def test_a_column_of_subjects_is_no_label(tmp_path):
    root = make(tmp_path, AB, "id,patient,edema\na,p1,1\nb,p2,0\n")
    run(root)
    assert json.loads((root / "out" / "datalist.json").read_text())["classes"] == ["edema"]


# Intensities of slices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_dark_lesion_of_a_cropped_ct_stays_visible(seed):
    rng = np.random.default_rng(seed)
    ct = np.round(rng.normal(55, 6, (1, 16, 16, 8)))
    ct[0, 5:9, 5:9, 3:5] = np.round(rng.normal(20, 3, (4, 4, 2)))
    scaled, inside = scale_to_16_bit(ct)
    assert inside.all()
    lesion = scaled[0, 5:9, 5:9, 3:5]
    assert lesion.std() > 0
    assert lesion.mean() < scaled[0].mean() / 2


def test_only_a_background_below_all_else_is_left_out():
    brain = np.zeros((1, 8, 8, 8))
    brain[0, 2:6, 2:6, 2:6] = np.random.default_rng(0).normal(0, 1, (4, 4, 4))
    scaled, inside = scale_to_16_bit(brain)
    assert inside.all()
    assert np.corrcoef(scaled[0, 2:6, 2:6, 2:6].ravel(), brain[0, 2:6, 2:6, 2:6].ravel())[0, 1] > 0.95
    shifted = brain - 5 * (brain == 0)
    assert (scale_to_16_bit(shifted)[1] == (brain[0] != 0)).all()


def test_masks_written_are_masks_read(tmp_path):
    root = make(tmp_path, AB, "id,label\na,1\nb,0\n")
    (root / "masks").mkdir()
    for name in "ab":
        lesion = np.full((6, 8), 1, dtype=np.uint8)
        lesion[2, 3:5] = name == "b"
        mask = Image.fromarray(lesion, mode="P")
        mask.putpalette([255, 255, 255, 0, 0, 0])
        mask.save(root / "masks" / f"{name}.png")
    found = run(root, masks=root / "masks", fractions=(1, 0, 0))
    assert [int(read_labels(found[name]["mask"]).sum()) for name in "ab"] == [2, 0]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("yes", "No"), ("TRUE", "false"), (" y ", "n"), ("1.0", "0.0")])
@pytest.mark.parametrize("form", ["id,x,y,label", " ID;X;Y;Label", "sep=;\nid;x;y;label;"])
def test_tables_of_tiles_take_the_same_words(tmp_path, yes, no, form):
    separator = ";" if ";" in form else ","
    name = unicodedata.normalize("NFC", "Müller")
    lines = [form, f"{unicodedata.normalize('NFD', name)},0,0,{yes}", ",,,", f"{name} ,8,0,{no}"]
    text = "\n".join(lines).replace(",", separator)
    (tmp_path / "tiles.csv").write_bytes(text.encode("utf-16" if separator == ";" else "utf-8"))
    rows = [LabeledRow("row 2", name, name, [1], "training", {})]
    tiles = read_tile_table(tmp_path / "tiles.csv", LabelTable(tmp_path, ["foreground"], rows))
    assert tiles == {name: {(0, 0): [1], (8, 0): [0]}}
