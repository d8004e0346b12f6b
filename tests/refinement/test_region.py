# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks inside a region: what lies outside changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.refinement import ClassMapRefinement, MaskRule, decide_within


def case(seed: int, size: tuple[int, ...] = (9, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 2, *size, generator=generator)
    region = (torch.rand(1, 1, *size, generator=generator) > 0.4).to(torch.uint8)
    region.flatten()[0] = 1
    return scores, region


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["otsu", "minmax", "max", "logit", "argmax"]))
def test_the_outside_is_not_seen(seed: int, rule: str):
    scores, region = case(seed)
    other = torch.where(region > 0, scores, 1e3 * torch.randn_like(scores))
    chosen = MaskRule(rule=rule)
    mask = decide_within(chosen, scores, region)
    assert torch.equal(mask, decide_within(chosen, other, region))
    assert ((mask == 255) == (region == 0)).all()
    assert mask.dtype == torch.uint8


@pytest.mark.parametrize("size", [(9, 11), (4, 5, 6)])
def test_a_region_that_is_everything_is_the_rule_itself(size):
    scores, _ = case(3, size)
    everything = torch.ones(1, 1, *size)
    for rule in (MaskRule(rule="otsu", gate="none"), MaskRule(rule="logit"), MaskRule(output_kind="segmentation")):
        assert torch.equal(decide_within(rule, scores, everything), rule(scores).mask)


def test_the_label_filters_classes():
    scores, region = case(1)
    mask = decide_within(MaskRule(rule="otsu", gate="given"), scores, region, torch.tensor([[0.0, 1.0]]))
    assert set(mask.unique().tolist()) <= {0, 2, 255}
    assert (mask == 2).any()


def test_refined_maps_are_cut_in_the_region():
    scores, region = case(2, (20, 20))
    image = torch.rand(1, 3, 20, 20)
    refine = ClassMapRefinement("par")
    rule = MaskRule(rule="logit", gate="none")
    whole = refine(rule, scores, image).mask
    inside = region > 0
    assert torch.equal(decide_within(rule, scores, region, refine=refine, image=image)[inside], whole[inside])


def test_what_does_not_fit_is_refused():
    scores, region = case(0)
    rule = MaskRule(rule="otsu")
    with pytest.raises(ValueError, match="at least one pixel, got none"):
        decide_within(rule, scores, torch.zeros_like(region))
    with pytest.raises(ValueError, match="Expected one image and its `region`"):
        decide_within(rule, scores, region[..., 1:])
    with pytest.raises(ValueError, match="a CRF reads the outside as well"):
        decide_within(rule, scores, region, refine=ClassMapRefinement("crf"), image=torch.rand(1, 3, 9, 11))
