# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What processes ask of one another, with the other ones played by functions; a single one answers for itself."""

from __future__ import annotations

import pytest
import torch

from monai_wsss._processes import (
    broadcast_buffers,
    gather_objects,
    is_distributed,
    is_main_process,
    mean_of_processes,
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
