# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The datalist: checks at writing and reading, selection of modalities, and the split by subject."""

from __future__ import annotations

import errno
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header, write_datalist
from monai_wsss.data.modalities import canonical_modality, sort_modalities
from monai_wsss.data.splits import split_by_subject


def make_list(folder: Path, modalities=("T1", "T1c", "FLAIR"), **changes) -> dict:
    """Write three subjects, one per split, with one file per modality."""
    datalist = {
        "name": "tiny",
        "modality": {str(i): name for i, name in enumerate(modalities)},
        "classes": ["tumor"],
        "background": True,
        "order": "xy",
        "statistics": {},
    }
    for number, split in enumerate(("training", "validation", "test")):
        images = [f"{split}_{name}.png" for name in modalities]
        for file in [*images, f"{split}_mask.png"]:
            (folder / file).touch()
        subject = f"s{number}"
        datalist[split] = [
            {"id": split, "image": images, "label": [number % 2], "subject": subject, "mask": f"{split}_mask.png"}
        ]
        values = [float(10 * number + i) for i in range(len(modalities))]
        datalist["statistics"][subject] = {"mean": values, "std": [value + 1 for value in values]}
    return {**datalist, **changes}


def write_raw(folder: Path, datalist: dict) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(datalist))
    return path


def test_round_trip(tmp_path):
    path = write_datalist(tmp_path, make_list(tmp_path))
    (item,) = load_datalist(path, "validation")
    assert item["id"] == "validation"
    assert item["subject"] == "s1"
    assert item["image"] == [str(tmp_path / f"validation_{name}.png") for name in ("T1", "T1c", "FLAIR")]
    assert item["label"].dtype == np.float32
    assert item["label"].tolist() == [1.0]
    assert item["intensity_mean"].dtype == item["intensity_std"].dtype == np.float32
    assert item["intensity_mean"].tolist() == [10.0, 11.0, 12.0]
    assert item["intensity_std"].tolist() == [11.0, 12.0, 13.0]


def test_masks_come_only_when_asked_for_and_may_be_deleted(tmp_path):
    path = write_datalist(tmp_path, make_list(tmp_path))
    assert "mask" not in load_datalist(path, "training")[0]
    assert load_datalist(path, "training", masks=True)[0]["mask"] == str(tmp_path / "training_mask.png")
    (tmp_path / "training_mask.png").unlink()
    assert len(load_datalist(path, "training")) == 1
    with pytest.raises(DataError, match=r"the mask .*training_mask.png of case \"training\" does not exist: restore"):
        load_datalist(path, "training", masks=True)


