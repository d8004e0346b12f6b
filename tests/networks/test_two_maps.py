# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two fused maps of any encoder: what each of them sees, their sizes, and which layers are new."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_checks import randomize_norms
from torch import nn

from monai_wsss.networks import (
    ConvPyramid,
    EfficientNetLite,
    FrozenEncoder,
    FusedFeatures,
    MixTransformer,
    TwoBranchNetwork,
    TwoFusedMaps,
)
from monai_wsss.networks.encoder_facts import new_layers_in

ENCODERS = {
    "pyramid": lambda: ConvPyramid.tiny(2, 3),
    "pyramid of volumes": lambda: ConvPyramid.tiny(3, 3),
    "efficientnet": lambda: EfficientNetLite.tiny(2, 3),
    "frozen efficientnet": lambda: FrozenEncoder(EfficientNetLite.tiny(2, 3), frozen="batch_norm"),
    "transformer": lambda: MixTransformer.tiny(2, 3),
}


def made(name: str, **options) -> tuple[TwoFusedMaps, torch.Tensor]:
    torch.manual_seed(0)
    maps = TwoFusedMaps(ENCODERS[name](), width=8, **options).eval()
    randomize_norms(maps)
    return maps, torch.rand(2, 3, *(32, 30, 33)[: maps.spatial_dims])


@pytest.mark.parametrize("name", ENCODERS)
def test_the_final_map_is_that_of_all_levels_and_the_early_one_lacks_the_deepest(name):
    maps, image = made(name)
    early, final = maps(image)
    torch.testing.assert_close(final, maps.fused(image))
    # The early map is the fusion of an encoder without its last level.
    encoder = maps.fused.encoder
    cut = FusedFeatures(Cut(encoder), feature_channels=encoder.feature_channels[:-1], width=8).eval()
    cut.laterals, cut.fuse = maps.fused.laterals[:-1], maps.fuse_early
    cut.level_of_stride = maps.fused.level_of_stride
    torch.testing.assert_close(early, cut(image))
    assert early.shape == final.shape
    assert maps.feature_channels == (8, 8)
    assert maps.feature_strides == (4, 4)
    assert (maps.spatial_dims, maps.in_channels, maps.attention_channels) == (encoder.spatial_dims, 3, 0)


class Cut(nn.Module):
    """An encoder without its last level."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.spatial_dims = encoder, encoder.spatial_dims

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.encoder(image)[:-1]


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_both_maps_have_the_stride(stride):
    maps, image = made("efficientnet", stride=stride)
    assert {tuple(each.shape[2:]) for each in maps(image)} == {tuple(-(-side // stride) for side in (32, 30))}


def test_losses_on_the_early_map_do_not_reach_the_deepest_level_s_lateral():
    maps, image = made("pyramid")
    early, final = maps(image)
    deepest = maps.fused.laterals[-1][0].weight
    assert torch.autograd.grad(early.sum(), deepest, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(final.square().sum(), deepest)[0].abs().sum() > 0


def test_layers_around_the_encoder_are_new_and_the_encoder_s_are_not():
    network = TwoBranchNetwork.with_auxiliary(made("efficientnet")[0], decoder_width=4)
    new = new_layers_in(network)
    names = [name for name, _ in network.encoder.named_parameters(prefix="encoder")]
    assert {name for name in names if not name.startswith(new)} == {
        name for name in names if name.startswith("encoder.fused.encoder.")
    }


@pytest.mark.parametrize("name", ["pyramid", "pyramid of volumes", "efficientnet"])
def test_two_branches_stand_on_it(name):
    maps, image = made(name)
    network = TwoBranchNetwork.with_auxiliary(maps, 2, decoder_width=4).eval()
    outputs = network.branches(image)
    assert outputs.seeds.shape == outputs.auxiliary_seeds.shape == (2, 2, *image.shape[2:])
    torch.testing.assert_close(outputs.segmentation, network(image))
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(image.repeat(2, *[1] * (image.ndim - 1)))[:2], network(image))
    coarse = network.branches(image, upsample=False)
    assert coarse.seeds.shape[2:] == coarse.auxiliary_seeds.shape[2:] == maps(image)[0].shape[2:]
    resized = F.interpolate(coarse.seeds, size=image.shape[2:], mode="bilinear" if image.ndim == 4 else "trilinear")
    torch.testing.assert_close(outputs.seeds, resized)


def test_an_encoder_of_one_map_is_refused():
    with pytest.raises(ValueError, match="`encoder` of two maps or more, FusedFeatures gives one"):
        TwoFusedMaps(FusedFeatures.tiny())
    with pytest.raises(ValueError, match="`width` and `stride` of at least 1, got 0 and 4"):
        TwoFusedMaps(ConvPyramid.tiny(), width=0)
