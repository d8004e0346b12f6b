# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A classifier that is its own map: features or maps that are pooled, against sums over pixels; deployment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import assert_scripts_and_exports

from monai_wsss.networks.class_head import ClassHead

POOLINGS = pytest.mark.parametrize(("pooling", "share"), [("max", 0.1), ("average", 0.1), ("topk", 0.3)])


def head_and_features(spatial_dims: int = 2, **options) -> tuple[ClassHead, torch.Tensor]:
    torch.manual_seed(0)
    head = ClassHead(4, 3, spatial_dims=spatial_dims, **options).double()
    return head, torch.randn(2, 4, *[6, 5, 3][:spatial_dims], dtype=torch.float64)


def pooled_by_hand(values: np.ndarray, pooling: str, share: float) -> np.ndarray:
    """Pool (B, channels, N)."""
    ordered = -np.sort(-values, axis=2)
    count = {"max": 1, "average": values.shape[2], "topk": round(share * values.shape[2])}[pooling]
    return ordered[..., :count].mean(2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("pooled", ["features", "maps"])
def test_maps_are_weighted_sums_of_the_features(spatial_dims, pooled):
    head, features = head_and_features(spatial_dims, pooled=pooled)
    maps = np.einsum("kf,bf...->bk...", head.weight.detach().flatten(1).numpy(), features.numpy())
    if pooled == "maps":
        maps = maps + head.bias.detach().numpy().reshape(3, *[1] * spatial_dims)
    else:
        assert head.bias is None
    np.testing.assert_allclose(head(features).detach().numpy(), maps, rtol=1e-12)


@POOLINGS
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_features_are_pooled_before_they_are_weighed(pooling, share, spatial_dims):
    head, features = head_and_features(spatial_dims, pooling=pooling, topk_share=share)
    expected = pooled_by_hand(features.flatten(2).numpy(), pooling, share) @ head.weight.detach().flatten(1).numpy().T
    np.testing.assert_allclose(head.classify(features).detach().numpy(), expected, rtol=1e-12)


@POOLINGS
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_maps_are_pooled_behind_the_weights(pooling, share, spatial_dims):
    head, features = head_and_features(spatial_dims, pooling=pooling, pooled="maps", topk_share=share)
    expected = pooled_by_hand(head(features).detach().flatten(2).numpy(), pooling, share)
    np.testing.assert_allclose(head.classify(features).detach().numpy(), expected, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_pooled_features_call_an_image_at_least_as_loud_as_its_map(seed):
    """With positive weights, channels may peak at different places: the map's own peak is no higher."""
    head, _ = head_and_features()
    head.weight.data.abs_()
    features = torch.randn(2, 4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert (head.classify(features) >= head(features).flatten(2).amax(2) - 1e-12).all()


@pytest.mark.parametrize("pooled", ["features", "maps"])
def test_torchscript_and_export_agree(pooled):
    head, features = head_and_features(pooled=pooled)
    assert_scripts_and_exports(head, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes` >= 1 foreground class, got 0"),
        ({"pooling": "lse"}, "`pooling` to be one of max, average, topk, got 'lse'"),
        ({"pooled": "logits"}, "`pooled` to be one of features, maps, got 'logits'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ClassHead(4, **options)
