# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pixel counts against loops and MONAI, overlap formulas against the papers' own tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_iou, get_confusion_matrix

from monai_wsss.metrics import segmentation as seg

LABEL_MAPS = hnp.array_shapes(min_dims=2, max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)) for _ in range(2)])
)


def counts_of(**values: float) -> seg.PixelCounts:
    """Counts of one class from numbers, the background mirrored."""
    tp, fp, fn, tn = (np.asarray(values[name], dtype=float) for name in ("tp", "fp", "fn", "tn"))
    return seg.PixelCounts(*(np.stack(pair, -1) for pair in ((tn, tp), (fn, fp), (fp, fn), (tp, tn))))


@settings(max_examples=50, deadline=None)
@given(LABEL_MAPS)
def test_counts_match_a_loop_over_pixels(pair):
    prediction, reference = pair
    expected = np.zeros((4, 4), dtype=int)
    for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
        for label in range(4):
            row = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[(p == label, r == label)]
            expected[row, label] += 1
    counts = seg.count_pixels(prediction, torch.as_tensor(reference), num_classes=3)
    np.testing.assert_array_equal(np.stack(counts), expected)
    # Swapping prediction and reference swaps misses and false alarms, and leaves Dice alone.
    swapped = seg.count_pixels(reference, prediction, num_classes=3)
    np.testing.assert_array_equal(swapped.fp, counts.fn)
    np.testing.assert_array_equal(seg.dice_score(swapped), seg.dice_score(counts))
    dice, iou = seg.dice_score(counts), seg.iou_score(counts)
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
    assert ((dice >= iou) & (dice <= 1) & (iou >= 0)).all()


@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (5, 6, 4)])
def test_overlap_matches_monai(shape):
    generator = np.random.default_rng(0)
    prediction, reference = (generator.random((2, *shape)) < 0.4).astype(np.uint8)
    counts = seg.count_pixels(prediction, reference)
    one_hot = [torch.as_tensor(mask.reshape(1, 1, *shape)) for mask in (prediction, reference)]
    confusion = get_confusion_matrix(*one_hot)[0, 0]  # tp, fp, tn, fn
    assert [int(count[1]) for count in counts] == [int(confusion[i]) for i in (0, 1, 3, 2)]
    assert float(seg.dice_score(counts)[1]) == pytest.approx(float(compute_dice(*one_hot)), abs=1e-6)
    assert float(seg.iou_score(counts)[1]) == pytest.approx(float(compute_iou(*one_hot)), abs=1e-6)


