# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The mask of every rule against pixel-wise numpy, gates, groups, competing classes, and what must never happen."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_wsss.networks import CAMEncoder
from monai_wsss.refinement import MaskRule, cut_score_maps, mixture_threshold, score_maps, to_mask

REFERENCES = {"negative_reference": torch.tensor([-1.0, -0.5]), "negative_quantile": torch.tensor([0.3, 0.6])}
RULES = ("minmax", "max", "logit", "negative_reference", "negative_quantile", "otsu", "mixture", "fixed", "percentile")


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def options(rule: str, classes: int) -> dict:
    """Give what the rule needs besides the scores."""
    if rule in REFERENCES:
        return {"rule": rule, rule: REFERENCES[rule][:classes]}
    return {"rule": rule, "threshold": {"fixed": 0.4, "percentile": 80.0}.get(rule)}


def numpy_rule(channel: np.ndarray, rule: str, k: int) -> np.ndarray:
    """Compute the foreground of one image and class, each rule in its own words."""
    positive = np.maximum(channel, 0)
    if rule == "minmax":
        return (positive - positive.min()) / (positive.max() - positive.min()) > 0.5
    if rule == "mixture":
        share = (positive - positive.min()) / (positive.max() - positive.min())
        fit = mixture_threshold(torch.from_numpy(share).flatten())
        return share > (fit.threshold.item() if fit.found else 0.5)
    if rule == "max":
        return positive > 0.5 * positive.max()
    if rule == "logit":
        return channel > 0
    if rule == "negative_reference":
        level = REFERENCES[rule][k].item()
        return channel - level > 0.5 * (channel.max() - level)
    if rule == "negative_quantile":
        return channel > REFERENCES[rule][k].item()
    if rule == "otsu":
        candidates = np.sort(channel.ravel())[:-1]
        between = [
            (channel <= t).sum()
            * (channel > t).sum()
            * (channel[channel > t].mean() - channel[channel <= t].mean()) ** 2
            for t in candidates
        ]
        return channel > candidates[np.argmax(between)]
    if rule == "percentile":
        return channel > np.percentile(channel, 80)
    return channel > 0.4


@pytest.mark.parametrize("size", [(9, 8), (5, 4, 6)])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_for_one_class(rule: str, size: tuple[int, ...]) -> None:
    scores = random_scores(3, 1, *size)
    mask = to_mask(scores, gate="none", **options(rule, 1))
    assert mask.dtype == torch.uint8
    assert mask.shape == scores.shape
    for image in range(3):
        np.testing.assert_array_equal(mask[image, 0].numpy() == 1, numpy_rule(scores[image, 0].numpy(), rule, 0))


