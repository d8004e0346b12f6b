# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Error-uncertainty AUROC against scikit-learn, by case and pooled, and the cases that rank nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from monai_wsss.metrics import ErrorRanking, error_auroc, metric_definition


def case(seed: int, *, error: float = 0.2, bias: float = 0.3):
    """Give uncertainty, prediction and reference of an image; wrong pixels are a little more uncertain."""
    generator = np.random.default_rng(seed)
    reference = generator.integers(0, 3, (1, 20, 20))
    wrong = generator.random(reference.shape) < error
    prediction = np.where(wrong, (reference + 1) % 3, reference)
    # Most pixels are nearly certain, over many powers of ten.
    uncertainty = np.clip(10 ** generator.uniform(-8, -bias, reference.shape) * (1 + 4 * wrong), 0, 1)
    return uncertainty, prediction, reference


@pytest.mark.parametrize("seed", range(4))
def test_a_case_is_ranked_as_by_scikit_learn(seed):
    uncertainty, prediction, reference = case(seed)
    reference[0, :3] = 255
    known = reference != 255
    expected = roc_auc_score((prediction != reference)[known], uncertainty[known])
    assert error_auroc(torch.as_tensor(uncertainty), prediction, reference) == pytest.approx(expected)
    assert error_auroc(1 - uncertainty, prediction, reference) == pytest.approx(1 - expected)


def test_pooled_pixels_are_ranked_as_by_scikit_learn_and_cases_are_averaged_by_subject():
    ranking, cases = ErrorRanking(), [case(seed, bias=0.3 + seed) for seed in range(4)]
    own = [ranking.add(subject, *one) for subject, one in zip("aabc", cases, strict=True)]
    found = ranking.summary("error_auroc", bootstrap=50)
    wrong = np.concatenate([(prediction != reference).ravel() for _, prediction, reference in cases])
    pooled = roc_auc_score(wrong, np.concatenate([uncertainty.ravel() for uncertainty, *_ in cases]))
    assert found["error_auroc_pooled"]["mean"] == pytest.approx(pooled, abs=2e-3)
    by_subject = [np.mean(own[:2]), own[2], own[3]]
    assert found["error_auroc"]["mean"] == pytest.approx(np.mean(by_subject))
    for entry in found.values():
        low, high = entry["ci95"]
        assert low <= entry["mean"] <= high
        assert entry["n"] == 3


def test_pooled_intervals_are_those_of_repeated_pixels():
    ranking, cases = ErrorRanking(), [case(seed, error=0.1 * (seed + 1)) for seed in range(3)]
    for subject, one in zip("abc", cases, strict=True):
        ranking.add(subject, *one)
    found = ranking.summary("auroc", bootstrap=400)["auroc_pooled"]
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(200):
        chosen = [cases[number] for number in generator.integers(0, 3, 3)]
        wrong = np.concatenate([(prediction != reference).ravel() for _, prediction, reference in chosen])
        drawn.append(roc_auc_score(wrong, np.concatenate([one[0].ravel() for one in chosen])))
    assert found["ci95"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=0.02)


def test_cases_without_an_error_or_with_nothing_else_are_left_out_and_counted():
    ranking = ErrorRanking()
    uncertainty, prediction, reference = case(0)
    assert ranking.add("a", uncertainty, reference, reference) is None
    assert ranking.add("b", uncertainty, (reference + 1) % 3, reference) is None
    assert ranking.summary("auroc").keys() == {"auroc_pooled"}, "pooled, the pixels of both rank one another"
    ranking.add("c", uncertainty, prediction, reference)
    entry = ranking.summary("auroc")["auroc"]
    assert (entry["n"], entry["without_error"], entry["without_right"]) == (1, 1, 1)


def test_of_nothing_nothing_is_told():
    assert ErrorRanking().summary("auroc") == {}
    ranking = ErrorRanking()
    ranking.add("a", np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)))
    assert ranking.summary("auroc") == {}
    ignored = np.full((2, 2), 255)
    assert error_auroc(np.zeros((2, 2)), np.zeros((2, 2)), ignored) is None


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="of one shape"):
        error_auroc(np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ErrorRanking().add("a", np.full((2, 2), 1.5), np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        error_auroc(np.array([np.nan, 0.1]), np.zeros(2), np.ones(2))


def test_the_numbers_are_defined_in_words():
    for name in ("error_auroc_entropy", "error_auroc_disagreement_pooled"):
        assert metric_definition(name)
