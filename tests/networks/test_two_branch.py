# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two branches: decoder and affinity against the papers' order of operations, OFD, options, encoders, deployment."""

from __future__ import annotations

import io
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import randomize_norms, with_and_without_neighbor
from torch import nn

from monai_wsss._windows import inside_window
from monai_wsss.networks.attention_logits import attention_logits
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.two_branch import AllMLPDecoder, TwoBranchNetwork


class PlainEncoder(nn.Module):
    """The least that an encoder has to be: four levels and their channels."""

    feature_channels = (2, 3, 4, 5)
    spatial_dims = 2

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise((1, 2, 3, 4, 5)))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        levels: list[torch.Tensor] = []
        for conv in self.convs:
            image = conv(image)
            levels.append(image)
        return levels


def make(encoder: str, spatial_dims: int = 2, num_classes: int = 1, **options) -> TwoBranchNetwork:
    torch.manual_seed(0)
    built = {"pyramid": ConvPyramid, "transformer": MixTransformer}[encoder].tiny(spatial_dims, 1)
    return TwoBranchNetwork(built, num_classes, decoder_width=8, **options)


def picture(spatial_dims: int = 2, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 1, *[29, 34, 18][:spatial_dims])


def at_size(maps: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear" if maps.ndim == 4 else "trilinear")


ENCODERS = pytest.mark.parametrize("encoder", ["pyramid", "transformer"])
DIMENSIONS = pytest.mark.parametrize("spatial_dims", [2, 3])


@DIMENSIONS
@pytest.mark.parametrize("mode", [True, False])
def test_decoder_agrees_with_the_order_of_the_paper(spatial_dims, mode):
    torch.manual_seed(0)
    channels, sizes = (3, 4, 5, 6), ((9, 7, 5), (5, 4, 3), (3, 2, 2), (3, 2, 1))
    decoder = AllMLPDecoder(channels, 3, spatial_dims=spatial_dims, width=4, dropout=0.0).double().train(mode)
    bn = decoder.linear_fuse.bn
    randomize_norms(decoder)
    features = [
        torch.randn(2, f, *size[:spatial_dims], dtype=torch.float64) for f, size in zip(channels, sizes, strict=True)
    ]
    parts = []
    for n in (4, 3, 2, 1):
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


def test_names_are_those_of_the_public_code():
    names = set(TwoBranchNetwork.tiny().state_dict())
    heads = {name for name in names if not name.startswith("encoder.")}
    assert heads == {
        "classifier.weight", "attn_proj.weight", "attn_proj.bias",
        *(f"decoder.linear_c{n}.proj.{part}" for n in (1, 2, 3, 4) for part in ("weight", "bias")),
        "decoder.linear_fuse.conv.weight",
        *(f"decoder.linear_fuse.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "decoder.linear_fuse.bn.num_batches_tracked",
        "decoder.linear_pred.weight", "decoder.linear_pred.bias",
    }  # fmt: skip


@ENCODERS
@DIMENSIONS
def test_affinity_agrees_with_the_order_of_the_paper(encoder, spatial_dims):
    network, image = make(encoder, spatial_dims).double().eval(), picture(spatial_dims).double()
    features, attention = network.encoder.forward_with_attention(image)
    joined = torch.cat(attention, dim=1)
    expected = network.attn_proj(joined + joined.mT).sigmoid()[:, 0]
    affinity = network.branches(image, affinity=True).affinity
    torch.testing.assert_close(affinity, expected)
    torch.testing.assert_close(affinity, affinity.mT)
    size, radius = features[3].shape[2:], 1
    windows = network.branches(image, affinity=True, radius=radius).affinity
    # Pairs of one-hot tokens pick the windows out of the dense form.
    tokens = torch.eye(math.prod(size), dtype=torch.float64)[None, None]
    picked = attention_logits(expected[:, None].contiguous(), tokens.expand(2, -1, -1, -1), size, radius)[:, 0]
    torch.testing.assert_close(windows, picked)
    assert bool((windows[:, ~inside_window(size, radius)] == 0).all())
    assert bool((windows[:, inside_window(size, radius)] > 0).all())
    for dense_up_to, form in ((size.numel(), affinity), (size.numel() - 1, windows)):
        chosen = network.branches(image, affinity=True, radius=radius, dense_up_to=dense_up_to).affinity
        torch.testing.assert_close(chosen, form)


@ENCODERS
@DIMENSIONS
def test_outputs_fit_one_another(encoder, spatial_dims):
    network, image = make(encoder, spatial_dims, num_classes=3).eval(), picture(spatial_dims)
    outputs = network.branches(image)
    assert outputs.affinity is None
    assert outputs.logits.shape == (2, 3)
    assert outputs.seeds.shape == (2, 3, *image.shape[2:])
    assert torch.equal(outputs.segmentation, network(image))
    assert outputs.segmentation.shape == (2, 4, *image.shape[2:])
    features = network.encoder(image)
    coarse = network.branches(image, upsample=False)
    torch.testing.assert_close(coarse.seeds, network.classifier(features[3]))
    assert coarse.segmentation.shape == (2, 4, *features[0].shape[2:])
    torch.testing.assert_close(at_size(coarse.segmentation, image.shape[2:]), outputs.segmentation)
    torch.testing.assert_close(at_size(coarse.seeds, image.shape[2:]), outputs.seeds)
    for got, expected in zip(network.branches(image, affinity=True), outputs, strict=True):
        assert expected is None or torch.equal(got, expected)


def test_maps_can_be_pooled_behind_the_classifier():
    """With the maximum, the image's logit is then the highest value of its class map, bias included."""
    network = make("pyramid", num_classes=2, pooled="maps").eval()
    torch.nn.init.constant_(network.classifier.bias, 0.7)
    image = torch.rand(2, network.encoder.in_channels, 16, 16)
    outputs = network.branches(image, upsample=False)
    torch.testing.assert_close(outputs.logits, outputs.seeds.flatten(2).amax(2))


@pytest.mark.parametrize(("pooling", "share"), [("max", 0.1), ("average", 0.1), ("topk", 0.3)])
def test_features_are_pooled_before_they_are_weighed(pooling, share):
    network = make("pyramid", num_classes=2, pooling=pooling, topk_share=share).eval()
    features = network.encoder(picture())
    values = features[3].flatten(2).sort(dim=2, descending=True).values
    count = {"max": 1, "average": values.shape[2], "topk": round(0.3 * values.shape[2])}[pooling]
    expected = values[..., :count].mean(2) @ network.classifier.weight.flatten(1).T
    torch.testing.assert_close(network.branches(picture()).logits, expected)


@DIMENSIONS
@pytest.mark.parametrize("activation", ["sigmoid", "minmax", "none"])
def test_decoder_sees_features_times_the_strongest_seed(activation, spatial_dims):
    network = make("pyramid", spatial_dims, num_classes=3, ofd_activation=activation).eval()
    image = picture(spatial_dims)
    features = network.encoder(image)
    seeds = network.branches(image).seeds
    maps = seeds.flatten(2)
    low, high = maps.min(2).values[..., None], maps.max(2).values[..., None]
    maps = {"sigmoid": maps.sigmoid(), "minmax": (maps - low) / (high - low + 1e-5), "none": maps}[activation]
    prior = maps.max(1).values.reshape(2, 1, *image.shape[2:])
    for got, level in zip(network.object_aware(features, seeds), features, strict=True):
        torch.testing.assert_close(got, level * at_size(prior, level.shape[2:]))
    decoded = network.decoder(network.object_aware(features, seeds))
    torch.testing.assert_close(network(image), at_size(decoded, image.shape[2:]))
    network.ofd = False
    torch.testing.assert_close(network(image), at_size(network.decoder(features), image.shape[2:]))


@pytest.mark.parametrize("detach", [True, False])
def test_decoder_reaches_the_classifier_only_where_asked(detach):
    network = make("pyramid", ofd_detach=detach)
    network(picture()).square().sum().backward()
    assert (network.classifier.weight.grad is None) == detach


@pytest.mark.parametrize("detach", [True, False])
def test_seeds_train_in_bmp_and_not_in_afa(detach):
    outputs = make("transformer", detach_seeds=detach).branches(picture())
    assert outputs.seeds.requires_grad != detach
    assert outputs.logits.requires_grad


@ENCODERS
@DIMENSIONS
@pytest.mark.parametrize("radius", [None, 1])
def test_every_parameter_gets_a_gradient_from_the_four_outputs(encoder, spatial_dims, radius):
    network = make(encoder, spatial_dims, num_classes=2)
    outputs = network.branches(picture(spatial_dims), affinity=True, radius=radius)
    sum(part.square().sum() for part in outputs).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_deployable_path_does_no_work_on_affinities():
    network = make("transformer").eval()

    def refuse(*args):
        raise AssertionError("queries were asked for")

    network.encoder.forward_with_queries = refuse
    network(picture())
    network.branches(picture())
    with pytest.raises(AssertionError, match="queries were asked for"):
        network.branches(picture(), affinity=True)


def test_any_encoder_of_four_levels_serves_but_for_the_affinity():
    network = TwoBranchNetwork(PlainEncoder(), 2, decoder_width=4).eval()
    assert network(picture()).shape == (2, 3, 29, 34)
    assert network.attn_proj is None
    torch.testing.assert_close(torch.jit.script(network)(picture()), network(picture()))
    message = "`attention_channels` and `forward_with_queries` for the affinity, PlainEncoder lacks them: use one that"
    with pytest.raises(ValueError, match=message):
        network.branches(picture(), affinity=True)


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(13, 40), st.integers(13, 40)), st.integers(0, 1), st.sampled_from(["max", "average"]))
def test_images_do_not_mix_and_any_size_comes_back(size, index, pooling):
    network = make("transformer", pooling=pooling).eval()
    image = torch.rand(2, 1, *size)
    outputs, alone = with_and_without_neighbor(partial(network.branches, affinity=True), image, index)
    assert outputs.segmentation.shape == (2, 2, *size)
    for got, expected in zip(alone, outputs, strict=True):
        torch.testing.assert_close(got[index], expected[index])


