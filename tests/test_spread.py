# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work over several processes: results are those of one, bit for bit, and a worker that is killed loses nothing."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from workers_here import workers_here

from monai_wsss import _spread
from monai_wsss._checks import DataError
from monai_wsss._spread import RayWorkers, current_workers
from monai_wsss.inferers import (
    PseudoMaskWriter,
    SlideNormalizer,
    SlideReading,
    TileLayout,
    VolumeInferer,
    over_ray,
    segment_slide,
)
from monai_wsss.networks import CAMEncoder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two processes that Ray starts on this machine, of one thread each, as this one."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'monai-wsss[ray]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.slow)])
def several(request: pytest.FixtureRequest) -> AbstractContextManager[Any]:
    """Give the context in which several workers share the work."""
    if request.param == "here":
        return workers_here()
    request.getfixturevalue("cluster")
    return over_ray("auto")


def test_without_an_address_nothing_changes():
    with over_ray(None) as workers:
        assert workers is current_workers() is None
    with workers_here(), over_ray(None):
        assert current_workers() is not None
    assert current_workers() is None


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(_spread, "optional_import", lambda name: (None, False))
    with pytest.raises(DataError, match=r"pip install 'monai-wsss\[ray\]'"), over_ray("local"):
        pass


@pytest.mark.parametrize("address", [True, "", 6379])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(DataError, match="Expected `address` to be 'local'"), over_ray(address):
        pass


