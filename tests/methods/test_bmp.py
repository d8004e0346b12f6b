# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP: when its terms begin, what they are made of, who teaches whom, healthy images, both dimensions, its cost."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bmp_cases import EARLY, LATE, TERMS, labels_of, make_batch, method_of, quiet_network, small_refinement
from monai.data import MetaTensor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import monai_wsss
from monai_wsss.engines import LossGate, Progress, Term, WeightRamp
from monai_wsss.inferers import MinMax, MultiScaleSeeds
from monai_wsss.losses import (
    affinity_loss,
    class_to_segmentation_loss,
    segmentation_to_class_loss,
)
from monai_wsss.methods import BMP
from monai_wsss.networks import ConvPyramid, MixTransformer, TwoBranchNetwork
from monai_wsss.refinement import BackgroundAware, ConstantScores, LabeledImages, refined_seed_label

# ------------------------------------------------------------------------------------------------------- the terms


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (4, 3)])
@pytest.mark.parametrize("propagation", ["bsp", "par", "affinity"])
def test_all_terms_are_finite_and_reach_every_parameter(spatial_dims, channels, classes, propagation):
    network = TwoBranchNetwork.tiny(spatial_dims, channels, classes)
    method = BMP.from_preset(network=network, refine=small_refinement(), propagation=propagation)
    losses = method(make_batch(spatial_dims, channels, classes, 8 if spatial_dims == 3 else 16), LATE)
    assert list(losses) == TERMS
    assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("s2c_input", ["seeds", "scores"])
def test_constant_healthy_images_stay_finite(value, s2c_input):
    method = method_of(s2c_input=s2c_input)
    losses = method({"image": torch.full((2, 1, 16, 16), value), "label": torch.zeros(2, 1)}, LATE)
    assert losses["s2c"].item() == 0
    assert losses["affinity"].item() == 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_terms_begin_one_after_the_other():
    """A number as a ramp is a step at that share of the run."""
    method = method_of(
        c2s_ramp=0.2, s2c_ramp=WeightRamp("step", end=0.4), s2c_background=True, segmentation_confidence=0.0
    )
    batch = make_batch()
    begun = {
        fraction: {name for name, loss in method(batch, Progress(1, 1, fraction)).items() if loss.item() != 0}
        for fraction in (0.0, 0.3, 0.5)
    }
    assert begun[0.0] == {"classification"}
    assert begun[0.3] == {"classification", "c2s", "affinity"}
    assert begun[0.5] == set(TERMS)


@pytest.mark.parametrize(("name", "shape", "end"), [("c2s", "gaussian", 0.95), ("s2c", "gaussian", 0.95)])
def test_a_ramp_weighs_its_terms(name, shape, end):
    ramp = WeightRamp(shape, end=end)
    with_ramp, without = (
        method_of(s2c_background=True, segmentation_confidence=0.0, **{f"{name}_ramp": kind})(make_batch(), LATE)
        for kind in (ramp, WeightRamp("none"))
    )
    assert without[name] > 0
    assert 0 < ramp(LATE) < 1
    torch.testing.assert_close(with_ramp[name], ramp(LATE) * without[name])


def test_labels_are_spread_by_constant_scores_until_their_ramp_ends():
    method, batch = method_of(c2s_ramp=WeightRamp("none"), propagation_ramp=0.5), make_batch()
    with_bsp, calls = [], []
    method.labels.register_forward_hook(lambda *_: with_bsp.append(True))
    method.first_labels.register_forward_hook(lambda *_: calls.append(True))
    method(batch, Progress(1, 1, 0.4))
    assert (len(with_bsp), len(calls)) == (0, 1)
    method(batch, Progress(1, 1, 0.5))
    assert (len(with_bsp), len(calls)) == (1, 2)


@pytest.mark.parametrize(
    ("total", "never"), [(101, []), (100, ["propagation_ramp"]), (40, ["s2c_ramp", "propagation_ramp"])]
)
def test_a_run_too_short_for_its_warm_ups_is_told(total, never):
    method = method_of(
        c2s_ramp=WeightRamp("step", end=0.1),
        s2c_ramp=WeightRamp("iteration", end=40),
        propagation_ramp=WeightRamp("iteration", end=100),
    )
    method(make_batch(), Progress(epoch=1, iteration=3, fraction=2 / total))
    (told, *others) = [text for text in method.collapse_warnings() if "will not end" in text] or [""]
    assert [name for name in ("c2s_ramp", "s2c_ramp", "propagation_ramp") if name in told] == never
    assert others == []