def test_the_folder_can_be_moved(tmp_path):
    (tmp_path / "a").mkdir()
    write_datalist(tmp_path / "a", make_list(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert load_datalist(tmp_path / "b" / "datalist.json", "test")[0]["image"][0] == str(tmp_path / "b" / "test_T1.png")


def test_the_header_leaves_out_cases_and_statistics(tmp_path):
    header = load_header(write_datalist(tmp_path, make_list(tmp_path)))
    assert header["classes"] == ["tumor"]
    assert not {"training", "test", "statistics"} & set(header)


@pytest.mark.parametrize(
    ("wanted", "channels"),
    [(("T1", "T1c", "FLAIR"), [0, 1, 2]), (("FLAIR", "T1"), [2, 0]), (("t1ce",), [1]), (None, [0, 1, 2])],
)
def test_modalities_choose_files_and_statistics_alike(tmp_path, wanted, channels):
    path = write_datalist(tmp_path, make_list(tmp_path))
    (item,) = load_datalist(path, "validation", modalities=wanted)
    files = [item["image"]] if isinstance(item["image"], str) else item["image"]
    names = [["T1", "T1c", "FLAIR"][channel] for channel in channels]
    assert [Path(file).stem for file in files] == [f"validation_{name}" for name in names]
    assert item["intensity_mean"].tolist() == [10.0 + channel for channel in channels]
    assert item["intensity_std"].tolist() == [11.0 + channel for channel in channels]


def test_a_missing_modality_is_named(tmp_path):
    path = write_datalist(tmp_path, make_list(tmp_path))
    with pytest.raises(
        DataError, match="lacks the modality T2, it has T1, T1c, FLAIR: prepare the data with it"
    ) as error:
        load_datalist(path, "test", modalities=("T1", "T2"))
    assert "(`present`, where each modality has a network of its own)" in str(error.value)
    assert "(`replace_missing`)" in str(error.value)


def test_a_missing_modality_is_replaced_only_on_request_and_said(tmp_path, caplog):
    path = write_datalist(tmp_path, make_list(tmp_path, ("T1c", "FLAIR")))
    with pytest.raises(DataError, match="lacks the modality T1"):
        load_datalist(path, "validation", modalities=("T1", "T1c", "FLAIR"))
    with caplog.at_level(logging.WARNING):
        (item,) = load_datalist(
            path, "validation", modalities=("T1", "T1c", "FLAIR"), replace_missing={"T1": "FLAIR", "T1c": "FLAIR"}
        )
    assert [Path(file).stem.split("_")[1] for file in item["image"]] == ["FLAIR", "T1c", "FLAIR"]
    assert item["intensity_mean"].tolist() == [11.0, 10.0, 11.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} lacks T1: FLAIR is used in its place, as asked."
    ]
    with pytest.raises(DataError, match="lacks the modality T2"):
        load_datalist(path, "validation", modalities=("T1",), replace_missing={"T1": "T2"})


def test_one_file_with_all_channels_is_taken_whole_or_not_at_all(tmp_path):
    datalist = make_list(tmp_path)
    for split in ("training", "validation", "test"):
        datalist[split][0]["image"] = f"{split}_T1.png"
    path = write_datalist(tmp_path, datalist)
    assert load_datalist(path, "test", modalities=("T1", "T1c", "FLAIR"))[0]["image"].endswith("test_T1.png")
    with pytest.raises(DataError, match=r"\"test\" is one file with 3 channels.*prepare the data with a file for each"):
        load_datalist(path, "test", modalities=("FLAIR", "T1"))


def test_unnamed_channels_must_agree_in_number(tmp_path):
    path = write_datalist(tmp_path, make_list(tmp_path, ("channel 0", "channel 1")))
    assert len(load_datalist(path, "test", modalities=("T1", "FLAIR"))[0]["image"]) == 2
    message = (
        r"2 unnamed channels, but 1 modalities are wanted \(T1\): give the bundle --modalities "
        r"\"\['channel 0', 'channel 1'\]\" --in_channels 2, or name its channels"
    )
    with pytest.raises(DataError, match=message):
        load_datalist(path, "test", modalities=("T1",))


def test_an_empty_split_is_said(tmp_path, caplog):
    path = write_datalist(tmp_path, make_list(tmp_path, test=[]))
    with caplog.at_level(logging.WARNING):
        assert load_datalist(path, "test") == []
    assert [record.getMessage() for record in caplog.records] == [f'The split "test" of {path} is empty.']


def edit(datalist: dict, split: str, **changes) -> dict:
    datalist[split][0].update(changes)
    return datalist


BAD = [
    (lambda d: edit(d, "test", subject="s0"), r'subject "s0" is in training and in test .*one split'),
    (lambda d: edit(d, "test", id="training"), r'id "training" stands in training\[0\] and in test\[0\]'),
    (lambda d: edit(d, "test", label=[2]), r'test\[0\] \(id "test"\) has label \[2\]: give a list with one 0 or 1'),
    (lambda d: edit(d, "test", label=[1, 0]), r"has label \[1, 0\]: give a list with one 0 or 1 for each of tumor"),
    (lambda d: edit(d, "test", label=1), r"has label 1: give a list"),
    (lambda d: edit(d, "test", image=["test_T1.png"]), r'names 1 image files, "modality" has 3 names'),
    (lambda d: edit(d, "test", image=["no.png"] * 3), r"the image .*no.png of case \"test\" does not exist: restore"),
    (lambda d: {**d, "test": [{"id": "x"}]}, r"test\[0\] lacks image, label, subject: a case needs"),
    (lambda d: {**d, "test": ["x"]}, r"test\[0\] lacks id, image"),
    (lambda d: {**d, "test": {}}, r'"test" must be a list of cases'),
    (lambda d: {**d, "classes": []}, r'"classes" must list the foreground classes'),
    (lambda d: {**d, "classes": ["a", "a"]}, r'"classes" must list the foreground classes by name, each once'),
    (lambda d: {**d, "modality": {"1": "T1"}}, r'"modality" must map "0", "1"'),
    (lambda d: {**d, "background": False}, r'"scored_class" must name one of the classes tumor; got None'),
    (lambda d: {**d, "statistics": {"s0": {"mean": [0.0], "std": [1.0]}}}, r"subject s0 must hold one finite"),
    (lambda d: {**d, "statistics": []}, r'"statistics" must map each subject to its "mean" and "std"; got \[\]'),
    (lambda d: {**d, "statistics": {"s0": [1.0]}}, r"subject s0 must hold one finite"),
    (lambda d: {**d, "statistics": {"s0": {"mean": 3, "std": ["a"] * 3}}}, r"subject s0 must hold one finite"),
    (lambda d: {**d, "modality": {"0": 5, "1": "T1", "2": "T2"}}, r'"modality" must map "0", "1", … to the names'),
    (lambda d: {**d, "classes": [["tumor"]]}, r'"classes" must list the foreground classes by name'),
    (lambda d: edit(d, "test", image=None), r'test\[0\] \(id "test"\) has image None: give a path, or a list of one'),
    (lambda d: edit(d, "test", image=["a.png", None, "b.png"]), r"has image \['a.png', None, 'b.png'\]: give a path"),
    (lambda d: edit(d, "test", image=[]), r"has image \[\]: give a path"),
    (lambda d: edit(d, "test", mask=None), r'test\[0\] has mask None: give a text in quotes, as "mask": "a1"'),
    (lambda d: edit(d, "test", subject=["s2"]), r"test\[0\] has subject \['s2'\]: give a text in quotes"),
    (lambda d: edit(d, "test", id=7), r'test\[0\] has id 7: give a text in quotes, as "id": "a1"'),
    (lambda d: {**d, "statistics": {"s0": {"mean": [np.nan] * 3, "std": [1.0] * 3}}}, r"s0 must hold one finite"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_bad_lists_are_refused_when_written_and_when_read(tmp_path, spoil, message):
    datalist = spoil(make_list(tmp_path))
    with pytest.raises(DataError, match=message):
        write_datalist(tmp_path, datalist)
    assert not (tmp_path / "datalist.json").exists()
    with pytest.raises(DataError, match=message):
        load_datalist(write_raw(tmp_path, datalist), "test")


def test_a_missing_mask_is_refused_when_written(tmp_path):
    with pytest.raises(DataError, match=r"the mask .*no.png of case \"test\" does not exist"):
        write_datalist(tmp_path, edit(make_list(tmp_path), "test", mask="no.png"))


def test_files_that_are_no_datalist(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the datalist .*none.json \(No such file"):
        load_datalist(tmp_path / "none.json", "test")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="is not a JSON file"):
        load_datalist(tmp_path / "a.json", "test")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="holds no datalist but a list"):
        load_datalist(tmp_path / "a.json", "test")


def test_an_unknown_split_is_an_argument_error(tmp_path):
    with pytest.raises(ValueError, match="Expected `split` to be one of training, validation, test, training_images, "):
        load_datalist(tmp_path, "train")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full: free some space"), (errno.EACCES, "no permission to write")]
)
def test_a_full_disk_leaves_no_list_behind(tmp_path, monkeypatch, number, words):
    def fail(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(DataError, match=words):
        write_datalist(tmp_path, make_list(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".json")]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "There is no case to train on"),
        ([[1], [1]], "None of the 2 cases is negative for class 1 of 1"),
        ([[0], [0]], "None of the 2 cases is positive for class 1 of 1"),
        ([[0, 1], [1, 1]], "None of the 2 cases is negative for class 2 of 2: .* add negative cases or split anew"),
    ],
)
def test_training_needs_both_kinds_of_every_class(labels, message):
    with pytest.raises(DataError, match=message):
        check_trainable([{"label": np.array(label, dtype=np.float32)} for label in labels])


