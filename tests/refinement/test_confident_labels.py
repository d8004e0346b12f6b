# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Confident labels against their rule, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from monai_wsss.refinement.confident_labels import confident_label, confident_segmentation_label

SIZES = [(5, 4), (3, 2, 4)]
IDS = ["2d", "3d"]


def make(seed: int = 0, size: tuple[int, ...] = (5, 4), classes: int = 3):
    """Logits, image-level labels (the last image healthy), and what is not padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((4, classes + 1, *size), generator=generator, dtype=torch.float64)
    label = torch.randint(0, 2, (4, classes), generator=generator)
    label[3] = 0
    return logits, label, torch.rand((4, *size), generator=generator) < 0.8


def literal(logits, label, threshold, score, valid) -> torch.Tensor:
    result = torch.full_like(valid, 255, dtype=torch.long)
    for b, *pixel in np.ndindex(*valid.shape):
        x = logits[(b, slice(None), *pixel)].numpy()
        present = [0, *(k + 1 for k in range(len(x) - 1) if label is None or label[b, k])]
        values = softmax(x[present]) if score == "prob" else x[present]
        best = int(values.argmax())
        if values[best] >= threshold and valid[(b, *pixel)]:
            result[(b, *pixel)] = present[best]
    return result


@pytest.mark.parametrize("size", SIZES, ids=IDS)
@pytest.mark.parametrize(("score", "threshold"), [("prob", 0.6), ("logit", 1.5), ("prob", 0.0), ("logit", 50.0)])
@pytest.mark.parametrize("filtered", [False, True])
def test_labels_of_a_segmentation(size, score, threshold, filtered):
    logits, label, valid = make(size=size)
    label = label if filtered else None
    expected = literal(logits, label, threshold, score, valid)
    options = {"threshold": threshold, "score": score}
    got = confident_segmentation_label(logits.requires_grad_(), label, valid=valid, **options)
    assert torch.equal(got, expected)
    assert not got.requires_grad
    of_channel = confident_segmentation_label(logits, label, valid=valid[:, None].float(), **options)
    assert torch.equal(of_channel, expected)
    everywhere = confident_segmentation_label(logits, label, **options)
    assert torch.equal(everywhere.where(valid, 255), expected)


@pytest.mark.parametrize("size", SIZES, ids=IDS)
def test_labels_of_scores(size):
    scores, _, valid = make(size=size)
    expected = literal(scores, None, 1.0, "logit", valid)
    assert torch.equal(confident_label(scores, 1.0, valid=valid), expected)
    other = confident_label(scores, 1.0, valid=valid, ignore_index=-1)
    assert torch.equal(other, expected.masked_fill(expected == 255, -1))


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_filter_and_the_threshold(seed, threshold):
    logits, label, _ = make(seed)
    got = confident_segmentation_label(logits, label, threshold=threshold)
    assert bool((got[3] == 0).all())  # healthy: the background is certain
    for b, k in (label == 0).nonzero().tolist():
        assert not (got[b] == k + 1).any()
    stricter = confident_segmentation_label(logits, label, threshold=min(1.0, threshold + 0.2))
    assert torch.equal(stricter.where(stricter != 255, got), got)


def test_the_threshold_itself_is_confident_and_nan_is_not():
    scores = torch.tensor([[[[0.75, torch.nan, 0.74]], [[0.25, 0.9, 0.26]]]])
    assert confident_label(scores, 0.75).tolist() == [[[0, 255, 255]]]
    assert confident_segmentation_label(scores, score="logit", threshold=0.75).tolist() == [[[0, 255, 255]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    logits, label, _ = make(size=(16, 16))
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = confident_segmentation_label(half, label, threshold=0.7)
    assert torch.equal(got, confident_segmentation_label(half.float(), label, threshold=0.7))


def test_bool_labels_and_the_device_of_the_logits():
    logits, label, _ = make()
    expected = confident_segmentation_label(logits, label)
    assert torch.equal(confident_segmentation_label(logits, label.bool()), expected)
    # As labels read by a loader beside logits of a GPU; a device that holds no values will do.
    assert confident_segmentation_label(logits.to("meta"), label).shape == expected.shape


def test_the_defaults_are_the_papers():
    scores = torch.tensor([[[[0.8, 0.6, 0.45]], [[0.2, 0.4, 0.55]]]])
    assert confident_label(scores).tolist() == [[[0, 255, 255]]]
    assert confident_segmentation_label(scores.log()).tolist() == [[[0, 0, 1]]]


def test_bad_input():
    logits = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"`scores` of shape \(B, K\+1, \*S\), got \(2, 3\)"):
        confident_label(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`ignore_index` to be no class, got 2 with classes 0\.\.2: choose another"):
        confident_label(logits, ignore_index=2)
    with pytest.raises(ValueError, match=r"`ignore_index` to be no class, got 2 with classes 0\.\.2"):
        confident_segmentation_label(logits, ignore_index=2)
    with pytest.raises(ValueError, match="`score` to be one of prob, logit, got 'p'"):
        confident_segmentation_label(logits, score="p")
    with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(2, 2\), got \(2, 3\)"):
        confident_segmentation_label(logits, torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"`valid` of shape \(B, \*S\) = \(2, 4, 4\) or \(B, 1, \*S\), got \(2, 8, 8\)"
    ):
        confident_label(logits, valid=torch.ones(2, 8, 8))