@pytest.mark.parametrize("ofd", [True, False])
@pytest.mark.parametrize("off", [(), ("c2s",), ("s2c",), ("affinity",), ("c2s", "s2c", "affinity")])
def test_parameters_that_nothing_trains_are_told(off, ofd):
    """Distributed training has to know."""
    words = {f"{name}_weight": 0.0 for name in off}
    method = BMP.from_preset(network=quiet_network(ofd=ofd), refine=small_refinement(), **words)
    sum(method(make_batch(), LATE).values()).backward()
    unused = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert method.may_leave_parameters_unused == bool(unused)
    assert bool(unused) == bool({"c2s", "affinity"} & set(off))


@pytest.mark.parametrize("name", ["c2s", "s2c", "affinity"])
def test_a_weight_of_zero_switches_a_term_off(name):
    method = method_of(**{f"{name}_weight": 0.0})
    assert getattr(method, name) is None
    assert list(method(make_batch(), LATE)) == [term for term in TERMS if term != name]


def test_losses_are_those_of_the_parts():
    """Constant background scores, in evaluation mode: every term composed by hand from the network's outputs."""
    method = method_of(propagation="par", scales=(1.0,), s2c_background=True, radius=2).eval()
    batch = make_batch()
    image, label = batch["image"], batch["label"]
    with torch.no_grad():
        losses = method(batch, LATE)
        outputs, mirrored = (method.network.branches(x, affinity=True) for x in (image, image.flip(-1)))
        seeds = F.relu(torch.maximum(outputs.seeds, mirrored.seeds.flip(-1)))
        low, high = seeds.amin((2, 3), keepdim=True), seeds.amax((2, 3), keepdim=True)
        seeds = (seeds - low) / (high - low + 1e-5) * label[..., None, None]
        class_label = refined_seed_label(image, seeds, label, small_refinement())
        probabilities = outputs.segmentation.softmax(1)
        probabilities[2, 1:] = 0.0  # the healthy image
        probabilities[2, 0] = 1.0
        highest, own_label = probabilities.max(1)
        own_label[highest < 0.5] = 255
        tokens = class_label[:, ::4, ::4]
        expected = {
            "classification": F.binary_cross_entropy_with_logits(outputs.logits, label),
            "c2s": 0.7 * class_to_segmentation_loss(outputs.segmentation, class_label),
            "s2c": 0.1
            * segmentation_to_class_loss(
                outputs.seeds, own_label, kind="bce", use_background=True, positive=label.amax(1) > 0
            ),
            "affinity": 0.1
            * affinity_loss(outputs.affinity, tokens, radius=2, include=torch.tensor([True, True, False])),
        }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("propagation", ["bsp", "affinity"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_near_pairs_alone_and_all_pairs_are_one_loss(monkeypatch, spatial_dims, propagation):
    method = method_of(spatial_dims=spatial_dims, scales=(1.0,), radius=1, propagation=propagation).eval()
    batch = make_batch(spatial_dims)
    shapes, values = [], []
    for tokens_per_offset in (0, 4):
        monkeypatch.setattr("monai_wsss.networks.attention_affinity.TOKENS_PER_OFFSET", tokens_per_offset)
        shapes.append(method.branches(batch["image"], affinity=True).affinity.shape[1:])
        values.append({name: loss.item() for name, loss in method(batch, LATE).items()})
    grid = (4,) * spatial_dims  # of sides of 16 and a stride of 4
    assert shapes == [(3**spatial_dims, *grid), (math.prod(grid), math.prod(grid))]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0]["affinity"] > 0


def test_terms_of_your_own_take_the_place_of_the_preset_s():
    """The constructor receives parts: another loss, and no feedback, affinity or gate."""

    class Agreement(nn.Module):
        def forward(self, segmentation, label):
            return (segmentation.argmax(1) == label).float().mean() + 0 * segmentation.sum()

    refine = small_refinement()
    method = BMP(
        quiet_network(),
        seeds=MultiScaleSeeds(MinMax(), (1.0,)),
        first_labels=ConstantScores(refine),
        labels=BackgroundAware(refine, confidence=0.0),
        labels_ramp=WeightRamp("none"),
        c2s=Term(Agreement(), 2.0),
        s2c=None,
        affinity=None,
        gate=LossGate(),
    )
    losses = method(make_batch(), EARLY)
    assert list(losses) == ["classification", "c2s"]
    assert 0 < losses["c2s"].item() <= 2
    assert method.may_leave_parameters_unused
    assert method.settings == {"method": "BMP"}


def test_half_precision_gives_float32_losses():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method_of()(make_batch(), LATE)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_tensors_with_metadata_are_as_good_as_plain_ones():
    method, batch = method_of().eval(), make_batch()
    wrapped = {key: MetaTensor(value) for key, value in batch.items()}
    for name, value in method(wrapped, LATE).items():
        torch.testing.assert_close(value, method(batch, LATE)[name])
        assert not isinstance(value, MetaTensor)


def test_batches_that_do_not_fit_are_told():
    method = method_of()
    for wrong, message in (
        ({"boxes": torch.zeros(3, 2, dtype=torch.long)}, r"`boxes` of integers of shape .* \(3, 4\), got .* \(3, 2\)"),
        ({"intensity": torch.zeros(3, 1, 8, 8)}, "`intensity` of the images' batch and size"),
    ):
        with pytest.raises(ValueError, match=message):
            method(make_batch() | wrong, LATE)


def test_an_encoder_without_attention_has_no_affinity():
    network = TwoBranchNetwork.build(ConvPyramid(2, 1, width=4, attention_heads=0), decoder_width=8)
    for words in ({}, {"affinity_weight": 0.0, "propagation": "affinity"}):
        with pytest.raises(ValueError, match="encoder with attention for the affinity"):
            BMP.from_preset(network=network, **words)
    without = BMP.from_preset(network=network, affinity_weight=0.0, refine=small_refinement())
    assert "affinity" not in without(make_batch(), LATE)


# ------------------------------------------------------------------------------------------------------ the labels


def test_healthy_images_teach_background_alone():
    label, _ = labels_of(method_of(class_confidence=0.999), make_batch())
    assert (label[2] == 0).all()
    assert (label[0] == 255).any()
    as_any_other = {"healthy_is_background": False, "score_scale": "none", "background_scale": "minmax"}
    label, _ = labels_of(method_of(class_confidence=0.999, **as_any_other), make_batch())
    assert (label[2] == 255).any()


@pytest.mark.parametrize("propagation", ["bsp", "par", "affinity"])
def test_what_lies_outside_of_boxes_teaches_nothing(propagation):
    batch = make_batch() | {"boxes": torch.tensor([[0, 16, 0, 16], [2, 12, 4, 16], [0, 8, 0, 16]])}
    for label in labels_of(method_of(propagation=propagation, class_confidence=0.0), batch):
        assert (label[1, :2] == 255).all()
        assert (label[1, :, :4] == 255).all()
        assert (label[2, 8:] == 255).all()
        assert (label[2, :8] == 0).all()
        assert (label[0] != 255).any()


def test_labels_spread_along_the_intensities_that_the_batch_names():
    batch, method = make_batch(), method_of()
    other = batch | {"intensity": batch["image"].flip(-1)}
    assert not torch.equal(labels_of(method, batch)[0], labels_of(method, other)[0])
    # An affine change, as normalization makes, changes nothing.
    affine = batch | {"intensity": 7 * batch["image"] - 3}
    assert (labels_of(method, batch)[0] == labels_of(method, affine)[0]).float().mean() > 0.99


def test_a_step_learns_from_boxes_and_intensities_of_its_batch():
    """What the segmenter learns from is the label that the batch's own entries make."""
    batch, method, caught = make_batch(), method_of().eval(), []
    batch |= {
        "intensity": batch["image"].flip(-1),
        "boxes": torch.tensor([[0, 16, 0, 16], [2, 12, 4, 16], [0, 8, 0, 8]]),
    }
    expected = labels_of(method, batch)[0]
    method.c2s.loss.register_forward_pre_hook(lambda _, given: caught.append(given[1]))
    method(batch, LATE)
    assert torch.equal(caught[0], expected)


@pytest.mark.parametrize("propagation", ["bsp", "par", "affinity"])
@pytest.mark.parametrize(("downscale", "side"), [(1.0, 16), (2.0, 8)])
def test_images_shrink_for_every_refinement_as_asked(propagation, downscale, side):
    method, seen = method_of(propagation=propagation, downscale=downscale), []
    refine = method.first_labels.refine
    refine.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    method(make_batch(), LATE)
    assert len(seen) == (1 if propagation == "par" else 2)
    assert set(seen) == {(side, side)}


@pytest.mark.parametrize(
    ("train_mode", "propagation", "seed_scale", "steps"),
    [
        (False, "bsp", "minmax", 1),
        (False, "bsp", "reference", 1),
        (False, "affinity", "minmax", 1),
        (True, "bsp", "minmax", 4),
        (True, "affinity", "minmax", 5),
    ],
)
def test_making_labels_leaves_batch_statistics_alone_unless_asked(train_mode, propagation, seed_scale, steps):
    method = method_of(train_mode_labels=train_mode, propagation=propagation, seed_scale=seed_scale)
    counters = [module for module in method.network.modules() if isinstance(module, nn.BatchNorm2d)]
    method(make_batch(), LATE)
    assert {int(counter.num_batches_tracked) for counter in counters} == {steps}
    assert method.network.training


def test_passes_over_scales_are_made_for_images_with_findings_alone():
    method, batch, caught = method_of().eval(), make_batch(), []
    method.seeds.register_forward_pre_hook(lambda _, given: caught.append(len(given[1])))
    label, constant = labels_of(method, batch)
    assert caught == [2]
    assert not label[2].any()
    assert not constant[2].any()
    alone = labels_of(method, {name: value[:2] for name, value in batch.items()})
    torch.testing.assert_close((label[:2], constant[:2]), alone)
    labels_of(method, {name: value[2:] for name, value in batch.items()})
    assert caught == [2, 2]
    method.train_mode_labels = True  # then batch statistics are of every image
    labels_of(method, batch)
    assert caught == [2, 2, 3]


@pytest.mark.parametrize("propagation", ["bsp", "par"])
def test_class_branch_masks_hold_the_classes_of_the_label_alone(propagation):
    method, batch = method_of(classes=2, propagation=propagation).eval(), make_batch(classes=2)
    masks = method.class_branch_mask(batch["image"], batch["label"])
    assert masks.shape == (3, 1, 16, 16)
    assert masks.dtype == torch.uint8
    assert not masks[2].any()
    assert set(masks[1].unique().tolist()) <= {0, 2}


# ---------------------------------------------------------------------------------------------- who teaches whom


def test_the_segmenter_teaches_the_classifier():
    """Where the segmenter is sure of foreground in a positive image, L_s2c raises the seeds, in no other image."""
    method = method_of(segmentation_confidence=0.0, c2s_weight=0.0, affinity_weight=0.0)
    with torch.no_grad():
        method.network.decoder.linear_pred.bias += torch.tensor([-50.0, 50.0])
    seeds = torch.zeros(3, 1, 16, 16, requires_grad=True)
    outputs = method.network.branches
    method.network.branches = lambda image, **options: outputs(image, **options)._replace(seeds=seeds)
    method(make_batch(), LATE)["s2c"].backward()
    assert (seeds.grad[:2] < 0).all()
    assert not seeds.grad[2].any()


def test_before_bsp_the_feedback_has_a_fixed_background():
    """Zhu et al., Sec. IV-B: S^c changes its background when BSP begins, and not without it (Tab. VI, row 3)."""
    words = {"s2c_input": "scores", "segmentation_confidence": 0.0, "s2c_ramp": WeightRamp("none")}
    batch, given = make_batch(), {}
    for name, changes in {"bsp": {"propagation_ramp": 0.5}, "par": {"propagation": "par"}}.items():
        method = method_of(**words, **changes)
        method.s2c.loss.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: given.setdefault(name, []).append(kwargs["bsp"]), with_kwargs=True
        )
        for fraction in (0.4, 0.5):
            method(batch, Progress(1, 1, fraction))
        assert (method.label_maker is method.labels) == (name == "bsp")
    assert given == {"bsp": [False, True], "par": [False, False]}


