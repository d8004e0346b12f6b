# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare qata``: both groups, masks by name, subjects, the three splits, and bad folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.qata import prepare_qata
from monai_wsss.data.reading import read_labels

SICK = [*(f"covid_{n}" for n in range(16)), *(f"sub-S{n // 2:02d}_ses-E{n}_run-1" for n in range(8))]
TEST = ("covid_14", "covid_15", "sub-S03_ses-E6_run-1", "sub-S03_ses-E7_run-1")
CONTROLS = [f"person_{n}" for n in range(10)]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_qata(root: Path) -> Path:
    """Write the tree of the second version, 20 columns and 12 rows, masks in the upper left corner."""
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 20))
    mask[:4, :6] = 255
    for name in SICK:
        folder = root / "QaTa-COV19-v2" / ("Test Set" if name in TEST else "Train Set")
        save(folder / "Images" / f"{name}.png", rng.integers(0, 255, (12, 20)))
        save(folder / "Ground-truths" / f"mask_{name}.png", mask)
    for name in CONTROLS:
        save(root / "Control_Group" / "Control_Group_I" / f"{name}.png", rng.integers(0, 255, (12, 20)))
    (root / "Control_Group" / "readme.txt").write_text("none of these is diseased")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_qata(tmp_path / "qata")


def splits_of(file: Path) -> dict[str, str]:
    content = json.loads(file.read_text())
    return {item["id"]: name for name in ("training", "validation", "test") for item in content[name]}


def test_both_groups_are_found_with_their_masks(root, tmp_path):
    file = prepare_qata(root, tmp_path / "out")
    header = load_header(file)
    assert (header["classes"], header["order"], header["split"]) == (["pneumonia"], "rows_columns", "drawn")
    items = [item for split in ("training", "validation", "test") for item in load_datalist(file, split, masks=True)]
    assert Counter(item["label"].item() for item in items) == {1.0: len(SICK), 0.0: len(CONTROLS)}
    assert {item["id"] for item in items if "mask" in item} == set(SICK)
    sick = next(item for item in items if item["id"] == "covid_3")
    assert read_labels(sick["mask"])[0].T[:4, :6].all()
    assert read_labels(sick["mask"]).sum() == 24
    assert {"intensity_mean", "intensity_std"} <= sick.keys()
    check_trainable(load_datalist(file, "training"))


def test_images_of_a_subject_stay_together(root, tmp_path):
    splits = splits_of(prepare_qata(root, tmp_path / "out", split="paper", validation_share=0.3, seed=3))
    for number in range(4):
        assert len({split for name, split in splits.items() if name.startswith(f"sub-S{number:02d}")}) == 1


def test_the_split_of_the_paper_is_80_to_20_without_validation(root, tmp_path):
    counts = Counter(splits_of(prepare_qata(root, tmp_path / "out", split="paper")).values())
    assert counts.keys() == {"training", "test"}
    assert 0.15 < counts["test"] / sum(counts.values()) < 0.25


def test_validation_is_taken_from_training_alone(root, tmp_path):
    before = splits_of(prepare_qata(root, tmp_path / "one", split="paper"))
    after = splits_of(prepare_qata(root, tmp_path / "two", split="paper", validation_share=0.25))
    moved = {(before[name], after[name]) for name in before}
    assert moved == {("training", "training"), ("training", "validation"), ("test", "test")}


def test_the_released_split_follows_the_folders(root, tmp_path):
    splits = splits_of(prepare_qata(root, tmp_path / "out", split="released"))
    assert {name for name in SICK if splits[name] == "test"} == set(TEST)
    assert Counter(splits[name] for name in CONTROLS) == {"training": 8, "test": 2}


def test_the_command_line_prepares_it(root, tmp_path):
    out = tmp_path / "out"
    assert main(["prepare", "qata", "--root", str(root), "--split", "paper", "--out", str(out)]) == 0
    assert load_header(out / "datalist.json")["split"] == "paper"


def test_a_prepared_folder_inside_the_root_is_not_read(root):
    first = prepare_qata(root, root / "one")
    second = prepare_qata(root, root / "two")
    assert splits_of(first) == splits_of(second)


def test_an_abnormal_image_is_no_control(root, tmp_path):
    (root / "QaTa-COV19-v2").rename(root / "Abnormal")
    splits = splits_of(prepare_qata(root, tmp_path / "out"))
    assert splits.keys() == {*SICK, *CONTROLS}


def test_bad_folders_are_refused_before_anything_is_written(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match='holds no folder "Images"'):
        prepare_qata(root / "Control_Group", out)
    with pytest.raises(DataError, match="no X-rays of a control group"):
        prepare_qata(root / "QaTa-COV19-v2", out)
    with pytest.raises(ValueError, match="`split`"):
        prepare_qata(root, out, split="mine")
    with pytest.raises(ValueError, match="Expected no `validation_share`"):
        prepare_qata(root, out, validation_share=0.1)
    with pytest.raises(ValueError, match="`validation_share` from 0 to below 1"):
        prepare_qata(root, out, split="paper", validation_share=1.0)
    save(root / "QaTa-COV19-v1" / "Images" / "covid_1.png", np.eye(8))
    with pytest.raises(DataError, match="are the same image: keep one version"):
        prepare_qata(root, out)
    assert not out.exists()


def test_a_subject_in_both_released_sets_is_refused(root, tmp_path):
    save(root / "QaTa-COV19-v2" / "Test Set" / "Images" / "sub-S00_ses-E9.png", np.eye(12))
    with pytest.raises(DataError, match='subject "S00" is in both released sets'):
        prepare_qata(root, tmp_path / "out", split="released")
    assert not (tmp_path / "out").exists()


def test_a_flat_tree_has_no_released_split(tmp_path):
    for name in ("Images/a", "Ground-truths/mask_a", "normal/b"):
        save(tmp_path / "flat" / f"{name}.png", 255 * np.eye(8))
    with pytest.raises(DataError, match='No folder is called "Train Set"'):
        prepare_qata(tmp_path / "flat", tmp_path / "out", split="released")
