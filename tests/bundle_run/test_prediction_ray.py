# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss predict --ray``: the files of one process, bit for bit, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from workers_here import workers_here

from monai_wsss.__main__ import main
from monai_wsss.bundle_run import predict_masks

SKIN = "dermoscopy_cam_segmentation"


def files_of(out: Path) -> dict[str, bytes]:
    """Give the content of all files but the page and the record of the run, which tell when they were made."""
    left_out = ("report.html", "run.json")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_cases_of_several_workers_are_those_of_one_process(skin, tmp_path):
    one = predict_masks(skin, SKIN, tmp_path / "one", device="cpu")
    with workers_here():
        several = predict_masks(skin, SKIN, tmp_path / "several", device="cpu")
    assert several.rows == one.rows
    assert several.failures == one.failures
    assert len(one.failures) == 1
    assert files_of(several.out) == files_of(one.out)


def kill_a_worker(killed: list[int], stop: threading.Event) -> None:
    """Kill the first process of Ray that works on an item."""
    while not stop.is_set() and not killed:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::_Worker.do"):
                killed.append(int(process.name))
                os.kill(killed[0], signal.SIGKILL)
                break
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a worker to kill by its title")
def test_the_command_with_a_killed_worker_gives_what_one_process_gives(skin, tmp_path, monkeypatch, capsys):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'monai-wsss[ray]'")
    threads, killed, stop = torch.get_num_threads(), [], threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(killed, stop))
    command = ["predict", str(skin), "--bundle", SKIN, "--device", "cpu", "--out"]
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        killer.start()
        assert main([*command, str(tmp_path / "several"), "--ray"]) == 3
    finally:
        stop.set()
        killer.join()
        ray.shutdown()
    assert len(killed) == 1
    assert main([*command, str(tmp_path / "one")]) == 3
    torch.set_num_threads(threads)
    assert files_of(tmp_path / "several") == files_of(tmp_path / "one")
