# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The folder of a preparation: what a kill leaves, what is never removed, faults told at once, and names of splits."""

from __future__ import annotations

import logging

import pytest

from monai_wsss._checks import DataError
from monai_wsss._files import WriteError
from monai_wsss.data.datalist import write_datalist
from monai_wsss.data.find_files import folders_below
from monai_wsss.data.prepared_folder import Faults, check_output, check_released, warn_of_other_numbers
from monai_wsss.data.splits import split_in_name, words_in

EMPTY = {"modality": {"0": "T1"}, "classes": ["tumor"]}


def test_what_a_killed_preparation_left_is_removed(tmp_path, caplog):
    out = check_output(tmp_path / "out")
    (out / "images" / "a").mkdir(parents=True)
    (out / "images" / "a" / "stale.png").touch()
    (out / "images" / "a" / ".7.partial.b.png").touch()
    (out / ".7.partial.datalist.json").touch()
    assert out not in folders_below(tmp_path, 2), "no adapter takes it for data"
    check_output(out)
    assert "a preparation left that did not end" in caplog.text
    assert not (out / "images").exists()
    write_datalist(out, EMPTY)
    assert [path.name for path in out.iterdir()] == ["datalist.json"]
    with pytest.raises(DataError, match=r"holds a datalist\.json already"):
        check_output(out)


def test_files_of_a_user_are_never_removed(tmp_path):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "mine.png").touch()
    for _ in range(2):
        check_output(out)
    assert (out / "images" / "mine.png").exists()


def test_faults_are_told_together_and_a_full_disk_at_once():
    faults = Faults()
    for number in range(25):
        with faults.gather():
            raise DataError(f"{number}.png is empty: export it again.")
    with pytest.raises(DataError) as caught:
        faults.check()
    lines = str(caught.value).splitlines()
    assert lines[:20] == faults.sentences[:20]
    assert lines[20:] == ["5 more faults are of this kind."]
    with pytest.raises(WriteError, match="disk is full"), faults.gather():
        raise WriteError("Cannot write a.png: the disk is full.")
    Faults().check()


def test_a_subject_in_two_released_sets_is_told_per_item():
    with pytest.raises(DataError) as caught:
        check_released(["a", "b", "c"], ["s", "s", "s"], ["training", "test", "test"])
    assert [line[:1] for line in str(caught.value).splitlines()] == ["b", "c"]
    check_released(["a", "b"], ["s", "t"], ["training", "test"])


def test_other_numbers_than_the_paper_says_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_other_numbers({"training": 4}, {"training": 4})
        assert not caplog.text
        warn_of_other_numbers({"training": 4}, {"training": 4, "test": 2})
    assert "0 test, not 2" in caplog.text
    assert "training" not in caplog.text


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "training") for name in ("Train Set", "train", "TRAIN", "MoNuSeg 2018 Training Data", "trainset")),
        *((name, "test") for name in ("Test Set", "MoNuSegTestData", "mela_test_001", "Test2")),
        *((name, "validation") for name in ("val", "Validation", "valid")),
        *((name, None) for name in ("contest", "latest", "restrained", "values", "train_test", "Tissue Images", "")),
    ],
)
def test_words_in_names_say_splits(name, split):
    assert split_in_name(name) == split


def test_capital_letters_begin_words():
    assert words_in("Control_GroupII (2)") == ["control", "group", "ii", "2"]
