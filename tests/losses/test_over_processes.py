# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two gloo processes learn what one would learn from their joint batch, where losses count over processes."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from monai_wsss.losses import ContrastiveSeparationLoss, ReliabilityWeightedLoss


def make() -> dict[str, torch.Tensor]:
    """Four images, two per process: the second process has no anchors, and most of its pixels are ignored."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (4, 6, 5), generator=generator)
    label[2:, 1:] = 255
    anchors = torch.rand(label.shape, generator=generator) < 0.6
    anchors[1:] = False
    return {
        "maps": torch.randn((4, 3, 6, 5), generator=generator, dtype=torch.float64),
        "label": label,
        "perplexity": 0.3 + torch.rand(label.shape, generator=generator, dtype=torch.float64),
        "anchors": anchors,
    }


def losses_of(given: dict[str, torch.Tensor], over: bool) -> dict[str, torch.Tensor]:
    """Values and gradients by the maps, as this process has them."""
    maps, label = given["maps"].clone().requires_grad_(), given["label"]
    batch, image = (ReliabilityWeightedLoss(normalize=word, over_processes=over) for word in ("batch", "image"))
    values = {
        "batch": batch(maps, label, given["perplexity"]),
        "image": image(maps, label, given["perplexity"]),
        "plain": batch(maps, label),
        "separation": ContrastiveSeparationLoss(over_processes=over)(maps, label, given["anchors"]),
    }
    gradients = {f"{name} gradient": torch.autograd.grad(value, maps)[0] for name, value in values.items()}
    return {name: value.detach() for name, value in values.items()} | gradients


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    own = {name: part[2 * rank : 2 * rank + 2] for name, part in make().items()}
    torch.save([losses_of(own, over) for over in (True, False)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    (first, first_alone), (second, second_alone) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = losses_of(make(), True)
    for name, value in expected.items():
        joined = torch.cat((first[name], second[name])) / 2 if value.ndim else (first[name] + second[name]) / 2
        torch.testing.assert_close(joined, value, msg=name)
    for name in ("batch", "image", "separation"):
        assert not torch.isclose((first_alone[name] + second_alone[name]) / 2, expected[name]), name
