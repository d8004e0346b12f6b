# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The vision transformer against torch's own blocks: its two maps, positions, any size, training, deployment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import with_and_without_neighbor
from torch import nn

from monai_wsss.networks import TwoBranchNetwork, VisionTransformer

DIMENSIONS = pytest.mark.parametrize("spatial_dims", [2, 3])


def tiny(spatial_dims: int = 2, in_channels: int = 3) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer.tiny(spatial_dims, in_channels).eval()


def image_of(spatial_dims: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    sides = (32, 32) if spatial_dims == 2 else (16, 16, 16)
    return torch.rand(batch, channels, *sides, generator=torch.Generator().manual_seed(1))


def layer_of_torch(block: nn.Module) -> nn.TransformerEncoderLayer:
    """Give torch's layer with the weights of a block."""
    layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).double()
    names = {
        "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    state = {
        f"{torch_name}{part}": block.get_parameter(f"{name}{part}")
        for torch_name, name in names.items()
        for part in ("weight", "bias")
    }
    layer.load_state_dict(state)
    return layer.train()  # in evaluation torch takes another path


@DIMENSIONS
@pytest.mark.parametrize("early_block", [-3, 0, 3])
def test_both_maps_are_those_of_torch_s_blocks(spatial_dims, early_block):
    torch.manual_seed(0)
    patch = 8 if spatial_dims == 2 else 4
    network = VisionTransformer(
        spatial_dims, hidden_size=24, num_layers=4, num_heads=3, patch_size=patch, image_size=4 * patch,
        early_block=early_block,
    ).double()  # fmt: skip
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    image = image_of(spatial_dims).double()
    # Patches by hand, row by row.
    patches = image
    for axis in range(2, 2 + spatial_dims):
        patches = patches.unfold(axis, patch, patch)
    patches = patches.movedim(1, 1 + spatial_dims).flatten(1, spatial_dims).flatten(2)
    tokens = patches @ network.patch_embed.proj.weight.flatten(1).T + network.patch_embed.proj.bias
    tokens = torch.cat([network.cls_token.expand(2, 1, -1), tokens], 1) + network.pos_embed
    results = []
    for block in network.blocks:
        tokens = layer_of_torch(block)(tokens)
        results.append(tokens)
    last = F.layer_norm(tokens, (24,), network.norm.weight, network.norm.bias, 1e-6)
    for got, expected in zip(network(image), (results[early_block], last), strict=True):
        assert got.shape == (2, 24, *[4] * spatial_dims)
        torch.testing.assert_close(got, expected[:, 1:].mT.reshape(got.shape))


@pytest.mark.parametrize(("name", "width", "parameters"), [("vit_tiny", 192, 5.5e6), ("vit_base", 768, 85.8e6)])
def test_presets_have_the_published_sizes(name, width, parameters):
    with torch.device("meta"):
        network = VisionTransformer.from_preset(name)
    assert network.feature_channels == (width, width)
    assert network.feature_strides == (16, 16)
    assert network.pos_embed.shape == (1, 197, width)
    assert len(network.blocks) == 12
    assert network.early_block == 9
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(parameters, rel=0.01)


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_any_size_gives_maps_that_cover_the_image(size):
    network, image = tiny(), torch.rand(1, 3, *size)
    whole = [8 * -(-side // 8) for side in size]
    resized = F.interpolate(image, size=whole, mode="bilinear", align_corners=False)
    for got, expected in zip(network(image), network(resized), strict=True):
        assert got.shape == (1, 24, *[side // 8 for side in whole])
        torch.testing.assert_close(got, expected)


@DIMENSIONS
def test_positions_are_told_apart_interpolated_and_never_trained(spatial_dims):
    network, image = tiny(spatial_dims), image_of(spatial_dims)
    assert not network.pos_embed.requires_grad
    assert len(network.pos_embed[0].unique(dim=0)) == 1 + 4**spatial_dims
    # Positions rise along the first axis alone.  So do those of a map of twice the size; torch's cubics bend a little.
    ramp = torch.arange(4.0).reshape(4, *[1] * (spatial_dims - 1)).expand([4] * spatial_dims)
    network.pos_embed[:, 1:] = ramp.reshape(1, -1, 1)
    seen = []
    network.blocks[0].register_forward_hook(lambda module, given, result: seen.append(given[0]))
    for parameter in network.patch_embed.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        network(F.interpolate(image, scale_factor=2))
    grid = seen[0][0, 1:, 0].reshape([8] * spatial_dims)
    inner = grid[(slice(3, 5), *[slice(None)] * (spatial_dims - 1))]
    expected = torch.tensor([1.25, 1.75]).reshape(2, *[1] * (spatial_dims - 1)).expand_as(inner)
    torch.testing.assert_close(inner, expected, rtol=0, atol=0.05 if spatial_dims == 2 else 1e-5)


def test_widths_that_no_sine_fills_are_padded():
    network = VisionTransformer(hidden_size=10, num_layers=1, num_heads=1, image_size=32, early_block=0)
    assert network.pos_embed.shape == (1, 5, 10)
    assert network.pos_embed[..., -2:].abs().max() == 0


@DIMENSIONS
def test_a_few_steps_train_all_of_it_but_the_positions(spatial_dims):
    network = TwoBranchNetwork.with_auxiliary(tiny(spatial_dims), 2, decoder_width=8).train()
    image, label = image_of(spatial_dims), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mask = (image.mean(1) > 0.5).long()
    positions = network.encoder.pos_embed.clone()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        outputs = network.branches(image)
        loss = F.cross_entropy(outputs.segmentation, mask)
        for logits in (outputs.logits, outputs.auxiliary_logits):
            loss = loss + F.binary_cross_entropy_with_logits(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(network.encoder.pos_embed, positions)
    untrained = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert untrained == ["encoder.pos_embed"]


@DIMENSIONS
def test_it_is_scripted_exported_and_traced(spatial_dims):
    network = TwoBranchNetwork.with_auxiliary(tiny(spatial_dims), 2, decoder_width=8).eval()
    image = image_of(spatial_dims)[..., :-3]
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(torch.jit.script(network)(image), expected)
        exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        torch.testing.assert_close(exported(image.repeat(2, *[1] * (1 + spatial_dims)))[:2], expected)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), expected)


def test_images_do_not_mix():
    outputs, alone = with_and_without_neighbor(tiny(), image_of(2), 0)
    for got, expected in zip(alone, outputs, strict=True):
        torch.testing.assert_close(got[0], expected[0])


def test_half_precision_stays_near():
    network, image = tiny(), image_of(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(image)
    for got, expected in zip(half, network(image), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "`spatial_dims` to be 2 or 3, got 1"),
        ({"num_heads": 7}, "a `hidden_size` that the heads divide, got 3, 7, 16 and 768"),
        ({"patch_size": 0}, "`patch_size` of at least 1"),
        ({"image_size": 100}, "`image_size` as a multiple of the patch 16, got 100"),
        ({"mlp_ratio": 0.0}, "`mlp_ratio` > 0, got 0.0"),
        ({"early_block": 12}, "`early_block` among the 12 blocks, got 12"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**options)


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="`name` to be one of vit_tiny, vit_small, vit_base, got 'vit_huge'"):
        VisionTransformer.from_preset("vit_huge")
