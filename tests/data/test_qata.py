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
from monai_wsss.data import qata
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header
from monai_wsss.data.qata import prepare_qata
from monai_wsss.data.reading import read_image, read_labels

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
    content = json.loads(file.read_text(encoding="utf-8"))
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


def test_the_second_control_group_is_left_out_and_counted(root, tmp_path, caplog):
    for number in range(3):
        save(root / "Control_Group" / "Control_Group_II" / f"other_{number}.png", np.eye(12) * 200)
    splits = splits_of(prepare_qata(root, tmp_path / "out"))
    assert splits.keys() == {*SICK, *CONTROLS}
    assert "3 X-rays of the second control group show other diseases" in caplog.text


@pytest.mark.parametrize("above", ["uncontrolled", "unhealthy", "Normalized", "non-normal", "Abnormal"])
def test_words_that_only_look_like_controls_name_none(root, tmp_path, above):
    (root / above).mkdir()
    (root / "QaTa-COV19-v2").rename(root / above / "QaTa-COV19-v2")
    (root / above / "QaTa-COV19-v2" / "empty").mkdir()
    (root / "Control_Group").rename(root / "healthy X-rays")
    items = load_datalist(prepare_qata(root, tmp_path / "out", fractions=(1, 0, 0)), "training", masks=True)
    assert {item["id"] for item in items if item["label"].item()} == set(SICK)
    assert sum("mask" in item for item in items) == len(SICK)


def test_x_rays_beside_masks_are_sick_whatever_stands_above(root, tmp_path):
    (root / "controlled study").mkdir()
    (root / "QaTa-COV19-v2").rename(root / "controlled study" / "QaTa-COV19-v2")
    items = load_datalist(prepare_qata(root, tmp_path / "out", fractions=(1, 0, 0)), "training", masks=True)
    assert {item["id"] for item in items if item["label"].item()} == set(SICK)


def test_other_spellings_are_found(tmp_path):
    folder = tmp_path / "my data" / "Train Set"
    save(folder / "images" / "covid (1).PNG", np.eye(12) * 90)
    save(folder / "Ground Truths" / "MASK_covid (1).PNG", np.eye(12) * 255)
    save(folder / "Ground Truths" / "mask_lost.png", np.eye(12) * 255)
    save(tmp_path / "my data" / "ControlGroup" / "a.JPG", np.eye(12) * 90)
    items = load_datalist(
        prepare_qata(tmp_path / "my data", tmp_path / "out", fractions=(1, 0, 0)), "training", masks=True
    )
    assert sorted((item["id"], "mask" in item) for item in items) == [("a", False), ("covid (1)", True)]


def test_what_has_no_partner_and_another_size_than_the_paper_says_is_told(root, tmp_path, caplog):
    masks = root / "QaTa-COV19-v2" / "Train Set" / "Ground-truths"
    (masks / "mask_covid_0.png").rename(masks / "mask_stranger.png")
    prepare_qata(root, tmp_path / "out", split="paper")
    assert "1 X-rays with pneumonia have no mask, first covid_0" in caplog.text
    assert "1 masks belong to no X-ray, first" in caplog.text
    assert f"{len(SICK)} X-rays with pneumonia, not 9258, {len(CONTROLS)} controls, not 12544" in caplog.text


def test_x_rays_in_colors_become_gray(root, tmp_path):
    images = root / "QaTa-COV19-v2" / "Train Set" / "Images"
    gray = np.asarray(Image.open(images / "covid_0.png"))
    Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).save(images / "covid_0.png")
    Image.open(images / "covid_1.png").convert("P").save(images / "covid_1.png")
    Image.open(images / "covid_2.png").convert("RGBA").save(images / "covid_2.png")
    items = {i["id"]: i for i in load_datalist(prepare_qata(root, tmp_path / "out", fractions=(1, 0, 0)), "training")}
    for number in range(3):
        item = items[f"covid_{number}"]
        assert read_image(item["image"]).shape == (1, 20, 12)
        assert item["intensity_mean"].shape == (1,)
    np.testing.assert_array_equal(read_image(items["covid_0"]["image"])[0].T, gray)


