# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One process at a time writes to a folder; what a dead one held is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from monai_wsss._checks import DataError
from monai_wsss._locks import LOCK, hold_folder, process_mark, release_folder

HOLD = (
    "import sys, time; from monai_wsss._locks import hold_folder; hold_folder(sys.argv[1]); print('held', flush=True)"
)


@pytest.fixture
def other(tmp_path):
    """Give another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + "; time.sleep(60)", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_and_free_after_a_kill(tmp_path, other):
    with pytest.raises(DataError, match=rf"in use by process {other.pid} on .*wait .*choose another output folder"):
        hold_folder(tmp_path)
    other.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # not waited for: it is a zombie
    hold_folder(tmp_path)
    release_folder(tmp_path)
    assert not os.listdir(tmp_path)


def test_the_end_of_a_process_frees_its_folders(tmp_path):
    subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], check=True, capture_output=True)
    assert not os.listdir(tmp_path)


def test_a_process_holds_a_folder_once(tmp_path):
    hold_folder(tmp_path)
    hold_folder(tmp_path / ".." / tmp_path.name)
    release_folder(tmp_path)
    release_folder(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("mark", "age", "stale"),
    [
        ("1-999999999-{machine}", 0, True),  # the number was given again
        ("99999999-5-{machine}", 0, True),
        ("5-5-00000000", 30, False),  # another machine, alive half a minute ago
        ("5-5-00000000", 700, True),
        ("", 0, False),  # just being written
        ("", 700, True),
        ("what is this", 5, False),
    ],
)
def test_which_locks_are_stale(tmp_path, mark, age, stale):
    lock = tmp_path / LOCK
    machine = process_mark().rsplit("-", 1)[1]
    lock.write_text(f"{mark.format(machine=machine)} elsewhere")
    os.utime(lock, (time.time() - age,) * 2)
    if stale:
        hold_folder(tmp_path)
        release_folder(tmp_path)
        assert not os.listdir(tmp_path)
    else:
        with pytest.raises(DataError, match=r"in use by process .*wait .*delete .*\.in_use"):
            hold_folder(tmp_path)


def test_a_folder_that_cannot_be_written_is_left_to_its_writer(tmp_path):
    hold_folder(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