@pytest.mark.parametrize("rule", RULES)
def test_classes_compete_for_a_pixel(rule: str) -> None:
    scores = torch.rand(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3 - 1
    mask = to_mask(scores, gate="none", **options(rule, 2))
    shares = score_maps(scores, gate="none", **options(rule, 2))
    for image in range(2):
        above = np.stack([numpy_rule(scores[image, k].numpy(), rule, k) for k in range(2)])
        np.testing.assert_array_equal(mask[image, 0].numpy() > 0, above.any(0))
        both = above.all(0)
        assert both.any()
        np.testing.assert_array_equal(mask[image, 0].numpy()[both], shares[image].argmax(0).numpy()[both] + 1)
        only_first = above[0] & ~above[1]
        assert set(mask[image, 0].numpy()[only_first]) == {1}


def test_raw_rules_compare_margins_and_relative_rules_shares_of_the_peak() -> None:
    scores = torch.tensor([[[[5.0, 4.0]], [[3.0, 3.5]]]])
    assert to_mask(scores, gate="none", rule="logit").flatten().tolist() == [1, 1]
    assert to_mask(scores, gate="none", rule="max").flatten().tolist() == [1, 2]


def test_comparison_is_strict() -> None:
    scores = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    assert to_mask(scores, rule="max").flatten().tolist() == [0, 0, 1]
    assert to_mask(scores, rule="logit").flatten().tolist() == [0, 1, 1]
    assert to_mask(scores, rule="fixed", threshold=1.0).flatten().tolist() == [0, 0, 1]
    assert to_mask(scores, rule="negative_quantile", negative_quantile=torch.ones(1)).flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("pooling", ["average", "max", "topk", "lse"])
def test_default_rule_is_the_one_of_the_pooling(pooling: str) -> None:
    scores = random_scores(2, 1, 6, 6, seed=5) + 0.5
    reference = torch.tensor([-0.5])
    rule = "minmax" if pooling == "average" else "negative_reference"
    got = to_mask(scores, pooling=pooling, negative_reference=reference)
    assert torch.equal(got, to_mask(scores, pooling=pooling, rule=rule, negative_reference=reference))
    assert 0 < got.float().mean() < 1


def test_predicted_gate_pools_the_raw_map() -> None:
    # Mean negative, maximum positive: absent for average pooling, present for max pooling.
    scores = torch.full((1, 1, 4, 4), -1.0)
    scores[..., 0, 0] = 2.0
    assert to_mask(scores, pooling="average", rule="logit").sum() == 0
    assert to_mask(scores, pooling="max", rule="logit").sum() == 1
    assert to_mask(scores, pooling="topk", topk_share=1 / 16, rule="logit").sum() == 1
    assert to_mask(scores, pooling="topk", topk_share=0.5, rule="logit").sum() == 0
    assert to_mask(scores, pooling="lse", lse_sharpness=100.0, rule="logit").sum() == 1
    assert to_mask(scores, pooling="lse", lse_sharpness=0.01, rule="logit").sum() == 0
    assert to_mask(scores, pooling="average", rule="logit", gate="none").sum() == 1


def test_given_gate_follows_the_label() -> None:
    scores = random_scores(2, 2, 6, 6) + 1
    label = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    mask = to_mask(scores, rule="logit", gate="given", label=label)
    assert set(mask[0].unique().tolist()) == {0, 1}
    assert mask[1].sum() == 0


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("rule", ["max", "logit"])
def test_groups_are_gated_one_by_one_then_fused(rule: str, fusion: str) -> None:
    scores = random_scores(4, 6, 5, 5, seed=2)  # G = 3 groups of K = 2
    mask = to_mask(scores, groups=3, rule=rule, fusion=fusion)
    grouped = scores.numpy().reshape(4, 3, 2, 5, 5)
    presence = grouped.mean((3, 4)) > 0
    for image in range(4):
        votes = np.zeros((3, 2, 5, 5))
        for g in range(3):
            for k in range(2):
                channel = grouped[image, g, k]
                share = np.maximum(channel, 0) / channel.max() if rule == "max" else channel
                votes[g, k] = share * presence[image, g, k]
        fused = votes.max(0) if fusion == "max" else votes.mean(0)
        expected = np.where(fused.max(0) > (0.5 if rule == "max" else 0), fused.argmax(0) + 1, 0)
        np.testing.assert_array_equal(mask[image, 0], expected)


def test_references_of_groups_are_per_channel() -> None:
    scores = torch.zeros(1, 2, 1, 4)
    scores[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 4.0])
    scores[0, 1, 0] = torch.tensor([10.0, 14.0, 12.0, 10.0])
    reference = torch.tensor([0.0, 10.0])
    got = to_mask(scores, groups=2, pooling="max", negative_reference=reference)
    assert got.flatten().tolist() == [0, 1, 0, 1]


