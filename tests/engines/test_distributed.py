# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two gloo processes: gradients are averaged, the healthy level is that of all images, one process writes."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from monai_wsss.engines import (
    Progress,
    WSSSTrainer,
    distribute_method,
    is_main_process,
    local_device,
    start_distributed,
    stop_distributed,
)
from monai_wsss.methods import BMP, ClassActivationMapping, WSSSMethod
from monai_wsss.networks import ActivationNetwork, AverageBuffer, CAMEncoder, TwoBranchNetwork, record_reading


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Distance(WSSSMethod):
    """Mean of (w - x)^2: its gradient tells which images were seen."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        nn.init.zeros_(self.network.weight)

    def losses(self, batch, progress, player):
        return {"distance": (self.network(torch.ones(1, 1)) - batch["image"].mean()).square().mean()}


class Identity(ActivationNetwork):
    """The map is the image."""

    def class_maps(self, image):
        return image


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    start_distributed()
    method = Distance()
    batch = {"image": torch.full((1, 1, 4, 4), (1.0, 3.0)[rank]), "label": torch.zeros(1, 1)}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    WSSSTrainer(
        distribute_method(method), optimizer, [batch], 1, progress_bar=False, model_path=f"{folder}/{rank}.pt"
    ).run()

    healthy = ClassActivationMapping(Identity(2, 1))
    value = torch.full((1, 1, 4, 4), (-5.0, 7.0)[rank])
    value[..., :1, :1] = 1.0
    healthy.finalize([{"image": value, "label": torch.zeros(1, 1)}])
    # One process has no image without the finding in its batch; both must follow the healthy level all the same.
    torch.manual_seed(rank)
    words = {"seed_scale": "reference", "ready_below": 0.4, "dilations": (1,), "scales": (1.0,)}
    bmp = BMP.from_preset(network=TwoBranchNetwork.tiny(), **words)
    labels = torch.tensor([[1.0], [1.0]]) if rank == 0 else torch.tensor([[1.0], [0.0]])
    losses = bmp({"image": torch.rand(2, 1, 16, 16), "label": labels}, Progress(epoch=1, iteration=1, fraction=0.9))
    shared = ClassActivationMapping(CAMEncoder.tiny())
    if rank == 0:
        record_reading(shared, {"order": "rows_columns"})
    distribute_method(shared)
    result = {
        "order": shared.network.reading_order,
        "level": bmp.seeds.scale.level.value,
        "running": bmp.gate.running.value,
        "own": losses["classification"].detach(),
        "weight": method.network.weight.detach(),
        "quantile": healthy.network.negative_quantile,
        "main": is_main_process(),
    }
    torch.save(result, f"{folder}/result{rank}.pt")
    stop_distributed()


@pytest.mark.slow
def test_two_processes_average_gradients_and_share_the_healthy_level(tmp_path):
    mp.spawn(work, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"result{rank}.pt", weights_only=True) for rank in (0, 1))
    # d/dw of mean((w - 1)^2, (w - 3)^2) at 0 is -4; each process alone would go to 0.2 or 0.6.
    assert first["weight"].item() == second["weight"].item() == pytest.approx(0.4)
    assert first["quantile"].item() == second["quantile"].item() == pytest.approx(7.0)
    assert first["level"].item() == second["level"].item() != 0
    mean = (first["own"] + second["own"]).item() / 2
    assert first["running"].item() == second["running"].item() == pytest.approx(mean, rel=1e-5)
    assert first["order"].item() == second["order"].item() == 2, "the record of the first process"
    assert (first["main"], second["main"]) == (True, False)
    assert (tmp_path / "0.pt").is_file()
    assert not (tmp_path / "1.pt").exists()


def test_buffers_follow_the_first_process_except_those_of_parts_that_keep_their_own(tmp_path):
    method = Distance()
    method.network.register_buffer("shared", torch.zeros(1))
    parts = [nn.BatchNorm1d(1), AverageBuffer(1), AverageBuffer(1, over_processes=False)]
    method.normalization, method.common, method.own = parts
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        followed = set(map(id, distribute_method(method).modules_buffers))
    finally:
        stop_distributed()
    kept = {name for name, buffer in method.named_buffers() if id(buffer) not in followed}
    assert kept == {"own.reference", "own.filled"}


def test_a_process_whose_peers_do_not_come_says_so(monkeypatch):
    port = free_port()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    words = rf"Process 0 of 2 did not meet the others at 127.0.0.1:{port} \(.*1/2 clients joined\): look at the first"
    with pytest.raises(RuntimeError, match=words):
        start_distributed(timeout_minutes=0.02)
    assert is_main_process()


def test_processes_wait_for_half_an_hour(monkeypatch):
    asked = {}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: asked.update(options))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    start_distributed()
    assert asked["timeout"].total_seconds() == 1800


@pytest.mark.parametrize(("gpu", "backend"), [(True, "nccl"), (False, "gloo")])
def test_processes_with_gpus_speak_by_nccl(monkeypatch, gpu, backend):
    asked = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **options: asked.append(name))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    start_distributed()
    assert asked == ([backend, "cuda:0"] if gpu else [backend])


def test_one_process_needs_none_of_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    assert local_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    stop_distributed()
    with pytest.raises(RuntimeError, match="Not started by torchrun"):
        start_distributed()
