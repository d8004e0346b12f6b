# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files are whole or absent, damaged ones are noticed, and nothing of a killed process stays."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, load_tensors, remove_partial, save_tensors
from monai_wsss._locks import process_mark

CONTENT = {
    "weights": {"weight": torch.arange(300.0), "flags": torch.tensor([True, False]), "empty": torch.zeros(0)},
    "nested": {"epoch": 3, "method": {"a": torch.ones(40, 2)}, "rng": {"cached": 0.5, "keys": [torch.arange(9)]}},
    "plain": {"epoch": 1},
}


@pytest.mark.parametrize("name", CONTENT)
def test_every_single_flipped_bit_is_noticed(tmp_path, name):
    path = tmp_path / "model.pt"
    save_tensors(path, CONTENT[name])
    whole = path.read_bytes()
    draw = random.Random(0)
    for place in [0, 2, len(whole) - 1, len(whole) - 66, len(whole) - 90, *draw.sample(range(len(whole)), 40)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"model\.pt.* damaged"):
            load_tensors(path)


@pytest.mark.parametrize("length", [0, 1, 100, -1, -40, -82, -200])
def test_a_cut_file_is_noticed(tmp_path, length):
    path = tmp_path / "model.pt"
    save_tensors(path, CONTENT["weights"])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"model\.pt.* damaged"):
        load_tensors(path)


def test_torch_itself_reads_what_we_write(tmp_path):
    save_tensors(tmp_path / "model.pt", CONTENT["weights"])
    for mapped in (False, True):
        content = torch.load(tmp_path / "model.pt", weights_only=True, mmap=mapped)
        assert torch.equal(content["weight"], torch.arange(300.0))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_a_checksum_load_and_it_is_said(tmp_path, caplog, zipped):
    path = tmp_path / "old.pt"
    torch.save(CONTENT["weights"], path, _use_new_zipfile_serialization=zipped)
    with caplog.at_level(logging.INFO):
        assert torch.equal(load_tensors(path)["weight"], torch.arange(300.0))
    assert "old.pt has no checksum" in caplog.text


def test_a_changed_tensor_of_an_old_file_is_noticed(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.full((5000,), 0.1)}, path)
    damaged = bytearray(path.read_bytes())
    for place in random.Random(1).sample(range(4000, 18000), 40):
        flipped = damaged.copy()
        flipped[place] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"old\.pt.* damaged"):
            load_tensors(path)


def dead_mark() -> str:
    """Give the mark of a process that has ended."""
    code = "from monai_wsss._locks import process_mark; print(process_mark())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_left_overs_of_dead_processes_go_and_no_others(tmp_path):
    dead = dead_mark()
    number, start, machine = process_mark().split("-")
    gone = [
        f".{dead}.partial.epoch_0002.pt",
        f".{dead.split('-')[0]}.partial.model.pt",
        f".{number}-{int(start) + 7}-{machine}.partial.again.png",
    ]
    kept = [
        f".{process_mark()}.partial.model.pt",
        f".{dead.split('-')[0]}-5-{'0' * 8}.partial.of_another_machine.pt",
        ".hidden.partial.notes.txt",
        "a.partial.b",
        ".keep",
    ]
    for name in gone + kept:
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "model.pt") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept[1:], "model.pt"])


def test_left_overs_of_a_writer_that_was_killed(tmp_path):
    code = (
        "import os, signal; from monai_wsss._files import atomic_path\n"
        f"with atomic_path({str(tmp_path / 'epoch_0001.pt')!r}) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    assert remove_partial(tmp_path) == 1
    assert os.listdir(tmp_path) == []