def test_argmax_of_real_classes_has_no_background() -> None:
    scores = random_scores(2, 3, 5, 5) - 10
    mask = to_mask(scores, rule="argmax", gate="none")
    np.testing.assert_array_equal(mask[:, 0].numpy(), scores.numpy().argmax(1) + 1)
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    gated = to_mask(scores, rule="argmax", gate="given", label=label)
    assert set(gated[0].unique().tolist()) == {1, 3}
    assert gated[1].sum() == 0
    assert torch.equal(to_mask(scores, output_kind="segmentation", rule="argmax"), mask)
    # Tiny responses keep their order.
    assert torch.equal(to_mask(scores.float() * 1e-30, rule="argmax", gate="none"), mask)


def test_argmax_fuses_groups() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0, 3.0]).reshape(1, 4, 1, 1)
    assert to_mask(scores, rule="argmax", groups=2, gate="none").item() == 2
    assert to_mask(scores, rule="argmax", groups=2, fusion="mean").item() == 2


def test_segmentation_is_the_argmax_with_an_optional_label_filter() -> None:
    scores = random_scores(2, 3, 6, 7)
    mask = to_mask(scores, output_kind="segmentation")
    np.testing.assert_array_equal(mask[:, 0].numpy(), scores.numpy().argmax(1))
    label = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    filtered = to_mask(scores, output_kind="segmentation", gate="given", label=label)
    without_first = scores.clone()
    without_first[0, 1] = -99
    assert torch.equal(filtered[0], to_mask(without_first, output_kind="segmentation")[0])
    assert filtered[1].sum() == 0
    predicted = to_mask(scores, output_kind="segmentation", gate="predicted", pooling="average")
    margins = (scores[:, 1:] - scores[:, :1]).mean((2, 3)) > 0
    for image, k in [(i, k) for i in range(2) for k in range(2)]:
        assert bool(margins[image, k]) == bool((predicted[image] == k + 1).any())


@pytest.mark.parametrize("rule", [*RULES, "argmax"])
def test_scores_lie_in_the_unit_interval_and_give_the_mask(rule: str) -> None:
    scores = random_scores(3, 2, 6, 6, seed=9).float()
    chosen = options(rule, 2)
    shares = score_maps(scores, pooling="max", **chosen)
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
    mask = to_mask(scores, pooling="max", **chosen)
    cut = 0.5 if rule in ("minmax", "max", "negative_reference") else 0.0
    expected = torch.where(shares.amax(1) > cut, shares.argmax(1) + 1, 0)
    assert torch.equal(mask[:, 0].long(), expected)


def test_segmentation_scores_are_probabilities() -> None:
    scores = random_scores(2, 3, 4, 4)
    got = score_maps(scores, output_kind="segmentation")
    torch.testing.assert_close(got, scores.softmax(1)[:, 1:])
    nothing = score_maps(scores, rule="argmax", gate="given", label=torch.zeros(2, 3))
    assert float(nothing.abs().max()) == 0


def test_scores_are_differentiable() -> None:
    scores = random_scores(1, 1, 3, 4).requires_grad_()
    reference = torch.tensor([-1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: score_maps(s, pooling="max", negative_reference=reference, gate="none"), scores
    )
    assert not to_mask(scores, rule="max").requires_grad


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, -2.0, 3.0])
def test_constant_maps(rule: str, value: float) -> None:
    mask = to_mask(torch.full((1, 1, 4, 4), value), gate="none", **options(rule, 1))
    everywhere = value == 3.0 and rule not in ("minmax", "otsu", "mixture", "percentile")
    # A map of zeros is a response above a healthy level of -1, and there is no background to tell it from.
    everywhere |= value == 0.0 and rule == "negative_reference"
    assert mask.float().mean() == float(everywhere)


def test_one_pixel() -> None:
    assert to_mask(torch.ones(1, 1, 1, 1), rule="logit").item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    scores = random_scores(2, 1, 8, 8).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(to_mask(scores, rule="max"), to_mask(scores.float(), rule="max"))
        assert score_maps(scores, rule="max").dtype == torch.float32


