# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every case once over all processes, none where there is none, one sentence where some would have none."""

from __future__ import annotations

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.data import ValidationSampler


def shares(count: int, processes: int, monkeypatch) -> list[list[int]]:
    """Give what each process gets; the others are played."""
    monkeypatch.setattr("monai_wsss.data.validation_sampler.is_distributed", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = ValidationSampler(range(count))
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
        assert len(torch.utils.data.DataLoader(range(count), sampler=sampler)) == len(parts[-1])
    return parts


@pytest.mark.parametrize(("count", "processes"), [(0, 1), (1, 1), (5, 1), (0, 2), (0, 8), (2, 2), (5, 2), (9, 4)])
def test_each_case_goes_to_one_process(count, processes, monkeypatch):
    parts = shares(count, processes, monkeypatch)
    assert sorted(number for part in parts for number in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("count", "processes"), [(1, 2), (3, 4), (7, 8)])
def test_fewer_cases_than_processes_is_one_sentence(count, processes, monkeypatch):
    with pytest.raises(DataError, match=rf"split validation holds {count} cases for {processes} processes: start at"):
        shares(count, processes, monkeypatch)