def test_class_branch_masks_are_those_of_the_labels_of_today():
    """Before its labels take over they are made as the training makes them; without a training as in the end."""
    method = method_of(propagation_ramp=0.5)
    assert method.label_maker is method.labels
    method(make_batch(), Progress(1, 1, 0.4))
    assert method.label_maker is method.first_labels


def test_as_printed_the_feedback_passes_through_the_refinement():
    method = method_of(s2c_input="scores", segmentation_confidence=0.0, c2s_weight=0.0, affinity_weight=0.0)
    with torch.no_grad():
        method.network.decoder.linear_pred.bias += torch.tensor([-50.0, 50.0])
    loss = method(make_batch(), LATE)["s2c"]
    loss.backward()
    assert loss.item() > 0
    assert method.network.classifier.weight.grad.abs().sum() > 0
    # The background comes from the decoder, which must not learn from it.
    assert method.network.decoder.linear_pred.weight.grad is None


def test_a_segmentation_that_marks_nothing_is_told():
    method, batch = method_of(c2s_ramp=0.5), make_batch()
    for parameter in method.network.decoder.linear_pred.parameters():
        torch.nn.init.zeros_(parameter)
    for progress, expected in ((EARLY, False), (LATE, True)):
        for _ in range(20):
            method(batch, progress)
        assert any("the segmentation marks nothing in 100%" in text for text in method.collapse_warnings()) == expected


