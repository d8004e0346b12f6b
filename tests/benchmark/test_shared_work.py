# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work shared by workers of a cluster and by processes of torchrun: each item once, all results, one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from workers_here import workers_here

from monai_wsss._checks import DataError
from monai_wsss.benchmark.shared_work import Ranks, SharedWork, _SentWork  # what workers are sent is not public


def noted(folder: Path, device: str | None, item: int) -> tuple[str | None, int]:
    with (folder / f"{item}.txt").open("a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', 'none')} {device}\n")
    return device, item * item


def test_workers_of_a_cluster_do_the_items_on_their_device(tmp_path):
    work = SharedWork(tmp_path, device=None)
    with workers_here():
        assert work.first(partial(noted, tmp_path), 3) == ("cpu", 9)
        assert dict(work.each(partial(noted, tmp_path), [1, 2])) == {1: ("cpu", 1), 2: ("cpu", 4)}
    assert list(tmp_path.glob(".*")) == [], "the sign for the workers is taken away again"


def test_a_worker_that_does_not_see_the_folder_is_told(tmp_path):
    with pytest.raises(DataError, match="does not see the output folder"):
        _SentWork(partial(noted, tmp_path), tmp_path / "elsewhere" / "sign")("cpu")


def test_one_process_does_all_in_order(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    work = SharedWork(tmp_path, device="cpu", ranks=Ranks.of_torchrun())
    assert work.ranks is None
    assert work.writes
    assert list(work.each(partial(noted, tmp_path), [2, 1])) == [(2, ("cpu", 4)), (1, ("cpu", 1))]


PROGRAM = """
import json, os, sys, time
from pathlib import Path
from monai_wsss.benchmark.shared_work import Ranks, SharedWork

folder = Path(sys.argv[1])

def noted(device, item):
    with (folder / f"{item}.txt").open("a") as file:
        file.write(os.environ["RANK"] + "\\n")
    return device, item * item
ranks = Ranks.of_torchrun()
work = SharedWork(folder, device="cpu", ranks=ranks)

def counted(device, item):
    time.sleep(1.0)
    (folder / "counted").write_text(f"{ranks.rank} {item}")
    return ranks.rank, item

found = work.first(counted, 7)
results = list(work.each(noted, list(range(5))))
(folder / f"rank{ranks.rank}.json").write_text(json.dumps([found, work.writes, results]))
"""


@pytest.mark.slow
def test_processes_of_torchrun_do_each_item_once_and_know_all_results(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert [one[0] for one in told] == [[0, 7], [0, 7]], "rank 1 waits for what rank 0 has found"
    assert (tmp_path / "counted").read_text() == "0 7"
    assert [one[1] for one in told] == [True, False]
    assert told[0][2] == told[1][2] == [[item, ["cpu", item * item]] for item in range(5)]
    assert [len((tmp_path / f"{item}.txt").read_text().splitlines()) for item in range(5)] == [1] * 5
