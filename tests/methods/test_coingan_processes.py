# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN on two gloo processes: pools, levels and weights are those of one process with as many images."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from monai.data import DataLoader

from monai_wsss.data import EpochCacheDataset, UnpairedSampler
from monai_wsss.engines import WSSSTrainer, distribute_method, start_distributed, stop_distributed
from monai_wsss.methods import CoinGAN
from monai_wsss.methods.coingan_settings import coingan_optimizers
from monai_wsss.networks import CycleGenerator


def train(folder: Path, rank: int, processes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    items: list[dict[str, Any]] = []
    for number in range(12):
        image = torch.rand((1, 16, 16), generator=generator, dtype=torch.float64) - 0.5
        items.append({"image": image, "label": torch.tensor([float(number % 3 == 0)]), "id": str(number)})
    torch.manual_seed(0)
    plain = CycleGenerator(width=4, num_res_blocks=1, num_down=2, contrastive=None, attention=None)
    network = CycleGenerator(width=4, num_res_blocks=1, num_down=2)
    words = {"ndf": 4, "num_layers_d": 1, "pool_size": 3}
    method = CoinGAN.from_preset("cyclegan", network=network, reverse=plain, **words).double()
    optimizers = coingan_optimizers(method, "paper", generator_rate=1e-2)
    sampler = UnpairedSampler(items, num_replicas=processes, rank=rank)
    dataset = EpochCacheDataset(items, lambda item: item, progress=False)  # type: ignore[arg-type]
    loader = DataLoader(dataset, batch_size=4 // processes, sampler=sampler)
    wrapped = distribute_method(method) if processes > 1 else method
    WSSSTrainer(wrapped, optimizers, loader, 3, progress_bar=False).run()
    torch.save(method.state_dict(), folder / f"{processes}_{rank}.pt")


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    start_distributed()
    train(Path(folder), rank, 2)
    stop_distributed()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Epoch")
def test_two_processes_agree_with_one_at_the_same_total_batch(tmp_path):
    train(tmp_path, 0, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    single, first, second = (torch.load(tmp_path / f"{run}.pt", weights_only=True) for run in ("1_0", "2_0", "2_1"))
    assert single["pool._extra_state"].shape[0] == 3
    assert single.keys() == first.keys() == second.keys()
    for name, value in single.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6, msg=name)