def test_meta_tensor_batches() -> None:
    scores = random_scores(2, 2, 5, 5)
    for rule in ("minmax", "otsu", "mixture", "argmax"):
        assert torch.equal(torch.as_tensor(to_mask(MetaTensor(scores), rule=rule)), to_mask(scores, rule=rule))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["minmax", "max", "negative_reference"]), st.floats(0, 1), st.floats(0, 1)
)
def test_a_higher_threshold_never_adds_foreground(seed: int, rule: str, first: float, second: float) -> None:
    scores = random_scores(2, 2, 5, 5, seed=seed)
    low, high = (
        to_mask(scores, pooling="max", **options(rule, 2) | {"threshold": t}) > 0 for t in sorted((first, second))
    )
    assert bool((high <= low).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([*RULES, "argmax"]), st.sampled_from(["average", "max", "topk", "lse"]))
def test_absent_classes_never_appear_and_batches_do_not_mix(seed: int, rule: str, pooling: str) -> None:
    scores = random_scores(4, 2, 4, 5, seed=seed) - 0.3
    mask = to_mask(scores, pooling=pooling, **options(rule, 2))
    flat = scores.flatten(2)
    present = {
        "average": flat.mean(2) > 0,
        "max": flat.amax(2) > 0,
        "topk": flat.sort(2).values[..., -2:].mean(2) > 0,
        "lse": (5 * flat).exp().mean(2) > 1,
    }[pooling]
    for image in range(4):
        for k in range(2):
            assert bool(present[image, k]) or k + 1 not in mask[image]
    order = torch.randperm(4)
    assert torch.equal(to_mask(scores[order], pooling=pooling, **options(rule, 2)), mask[order])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from(["minmax", "max", "logit", "otsu", "mixture"]))
