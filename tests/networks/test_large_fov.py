# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""LargeFOV against convolutions written out: which map it reads, its dilation, its missing bias."""

from __future__ import annotations

import pytest
import torch
from network_checks import assert_scripts_and_exports
from torch import nn

from monai_wsss.networks.large_fov import LargeFOV


def dilated(features: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Convolve with a 3x3(x3) kernel by shifted sums, zeros beyond the map."""
    dims = features.ndim - 2
    padded = nn.functional.pad(features, (dilation,) * (2 * dims))
    total = torch.zeros(())
    for offset in torch.cartesian_prod(*[torch.arange(3)] * dims).tolist():
        window = padded
        for axis, step in enumerate(offset, start=2):
            window = window.narrow(axis, step * dilation, features.shape[axis])
        total = total + torch.einsum("of,bf...->bo...", weight[(slice(None), slice(None), *offset)], window)
    return total


@pytest.mark.parametrize(("spatial_dims", "dilation"), [(2, 5), (2, 1), (3, 2)])
def test_the_last_map_goes_through_two_dilated_convolutions_and_one_of_a_pixel(spatial_dims, dilation):
    torch.manual_seed(0)
    decoder = LargeFOV(3, 2, spatial_dims=spatial_dims, width=4, dilation=dilation).double()
    early, last = (torch.randn(2, 3, *(9, 7, 6)[:spatial_dims], dtype=torch.float64) for _ in range(2))
    hidden = dilated(last, decoder.conv6.weight, dilation).clamp(min=0)
    hidden = dilated(hidden, decoder.conv7.weight, dilation).clamp(min=0)
    expected = torch.einsum("of,bf...->bo...", decoder.conv8.weight.flatten(1), hidden)
    torch.testing.assert_close(decoder([early, last]), expected)
    torch.testing.assert_close(decoder([last]), expected)


def test_defaults_and_names_are_those_of_the_released_code():
    shapes = {name: tuple(value.shape) for name, value in LargeFOV(768, 21).state_dict().items()}
    assert shapes == {
        "conv6.weight": (512, 768, 3, 3), "conv7.weight": (512, 512, 3, 3), "conv8.weight": (21, 512, 1, 1),
    }  # fmt: skip
    assert LargeFOV(4, 2).conv6.dilation == LargeFOV(4, 2).conv7.dilation == (5, 5)


def test_torchscript_and_export_agree():
    decoder = LargeFOV(3, 2, width=4, dilation=2).eval()
    network = nn.Sequential(OneMap(), decoder)
    assert_scripts_and_exports(network, torch.randn(2, 3, 8, 7))


class OneMap(nn.Module):
    """A list of one map."""

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [features]


@pytest.mark.parametrize("wrong", [{"num_outputs": 0}, {"width": 0}, {"dilation": 0}])
def test_wrong_sizes_are_named(wrong):
    with pytest.raises(ValueError, match="`num_outputs`, `width` and `dilation` of at least 1, got"):
        LargeFOV(4, **{"num_outputs": 2, **wrong})
