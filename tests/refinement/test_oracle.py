# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The oracle threshold against a plain loop, and that nothing of the package but the benchmark reaches it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import monai_wsss
from monai_wsss.refinement.oracle import oracle_raw_threshold


def numpy_dice(scores: list[np.ndarray], masks: list[np.ndarray], threshold: float) -> float:
    predicted = np.concatenate([s.ravel() for s in scores]) > np.float32(threshold)
    truth = np.concatenate([m.ravel() for m in masks]) > 0
    size = predicted.sum() + truth.sum()
    return float(2 * (predicted & truth).sum() / size) if size else 1.0


@pytest.mark.parametrize("by_subject", [False, True])
def test_equals_a_loop_over_thresholds(by_subject: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 6, 6), (1, 5, 7), (1, 4, 4, 3)]
    scores = [(torch.rand(size, generator=generator) * 20).round() / 20 for size in sizes]
    masks = [
        (score + 0.2 * torch.randn(score.shape, generator=generator) > 0.6).to(torch.uint8) * 2 for score in scores
    ]
    masks[2][:] = 0
    candidates = [0.9, 0.1, 0.5, 0.6, 1.0]
    subjects = ["a", "a", "b"]
    groups = [(0, 1), (2,)] if by_subject else [(0, 1, 2)]
    expected = {
        t: np.mean([numpy_dice([scores[i].numpy() for i in g], [masks[i].numpy() for i in g], t) for g in groups])
        for t in candidates
    }
    got = oracle_raw_threshold(scores, masks, candidates, subjects=subjects if by_subject else None)
    best = max(expected.values())
    assert got.oracle_threshold == min(t for t in candidates if expected[t] == best)
    np.testing.assert_allclose(got.oracle_dice, best, rtol=1e-12)


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    got = oracle_raw_threshold([torch.zeros(1, 2, 2)], [torch.zeros(1, 2, 2)], [0.5])
    assert got.oracle_dice == 1.0


def test_bad_arguments() -> None:
    case = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="0 thresholds, 1 masks, 1 subjects, 1 scores"):
        oracle_raw_threshold([case], [case], [])
    with pytest.raises(ValueError, match="at least one, got 1 thresholds, 0 masks"):
        oracle_raw_threshold([], [], [0.5])
    with pytest.raises(ValueError, match="2 subjects, 1 scores"):
        oracle_raw_threshold([case], [case], [0.5], subjects=["a", "b"])
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 2\) and \(1, 2, 3\)"):
        oracle_raw_threshold([case], [torch.zeros(1, 2, 3)], [0.5])


def test_only_the_benchmark_may_read_masks_to_choose_a_threshold() -> None:
    package = Path(monai_wsss.__file__).parent
    readers = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) .*refinement.*\boracle", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert readers <= {"benchmark"}
