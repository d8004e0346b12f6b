# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A folder that cannot be written is refused before a run begins."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from monai_wsss._checks import DataError
from monai_wsss.engines import check_output_dir


def test_a_new_folder_is_made_and_stays_empty(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    check_output_dir(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "the file system is read-only: choose another output folder"),
        (errno.EACCES, "no permission to write there"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "touch"])
def test_why_a_folder_cannot_be_written(tmp_path, monkeypatch, code, words, call):
    def fail(self, *args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, call, fail)
    with pytest.raises(DataError, match=rf"Cannot write .*: {words}"):
        check_output_dir(tmp_path / "run")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match=r"Cannot write .*run"):
        check_output_dir(tmp_path / "run")
