# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The object prior of OFD pixel by pixel, for three activations; where gradients stop; deployment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_checks import assert_scripts_and_exports
from scipy.special import expit

from monai_wsss.networks.object_prior import ObjectPrior

ACTIVATIONS = pytest.mark.parametrize("activation", ["sigmoid", "minmax", "none"])


def some_seeds(spatial_dims: int = 2, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(2, classes, *[6, 5, 3][:spatial_dims], dtype=torch.float64, generator=generator)


@ACTIVATIONS
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("classes", [1, 3])
def test_it_is_the_strongest_activated_seed(activation, spatial_dims, classes):
    seeds = some_seeds(spatial_dims, classes)
    got = ObjectPrior(activation)(seeds)
    assert got.shape == (2, 1, *seeds.shape[2:])
    for image, prior in zip(seeds.numpy(), got.numpy(), strict=True):
        activated = []
        for seed in image:  # each class by itself
            scaled = (seed - seed.min()) / (seed.max() - seed.min() + 1e-5)
            activated.append({"sigmoid": expit(seed), "minmax": scaled, "none": seed}[activation])
        np.testing.assert_allclose(prior[0], np.max(activated, axis=0), rtol=1e-12)


@ACTIVATIONS
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_stop_where_asked(activation, detach):
    seeds = some_seeds().requires_grad_()
    prior = ObjectPrior(activation, detach=detach)(seeds)
    assert prior.requires_grad != detach
    if not detach:
        prior.sum().backward()
        assert seeds.grad.any()


@ACTIVATIONS
def test_constant_seeds_are_finite(activation):
    assert ObjectPrior(activation)(torch.full((1, 2, 4, 4), 7.0)).isfinite().all()


@ACTIVATIONS
def test_torchscript_and_export_agree(activation):
    assert_scripts_and_exports(ObjectPrior(activation), some_seeds())


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="`activation` to be one of sigmoid, minmax, none, got 'relu'"):
        ObjectPrior("relu")
