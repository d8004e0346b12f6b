# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Consistency correlation attention: the order of its parts, the rows of the ablation, and the pixels that it links."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss.networks.consistency_attention import ConsistencyCorrelationAttention
from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.position_attention import PositionAttention

KINDS = {"none": [], "cc1": ["cc1"], "cc2": ["cc1", "cc2"], "cca": ["cc1", "pam", "cc2"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (3, 4, 2)])
def test_parts_in_a_row_with_weights_of_their_own(kind, size):
    torch.manual_seed(0)
    module = ConsistencyCorrelationAttention(16, kind, spatial_dims=len(size), gamma_init=1.0)
    assert list(dict.fromkeys(key.split(".")[0] for key in module.state_dict())) == KINDS[kind]
    features = torch.randn(2, 16, *size)
    expected = features
    for name in KINDS[kind]:
        part = (PositionAttention if name == "pam" else CrissCrossAttention)(16, spatial_dims=len(size))
        part.load_state_dict(getattr(module, name).state_dict())
        expected = part(expected)
    torch.testing.assert_close(module(features), expected)
    module(features).square().sum().backward() if KINDS[kind] else None
    assert all(bool(part.gamma.grad.any()) for name, part in module.named_children() if name in KINDS[kind])


@pytest.mark.parametrize(("kind", "reached"), [("none", 1), ("cc1", 4 + 5 - 1), ("cc2", 20), ("cca", 20)])
def test_what_a_position_is_reached_by(kind, reached):
    """Check that one criss-cross attention reaches a position's own lines, and two in a row all positions."""
    torch.manual_seed(0)
    module = ConsistencyCorrelationAttention(4, kind, gamma_init=1.0)
    features = torch.randn(1, 4, 4, 5, requires_grad=True)
    module(features)[0, :, 2, 1].sum().backward()
    assert int(features.grad[0].any(0).sum()) == reached


def test_options_reach_their_parts():
    module = ConsistencyCorrelationAttention(
        16,
        criss_cross_reduction=4,
        pam_reduction=8,
        gamma_init=0.5,
        official_quirk=True,
        pam_residual=False,
        pam_normalizer="queries",
    )
    assert [module.cc1.query_conv.out_channels, module.pam.query_conv.out_channels] == [4, 2]
    assert [part.gamma.item() for part in (module.cc1, module.pam, module.cc2)] == [0.5, 0.5, 0.5]
    assert module.cc1.official_quirk
    assert module.cc2.official_quirk
    assert (module.pam.residual, module.pam.normalizer) == (False, "queries")


def test_default_widths_are_the_papers():
    module = ConsistencyCorrelationAttention(64)
    assert [module.cc1.key_conv.out_channels, module.pam.key_conv.out_channels] == [8, 16]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    weights = 3 * 64 * 64 + 2 * (2 * 64 * 8) + 2 * 64 * 16
    assert parameters == weights + 3 * 64 + 4 * 8 + 2 * 16 + 3


def test_gradients_are_right_in_double():
    torch.manual_seed(0)
    module = ConsistencyCorrelationAttention.tiny().double()
    features = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (features, *module.parameters()), fast_mode=True)


def test_autocast_gives_the_type_of_the_input():
    torch.manual_seed(0)
    module = ConsistencyCorrelationAttention(16, gamma_init=1.0)
    features = torch.randn(2, 16, 6, 7)
    expected = module(features)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(features)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_lets_a_pixelwise_classifier_use_the_rest_of_the_image():
    """Train on labels that depend on a mark in one corner, which only attention can bring to all pixels."""
    torch.manual_seed(0)
    features = torch.randn(32, 4, 4, 4)
    features[:, 3] = 0
    label = torch.arange(32) % 2
    features[:, 3, 0, 0] = torch.where(label == 1, 4.0, -4.0)
    target = label[:, None, None].expand(-1, 4, 4).float()
    losses = {}
    for kind in ("none", "cca"):
        torch.manual_seed(0)
        network = nn.Sequential(
            ConsistencyCorrelationAttention(4, kind, criss_cross_reduction=1, pam_reduction=1), nn.Conv2d(4, 1, 1)
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
        for _ in range(80):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(network(features)[:, 0], target)
            loss.backward()
            optimizer.step()
        losses[kind] = loss.item()
    assert losses["none"] > 0.5
    assert losses["cca"] < 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("spatial_dims", "kind"), [(2, "cca"), (3, "cc1"), (2, "none")])
def test_script_and_export(spatial_dims, kind):
    torch.manual_seed(0)
    module = ConsistencyCorrelationAttention(8, kind, spatial_dims=spatial_dims, gamma_init=1.0).eval()
    features = torch.randn(2, 8, *(6, 5, 4)[:spatial_dims])
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(features), module(features))
    exported = torch.export.export(module, (features,)).module()
    torch.testing.assert_close(exported(features), module(features))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Expected `kind` to be one of none, cc1, cc2, cca, got 'pam'"):
        ConsistencyCorrelationAttention(8, "pam")
    with pytest.raises(ValueError, match="Expected `features` of 8 channels"):
        ConsistencyCorrelationAttention(8)(torch.zeros(1, 4, 2, 2))
