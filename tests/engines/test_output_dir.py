# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A folder that cannot be written is refused before a run begins."""

from __future__ import annotations

import errno
import os

import pytest

from monai_wsss._checks import DataError
from monai_wsss.engines import check_output_dir


def test_nothing_stays_of_the_check(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    check_output_dir(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "the file system is read-only: choose another output folder"),
        (errno.EACCES, "no permission to write there"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_why_a_folder_cannot_be_written(tmp_path, monkeypatch, code, words):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(DataError, match=rf"Cannot write .*: {words}"):
        check_output_dir(tmp_path / "run")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match=r"Cannot write .*run"):
        check_output_dir(tmp_path / "run")