@pytest.fixture
def worker_here(monkeypatch) -> Iterator[Callable[..., Any]]:
    """Give what makes a worker in this process, whose handlers are removed afterwards."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("monai_wsss"), "level", logging.NOTSET)
    threads = torch.get_num_threads()

    def make(function: Callable[[str], Any], **others: str) -> Any:
        # What Ray starts in another process, and what it is given there.
        worker, switches, versions = _spread._Worker, _spread._switches(), _spread._versions()
        return worker(pickle.dumps(function), switches, versions | others, False)

    yield make
    logging.captureWarnings(False)
    torch.set_num_threads(threads)


def work_of(device: str) -> Callable[[int], int]:
    """Give what warns and squares."""

    def square(number: int) -> int:
        warnings.warn(f"{number} is odd", stacklevel=1)
        return number**2

    return square


def test_warnings_of_a_worker_are_told_where_the_run_began(worker_here):
    outcome = worker_here(work_of).do(3, pickle.dumps(3))
    assert (outcome.number, outcome.result, outcome.error) == (3, 9, None)
    assert ["3 is odd" in record.getMessage() for record in outcome.records] == [True]


def test_a_worker_of_another_version_unpacks_nothing(worker_here):
    outcome = worker_here(work_of, monai_wsss="0.0.1").do(0, b"what no version could unpack")
    assert isinstance(outcome.error, DataError)
    assert re.search(r"has monai_wsss \S+, and 0\.0\.1 is where the run began: install the same", str(outcome.error))


@pytest.mark.parametrize(("threads", "processes", "cpus"), [(1, 10, 1), (4, 2, 4), (16, 1, 8)])
def test_a_process_never_asks_for_more_cpus_than_a_machine_has(monkeypatch, threads, processes, cpus):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    # Two machines that this test has not got.
    monkeypatch.setattr(_spread, "_resources", lambda kind: [8.0, 2.0] if kind == "CPU" else [0, 0])
    assert RayWorkers().count(gpu=False) == processes
    # What Ray is asked for: more than a machine has, and it would wait for ever.
    assert _spread._cpus_per_process() == cpus
    assert not RayWorkers().has_gpus


def write_slide(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 60, (330, 270, 3))
    y, x = np.mgrid[:330, :270]
    inside = ((y / 330 - 0.45) / 0.4) ** 2 + ((x / 270 - 0.5) / 0.35) ** 2 < 1
    pixels = np.where(inside[..., None], np.array([150, 60, 130]) + noise, 245).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit=3, photometric="rgb")
    return path


@pytest.mark.parametrize("strips", [False, True])
def test_bands_of_a_slide_are_those_of_one_process(several, tmp_path, monkeypatch, strips):
    if strips:
        monkeypatch.setattr("monai_wsss.inferers.slide_tiles.STRIP_PIXELS", 1)
    slide, reading = write_slide(tmp_path / "slide.tif"), SlideReading()
    torch.manual_seed(0)
    network = CAMEncoder.tiny(2, 3, 2)
    found = []
    for name, context in (("one", nullcontext()), ("several", several)):
        with context:
            result = segment_slide(
                slide,
                network,
                tmp_path / name / "mask.tif",
                reading=reading,
                layout=TileLayout(tile=64, margin=2),
                normalize=SlideNormalizer(slide, reading),
            )
        found.append((result.tiles, result.class_mm2, result.mask.read_bytes(), result.overlay.read_bytes()))
    assert found[0] == found[1]
    assert len(np.unique(tifffile.imread(tmp_path / "one" / "mask.tif"))) > 1


def items(count: int = 7) -> list[dict[str, Any]]:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [{"id": f"i{number}", "image": image, "label": [1, number % 2]} for number, image in enumerate(images)]


@pytest.mark.parametrize("refine", ["none", "par"])
def test_pseudo_masks_are_those_of_one_process(several, tmp_path, refine):
    torch.manual_seed(0)
    network, inferer = CAMEncoder.tiny(2, 3, 2), VolumeInferer(2, slice_batch=2)
    files = []
    for name, context in (("one", nullcontext()), ("several", several)):
        out = tmp_path / name
        with context:
            PseudoMaskWriter(network, None, items(), dict, inferer, out, rule="otsu", refine=refine).run()
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(files[0]) == 7 + 2
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(cluster, tmp_path):
    def make(device):
        def square(number):
            if number == 2 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return number**2, os.getpid(), torch.get_num_threads(), device

        return square

    with over_ray("auto") as workers:
        assert workers == current_workers() == RayWorkers()
        assert workers.count(gpu=False) == 2
        assert not workers.has_gpus
        found = dict(workers.each(make, range(6), gpu=False))
    assert (tmp_path / "killed").exists()
    assert [found[number][0] for number in range(6)] == [0, 1, 4, 9, 16, 25]
    assert {result[2:] for result in found.values()} == {(1, "cpu")}
    assert os.getpid() not in {result[1] for result in found.values()}


@pytest.mark.slow
def test_an_item_that_kills_all_its_workers_is_told_and_stops_no_other(cluster, monkeypatch):
    # Each death costs the start of a process.
    monkeypatch.setattr(_spread, "_RETRIES", 1)

    def make(device):
        return lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 0 else number

    with over_ray("auto") as workers:
        assert dict(workers.each(make, range(3), gpu=False, lost=lambda number: "lost")) == {0: "lost", 1: 1, 2: 2}
        with pytest.raises(DataError, match=r"^Part 1 of 2 is not done: the process that worked on it died 4 times"):
            list(workers.each(make, range(2), gpu=False))
        with pytest.raises(DataError, match="The cluster has no GPU"):
            list(workers.each(make, range(2), gpu=True))


@pytest.mark.slow
def test_errors_and_logs_of_workers_arrive_as_they_are(cluster, caplog):
    def make(device):
        def refuse(number):
            logging.getLogger("monai_wsss.somewhere").warning("Item %d is strange.", number)
            if number == 1:
                raise DataError("The file is damaged.")

        return refuse

    with over_ray("auto") as workers:
        assert list(workers.each(make, [], gpu=False)) == []
        with pytest.raises(DataError) as caught:
            list(workers.each(make, range(2), gpu=False))
        assert str(caught.value) == "The file is damaged."
        assert "in refuse" in caught.value.__notes__[0]
        with pytest.raises(ValueError, match="Expected parts that can be sent to other processes, got one"):
            list(workers.each(make, [threading.Lock()], gpu=False))
    assert "Item 1 is strange." in caplog.messages


@pytest.mark.slow
def test_a_machine_without_the_packages_is_told_in_one_sentence(cluster, monkeypatch):
    class Incomplete:
        def __init__(self, *sent):
            raise ModuleNotFoundError("No module named 'monai_wsss'")

        def do(self, number, item):
            raise AssertionError

    # As where the class of the workers cannot be imported.
    monkeypatch.setattr(_spread, "_Worker", Incomplete)
    told = r"^A machine of the cluster cannot do the work \(ModuleNotFoundError.*\): install the same packages there"
    with over_ray("auto") as workers, pytest.raises(DataError, match=told):
        list(workers.each(lambda device: str, range(9), gpu=False))


@pytest.mark.slow
def test_a_cluster_of_this_machine_leaves_no_files_and_no_handler(monkeypatch, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'monai-wsss[ray]'")
    if ray.is_initialized():
        ray.shutdown()
    made, real = [], tempfile.TemporaryDirectory
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **how: made.append(real(**how)) or made[-1])
    handler = signal.getsignal(signal.SIGTERM)
    with over_ray("local") as workers:
        assert dict(workers.each(lambda device: str, [1], gpu=False)) == {0: "1"}
        (folder,) = (Path(each.name) for each in made)
        assert folder.is_dir()
    assert not folder.exists()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not ray.is_initialized()