def test_aliases_and_order():
    names = {"t1n": "T1", "T1Gd": "T1c", "t1_ce": "T1c", "T2w": "T2", "t2f": "FLAIR", "T2-FLAIR": "FLAIR", "DWI": "DWI"}
    for alias, name in names.items():
        assert canonical_modality(alias) == name
    assert sort_modalities(["DWI", "flair", "T2", "ADC", "t1gd", "T1"]) == ["T1", "T1c", "T2", "FLAIR", "DWI", "ADC"]
    with pytest.raises(ValueError, match="name each sequence once, got t1ce, t1gd"):
        sort_modalities(["t1ce", "t1gd"])


@settings(max_examples=60, deadline=None)
@given(
    subjects=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    seed=st.integers(0, 1000),
    fractions=st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]),
)
def test_the_split_is_by_subject_near_its_shares_and_repeatable(subjects, seed, fractions):
    names = [f"s{number}" for number in subjects]
    labels = np.random.default_rng(seed).integers(0, 2, (len(names), 2))
    splits = split_by_subject(names, labels, fractions=fractions, seed=seed)
    assert splits == split_by_subject(names, labels, fractions=fractions, seed=seed)
    split_of = dict(zip(names, splits, strict=True))
    assert [split_of[name] for name in names] == splits
    counts = Counter(split_of.values())
    for split, share in zip(("training", "validation", "test"), fractions, strict=True):
        assert abs(counts[split] - share * len(split_of)) <= 1
        assert share > 0 or counts[split] == 0


