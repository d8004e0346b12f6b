# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Probabilities around a rule's own cut, and what several members decide together and how sure they are of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from monai_wsss.refinement import MaskRule, decide_ensemble, decide_within, rule_probabilities

LEVELS = {"negative_reference": torch.tensor([-0.5, -0.2]), "negative_quantile": torch.tensor([0.5, 0.2])}
RULES = [
    *(("activation", rule, None) for rule in ("minmax", "max", "negative_reference", "logit", "negative_quantile")),
    *(("activation", rule, None) for rule in ("otsu", "mixture", "argmax")),
    ("activation", "minmax", 0.3), ("activation", "max", 0.7), ("activation", "fixed", 0.3),
    ("activation", "percentile", 70.0), ("segmentation", None, None), ("segmentation", "argmax", None),
]  # fmt: skip


def rule_of(kind: str, name: str | None, threshold: float | None, **words) -> MaskRule:
    levels = LEVELS if kind == "activation" else {}
    return MaskRule(output_kind=kind, rule=name, threshold=threshold, pooling="max", **levels, **words)


def scores_of(kind: str, name: str | None) -> torch.Tensor:
    """Six images, some of them without a class, by the gate."""
    channels = 3 if kind == "segmentation" and name is None else 2
    lower = torch.tensor([0.0, 0.0, 0.0, 3.0, 3.0, 9.0]).reshape(-1, 1, 1, 1)
    return torch.randn(6, channels, 9, 8, generator=torch.Generator().manual_seed(0)) - lower


@pytest.mark.parametrize("gate", ["none", "predicted"])
@pytest.mark.parametrize(("kind", "name", "threshold"), RULES)
def test_the_most_probable_class_is_the_rules_own_mask(kind, name, threshold, gate):
    rule, scores = rule_of(kind, name, threshold, gate=gate), scores_of(kind, name)
    found = rule_probabilities(rule, scores)
    assert found.shape == (6, 3, 9, 8)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6, 9, 8))
    assert torch.equal(found.argmax(dim=1, keepdim=True), rule.mask(scores).long())


def test_where_the_gate_finds_no_class_all_is_background_and_members_may_agree_on_it():
    rule = MaskRule(pooling="max", negative_reference=torch.tensor([-20.0]))
    absent = torch.full((1, 1, 4, 4), -3.0)
    found = rule_probabilities(rule, absent)
    assert (found[:, 0] == 1).all()
    decision = decide_ensemble([found, found])
    assert not decision.mask.any()
    assert not decision.entropy.any()


def test_a_region_is_decided_by_itself():
    rule = MaskRule(rule="otsu", gate="none")
    scores = torch.tensor([[[[900.0, 1.0, 2.0, 9.0]]]])
    region = torch.tensor([[[[0, 1, 1, 1]]]])
    found = rule_probabilities(rule, scores, region=region)
    assert found[0, :, 0, 0].tolist() == [1, 0]
    inside = decide_within(rule, scores, region)
    assert torch.equal(found.argmax(dim=1, keepdim=True)[region > 0], inside[region > 0].long())
    with pytest.raises(ValueError, match="with at least one pixel"):
        rule_probabilities(rule, scores, region=0 * region)


def member(seed: int, shape=(2, 4, 5, 6)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(dim=1)


def test_entropy_and_disagreement_are_those_of_scipy():
    members = [member(seed) for seed in range(3)]
    decision = decide_ensemble(iter(members))
    mean = np.mean([one.numpy() for one in members], axis=0)
    whole = entropy(mean, base=4, axis=1)
    own = np.mean([entropy(one.numpy(), base=4, axis=1) for one in members], axis=0)
    np.testing.assert_allclose(decision.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(decision.entropy[:, 0], whole, atol=1e-5)
    np.testing.assert_allclose(decision.disagreement[:, 0], whole - own, atol=1e-5)
    assert (decision.mask[:, 0].numpy() == mean.argmax(axis=1)).all()
    assert decision.mask.dtype == torch.uint8


def test_alike_members_do_not_disagree_and_sure_ones_that_differ_do():
    one = member(0)
    alike = decide_ensemble([one, one])
    assert alike.disagreement.max() < 1e-5
    assert alike.entropy.min() > 0
    lesion, background = torch.tensor([[[0.0]], [[1.0]]])[None], torch.tensor([[[1.0]], [[0.0]]])[None]
    contrary = decide_ensemble([lesion, background])
    assert contrary.entropy.item() == contrary.disagreement.item() == pytest.approx(1)


def test_votes_count_masks_alone():
    sure, others = torch.tensor([0.01, 0.99]), torch.tensor([0.6, 0.4])
    members = [one.reshape(1, 2, 1, 1) for one in (sure, others, others)]
    assert decide_ensemble(members).mask.item() == 1
    voted = decide_ensemble(members, vote=True)
    assert voted.mask.item() == 0
    assert voted.probabilities.flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert voted.disagreement.item() == voted.entropy.item() > 0
    assert decide_ensemble(members[:2], vote=True).mask.item() == 0, "of a tie the background wins"


@pytest.mark.parametrize("vote", [False, True])
def test_a_member_of_twice_the_weight_counts_as_two(vote):
    first, second = member(0), member(1)
    weighted = decide_ensemble([first, second], vote=vote, weights=[1, 0.5])
    for found, expected in zip(weighted, decide_ensemble([first, first, second], vote=vote), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1], "got 1 for 2"),
        ([1, 1, 1], "got 3 for 2"),
        ([1, 0], "above 0, got 0.0 for member 2"),
        ([1, np.nan], "above"),
    ],
)
def test_weights_that_fit_no_members_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        decide_ensemble([member(0), member(1)], weights=weights)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "at least one network's probabilities"),
        ([member(0), member(0, (2, 4, 5, 7))], "of one shape"),
        ([torch.ones(1, 2, 3, 3)], "sum to 1"),
        ([torch.ones(1, 1, 3, 3)], "sum to 1"),
    ],
)
def test_what_no_ensemble_can_be_made_of_is_told(members, words):
    with pytest.raises(ValueError, match=words):
        decide_ensemble(members)
