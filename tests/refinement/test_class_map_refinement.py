# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Refinement of class maps: presence of the raw maps, cuts of the refined ones, against slow versions."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_wsss.methods import SegmentationNetwork
from monai_wsss.networks import CAMEncoder
from monai_wsss.refinement import (
    ClassMapRefinement,
    DenseCRF,
    MaskRule,
    PixelAdaptiveRefinement,
    ToMaskd,
    dense_crf_refinement,
    otsu_threshold,
    pixel_adaptive_refinement,
)
from monai_wsss.refinement.gaussian_mixture import mixture_levels

SHARES = ("minmax", "max", "negative_reference")
CUTS = (*SHARES, "logit", "negative_quantile", "otsu", "mixture", "fixed", "percentile")
PAR = {"dilations": (1, 2), "iterations": 3, "row_stochastic": True}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_tissues(*size: int) -> torch.Tensor:
    """Give an image (1, 1, *S) of gray levels whose second half, along the last axis, is bright."""
    image = torch.zeros(1, 1, *size)
    image[..., size[-1] // 2 :] = 200.0
    return image


def rule_of(name: str, channels: int = 1, **words: object) -> MaskRule:
    threshold = {"fixed": 0.2, "percentile": 80.0}.get(name)
    levels = torch.linspace(-0.6, -0.2, channels)
    return MaskRule(
        **{
            "pooling": "max",
            "rule": name,
            "threshold": threshold,
            "negative_reference": levels,
            "negative_quantile": levels + 0.5,
            **words,
        }
    )


# ---- PAR -------------------------------------------------------------------------------------------------------------


def slow_par(image: np.ndarray, maps: np.ndarray, dilations: tuple[int, ...], iterations: int) -> np.ndarray:
    """Refine maps (M, *S) by an image (C, *S) pixel by pixel, from the equations, in float64."""
    size = image.shape[1:]
    signs = [sign for sign in itertools.product((-1, 0, 1), repeat=len(size)) if any(sign)]
    steps = [(sign, dilation) for dilation in dilations for sign in signs]
    distances = np.array([dilation * math.sqrt(np.abs(sign).sum()) for sign, dilation in steps])
    by_position = np.exp(-((distances / (distances.std(ddof=1) + 1e-8) / 0.3) ** 2))
    by_position /= by_position.sum()
    for _ in range(iterations):
        refined = np.zeros_like(maps)
        for pixel in np.ndindex(size):
            places = [
                tuple(
                    np.clip(at + dilation * step, 0, side - 1) for at, step, side in zip(pixel, sign, size, strict=True)
                )
                for sign, dilation in steps
            ]
            values = np.stack([image[(slice(None), *place)] for place in places])
            deviation = values.std(axis=0, ddof=1) + 1e-8
            likeness = -((np.abs(values - image[(slice(None), *pixel)]) / (0.3 * deviation)) ** 2).mean(axis=1)
            by_intensity = np.exp(likeness - likeness.max())
            weights = (by_intensity / by_intensity.sum() + 0.01 * by_position) / 1.01
            refined[(slice(None), *pixel)] = sum(
                weight * maps[(slice(None), *place)] for weight, place in zip(weights, places, strict=True)
            )
        maps = refined
    return maps


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("size", [(7, 6), (5, 4, 4)])
def test_a_rule_cuts_maps_that_are_refined_pixel_by_pixel(name, size):
    """Two groups of two classes, float64; presence of the raw maps, each group refined on its own."""
    image, scores = noise(1, 2, *size, seed=1).double(), noise(1, 4, *size).double()
    rule = rule_of(name, 4, groups=2, presence_level=torch.tensor([0.0, 0.0, 9.0, 0.0]))  # group 1 lacks class 0
    refined = torch.from_numpy(slow_par(image[0].numpy(), scores[0].numpy(), (1, 2), 3))[None]
    found = ClassMapRefinement(PixelAdaptiveRefinement(**PAR))(rule, scores, image)
    decision = rule(scores, refined=refined)
    assert torch.equal(found.mask, decision.mask)
    torch.testing.assert_close(found.cam, decision.cam)
    torch.testing.assert_close(found.presence, scores.unflatten(1, (2, 2)).flatten(3).amax(3).amax(1))
    if name == "logit":
        present = refined.clone()
        present[:, 2] = 0  # the absent class of the second group
        fused = present.unflatten(1, (2, 2)).amax(1)
        expected_mask = torch.where(fused.amax(1) > 0, fused.argmax(1) + 1, 0)
        assert torch.equal(found.mask[:, 0].long(), expected_mask)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("part", [PixelAdaptiveRefinement(**PAR), DenseCRF(iterations=2)])
def test_presence_is_that_of_the_raw_maps(name, part):
    """A single bright pixel makes a class present although no refined pixel would; an absent class stays absent."""
    scores = torch.full((1, 2, 8, 8), -0.5)
    scores[0, 0, 4, 4] = 0.4
    scores[0, 1] = -0.1 - 0.01 * noise(8, 8).abs()
    image = 100 + 20 * noise(1, 1, 8, 8, seed=2).clamp(-3, 3)
    rule = rule_of(name, 2)
    plain, refined = rule(scores), ClassMapRefinement(part)(rule, scores, image)
    torch.testing.assert_close(refined.presence, plain.presence)
    torch.testing.assert_close(refined.presence, torch.tensor([[0.4, scores[0, 1].max()]]))
    assert not refined.cam[0, 1].any()
    assert not (refined.mask == 2).any()
    if isinstance(part, PixelAdaptiveRefinement):
        refined_maps = pixel_adaptive_refinement(image, scores, **PAR)
        assert refined_maps[0, 0].max() < 0
        again = rule(refined_maps)
        assert again.presence[0, 0] < 0
        assert not again.mask.any()  # the gate would have closed
        if name == "negative_reference":
            assert refined.mask.any()


def test_constant_maps_stay_as_they_are():
    scores = torch.full((2, 2, 6, 5), 0.7)
    scores[1] = 0.2
    refine = ClassMapRefinement("par")
    image = noise(2, 3, 6, 5)
    assert torch.equal(refine.maps(scores, image), scores)  # min-max would stretch rounding errors to a mask
    for name in CUTS:
        rule = rule_of(name, 2)
        assert torch.equal(refine(rule, scores, image).mask, rule(scores).mask)


# ---- CRF -------------------------------------------------------------------------------------------------------------


def slow_probabilities(rule: MaskRule, scores: torch.Tensor) -> torch.Tensor:
    """Give probabilities (K+1, *S) of maps of one group, every class of which is present, from the definition."""
    maps = scores[0].double()
    rows = []
    for channel, response in enumerate(maps):
        if rule.rule in SHARES:
            share = rule(scores).cam[0, channel].double()
            cut = 0.5 if rule.threshold is None else rule.threshold
            rows.append(torch.where(share > cut, 0.5 + 0.5 * (share - cut) / (1 - cut), 0.5 * share / cut))
            continue
        level = {
            "logit": 0.0,
            "fixed": rule.threshold,
            "otsu": otsu_threshold(scores)[0, channel].item(),
            "percentile": np.percentile(scores[0, channel].numpy(), 80),
            "mixture": mixture_levels(scores)[0, channel].item(),
            "negative_quantile": None if rule.negative_quantile is None else rule.negative_quantile[channel].item(),
        }[str(rule.rule)]
        rows.append(response - level)
    classes = torch.stack(rows)
    if rule.rule not in SHARES:
        highest, lowest = classes.max().clamp_min(0), classes.min().clamp_max(0)
        classes = torch.where(classes > 0, 0.5 + 0.5 * classes / highest, 0.5 - 0.5 * classes / lowest)
    return torch.cat((1 - classes.amax(0, keepdim=True), classes))


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize(("classes", "size"), [(1, (7, 6)), (3, (7, 6)), (2, (5, 4, 4))])
def test_the_crf_decides_by_probabilities_of_the_definition(name, threshold, classes, size):
    if name not in SHARES and threshold is not None:
        return
    scores, image = noise(1, classes, *size), 100 + 30 * noise(1, 2, *size, seed=3).clamp(-3, 3)
    rule = rule_of(name, classes, **({} if threshold is None else {"threshold": threshold}))
    marginals = dense_crf_refinement(image, slow_probabilities(rule, scores)[None].clamp(0, 1), iterations=2)
    found = ClassMapRefinement(DenseCRF(iterations=2))(rule, scores, image)
    assert torch.equal(found.mask[:, 0], marginals.argmax(1).to(torch.uint8))
    # Cut by the rule, the score map gives the mask.
    cut = (0.5 if threshold is None else threshold) if name in SHARES else 0.0
    highest, winner = found.cam.max(dim=1, keepdim=True)
    assert torch.equal(torch.where(highest > cut, winner + 1, 0).to(torch.uint8), found.mask)
    assert 0 <= found.cam.min() <= found.cam.max() <= 1


@pytest.mark.parametrize("name", [*CUTS, "argmax"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("gate", ["none", "predicted", "given"])
def test_a_crf_without_messages_leaves_the_mask_of_the_rule(name, groups, fusion, gate):
    scores = noise(3, 2 * groups, 9, 7)
    scores[1, ::2] -= 3.0  # absent
    scores[2] -= 9.0  # healthy
    rule = rule_of(name, 2 * groups, groups=groups, fusion=fusion, gate=gate)
    label = torch.tensor([[1, 1], [0, 1], [0, 0]]) if gate == "given" else None
    refine = ClassMapRefinement(DenseCRF(iterations=0))
    found, plain = refine(rule, scores, torch.rand(3, 1, 9, 7), label), rule(scores, label)
    assert torch.equal(found.mask, plain.mask)
    torch.testing.assert_close(found.presence, plain.presence)
    best = plain.cam.amax(1)
    torch.testing.assert_close(found.cam.amax(1), best, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["par", "crf"])
def test_argmax_and_segmentations_are_refined_as_probabilities(part):
    """PAR averages probabilities of segmentations, and raw maps of classes without a background."""
    image, scores = 100 + 30 * noise(1, 1, 8, 8, seed=4).clamp(-3, 3), noise(1, 3, 8, 8)
    refine = ClassMapRefinement(part)
    shares = scores.softmax(1)
    settled = dense_crf_refinement(image, shares) if part == "crf" else refine.maps(shares, image)
    segmentation = refine(MaskRule(output_kind="segmentation"), scores, image)
    assert torch.equal(segmentation.mask[:, 0], settled.argmax(1).to(torch.uint8))
    assert segmentation.cam is None
    assert segmentation.presence is None
    raw = settled if part == "crf" else refine.maps(scores, image)
    competing = refine(rule_of("argmax", gate="none"), scores, image)
    assert torch.equal(competing.mask[:, 0], (raw.argmax(1) + 1).to(torch.uint8))
    torch.testing.assert_close(competing.cam, settled if part == "crf" else raw.softmax(1))


def test_certain_segmentations_stay_finite():
    logits = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1).expand(1, 2, 6, 6)
    for part in ("par", "crf"):
        decision = ClassMapRefinement(part)(MaskRule(output_kind="segmentation"), logits, two_tissues(6, 6))
        assert not decision.mask.any()


# ---- images ----------------------------------------------------------------------------------------------------------


def test_volumes_of_a_2d_network_are_refined_slice_by_slice():
    scores, image = noise(1, 2, 6, 5, 4), noise(1, 1, 6, 5, 4, seed=5)
    rule = rule_of("logit", gate="none")
    part = PixelAdaptiveRefinement(**PAR)
    for axis in (-1, 0, 1):
        found = ClassMapRefinement(part, spatial_dims=2, slice_axis=axis)(rule, scores, image)
        maps = torch.stack(
            [
                part(image.select(axis % 3 + 2, at), scores.select(axis % 3 + 2, at))
                for at in range(scores.shape[axis % 3 + 2])
            ],
            dim=axis % 3 + 2,
        )
        assert torch.equal(found.mask, rule(maps).mask)
    whole = ClassMapRefinement(part, spatial_dims=3)(rule, scores, image)
    assert torch.equal(whole.mask, rule(part(image, scores)).mask)
    assert not torch.equal(whole.mask, found.mask)
    stack = ClassMapRefinement(DenseCRF(iterations=1), spatial_dims=2)(rule, scores, image)
    assert stack.mask.shape == (1, 1, 6, 5, 4)


def test_the_network_tells_whether_it_takes_slices():
    def dims(network: torch.nn.Module) -> int | None:
        refinement = ClassMapRefinement.of("par", network)
        return None if refinement is None else refinement.spatial_dims

    assert [dims(CAMEncoder.tiny(d)) for d in (2, 3)] == [2, 3]
    assert [dims(SegmentationNetwork.tiny(d)) for d in (2, 3)] == [2, 3]
    assert dims(torch.jit.script(SegmentationNetwork.tiny(3))) == 3
    assert dims(torch.nn.Identity()) is None


@pytest.mark.parametrize(("recorded", "axis"), [(0, 2), (3, 0), (-1, 1)])
def test_slices_lie_as_those_that_trained_the_network(recorded, axis):
    """The array axes of the volume run toward S, L and P; the record counts R/L, A/P and S/I from 1."""
    affine = torch.zeros(4, 4)
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1.0, -1.0, -1.0, 1.0
    made = network()
    made.register_buffer("reading_axes", torch.tensor([0, 0, recorded]))
    scores, image = noise(1, 6, 5, 4) + 2, noise(1, 6, 5, 4, seed=5)
    item = {"pred": scores, "image": MetaTensor(image, affine=affine)}
    part = PixelAdaptiveRefinement(**PAR)
    found = ToMaskd("pred", made, rule="minmax", refine=part)(item)
    expected = ToMaskd("pred", made, rule="minmax", refine=ClassMapRefinement(part, spatial_dims=2, slice_axis=axis))
    assert torch.equal(found["cam"], expected({"pred": scores, "image": image})["cam"])


def test_a_crf_stretches_what_is_no_picture_to_gray_levels():
    """Z-scores, unit ranges and MR intensities give what the stretched image gives; pictures are left alone."""
    rule, scores = rule_of("logit"), noise(1, 1, 30, 20)
    pixels = noise(1, 1, 30, 20, seed=6)
    ordered = pixels.flatten().sort().values
    low, high = ordered[int(0.005 * 599)], ordered[599 - int(0.005 * 599)]
    stretched = ((pixels - low) / (high - low)).clamp(0, 1) * 255
    refine = ClassMapRefinement(DenseCRF(iterations=2))
    expected = refine(rule, scores, stretched).cam
    for image in (pixels, 7 * pixels, pixels.sigmoid() * 0 + (pixels - low + 1) * 900):
        torch.testing.assert_close(refine(rule, scores, image).cam, expected, atol=2e-3, rtol=0)
    picture = 100 + 10 * pixels
    own = dense_crf_refinement(picture, slow_probabilities(rule, scores)[None], iterations=2)
    assert torch.equal(refine(rule, scores, picture).mask[:, 0], own.argmax(1).to(torch.uint8))
    in_its_unit = ClassMapRefinement(DenseCRF(iterations=2, bilateral_intensity_std=0.1, intensity_range=None))
    own = dense_crf_refinement(
        pixels,
        slow_probabilities(rule, scores)[None],
        iterations=2,
        bilateral_intensity_std=0.1,
        intensity_range=None,
    )
    assert torch.equal(in_its_unit(rule, scores, pixels).mask[:, 0], own.argmax(1).to(torch.uint8))
    assert refine(rule, scores, torch.full_like(pixels, -3.0)).cam.isfinite().all()


@pytest.mark.parametrize("part", ["par", "crf"])
def test_half_precision_is_refined_in_float32(part):
    scores, image = noise(1, 1, 8, 8), noise(1, 1, 8, 8, seed=7)
    found = ClassMapRefinement(part)(rule_of("logit"), scores.half(), image.half())
    assert found.cam.dtype == torch.float32
    wide = ClassMapRefinement(part)(rule_of("logit"), scores.half().float(), image.half().float())
    torch.testing.assert_close(found.cam, wide.cam, atol=1e-5, rtol=0)


# ---- the transform ---------------------------------------------------------------------------------------------------


def network(spatial_dims: int = 2) -> CAMEncoder:
    made = CAMEncoder(spatial_dims, 1, 1, width=2, pooling="max")
    made.set_healthy_level(-1.0, 0.0)
    return made


@pytest.mark.parametrize("size", [(6, 8), (6, 4, 8)])
@pytest.mark.parametrize("refine", ["par", PixelAdaptiveRefinement(**PAR), ClassMapRefinement("crf")])
def test_masks_are_drawn_to_the_edges_of_the_image(refine, size):
    image = two_tissues(*size)[0]
    rows = torch.tensor([-1.0, -0.8, -1.0, 0.3, 1.0, 0.9, 1.0, -0.3])
    scores = rows.expand(1, *size).clone()
    item = {"pred": scores, "image": MetaTensor(image)}
    plain = ToMaskd("pred", network(len(size)), rule="logit")(item)
    refined = ToMaskd("pred", network(len(size)), rule="logit", refine=refine)(item)
    assert plain["pred"].reshape(-1, 8)[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert (refined["pred"] == torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])).all()
    torch.testing.assert_close(refined["presence"], plain["presence"])
    assert refined["cam"].shape == scores.shape


def test_the_image_before_normalization_is_read_where_there_is_one():
    scores, image = noise(1, 8, 8) + 3, two_tissues(8, 8)[0]
    item = {"pred": scores, "image": torch.zeros(1, 8, 8), "intensity": image}
    refine = ToMaskd("pred", network(), rule="minmax", refine="par")
    expected = refine({"pred": scores, "image": image})["cam"]
    assert torch.equal(refine(item)["cam"], expected)
    assert not torch.equal(refine({"pred": scores, "image": item["image"]})["cam"], expected)
    in_its_unit = ClassMapRefinement(DenseCRF(intensity_range=None))
    assert not in_its_unit.image_of(item).any()
    assert in_its_unit.image_of(item, "intensity").any()
    with pytest.raises(ValueError, match="reads the key 'image' of an item, which has \\['pred'\\]"):
        refine({"pred": scores})


def test_settings_tell_of_the_refinement():
    assert ToMaskd("pred", network(), refine="none").settings["refine"] == "none"
    told = ToMaskd("pred", network(), refine=PixelAdaptiveRefinement(**PAR)).settings["refine"]
    assert told == {
        "part": "PixelAdaptiveRefinement",
        "dilations": [1, 2],
        "iterations": 3,
        "intensity_weight": 0.3,
        "position_weight": 0.01,
        "row_stochastic": True,
        "spatial_dims": 2,
        "slice_axis": None,
    }
    crf = ToMaskd("pred", network(), refine=DenseCRF(spacing=(1.0, 2.0))).settings["refine"]
    assert crf == json.loads(json.dumps(crf))  # as it is read back from a record
    assert crf["bilateral_intensity_std"] == 5.0


@pytest.mark.parametrize(
    ("refine", "words"),
    [
        ("PAR", "`refine` to be one of none, par, crf, got 'PAR'"),
        (3, "`refine` to be none, par, crf, a PixelAdaptiveRefinement or a DenseCRF, got int"),
        (PixelAdaptiveRefinement(), "PixelAdaptiveRefinement with `row_stochastic=True` for class maps"),
    ],
)
def test_other_refinements_are_refused(refine, words):
    with pytest.raises(ValueError, match=words):
        ToMaskd("pred", network(), refine=refine)


def test_words_and_sizes_are_checked():
    with pytest.raises(ValueError, match="`spatial_dims` to be 2, 3 or None, got 4"):
        ClassMapRefinement("par", spatial_dims=4)
    with pytest.raises(ValueError, match=r"`slice_axis` in -3\.\.2 or None, got 3"):
        ClassMapRefinement("par", slice_axis=3)
    with pytest.raises(ValueError, match=r"`image` of the maps' batch and size.*got \(1, 1, 4, 4\): infer maps at"):
        ClassMapRefinement("par")(rule_of("logit"), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4))