@ENCODERS
@pytest.mark.parametrize("value", [0.0, 255.0])
@pytest.mark.parametrize("activation", ["sigmoid", "minmax", "none"])
def test_constant_images_give_finite_outputs_and_gradients(encoder, value, activation):
    network = make(encoder, ofd_activation=activation, ofd_detach=False)
    outputs = network.branches(torch.full((1, 1, 32, 32), value), affinity=True)
    sum(part.square().mean() for part in outputs).backward()
    assert all(part.isfinite().all() for part in outputs)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
def spread_affinities(network: TwoBranchNetwork) -> None:
    """Running statistics of the image's own and a projection of a wide range: affinities from near 0 to near 1."""
    for _ in range(60):
        network.train()(picture())
    logits = network.eval().branches(picture(), affinity=True).affinity.logit()
    network.attn_proj.bias.sub_(logits.mean()).mul_(2 / logits.std())
    network.attn_proj.weight.mul_(2 / logits.std())


@ENCODERS
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("radius", [None, 1])
def test_autocast_gives_finite_outputs(encoder, mode, radius):
    network = make(encoder).train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network.branches(100 * picture(), affinity=True, radius=radius)
    assert all(part.isfinite().all() for part in outputs)
    assert outputs.affinity.dtype == torch.float32
    if not mode:
        spread_affinities(network)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network.branches(picture(), affinity=True)
        full = network.branches(picture(), affinity=True)
        assert full.affinity.min() < 0.05
        assert full.affinity.max() > 0.95
        for got, expected in zip(half, full, strict=True):
            torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


