# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``monai-wsss predict --ray``: the files of one process, bit for bit, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from workers_here import workers_here

from monai_wsss.__main__ import main
from monai_wsss._checks import DataError
from monai_wsss.bundle_run import predict_masks
from monai_wsss.bundle_run.case_reading import CaseReader
from monai_wsss.bundle_run.case_run import CaseRun, SentRun
from monai_wsss.bundle_run.trained import weights_for
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.log_names import NameFilter

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


def sent_run(out: Path) -> SentRun:
    """Give a run as workers get it."""
    trained = weights_for(SKIN, None)
    reader = CaseReader(trained.modalities, None, {}, some=False, background=True)
    run = CaseRun(out, trained.bundle, trained, {}, reader, NameFilter({}))
    (out / "sign").touch()
    return SentRun.of(run, out / "sign")


def test_a_machine_that_does_not_share_the_files_is_refused_in_one_sentence(tmp_path):
    sent = sent_run(tmp_path)
    with pytest.raises(DataError, match=r"does not see the images of case 1: choose a place on a disk that all"):
        sent("cpu")((InputCase("case 1", {"image": [tmp_path / "absent.png"]}, "file"), "digest"))
    with pytest.raises(DataError, match=rf"does not have the same files at \S+model\.pt and \S+{SKIN} as the"):
        replace(sent, content="of other weights")("cpu")
    (tmp_path / "sign").unlink()
    with pytest.raises(DataError, match="does not see the output folder"):
        sent("cpu")


def test_nothing_is_written_where_ray_is_absent(skin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("monai_wsss._spread.optional_import", lambda name: (None, False))
    assert main(["predict", str(skin), "--bundle", SKIN, "--out", str(tmp_path / "out"), "--ray"]) == 1
    assert "pip install 'monai-wsss[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    try:
        assert main([*command, str(tmp_path / "one")]) == 3
    finally:
        torch.set_num_threads(threads)
    assert len(killed) == 1
    assert files_of(tmp_path / "several") == files_of(tmp_path / "one")