def test_the_branches_teach_once_the_classifier_has_learned():
    method, batch = method_of(ready_below=0.1), make_batch()
    first = method(batch, LATE)
    assert [first[name].item() for name in ("c2s", "s2c", "affinity")] == [0, 0, 0]
    assert method.gate.running.value == first["classification"].detach()
    assert "before the classification loss, now" in method.collapse_warnings()[-1]
    method.gate.running.value.fill_(0.01)
    for _ in range(4):  # also when the loss rises again
        then = method(batch, LATE)
        assert min(then["c2s"].item(), then["affinity"].item()) > 0
    assert method.gate.opened
    assert not any("teach" in sentence for sentence in method.collapse_warnings())
    assert not any("teach" in sentence for sentence in method_of(ready_below=0.1).collapse_warnings())
    alone = method_of(ready_below=0.1, c2s_weight=0.0, affinity_weight=0.0)
    alone(batch, LATE)
    assert any("teach" in sentence for sentence in alone.collapse_warnings())


def test_while_branches_wait_every_parameter_has_a_gradient():
    """Distributed training asks for it, before the ramps and before the gate."""
    for method, progress in ((method_of(ready_below=0.01), LATE), (method_of(), EARLY)):
        sum(method(make_batch(), progress).values()).backward()
        assert all(parameter.grad is not None for parameter in method.parameters())


