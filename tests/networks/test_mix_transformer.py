# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mix transformer: attention against its equation, raw logits of chosen blocks, presets, sizes, deployment."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import with_and_without_neighbor
from torch import nn

from monai_wsss.networks import mix_transformer
from monai_wsss.networks.mix_transformer import MixTransformer, ReducedAttention

MILLIONS = {"mit_b0": 3.32, "mit_b1": 13.15, "mit_b2": 24.20, "mit_b3": 44.07, "mit_b4": 60.84, "mit_b5": 81.44}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_presets_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        network = MixTransformer.from_preset(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(millions * 1e6, abs=5e3)
    assert network.attention_channels == 16


@pytest.mark.parametrize(("strides", "last"), [((4, 2, 2, 1), (8, 6)), ((4, 2, 2, 2), (4, 3))])
def test_the_last_stage_is_denser_than_in_segformer(strides, last):
    with torch.device("meta"):
        network = MixTransformer.from_preset("mit_b1", in_channels=1, strides=strides)
        features = network(torch.zeros(1, 1, 128, 96))
    assert [tuple(part.shape[2:]) for part in features] == [(32, 24), (16, 12), (8, 6), last]
    assert tuple(part.shape[1] for part in features) == network.feature_channels == (64, 128, 320, 512)


@pytest.mark.parametrize(("size", "sr_ratio"), [((5, 6), 1), ((5, 6), 2), ((3, 4, 5), 1), ((3, 4, 5), 3)])
def test_attention_agrees_with_the_equation(size, sr_ratio):
    torch.manual_seed(0)
    module = ReducedAttention(len(size), 6, 2, sr_ratio).double()
    tokens = torch.randn(2, math.prod(size), 6, dtype=torch.float64)
    source = tokens
    if sr_ratio > 1:
        source = module.norm(module.sr(tokens.mT.unflatten(2, size)).flatten(2).mT)
    query, (key, value) = module.q(tokens), module.kv(source).chunk(2, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = torch.einsum("bif,bjf->bij", query[..., part], key[..., part]).div(math.sqrt(3)).softmax(2)
        heads.append(torch.einsum("bij,bjf->bif", weights, value[..., part]))
    got, *_ = module(tokens, list(size))
    torch.testing.assert_close(got, module.proj(torch.cat(heads, 2)), rtol=1e-10, atol=1e-12)


def block_inputs(network: MixTransformer, image: torch.Tensor) -> list[torch.Tensor]:
    """Give the tokens behind norm1 of each block of the last stage, from which it attends."""
    seen: list[torch.Tensor] = []
    hooks = [block.norm1.register_forward_hook(lambda _m, _i, output: seen.append(output)) for block in network.block4]
    network(image)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("blocks", [(-2, -1), (0,), (-1,), ()])
def test_logits_are_the_unscaled_products_of_the_chosen_blocks(spatial_dims, blocks):
    torch.manual_seed(0)
    size = (37, 50, 33)[:spatial_dims]
    network = MixTransformer(
        spatial_dims, 1, embed_dims=(4, 4, 6, 8), num_heads=(1, 1, 2, 4), sr_ratios=(2, 2, 1, 1),
        attention_blocks=blocks,
    ).double().eval()  # fmt: skip
    image = torch.randn(2, 1, *size, dtype=torch.float64)
    features, logits = network.forward_with_attention(image)
    for got, expected in zip(features, network(image), strict=True):
        assert torch.equal(got, expected)  # asking for them changes no feature
    assert len(logits) == len(blocks)
    assert network.attention_channels == 4 * len(blocks)
    inputs = block_inputs(network, image)
    for got, index in zip(logits, sorted(index % 2 for index in blocks), strict=True):
        attention = network.block4[index].attn
        query, (key, _) = attention.q(inputs[index]), attention.kv(inputs[index]).chunk(2, dim=2)
        for head in range(4):
            part = slice(2 * head, 2 * head + 2)
            torch.testing.assert_close(got[:, head], query[..., part] @ key[..., part].mT)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_windowed_logits_are_those_of_the_dense_form(spatial_dims):
    network = MixTransformer.tiny(spatial_dims, 1).eval()
    image = torch.rand(1, 1, *[64, 48, 33][:spatial_dims])
    features, dense = network.forward_with_attention(image)
    _, windows = network.forward_with_attention(image, radius=1)
    size = features[3].shape[2:]
    center = 3**spatial_dims // 2
    for all_pairs, window in zip(dense, windows, strict=True):
        assert window.shape == (1, 4, 3**spatial_dims, *size)
        diagonal = all_pairs.diagonal(dim1=2, dim2=3).unflatten(2, size)
        torch.testing.assert_close(window[:, :, center], diagonal)
        following = all_pairs.diagonal(1, dim1=2, dim2=3)  # token i with the next one in its row, if any
        rows = nn.functional.pad(following, (0, 1)).unflatten(2, size)[..., :-1]
        torch.testing.assert_close(window[:, :, center + 1][..., :-1], rows)


def test_who_does_not_ask_pays_for_no_logits(monkeypatch):
    network = MixTransformer.tiny().eval()

    def refuse(*args):
        raise AssertionError("logits were formed")

    monkeypatch.setattr(mix_transformer, "attention_logits", refuse)
    network(torch.rand(1, 3, 32, 32))
    _, pairs = network.forward_with_queries(torch.rand(1, 3, 32, 32))
    assert [query.shape for query, _ in pairs] == [(1, 4, 4, 8)] * 2
    with pytest.raises(AssertionError, match="logits were formed"):
        network.forward_with_attention(torch.rand(1, 3, 32, 32))


def test_norms_have_the_epsilons_of_the_public_code():
    network = MixTransformer()
    epsilons: dict[float, set[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            kind = name.split(".")[0].rstrip("1234") + (".attn" if ".attn." in name else "")
            epsilons.setdefault(module.eps, set()).add(kind)
    assert epsilons == {1e-6: {"block", "norm"}, 1e-5: {"patch_embed", "block.attn"}}


def test_drop_path_grows_linearly_and_drops_whole_images():
    network = MixTransformer(depths=(1, 1, 1, 2), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), drop_path=0.4)
    stages = (network.block1, network.block2, network.block3, network.block4)
    rates = [block.drop_path.drop_prob for stage in stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block, tokens = network.block4[0], torch.randn(64, 4, 8)
    torch.manual_seed(0)
    kept = block.train()(tokens, [2, 2])[0]
    whole = block.eval()(tokens, [2, 2])[0]
    untouched = (kept == tokens).flatten(1).all(1).float().mean()
    assert 0.03 < untouched < 0.35  # both updates left out: 0.16 of the images
    assert not torch.equal(kept, whole)
    assert torch.equal(whole, block(tokens, [2, 2])[0])


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(13, 50), st.integers(13, 50)), st.integers(0, 1))
def test_images_do_not_mix_and_sides_are_rounded_up(size, index):
    network = MixTransformer.tiny().eval()
    image = torch.randn(2, 3, *size)
    features, alone = with_and_without_neighbor(network, image, index)
    for stride, got, expected in zip((4, 8, 16, 16), alone, features, strict=True):
        assert expected.shape[2:] == tuple(math.ceil(n / stride) for n in size)
        torch.testing.assert_close(got[index], expected[index])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_parameter_gets_a_gradient_also_from_one_image(spatial_dims):
    network = MixTransformer.tiny(spatial_dims, 2)
    sum(part.square().sum() for part in network(torch.rand(1, 2, *[17] * spatial_dims))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("value", [0.0, 255.0])
def test_constant_images_give_finite_features(value):
    features, logits = MixTransformer.tiny().forward_with_attention(torch.full((2, 3, 20, 20), value))
    assert all(part.isfinite().all() for part in features + logits)


def test_other_strides_serve_small_images():
    network = MixTransformer(strides=(2, 2, 2, 1), sr_ratios=(4, 2, 1, 1), embed_dims=(8, 8, 10, 8)).eval()
    assert [part.shape[2] for part in network(torch.rand(1, 3, 7, 40))] == [4, 2, 1, 1]


@pytest.mark.parametrize("mode", [True, False])
def test_autocast_gives_finite_features(mode):
    network = MixTransformer.tiny().train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = network.forward_with_attention(torch.rand(2, 3, 32, 32) * 100)
    assert all(part.isfinite().all() for part in features + logits)


@pytest.mark.parametrize("size", [(33, 20), (17, 20, 13)])
@pytest.mark.parametrize("mode", [True, False])
def test_torchscript_agrees(size, mode):
    network = MixTransformer.tiny(len(size)).train(mode)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    image = torch.rand(2, 3, *size)
    scripted = torch.jit.load(buffer)
    torch.manual_seed(1)
    expected = network(image)
    torch.manual_seed(1)
    for got, part in zip(scripted(image), expected, strict=True):
        torch.testing.assert_close(got, part)


@pytest.mark.slow
def test_torch_export_agrees():
    network = MixTransformer.tiny().eval()
    image = torch.rand(2, 3, 33, 20)
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.rand(3, 3, 33, 20)
    for got, part in zip(exported.module()(image), network(image), strict=True):
        torch.testing.assert_close(got, part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixTransformer(1), "`spatial_dims` to be 2 or 3, got 1"),
        (lambda: MixTransformer(depths=(2, 2, 2)), r"`depths` of four stages, each 1 or more, got \(2, 2, 2\)"),
        (lambda: MixTransformer(strides=(4, 2, 0, 1)), r"`strides` of four stages, each 1 or more"),
        (lambda: MixTransformer(num_heads=(1, 2, 3, 8)), "`num_heads` divide, got 320 channels, 3 heads"),
        (lambda: MixTransformer(attention_blocks=(-3,)), r"the last stage's 2 blocks, got \(-3,\)"),
        (lambda: MixTransformer(sr_ratios=(8, 4, 2, 2)), "`sr_ratios` of 1 in the last stage, got 2"),
        (lambda: MixTransformer.from_preset("b1"), "`name` to be one of mit_b0, mit_b1"),
        (lambda: MixTransformer()(torch.rand(1, 3, 28, 64)), "image sides of at least 29 pixels"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_smallest_side_is_the_smallest():
    for network in (MixTransformer(embed_dims=(8, 8, 10, 8)), MixTransformer.tiny()):
        side = network.smallest_side
        assert len(network.eval()(torch.rand(1, 3, side, side))) == 4
        network.smallest_side = 0
        with pytest.raises(ValueError, match="Kernel size can't be greater"):
            network(torch.rand(1, 3, side - 1, side))
