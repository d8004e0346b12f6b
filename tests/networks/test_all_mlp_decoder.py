# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""SegFormer's decoder against the papers' order of operations, whole channels of dropout, deployment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_checks import randomize_norms
from torch import nn

from monai_wsss.networks.all_mlp_decoder import AllMLPDecoder

DIMENSIONS = pytest.mark.parametrize("spatial_dims", [2, 3])


def at_size(maps: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear" if maps.ndim == 4 else "trilinear")


@DIMENSIONS
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("levels", [4, 3, 2])
def test_decoder_agrees_with_the_order_of_the_paper(spatial_dims, mode, levels):
    torch.manual_seed(0)
    channels, sizes = (3, 4, 5, 6)[:levels], ((9, 7, 5), (5, 4, 3), (3, 2, 2), (3, 2, 1))[:levels]
    decoder = AllMLPDecoder(channels, 3, spatial_dims=spatial_dims, width=4, dropout=0.0).double().train(mode)
    bn = decoder.linear_fuse.bn
    randomize_norms(decoder)
    features = [
        torch.randn(2, f, *size[:spatial_dims], dtype=torch.float64) for f, size in zip(channels, sizes, strict=True)
    ]
    parts = []
    for n in (4, 3, 2, 1)[-levels:]:
        linear = getattr(decoder, f"linear_c{n}").proj
        projected = linear(features[n - 1].movedim(1, -1)).movedim(-1, 1)
        parts.append(at_size(projected, features[0].shape[2:]))
    weight = decoder.linear_fuse.conv.weight.flatten(1)
    fused = torch.einsum("of,bf...->bo...", weight, torch.cat(parts, 1))
    axes, column = (0, *range(2, fused.ndim)), (None, slice(None), *[None] * spatial_dims)
    mean, var = (fused.mean(axes), fused.var(axes, False)) if mode else (bn.running_mean, bn.running_var)
    normalized = (fused - mean[column]) / (var[column] + 1e-5).sqrt() * bn.weight[column] + bn.bias[column]
    expected = torch.einsum("of,bf...->bo...", decoder.linear_pred.weight.flatten(1), normalized.clamp(min=0))
    expected = expected + decoder.linear_pred.bias[column]
    torch.testing.assert_close(decoder(features), expected, rtol=1e-9, atol=1e-10)


@DIMENSIONS
def test_dropout_takes_whole_channels_in_training(spatial_dims):
    torch.manual_seed(0)
    decoder = AllMLPDecoder((1, 1, 1, 1), 2, spatial_dims=spatial_dims, width=64, dropout=0.25)
    assert isinstance(decoder.dropout, nn.Dropout2d if spatial_dims == 2 else nn.Dropout3d)
    assert AllMLPDecoder((1, 1, 1, 1), 2).dropout.p == 0.1
    seen = []
    decoder.dropout.register_forward_hook(lambda module, given, result: seen.append((given[0], result)))
    decoder([torch.randn(8, 1, *[5, 4, 3][:spatial_dims]) for _ in range(4)])
    fused, dropped = (maps.flatten(2) for maps in seen[0])
    gone = (dropped == 0).all(2)
    assert bool((fused.amax(2) > 0).all())
    # Each channel of each image on its own: all of it or nothing, and what stays is scaled up.
    torch.testing.assert_close(dropped, fused * ~gone[..., None] / 0.75)
    assert 0.2 < gone.float().mean() < 0.3
    assert len(gone.unique(dim=0)) == 8
    decoder.eval()([torch.randn(8, 1, *[5, 4, 3][:spatial_dims]) for _ in range(4)])
    assert torch.equal(*seen[1])


@DIMENSIONS
@pytest.mark.parametrize("count", [4, 2])
def test_torchscript_and_export_agree(spatial_dims, count):
    torch.manual_seed(0)
    decoder = AllMLPDecoder((1, 2, 3, 4)[:count], 2, spatial_dims=spatial_dims, width=4).eval()
    randomize_norms(decoder)
    levels = [torch.randn(2, n, *[9 - n, 7, 5][:spatial_dims]) for n in (1, 2, 3, 4)[:count]]
    torch.testing.assert_close(torch.jit.script(decoder)(levels), decoder(levels))
    torch.testing.assert_close(torch.export.export(decoder, (levels,)).module()(levels), decoder(levels))


@pytest.mark.parametrize("channels", [(4,), (1, 2, 3, 4, 5)])
def test_other_numbers_of_levels_are_refused(channels):
    with pytest.raises(ValueError, match="`feature_channels` of two to four levels, got "):
        AllMLPDecoder(channels, 2)
