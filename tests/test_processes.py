# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What processes ask of one another; a single one answers for itself.

The others are played by functions, and in one test by a second process.
"""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp

from monai_wsss._processes import (
    broadcast_buffers,
    gather_objects,
    gather_tensors,
    is_distributed,
    is_main_process,
    mean_of_processes,
    sum_of_processes,
)


@pytest.fixture
def joined(monkeypatch):
    """Pretend that a process group has been joined, as rank 1 of 2."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def test_a_single_process_answers_for_itself():
    assert not is_distributed()
    assert is_main_process()
    values, known = torch.tensor([3.0, 0.0]), torch.tensor([True, False])
    assert mean_of_processes(values, known) == (values, known)
    assert gather_objects({"a": 1}) == [{"a": 1}]
    broadcast_buffers([torch.zeros(1)])
    rows = torch.rand(2, 3, requires_grad=True)
    for answer in (sum_of_processes(rows), gather_tensors(rows)):
        assert torch.equal(answer, rows)
        assert not answer.requires_grad
    assert sum_of_processes(rows).data_ptr() != rows.data_ptr()


@pytest.mark.usefixtures("joined")
def test_one_of_two_writes_no_files():
    assert is_distributed()
    assert not is_main_process()


@pytest.mark.usefixtures("joined")
def test_the_mean_is_of_those_who_know(monkeypatch):
    others = iter([torch.tensor([2.0, 0.0, 7.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])])  # 2 and 7 in two entries
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.add_(next(others)))
    own = torch.tensor([4.0, 5.0, 0.0, 0.0])
    values, known = mean_of_processes(own, torch.tensor([True, True, False, False]))
    assert values.tolist() == [3.0, 5.0, 7.0, 0.0]
    assert known.tolist() == [True, True, True, False]
    assert own.tolist() == [4.0, 5.0, 0.0, 0.0]  # not changed in place


@pytest.mark.usefixtures("joined")
def test_objects_come_in_the_order_of_ranks(monkeypatch):
    def gather(into, value):
        into[:] = ["of rank 0", value]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert gather_objects("of rank 1") == ["of rank 0", "of rank 1"]


@pytest.mark.usefixtures("joined")
def test_buffers_become_those_of_rank_0(monkeypatch):
    def broadcast(buffer, rank):
        assert rank == 0
        buffer.fill_(5.0)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    norm = torch.nn.BatchNorm2d(2)
    broadcast_buffers([norm.running_mean, norm.running_var])
    assert norm.running_mean.tolist() == norm.running_var.tolist() == [5.0, 5.0]


@pytest.mark.usefixtures("joined")
def test_a_sum_leaves_the_given_tensor_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda part: part.add_(torch.tensor([10.0, 20.0])))
    own = torch.tensor([1.0, 2.0], requires_grad=True)
    total = sum_of_processes(own)
    assert total.tolist() == [11.0, 22.0]
    assert own.tolist() == [1.0, 2.0]
    assert not total.requires_grad


@pytest.mark.usefixtures("joined")
def test_rows_come_in_the_order_of_ranks(monkeypatch):
    def gather(parts, value):
        assert value.is_contiguous()
        parts[0].zero_()
        parts[1].copy_(value)

    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    own = torch.arange(6.0).reshape(3, 2).T.requires_grad_()  # not contiguous
    rows = gather_tensors(own)
    assert rows.tolist() == [[0, 0, 0], [0, 0, 0], [0, 2, 4], [1, 3, 5]]
    assert not rows.requires_grad


def work(rank: int, port: int, folder: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    answers = {
        "sum": sum_of_processes(torch.tensor([1, 10 + rank])),
        "scalar": sum_of_processes(torch.tensor(0.5 + rank)),
        "rows": gather_tensors(torch.full((2, 1), float(rank))),
        "flags": gather_tensors(torch.tensor([rank == 1, True])),
        "none": gather_tensors(torch.zeros(0, 3)),
    }
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_both_of_two_processes_get_the_same_answers(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        answers = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert answers["sum"].tolist() == [2, 21]
        assert answers["scalar"].item() == 2.0
        assert answers["rows"].tolist() == [[0.0], [0.0], [1.0], [1.0]]
        assert answers["flags"].tolist() == [False, True, True, True]
        assert answers["none"].shape == (0, 3)
