# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""AFA: terms and labels against its equations, what its losses reach, the warm-up of the learned affinity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bmp_cases import EARLY, LATE, labels_of, make_batch, quiet_network, small_refinement

from monai_wsss.engines import Progress, WeightRamp
from monai_wsss.losses import affinity_loss, balanced_cross_entropy_loss
from monai_wsss.methods import AFA, BMP
from monai_wsss.refinement import propagated_seed_label, refined_seed_label


def afa_of(classes: int = 1, spatial_dims: int = 2, preset: str = "default", **words) -> AFA:
    network = quiet_network(classes, spatial_dims, ofd=False, detach_seeds=True)
    return AFA.from_preset(preset, network=network, refine=small_refinement(), **words)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (4, 3)])
def test_all_terms_are_finite_and_reach_every_parameter(spatial_dims, channels, classes):
    method = AFA.tiny(spatial_dims, channels, classes)
    losses = method(make_batch(spatial_dims, channels, classes, 8 if spatial_dims == 3 else 16), LATE)
    assert list(losses) == ["classification", "c2s", "affinity"]
    assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    assert isinstance(method, BMP)
    assert not method.may_leave_parameters_unused


@pytest.mark.parametrize("classes", [1, 2])
def test_losses_are_those_of_the_equations(classes):
    """In evaluation mode, one scale: seeds, both labels and both losses from the network's outputs."""
    method, batch = afa_of(classes, scales=(1.0,), radius=2).eval(), make_batch(classes=classes)
    image, label = batch["image"], batch["label"]
    with torch.no_grad():
        losses = method(batch, LATE)
        outputs, mirrored = (method.network.branches(x, affinity=True) for x in (image, image.flip(-1)))
        seeds = F.relu(torch.maximum(outputs.seeds, mirrored.seeds.flip(-1)))
        low, high = seeds.amin((2, 3), keepdim=True), seeds.amax((2, 3), keepdim=True)
        seeds = (seeds - low) / (high - low + 1e-5) * label[..., None, None]
        refine, positive = small_refinement(), label.amax(1) > 0
        spread = propagated_seed_label(image, seeds, label, outputs.affinity, refine, grid=(4, 4), radius=2)
        constant = refined_seed_label(image, seeds, label, refine)
        expected = {
            "classification": F.binary_cross_entropy_with_logits(outputs.logits, label),
            "c2s": 0.1 * balanced_cross_entropy_loss(outputs.segmentation, spread),
            "affinity": 0.1 * affinity_loss(outputs.affinity, constant[:, ::4, ::4], radius=2, include=positive),
        }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    assert list(losses) == list(expected)


def test_the_affinity_spreads_labels_once_its_ramp_ends():
    method, batch = afa_of(c2s_ramp=WeightRamp("none"), propagation_ramp=0.5), make_batch()
    spread = []
    method.labels.register_forward_hook(lambda *_: spread.append(True))
    method(batch, Progress(1, 1, 0.4))
    assert spread == []
    method(batch, Progress(1, 1, 0.5))
    assert spread == [True]


def test_labels_come_from_the_affinity_at_the_largest_scale():
    method, batch, sizes = afa_of(scales=(1.0, 0.5, 1.5)), make_batch(), []
    original = method.network.branches

    def note(image, **options):
        sizes.append((tuple(image.shape), options.get("affinity", False)))
        return original(image, **options)

    method.network.branches = note
    labels_of(method, batch)
    with_affinity = [shape for shape, affinity in sizes if affinity]
    assert with_affinity == [(2, 1, 24, 24)]  # the two images with findings
    assert len(sizes) == 4


def test_the_segmentation_losses_reach_neither_seeds_nor_the_classifier():
    method = afa_of()
    losses = method(make_batch(), LATE)
    (losses["c2s"] + losses["affinity"]).backward()
    assert method.network.classifier.weight.grad is None
    assert method.network.decoder.linear_pred.weight.grad.any()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_healthy_images_stay_finite(value):
    method = afa_of(preset="paper", c2s_ramp=WeightRamp("none"), propagation_ramp=WeightRamp("none"))
    losses = method({"image": torch.full((2, 1, 16, 16), value), "label": torch.zeros(2, 1)}, EARLY)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_half_precision_gives_float32_losses():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = afa_of()(make_batch(), LATE)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
