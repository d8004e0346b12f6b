# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Comparing methods as the gland papers do: t-tests against scipy, pooled mIoU and F1 against a confusion matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.metrics import ConfusionMatrixMetric, MeanIoU
from scipy.stats import ttest_ind

from monai_wsss.metrics import CaseTable
from monai_wsss.metrics.comparison import paired_test, welch_t_test

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(SCORES, SCORES)
@settings(max_examples=60, deadline=None)
def test_both_conventions_are_scipys(a, b):
    assume(np.std(a) > 1e-3)
    assume(np.std(b) > 1e-3)
    test = welch_t_test(a, b)
    welch, student = (ttest_ind(a, b, equal_var=equal) for equal in (False, True))
    got = (test.t, test.p, test.degrees_of_freedom, test.student_t, test.student_p, test.student_degrees_of_freedom)
    expected = (welch.statistic, welch.pvalue, welch.df, student.statistic, student.pvalue, student.df)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert test.means == pytest.approx((np.mean(a), np.mean(b)))
    assert test.sds == pytest.approx((np.std(a, ddof=1), np.std(b, ddof=1)))
    assert test.sizes == (len(a), len(b))


@given(SCORES, SCORES)
@settings(max_examples=60, deadline=None)
def test_the_test_has_a_sign_and_no_preference(a, b):
    there, back = welch_t_test(a, b), welch_t_test(b, a)
    np.testing.assert_allclose([there.t, there.student_t], [-back.t, -back.student_t], rtol=1e-9)
    np.testing.assert_allclose([there.p, there.student_p], [back.p, back.student_p], rtol=1e-9, atol=1e-300)
    if not math.isnan(there.t):
        assert 0 <= there.p <= 1
        assert min(len(a), len(b)) - 1 <= there.degrees_of_freedom * (1 + 1e-9)
        assert there.degrees_of_freedom <= (len(a) + len(b) - 2) * (1 + 1e-9)
        assert (there.t > 0) == (there.means[0] > there.means[1]) or there.t == 0


def test_equal_sizes_have_one_statistic_and_two_degrees_of_freedom():
    test = welch_t_test([0.80, 0.82, 0.81], [0.76, 0.79, 0.75])
    assert test.t == pytest.approx(test.student_t)
    assert test.degrees_of_freedom < test.student_degrees_of_freedom == 4
    assert test.p > test.student_p


def test_values_without_spread():
    """Three times 0.8 has the variance 0, which sums in floating point do not give."""
    both = welch_t_test([0.8] * 3, [0.7] * 3)
    assert all(map(math.isnan, (both.t, both.p, both.student_t, both.student_p)))
    assert both.sds == (0, 0)
    assert both.means == (0.8, 0.7)
    one = welch_t_test(np.array([0.8] * 3), torch.tensor([0.7, 0.71, 0.72]))
    assert one.sds[0] == 0
    assert one.t == pytest.approx(0.09 / (0.01 / math.sqrt(3)), rel=1e-5)
    assert one.degrees_of_freedom == pytest.approx(2)
    tiny = welch_t_test([0.8, 0.8, 0.8 + 1e-15], [0.7] * 3)
    assert tiny.p < 1e-9
    assert welch_t_test([1e-200, 2e-200], [1e-200, 3e-200]).degrees_of_freedom > 0


def test_too_few_or_broken_values_are_named():
    with pytest.raises(ValueError, match="at least two values in `a`, got 1: a spread over runs needs two seeds"):
        welch_t_test([0.8], [0.7, 0.8])
    with pytest.raises(ValueError, match="at least two values in `b`, got 0"):
        welch_t_test([0.8, 0.7], [])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"Expected finite values in `b`, got .*: leave out runs"):
            welch_t_test([0.8, 0.7], [0.5, value])