# ---------------------------------------------------------------------------------------------- the healthy level


def test_seeds_rise_from_the_level_of_healthy_images_to_the_peak():
    method = method_of(seed_scale="reference", propagation="par", scales=(1.0,), healthy_is_background=False)
    method.network.classifier.weight.data *= 1000  # far from a level of 0
    batch, caught = make_batch(), []
    method.seeds.register_forward_hook(lambda _, given, result: caught.append(result))
    method(batch, LATE)
    method.network.eval()
    with torch.no_grad():
        upright, mirrored = (method.network.branches(x).seeds for x in (batch["image"], batch["image"].flip(-1)))
    method.network.train()
    level = upright[2].median()
    torch.testing.assert_close(method.seeds.scale.level.value, level[None])
    above = (torch.maximum(upright, mirrored.flip(-1)) - level).clamp(min=0)
    expected = above / above.amax((2, 3), keepdim=True) * batch["label"][..., None, None]
    torch.testing.assert_close(caught[0][0], expected)


def fixed_seeds(method: BMP, seeds: torch.Tensor) -> None:
    """Give them whatever the image."""
    chosen = iter(seeds)
    outputs = method.network.branches(torch.zeros(len(seeds), 1, 16, 16))
    method.network.branches = lambda image, **_: outputs._replace(seeds=torch.stack([next(chosen) for _ in image]))