def test_scale_of_the_map_does_not_matter(seed: int, factor: float, rule: str) -> None:
    scores = random_scores(1, 1, 5, 5, seed=seed)
    shares, scaled = score_maps(scores, rule=rule), score_maps(scores * factor, rule=rule)
    torch.testing.assert_close(shares, scaled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_scores(bad: float) -> None:
    scores = torch.zeros(1, 1, 3, 3)
    scores[0, 0, 1, 1] = bad
    for function in (to_mask, score_maps):
        with pytest.raises(ValueError, match=r"finite `scores`, got NaN or infinity.*intensities"):
            function(scores)


@pytest.mark.parametrize("rule", ["negative_reference", "negative_quantile"])
def test_a_missing_reference_says_how_to_get_it(rule: str) -> None:
    scores = torch.ones(1, 2, 3, 3)
    for reference in (None, torch.tensor([0.0, float("nan")])):
        with pytest.raises(ValueError, match=rf"Rule '{rule}' needs the network's `{rule}`.*method.finalize"):
            to_mask(scores, pooling="max", rule=rule, **{rule: reference})
    with pytest.raises(ValueError, match=r"shape \(G\*K,\) = \(2,\), got \(1,\)"):
        to_mask(scores, pooling="max", rule=rule, **{rule: torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_kind": "heatmap"}, "`output_kind` to be one of activation, segmentation"),
        ({"pooling": "median"}, "`pooling` to be one of average"),
        ({"rule": "background"}, "`rule` to be one of minmax, max, negative_reference"),
        ({"fusion": "sum"}, "`fusion` to be one of max, mean"),
        ({"gate": "oracle"}, "`gate` to be one of none, predicted, given"),
        ({"gate": "given"}, "`label` with gate='given'.*no label"),
        ({"label": torch.ones(1, 2)}, "`label` with gate='given'.*a label"),
        ({"gate": "given", "label": torch.ones(1, 3)}, r"`label` of shape \(B, K\) = \(1, 2\)"),
        ({"gate": "given", "label": torch.full((1, 2), 0.5)}, "0 and 1 only"),
        ({"groups": 3}, "groups x classes channels, got 2 with 3 groups"),
        ({"threshold": 1.5}, r"`threshold` in \[0, 1\] for rule 'minmax', got 1.5"),
        ({"rule": "logit", "threshold": 0.5}, "Rule 'logit' takes no `threshold`, got 0.5"),
        ({"rule": "argmax", "threshold": 0.5}, "Rule 'argmax' takes no `threshold`"),
        ({"rule": "fixed"}, "Rule 'fixed' needs a finite `threshold`.*got None"),
        ({"rule": "fixed", "threshold": float("nan")}, "Rule 'fixed' needs a finite `threshold`"),
        ({"rule": "argmax", "groups": 2}, r"\(argmax: 2 or more\) in `scores`, got 1"),
        ({"output_kind": "segmentation", "rule": "minmax"}, "'segmentation', got 'minmax', 1 and None"),
        ({"output_kind": "segmentation", "groups": 2}, "'segmentation', got 'background', 2 and None"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    for function in (to_mask, score_maps):
        with pytest.raises(ValueError, match=message):
            function(torch.ones(1, 2, 3, 3), **arguments)
    with pytest.raises(ValueError, match=r"`scores` of shape \(B, channels, \*S\), got \(3, 3\)"):
        to_mask(torch.ones(3, 3))


@pytest.mark.parametrize("rule", ["minmax", "negative_reference", "logit", "argmax"])
def test_unreliable_groups_take_no_part(rule: str) -> None:
    scores = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    options = {"rule": rule, "pooling": "max", "gate": "predicted"}
    reference = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    got = to_mask(
        scores, groups=3, reliable=torch.tensor([False, True, False]), negative_reference=reference, **options
    )
    assert torch.equal(got, to_mask(scores[:, 2:4], negative_reference=reference[2:4], **options))


def test_bad_reliable_groups() -> None:
    scores = torch.zeros(1, 2, 4, 4)
    for reliable in (torch.tensor([False, False]), torch.tensor([True]), torch.tensor([1, 0])):
        with pytest.raises(ValueError, match=r"`reliable` of shape \(G,\) = \(2,\) with at least one group"):
            to_mask(scores, groups=2, reliable=reliable, rule="minmax")


@pytest.mark.parametrize("pooling", ["average", "max", "topk", "lse"])
@pytest.mark.parametrize("rule", [*RULES, "argmax"])
def test_one_pass_gives_mask_score_map_and_presence(rule: str, pooling: str) -> None:
    scores = random_scores(3, 6, 6, 5, seed=4).float()
    reliable = torch.tensor([True, False, True])
    words = {"rule": rule, "pooling": pooling, "groups": 3, "reliable": reliable}
    words |= {"threshold": {"fixed": 0.4, "percentile": 80.0}[rule]} if rule in ("fixed", "percentile") else {}
    words |= {name: values.repeat(3) for name, values in REFERENCES.items()}
    mask, cam, presence = MaskRule(**words)(scores)
    assert torch.equal(mask, to_mask(scores, **words))
    assert torch.equal(cam, score_maps(scores, **words))
    if rule != "argmax":
        assert torch.equal(mask, cut_score_maps(cam, rule, words.get("threshold")))
    flat = scores.unflatten(1, (3, 2))[:, reliable].flatten(3)
    expected = {
        "average": flat.mean(3),
        "max": flat.amax(3),
        "topk": flat.sort(3).values[..., -3:].mean(3),
        "lse": (5 * flat).exp().mean(3).log() / 5,
    }[pooling]
    torch.testing.assert_close(presence, expected.amax(1))


def test_segmentations_have_a_mask_alone() -> None:
    decision = MaskRule(output_kind="segmentation")(random_scores(2, 3, 4, 4))
    assert decision.mask.shape == (2, 1, 4, 4)
    assert decision.cam is decision.presence is None


def difference_maps() -> torch.Tensor:
    """Give |I - G(I)| of a healthy image, where the generator is never exact, and of an image with a lesion."""
    noise = 1e-3 * torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(6))
    noise[1, 0, 3:6, 3:6] += 0.8
    return noise


@pytest.mark.parametrize("pooling", ["average", "max", "topk", "lse"])
@pytest.mark.parametrize("rule", RULES)
def test_a_presence_level_leaves_near_zero_maps_of_healthy_images_empty(rule: str, pooling: str) -> None:
    words = {"rule": rule, "pooling": pooling, "topk_share": 0.05}
    words |= {"threshold": {"fixed": 1e-4, "percentile": 60.0}[rule]} if rule in ("fixed", "percentile") else {}
    words |= {"negative_reference": torch.zeros(1), "negative_quantile": torch.tensor([5e-4])}
    level = 0.02 if pooling in ("average", "lse") else 0.1  # what a lesion of 6 % of the pixels exceeds
    without, having = (to_mask(difference_maps(), presence_level=given, **words) for given in (None, level))
    assert without[0].float().mean() > 0.3  # pooled values of a difference are always positive
    assert having[0].sum() == 0
    assert torch.equal(having[1], without[1])
    assert having[1, 0, 3:6, 3:6].all()


def test_presence_levels_are_per_group_and_class_and_strict() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)  # G = 2 groups of K = 2
    words = {"rule": "logit", "pooling": "max", "groups": 2}
    for level, expected in (
        ([0.0, 0.0, 3.0, 4.0], [0.5, 1.0]),  # the second group sees neither: 1 and 2 of the first remain
        ([0.0, 2.0, 2.9, 4.0], [1.0, 0.0]),  # class 1 is absent in both groups
        ([9.0, 9.0, 9.0, 9.0], [0.0, 0.0]),
    ):
        got = score_maps(scores, presence_level=torch.tensor(level), **words)
        torch.testing.assert_close(got.flatten(), torch.tensor(expected))
    one_group = score_maps(
        scores, presence_level=torch.tensor([0.0, 0.0, 9.0, 0.0]), reliable=torch.tensor([False, True]), **words
    )
    assert one_group.flatten().tolist() == [0.0, 1.0]
    assert to_mask(scores, presence_level=5.0, gate="none", **words).item() == 2
    label = torch.tensor([[1.0, 0.0]])
    assert to_mask(scores, presence_level=5.0, gate="given", label=label, **words).item() == 1


def test_segmentations_compare_the_pooled_margin_with_the_presence_level() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1)
    words = {"output_kind": "segmentation", "gate": "predicted", "pooling": "max"}
    levels = (None, 1.5, torch.tensor([0.0, 2.0]), torch.tensor([3.0, 3.0]))
    assert [to_mask(scores, presence_level=level, **words).item() for level in levels] == [2, 2, 1, 0]


@pytest.mark.parametrize("rule", ["negative_reference", "negative_quantile"])
def test_references_count_where_they_are_filled(rule: str) -> None:
    scores = random_scores(1, 2, 4, 4).float()
    words = {"pooling": "max", "rule": rule, rule: REFERENCES[rule]}
    filled = to_mask(scores, filled=torch.tensor([True, True]), **words)
    assert torch.equal(filled, to_mask(scores, **words))
    with pytest.raises(ValueError, match=rf"Rule '{rule}' needs .* not measured for channels \[1\].*method.finalize"):
        to_mask(scores, filled=torch.tensor([True, False]), **words)
    # Whose level is unknown does not matter where that group takes no part.
    alone = {"groups": 2, "reliable": torch.tensor([True, False]), "filled": torch.tensor([True, False])}
    assert torch.equal(
        to_mask(scores, **alone, **words), to_mask(scores[:, :1], **(words | {rule: REFERENCES[rule][:1]}))
    )


def test_a_rule_is_a_value_with_its_choices_resolved() -> None:
    rule = MaskRule(pooling="max", presence_level=torch.tensor([0.5]))
    assert (rule.rule, rule.gate) == ("negative_reference", "predicted")
    assert (MaskRule(output_kind="segmentation").rule, MaskRule(output_kind="segmentation").gate) == (
        "background",
        "none",
    )
    with pytest.raises(FrozenInstanceError):
        rule.rule = "otsu"
    assert replace(rule, rule="otsu").rule == "otsu"
    record = json.loads(json.dumps(rule.settings()))
    assert (record["rule"], record["presence_level"], record["reliable"]) == ("negative_reference", [0.5], None)


@pytest.mark.parametrize("level", [float("nan"), torch.tensor([0.0, float("inf")]), torch.zeros(1, 2)])
def test_bad_presence_levels(level: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`presence_level` to be a finite number or \(G\*K,\), got"):
        MaskRule(presence_level=level)
    with pytest.raises(ValueError, match=r"`presence_level` of shape \(G\*K,\) = \(2,\), got \(3,\)"):
        to_mask(torch.ones(1, 2, 3, 3), presence_level=torch.zeros(3))


def test_a_rule_keeps_the_levels_that_it_was_given() -> None:
    """Training measures the levels anew; a rule that was asked for before does not change."""
    network = CAMEncoder.tiny()
    network.set_healthy_level(-4.0, 0.0)
    rule = network.mask_rule()
    network.set_healthy_level(5.0, 6.0)
    assert rule.negative_reference.tolist() == [-4.0]
    assert network.mask_rule().negative_reference.tolist() == [5.0]


def test_a_class_cannot_be_called_as_ignored_pixels_are() -> None:
    scores = torch.zeros(1, 255, 2, 2)
    with pytest.raises(ValueError, match=r"Expected 1 to 254 classes .* got 255: 255 in a mask means ignored"):
        MaskRule(rule="minmax")(scores)
    assert MaskRule(rule="minmax")(scores[:, :254]).mask.shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"groups": 0}, "`groups` >= 1, got 0"),
        ({"pooling": "median", "output_kind": "segmentation"}, "`pooling`"),
    ],
)
def test_words_that_do_not_fit_are_told_when_a_rule_is_made(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskRule(**words)


def test_a_percentile_is_that_of_each_image_and_class() -> None:
    scores = random_scores(3, 2, 10, 10)
    masks = [to_mask(scores[:, k : k + 1], rule="percentile", threshold=95, gate="none") for k in range(2)]
    assert all(mask.sum((1, 2, 3)).tolist() == [5, 5, 5] for mask in masks), "each image has its own cut"
    with pytest.raises(ValueError, match=r"Rule 'percentile' needs a `threshold` in \[0, 100\).* got None"):
        MaskRule(rule="percentile")
    for percent in (-1.0, 100.0, float("nan")):
        with pytest.raises(ValueError, match=r"in \[0, 100\)"):
            MaskRule(rule="percentile", threshold=percent)


@pytest.mark.parametrize("gate", ["none", "predicted", "given"])
def test_a_map_without_contrast_has_an_empty_mask_whatever_the_gate(gate: str) -> None:
    heat = torch.zeros(2, 2, 4, 4)
    heat[0, 0, 1, 1], heat[0, 1, 2, 2], heat[1, 0, 0, 0] = 0.3, 0.1, 0.09  # of two images and classes
    label = torch.ones(2, 2) if gate == "given" else None
    rule = MaskRule(pooling="max", rule="otsu", gate=gate, min_contrast=0.1)
    mask, cam, presence = rule(heat, label)
    expected = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    expected[0, 0, 1, 1] = 1
    assert torch.equal(mask, expected)
    assert not cam[0, 1].any(), "exactly the least contrast is none"
    torch.testing.assert_close(presence, heat.amax((2, 3)))
    assert (replace(rule, min_contrast=None)(heat, label).mask > 0).sum() == 3
    assert rule.settings()["min_contrast"] == 0.1
    with pytest.raises(ValueError, match="no `min_contrast` for output_kind 'segmentation'"):
        MaskRule(output_kind="segmentation", min_contrast=0.1)