def two_real_classes(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of several sizes, labels 1 and 2, the reference with ignored pixels; one holds a single class."""
    generator = np.random.default_rng(seed)
    pairs = []
    for size in ((12, 10), (30, 25), (8, 8)):
        reference = np.where(generator.random(size) < 0.3, 2, 1)
        prediction = np.where(generator.random(size) < 0.2, 3 - reference, reference)
        reference = np.where(generator.random(size) < 0.15, 255, reference)
        pairs.append((prediction, reference))
    pairs[2][1][pairs[2][1] == 2] = 1
    return pairs


def confusion(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    table = np.zeros((2, 2))
    for prediction, reference in pairs:
        for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
            if r != 255:
                table[r - 1, p - 1] += 1
    return table


def measured(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    table = CaseTable(["other", "gland"], background=False, scored_class="gland")
    for n, (prediction, reference) in enumerate(pairs):
        label = np.array([(reference == k).any() for k in (1, 2)], dtype=np.float32)
        table.add(id=f"{n}", subject=f"{n}", label=label, prediction=prediction[None], reference=reference[None])
    return {name: entry["mean"] for name, entry in table.summary(bootstrap=2).items()}


def test_pooled_miou_and_both_f1_of_two_real_classes():
    pairs = two_real_classes()
    table, got = confusion(pairs), measured(pairs)
    right, union = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
    iou, dice = right / union, 2 * right / (table.sum(0) + table.sum(1))
    assert got["miou_pooled"] == pytest.approx(iou.mean())
    assert got["f1_from_miou"] == pytest.approx(2 * iou.mean() / (1 + iou.mean()))
    assert got["dice_macro_pooled"] == pytest.approx(dice.mean())
    assert got["f1"] == got["f1/gland"] == pytest.approx(dice[1])
    assert got["f1/other"] == pytest.approx(dice[0])
    assert got["accuracy"] == pytest.approx(right.sum() / table.sum())
    assert got["f1_from_miou"] != pytest.approx(got["dice_macro_pooled"], abs=1e-3)  # the two conventions differ


def test_pooled_miou_is_that_of_monais_summed_confusion_matrix_not_its_mean_iou():
    pairs = [(p, np.where(r == 255, p, r)) for p, r in two_real_classes(1)]  # MONAI has no ignored pixels
    matrix, mean_iou = ConfusionMatrixMetric(include_background=True), MeanIoU(include_background=True)
    for masks in pairs:
        one_hot = [torch.stack([torch.tensor(mask == k) for k in (1, 2)])[None].float() for mask in masks]
        matrix(*one_hot)
        mean_iou(*one_hot)
    tp, fp, _, fn = matrix.get_buffer().nansum(0).T
    got = measured(pairs)["miou_pooled"]
    assert got == pytest.approx((tp / (tp + fp + fn)).mean().item())
    assert got != pytest.approx(mean_iou.aggregate().item(), abs=1e-3)


def test_a_class_that_no_reference_holds_does_not_enter():
    prediction = np.array([[1, 1, 2, 2]])
    got = measured([(prediction, np.array([[1, 1, 1, 255]]))])
    assert got["miou_pooled"] == pytest.approx(2 / 3)
    assert got["dice_macro_pooled"] == pytest.approx(4 / 5)
    assert "f1" not in got


def test_paired_test_counts_all_signs_of_few_subjects():
    a, b = [0.9, 0.8, 0.7, 0.9, 0.8, 0.7], [0.5, 0.6, 0.4, 0.7, 0.6, 0.6]
    assert paired_test(a, b) == paired_test(b, a) == 2 / 2**6
    assert paired_test(a, a) == 1.0
    assert paired_test(a[:5], b[:5]) is None
    # Their sum is 0 but for rounding, and so is that of other signs.
    thirds = [0.1, 0.2, -0.3, 0.1, 0.2, -0.3]
    assert paired_test(thirds, [0.0] * 6) == 1.0


def test_paired_test_of_many_subjects_agrees_with_all_signs():
    generator = np.random.default_rng(0)
    a = generator.normal(size=15)
    b = a + generator.normal(0.3, 1, size=15)
    numbers = np.arange(2**15)[:, None]
    signs = 1 - 2 * (numbers >> np.arange(15) & 1)
    exact = np.mean(np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-12)
    drawn = paired_test(a.tolist(), b.tolist())
    assert drawn == paired_test(a.tolist(), b.tolist())
    assert abs(drawn - exact) < 0.015


def test_paired_test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="of the same subjects, got 6 and 7"):
        paired_test([0.5] * 6, [0.5] * 7)
    with pytest.raises(ValueError, match="finite"):
        paired_test([0.5] * 5 + [float("nan")], [0.5] * 6)