def test_a_turned_x_ray_is_written_upright_with_its_mask(root, tmp_path):
    file = root / "QaTa-COV19-v2" / "Train Set" / "Images" / "covid_0.png"
    turned = Image.open(file).transpose(Image.Transpose.ROTATE_90)
    upright = np.asarray(Image.open(file))
    exif = turned.getexif()
    exif[0x0112] = 6  # show it a quarter turn clockwise
    turned.save(file, exif=exif)
    items = {
        item["id"]: item
        for item in load_datalist(prepare_qata(root, tmp_path / "out", fractions=(1, 0, 0)), "training", masks=True)
    }
    np.testing.assert_array_equal(read_image(items["covid_0"]["image"])[0].T, upright)
    assert read_labels(items["covid_0"]["mask"])[0].T[:4, :6].all()


def test_all_faults_are_told_at_once_with_file_and_remedy(root, tmp_path):
    train = root / "QaTa-COV19-v2" / "Train Set"
    (train / "Images" / "covid_0.png").write_bytes(b"\x89PNG broken")
    save(train / "Ground-truths" / "mask_covid_1.png", np.eye(9))
    save(train / "Ground-truths" / "mask_covid_2.png", np.arange(240).reshape(12, 20) % 7)
    save(root / "Control_Group" / "Control_Group_I" / "person_0.png", np.zeros((12, 20)))
    with pytest.raises(DataError) as caught:
        prepare_qata(root, tmp_path / "out")
    lines = str(caught.value).splitlines()
    for name, remedy in (
        ("covid_0.png", "copy or export it again"),
        ("mask_covid_1.png", "bring it to the size of the image"),
        ("mask_covid_2.png", "export it as PNG with 0 and 255"),
        ("person_0.png", "export it again"),
    ):
        assert [remedy in line for line in lines if f"{name}" in line] == [True], name
    assert len(lines) == 4
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_all_double_images_are_told_at_once(root, tmp_path):
    for name in ("covid_1", "covid_2"):
        save(root / "QaTa-COV19-v1" / "Images" / f"{name}.png", np.eye(8))
    with pytest.raises(DataError) as caught:
        prepare_qata(root, tmp_path / "out")
    assert [line.count("are the same image") for line in str(caught.value).splitlines()] == [1, 1]


def test_a_killed_preparation_is_begun_anew(root, tmp_path, monkeypatch):
    write, written = qata.write_case, []

    def killed(*arguments):
        written.append(arguments)
        if len(written) > 5:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(qata, "write_case", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_qata(root, root / "out")
    monkeypatch.setattr(qata, "write_case", write)
    (root / "out" / "images" / "stale.png").touch()
    file = prepare_qata(root, root / "out")
    assert splits_of(file).keys() == {*SICK, *CONTROLS}
    assert not (root / "out" / "images" / "stale.png").exists()
    files = [path.relative_to(root / "out") for path in (root / "out").rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 * len(SICK) + len(CONTROLS)


def test_the_order_of_the_file_system_does_not_matter(root, tmp_path, monkeypatch):
    first = prepare_qata(root, tmp_path / "one" / "out", split="paper")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: sorted(listed(folder), reverse=True))
    second = prepare_qata(root, tmp_path / "two" / "out", split="paper")
    assert first.read_bytes() == second.read_bytes()


def test_x_rays_of_several_depths_are_told(root, tmp_path, caplog):
    file = root / "Control_Group" / "Control_Group_I" / "person_3.png"
    Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 100).save(file)
    items = load_datalist(prepare_qata(root, tmp_path / "out", fractions=(1, 0, 0)), "training")
    assert "1 X-rays have more than 8 bits, first person_3" in caplog.text
    assert next(read_image(item["image"]).max() for item in items if item["id"] == "person_3") == 23900