def test_the_split_is_stratified_by_the_union_of_a_subjects_labels():
    subjects = [f"s{number // 2}" for number in range(200)]
    labels = [[int(number % 2 and number < 60)] for number in range(200)]  # 30 of 100 subjects have one positive slice
    splits = split_by_subject(subjects, labels, seed=3)
    positive = {subject for subject, label in zip(subjects, labels, strict=True) if label[0]}
    counts = Counter((dict(zip(subjects, splits, strict=True))[subject]) for subject in positive)
    assert counts["training"] == 21
    assert sorted((counts["validation"], counts["test"])) == [4, 5]


def test_the_order_of_rows_does_not_matter_but_the_seed_does():
    subjects, labels = [f"s{number}" for number in range(40)], [[number % 2] for number in range(40)]
    splits = split_by_subject(subjects, labels)
    assert split_by_subject(subjects[::-1], labels[::-1]) == splits[::-1]
    assert split_by_subject(subjects, labels, seed=1) != splits


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.5, 0.5)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="three shares that add up to 1"):
        split_by_subject(["a"], [[1]], fractions=fractions)


def test_labels_and_subjects_of_different_length():
    with pytest.raises(ValueError, match="one row of `labels` for each of 2 subjects, got 1 rows"):
        split_by_subject(["a", "b"], [[1]])


# ---- the order of the axes -------------------------------------------------------------------------------------------


def test_the_order_is_in_the_header_and_on_every_item(tmp_path):
    path = write_datalist(tmp_path, make_list(tmp_path, order="rows_columns"))
    assert load_header(path)["order"] == "rows_columns"
    assert load_datalist(path, "test")[0]["order"] == "rows_columns"
    with pytest.raises(DataError, match="\"order\" must be one of rows_columns, xy; got 'yx'"):
        write_datalist(tmp_path, make_list(tmp_path, order="yx"))


def test_a_datalist_without_an_order_is_read_in_the_old_one_and_one_sentence_says_so(tmp_path, caplog):
    datalist = make_list(tmp_path)
    del datalist["order"]
    path = write_datalist(tmp_path, datalist)
    assert load_header(path)["order"] is None
    with caplog.at_level(logging.WARNING):
        items = [*load_datalist(path, "training"), *load_datalist(path, "test"), *load_datalist(path, "training")]
    assert all("order" not in item for item in items)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{path} does not say the order of its images, so they are read in the old one, (C, x, y)")


def test_volumes_need_no_order(tmp_path, caplog):
    (tmp_path / "a.nii.gz").touch()
    case = {"id": "a", "image": "a.nii.gz", "label": [1], "subject": "s"}
    datalist = {"modality": {"0": "T1"}, "classes": ["tumor"], "training": [case]}
    with caplog.at_level(logging.WARNING):
        load_datalist(write_datalist(tmp_path, datalist), "training")
    assert caplog.records == []
