# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Work over processes: what they give, that they have one thread, errors, and processes that die."""

from __future__ import annotations

import os

import pytest
import torch

from monai_wsss.benchmark.spread_runs import each_in_processes, one_thread


def described(item: int) -> tuple[int, int, int]:
    if item < 0:
        raise ValueError(f"No {item}.")
    if item == 13:
        os._exit(1)
    return item * item, torch.get_num_threads(), os.getpid()


def test_an_error_of_the_work_is_raised():
    with pytest.raises(ValueError, match="No -1"):
        list(each_in_processes(described, [-1], 2))


def test_items_are_done_elsewhere_and_a_process_that_dies_takes_no_other_item_with_it():
    found = dict(each_in_processes(described, [2, 13], 2))
    assert found[13] is None
    assert found[2] is not None
    assert found[2][:2] == (4, 1)
    assert found[2][2] != os.getpid()


def test_one_thread_is_for_the_time_being():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