@ENCODERS
@pytest.mark.parametrize("radius", [None, 1])
def test_autocast_rounds_queries_and_keys_and_not_their_products(encoder, radius):
    network = make(encoder).eval()
    spread_affinities(network)
    features, pairs = network.encoder.forward_with_queries(picture())
    halves = [(query.bfloat16(), key.bfloat16()) for query, key in pairs]
    network.encoder.forward_with_queries = lambda image: (features, halves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = network.branches(picture(), affinity=True, radius=radius).affinity
    network.encoder.forward_with_queries = lambda image: (features, [(q.float(), k.float()) for q, k in halves])
    expected = network.branches(picture(), affinity=True, radius=radius).affinity
    assert expected.amax() - expected[expected > 0].amin() > 0.9
    torch.testing.assert_close(got, expected)


@ENCODERS
@DIMENSIONS
@pytest.mark.parametrize("activation", ["sigmoid", "minmax"])
def test_torchscript_agrees(encoder, spatial_dims, activation):
    network, image = make(encoder, spatial_dims, ofd_activation=activation).eval(), picture(spatial_dims)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(image), network(image))


@pytest.mark.parametrize("encoder", ["pyramid", pytest.param("transformer", marks=pytest.mark.slow)])
def test_torch_export_agrees(encoder):
    network, image = make(encoder).eval(), picture()
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(picture(batch=3)), network(picture(batch=3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TwoBranchNetwork(nn.Conv2d(1, 1, 1)), "`feature_channels` of four levels, Conv2d has none"),
        (lambda: make("pyramid", num_classes=0), "`num_classes` >= 1 foreground class, got 0"),
        (lambda: make("pyramid", pooled="logits"), "`pooled` to be one of features, maps, got 'logits'"),
        (lambda: make("pyramid", pooling="lse"), "`pooling` to be one of max, average, topk, got 'lse'"),
        (lambda: make("pyramid", ofd_activation="relu"), "`ofd_activation` to be one of sigmoid, minmax, none"),
        (lambda: make("pyramid").branches(picture(), affinity=True, radius=-1), "`radius` of at least 0 tokens"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