def test_the_level_follows_the_images_without_the_class():
    image = torch.zeros(2, 1, 16, 16)
    seeds = torch.zeros(2, 2, 4, 4)
    seeds[0, 1], seeds[1] = 3.0, 5.0
    fixed_seeds(first := method_of(classes=2, seed_scale="reference"), seeds)
    first.follow_healthy_level(LabeledImages(image, torch.tensor([[1.0, 0.0], [1.0, 1.0]])))
    level = first.seeds.scale.level
    assert level.filled.tolist() == [False, True]
    assert level.value.tolist() == [0.0, 3.0]
    fixed_seeds(second := method_of(classes=2, seed_scale="reference"), seeds)
    second.seeds.scale.level.load_state_dict(level.state_dict())
    second.follow_healthy_level(LabeledImages(image, torch.tensor([[0.0, 1.0], [1.0, 0.0]])))
    torch.testing.assert_close(second.seeds.scale.level.value, torch.tensor([0.0, 0.9 * 3 + 0.1 * 5]))
    assert "seeds.scale.level.value" in first.state_dict()  # a resumed run goes on with it
    assert not any("seeds" in name for name in first.network.state_dict())


def test_padding_is_no_image_without_the_class():
    method = method_of(seed_scale="reference")
    seeds = torch.ones(1, 1, 16, 16)
    seeds[..., 4:] = 9.0
    fixed_seeds(method, seeds)
    boxes = torch.tensor([[0, 16, 0, 4]])
    method.follow_healthy_level(LabeledImages(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1), boxes=boxes))
    assert method.seeds.scale.level.value == 1


def test_the_level_of_trained_weights_is_measured():
    method, batch = method_of(seed_scale="reference").eval(), make_batch()
    method.network.classifier.weight.data *= 1000
    with pytest.raises(ValueError, match="training images without each class"):
        method.class_branch_mask(batch["image"], batch["label"])
    method.measure_negative_reference([batch])
    with torch.no_grad():
        responses = method.network.branches(batch["image"], upsample=False).seeds[2].flatten().sort().values
    middle, level = len(responses) // 2, method.seeds.scale.level.value
    assert responses[middle - 1] - 1e-3 <= level <= responses[middle] + 1e-3
    assert abs(float(level)) > 0.01
    assert method.class_branch_mask(batch["image"], batch["label"])[0].any()


def test_seeds_without_a_level_need_no_measurement():
    method = method_of()
    method.measure_negative_reference(iter(()))
    assert not any(name.startswith("seeds.") for name in method.state_dict())


# ------------------------------------------------------------------------------------------------------- optimizers


def test_parameter_groups_keep_the_network_s_order():
    """An optimizer's state is found by it when a run resumes in another process."""
    network = TwoBranchNetwork.build(MixTransformer.tiny(2, 1), 1, decoder_width=8)
    method = BMP.from_preset("paper", network=network)
    names = {parameter: name for name, parameter in method.network.named_parameters()}
    order = list(names.values())
    for group in method.parameter_groups(1e-3):
        positions = [order.index(names[parameter]) for parameter in group["params"]]
        assert positions == sorted(positions)


# -------------------------------------------------------------------------------------------------------- its cost

READS = {"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "_unique2", "masked_select"}


class Dispatched(TorchDispatchMode):
    """Count the operators that are dispatched, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("classes", [1, 3])
def test_a_step_checks_little_and_reads_nothing_back_from_the_device(monkeypatch, classes):
    """Inner parts trust their arguments; a GPU, whose values nobody reads in a step, is never waited for."""
    method, batch = BMP.tiny(num_classes=classes), make_batch(classes=classes)
    checks, reads = Counter(), set()
    method(batch, LATE)
    package = str(Path(monai_wsss.__file__).parent)

    def count(frame, event, _):
        name = frame.f_code.co_name
        checking = name.startswith(("check_", "_check")) or "_checked" in name
        if checking and event == "call" and frame.f_code.co_filename.startswith(package):
            checks[name] += 1

    sys.setprofile(count)
    try:
        sum(method(batch, LATE).values()).backward()
    finally:
        sys.setprofile(None)
    assert sum(checks.values()) <= 10, checks

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(torch.Tensor, name)

        def note(tensor, *arguments, name=name, original=original):
            reads.add((name, tuple(tensor.shape)))
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, note)
    with Dispatched() as dispatched:
        sum(method(batch, LATE).values()).backward()
    # Labels are on the host, where the trainer leaves them: NumPy looks at them without a wait.
    assert reads == {("numpy", (3, classes))}
    assert {name: n for name, n in dispatched.counts.items() if name in READS} == {}
    assert dispatched.counts["convolution"] > 0
    with Dispatched() as control:  # the counters do count
        assert float(batch["image"].sum()) > 0
    assert ("__float__", ()) in reads
    assert READS & set(control.counts)