@pytest.mark.parametrize(
    "convert",
    [lambda x: x, lambda x: x.astype(bool), torch.as_tensor, lambda x: MetaTensor(torch.as_tensor(x)), np.float32],
    ids=["uint8", "bool", "tensor", "meta_tensor", "float"],
)
def test_any_kind_of_mask(convert):
    prediction, reference = np.array([[1, 1, 0, 0]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8)
    counts = seg.count_pixels(convert(prediction), convert(reference))
    assert [int(count[1]) for count in counts] == [1, 1, 1, 1]


def test_empty_rule():
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    both = seg.count_pixels(empty, empty)
    assert seg.dice_score(both)[1] == seg.iou_score(both)[1] == seg.f1_score(both)[1] == 1
    alarm = seg.count_pixels(full, empty)
    assert seg.dice_score(alarm)[1] == seg.iou_score(alarm)[1] == 0
    missed = seg.count_pixels(empty, full)
    assert seg.dice_score(missed)[1] == 0
    assert np.isnan(seg.sensitivity(both)[1])
    assert np.isnan(seg.specificity(missed)[1])
    assert np.isnan(seg.r_under(missed)[1])
    assert np.isnan(seg.r_over(alarm)[1])
    assert "score 1" in seg.EMPTY_RULE
    assert "scores 0" in seg.EMPTY_RULE


def test_a_set_without_a_reference_pixel_has_no_overlap():
    healthy = seg.count_pixels(np.zeros((4, 4)), np.zeros((4, 4)))
    assert np.isnan(seg.miou_pooled(healthy))
    assert np.isnan(seg.dice_macro_pooled(healthy))
    assert np.isnan(seg.where_referenced(seg.dice_score(healthy), healthy)).tolist() == [False, True]
    filled = seg.count_pixels(np.ones((4, 4)), np.ones((4, 4)))
    assert seg.miou_pooled(filled) == 1  # the background, of which there is none, does not enter


def test_formulas_on_numbers():
    counts = counts_of(tp=30, fp=10, fn=20, tn=140)
    assert seg.dice_score(counts)[1] == pytest.approx(60 / 90)
    assert seg.iou_score(counts)[1] == pytest.approx(30 / 60)
    assert seg.sensitivity(counts)[1] == pytest.approx(30 / 50)
    assert seg.specificity(counts)[1] == pytest.approx(140 / 150)
    assert seg.accuracy(counts)[1] == pytest.approx(170 / 200)
    assert seg.r_under(counts)[1] == pytest.approx(20 / 30)
    assert seg.r_over(counts)[1] == pytest.approx(10 / 30)
    precision, recall = 30 / 40, 30 / 50
    assert seg.f1_score(counts)[1] == pytest.approx(2 * precision * recall / (precision + recall))
    assert seg.miou_pooled(counts) == pytest.approx((30 / 60 + 140 / 170) / 2)
    assert seg.dice_macro_pooled(counts) == pytest.approx((60 / 90 + 280 / 310) / 2)


@pytest.mark.parametrize(
    ("positive", "sensitivity", "specificity", "lesion", "macro", "macro_iou"),
    [
        (0.1386, 0.7720, 0.8290, 54.5, 71.67, 58.70),  # CoinGAN on QaTa-COV19
        (0.2692, 0.7133, 0.9492, 77.1, 84.73, 74.27),  # ISIC 2018
        (0.0389, 0.7214, 0.9963, 79.6, 89.42, 82.31),  # BraTS 2021
    ],
)
def test_macro_numbers_are_those_of_the_paper(positive, sensitivity, specificity, lesion, macro, macro_iou):
    counts = counts_of(
        tp=positive * sensitivity,
        fn=positive * (1 - sensitivity),
        fp=(1 - positive) * (1 - specificity),
        tn=(1 - positive) * specificity,
    )
    assert 100 * seg.dice_score(counts)[1] == pytest.approx(lesion, abs=0.06)
    assert 100 * seg.dice_macro_pooled(counts) == pytest.approx(macro, abs=0.06)
    assert 100 * seg.miou_pooled(counts) == pytest.approx(macro_iou, abs=0.06)


@pytest.mark.parametrize(("miou", "f1"), [(0.8769, 0.9344), (0.8044, 0.8916), (0.7736, 0.8724)])
def test_f1_from_miou_gives_the_gland_papers_f1(miou, f1):
    assert float(seg.f1_from_miou(miou)) == pytest.approx(f1, abs=1e-4)


def test_mean_iou_over_several_classes_with_and_without_background():
    generator = np.random.default_rng(1)
    prediction, reference = generator.integers(0, 4, (2, 40, 40))
    table = np.zeros((4, 4))
    np.add.at(table, (reference.ravel(), prediction.ravel()), 1)
    iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
    counts = seg.count_pixels(prediction, reference, num_classes=3)
    assert seg.miou_pooled(counts) == pytest.approx(iou.mean())
    assert seg.miou_pooled(counts, background=False) == pytest.approx(iou[1:].mean())
    dice = 2 * np.diag(table) / (table.sum(0) + table.sum(1))
    assert seg.dice_macro_pooled(counts, background=False) == pytest.approx(dice[1:].mean())


def test_counts_add_up_to_pooled_metrics():
    generator = np.random.default_rng(2)
    masks = generator.integers(0, 2, (2, 5, 8, 8))
    summed = seg.PixelCounts(*np.sum([np.stack(seg.count_pixels(p, r)) for p, r in zip(*masks, strict=True)], axis=0))
    np.testing.assert_array_equal(np.stack(summed), np.stack(seg.count_pixels(*masks)))


def test_ignored_pixels_enter_no_count():
    reference = np.array([[1, 255, 0, 255]], np.uint8)
    counts = seg.count_pixels(np.array([[1, 1, 1, 0]], np.uint8), reference)
    assert [int(count[1]) for count in counts] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("prediction", "reference", "words"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), "one shape.*resample"),
        (np.full((4, 4), 2), np.zeros((4, 4)), "`prediction` to hold the labels 0..1 only, got values from 2 to 2"),
        (np.full((4, 4), 0.5), np.zeros((4, 4)), "`prediction` to hold the labels"),
        (np.full((4, 4), np.nan), np.zeros((4, 4)), "`prediction` to hold the labels"),
        (np.full((4, 4), -1), np.zeros((4, 4)), "`prediction` to hold the labels"),
        (np.full((4, 4), 255), np.zeros((4, 4)), "`prediction` to hold the labels"),
        (np.zeros((4, 4)), np.full((4, 4), 257), "`reference` to hold the labels"),
    ],
)
def test_bad_masks(prediction, reference, words):
    with pytest.raises(ValueError, match=words):
        seg.count_pixels(prediction, reference)


def test_no_pixel_at_all():
    counts = seg.count_pixels(np.zeros((0, 4)), np.zeros((0, 4)))
    assert seg.dice_score(counts)[1] == 1
    assert np.isnan(seg.accuracy(counts)[1])


# --- classes with a context


def test_the_mean_over_some_classes_leaves_out_background_and_classes_without_reference():
    reference = np.array([1, 1, 0, 0, 3, 3, 3, 0])
    prediction = np.array([1, 1, 1, 1, 3, 0, 0, 2])
    counts = seg.count_pixels(prediction, reference, num_classes=3)
    assert seg.class_miou_pooled(counts, [1]) == pytest.approx(1 / 2)
    assert seg.class_miou_pooled(counts, [1, 3]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert seg.class_miou_pooled(counts, [1, 2]) == pytest.approx(1 / 2)  # no reference holds class 2
    assert np.isnan(seg.class_miou_pooled(counts, [2]))


@pytest.mark.parametrize("miou", [-1.0, 1.1, [0.5, -0.1]])
def test_f1_is_of_shares(miou):
    with pytest.raises(ValueError, match=r"`miou` in \[0, 1\], got"):
        seg.f1_from_miou(miou)
    np.testing.assert_array_equal(seg.f1_from_miou(np.array([0.0, 1.0, np.nan])), [0.0, 1.0, np.nan])


def test_a_mean_over_no_class_is_refused():
    counts = seg.count_pixels(np.array([1, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="`labels` of at least one class"):
        seg.class_miou_pooled(counts, [])
