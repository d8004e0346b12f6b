# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two branches: how the parts work together, OFD, encoders and decoders of yours, an auxiliary head, deployment."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_checks import with_and_without_neighbor
from torch import nn

from monai_wsss.methods import BMP
from monai_wsss.networks.all_mlp_decoder import AllMLPDecoder
from monai_wsss.networks.class_head import ClassHead
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.feature_fusion import FusedFeatures
from monai_wsss.networks.large_fov import LargeFOV
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.object_prior import ObjectPrior
from monai_wsss.networks.two_branch import TwoBranchNetwork


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
    return TwoBranchNetwork.build(built, num_classes, decoder_width=8, **options)


def picture(spatial_dims: int = 2, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 1, *[29, 34, 18][:spatial_dims])


def at_size(maps: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear" if maps.ndim == 4 else "trilinear")


ENCODERS = pytest.mark.parametrize("encoder", ["pyramid", "transformer"])
DIMENSIONS = pytest.mark.parametrize("spatial_dims", [2, 3])


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
        "reading_order", "reading_axes",  # our own record, which older and the authors' weights do without
    }  # fmt: skip


@pytest.fixture
def windowed(monkeypatch):
    """Let a radius mean the windowed form, as it does for maps of many tokens."""
    # Private: maps of fewer tokens than offsets are dense whatever the public numbers say.
    monkeypatch.setattr("monai_wsss.networks.attention_affinity._dense_is_cheaper", lambda *_: False)


@ENCODERS
@DIMENSIONS
@pytest.mark.usefixtures("windowed")
def test_affinity_agrees_with_the_order_of_the_paper(encoder, spatial_dims):
    network, image = make(encoder, spatial_dims).double().eval(), picture(spatial_dims).double()
    features, attention = network.encoder.forward_with_attention(image)
    joined = torch.cat(attention, dim=1)
    logits = (network.attn_proj.weight * (joined + joined.mT)).sum(1) + network.attn_proj.bias
    affinity = network.branches(image, affinity=True).affinity
    torch.testing.assert_close(affinity, logits.sigmoid())
    windows = network.branches(image, affinity=True, radius=1).affinity
    assert windows.shape == (2, 3**spatial_dims, *features[3].shape[2:])
    torch.testing.assert_close(windows[:, 3**spatial_dims // 2].flatten(1), affinity.diagonal(dim1=1, dim2=2))


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
    network.prior = None
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


@pytest.mark.parametrize(
    ("detach", "reached"),
    [
        ("none", {"encoder", "weights"}), (False, {"encoder", "weights"}), ("false", {"encoder", "weights"}),
        ("features", {"weights"}), ("weights", {"encoder"}), ("all", set()), (True, set()), ("True", set()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bmp", "cosa"])
@pytest.mark.parametrize("pooled", ["features", "maps"])
def test_losses_on_the_seeds_train_what_is_not_detached(detach, reached, kind, pooled):
    torch.manual_seed(0)
    build = TwoBranchNetwork.build if kind == "bmp" else TwoBranchNetwork.with_auxiliary
    network = build(ConvPyramid.tiny(), 2, decoder_width=4, pooled=pooled, detach_seeds=detach)
    image = picture()
    for upsample in (True, False):
        outputs = network.branches(image, upsample=upsample)
        torch.testing.assert_close(outputs.seeds, make_attached(network).branches(image, upsample=upsample).seeds)
        # Each classifier's own seeds: gradients of one must not hide those of the other.
        for head, seeds in ((network.classifier, outputs.seeds), (network.auxiliary, outputs.auxiliary_seeds)):
            if head is None:
                continue
            network.zero_grad()
            if seeds.requires_grad:
                seeds.square().sum().backward(retain_graph=True)
            found = {"weights"} if head.weight.grad is not None else set()
            assert head.bias is None or (head.bias.grad is not None) == bool(found)
            found |= {"encoder"} if any(p.grad is not None for p in network.encoder.parameters()) else set()
            assert found == reached
    # Logits and segmentation train as ever.
    network.zero_grad()
    outputs = network.branches(image)
    auxiliary = outputs.segmentation.sum() if outputs.auxiliary_logits is None else outputs.auxiliary_logits.sum()
    (outputs.logits.sum() + auxiliary).backward()
    assert network.classifier.weight.grad is not None
    assert network.auxiliary is None or network.auxiliary.weight.grad is not None
    assert network.encoder.levels[0][1].conv_0.conv.weight.grad is not None


def make_attached(network: TwoBranchNetwork) -> TwoBranchNetwork:
    """Give the network with nothing detached."""
    parts = {"prior": network.prior, "affinity": network.attn_proj, "auxiliary": network.auxiliary}
    return TwoBranchNetwork(network.encoder, network.decoder, network.classifier, **parts)


def test_what_reaches_the_classifier_through_the_prior_is_the_prior_s_choice():
    """Detached seeds leave the gradient of object-aware decoding as it is."""
    gradients = {}
    for detach in ("none", "features", "weights", "all"):
        network = make("pyramid", num_classes=2, ofd_detach=False, detach_seeds=detach)
        network.branches(picture()).segmentation.square().sum().backward()
        gradients[detach] = network.classifier.weight.grad
        assert gradients[detach].abs().sum() > 0
    for other in ("features", "weights", "all"):
        torch.testing.assert_close(gradients[other], gradients["none"])


@ENCODERS
@DIMENSIONS
@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.usefixtures("windowed")
def test_every_parameter_gets_a_gradient_from_the_four_outputs(encoder, spatial_dims, radius):
    network = make(encoder, spatial_dims, num_classes=2)
    outputs = network.branches(picture(spatial_dims), affinity=True, radius=radius)
    sum(part.square().sum() for part in outputs if part is not None).backward()
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
    network = TwoBranchNetwork.build(PlainEncoder(), 2, decoder_width=4).eval()
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
    for got, expected in zip(alone[:4], outputs[:4], strict=True):
        torch.testing.assert_close(got[index], expected[index])


@ENCODERS
@pytest.mark.parametrize("value", [0.0, 255.0])
@pytest.mark.parametrize("activation", ["sigmoid", "minmax", "none"])
def test_constant_images_give_finite_outputs_and_gradients(encoder, value, activation):
    network = make(encoder, ofd_activation=activation, ofd_detach=False)
    outputs = network.branches(torch.full((1, 1, 32, 32), value), affinity=True)
    sum(part.square().mean() for part in outputs[:4]).backward()
    assert all(part.isfinite().all() for part in outputs[:4])
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
@pytest.mark.usefixtures("windowed")
def test_autocast_gives_finite_outputs(encoder, mode, radius):
    network = make(encoder).train(mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network.branches(100 * picture(), affinity=True, radius=radius)
    assert all(part.isfinite().all() for part in outputs[:4])
    assert outputs.affinity.dtype == torch.float32
    if not mode:
        spread_affinities(network)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network.branches(picture(), affinity=True)
        full = network.branches(picture(), affinity=True)
        assert full.affinity.min() < 0.05
        assert full.affinity.max() > 0.95
        for got, expected in zip(half[:4], full[:4], strict=True):
            torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)


@ENCODERS
@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.usefixtures("windowed")
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


# --------------------------------------------------------------------------------------------------- parts of yours


class Levels(nn.Module):
    """An encoder of any number of levels, each of half the size of the one before."""

    def __init__(self, channels: Sequence[int], spatial_dims: int = 2) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        kind = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.convs = nn.ModuleList(kind(a, b, 3, 2, 1) for a, b in pairwise((1, *channels)))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        levels: list[torch.Tensor] = []
        for conv in self.convs:
            image = conv(image)
            levels.append(image)
        return levels


class FirstLevel(nn.Module):
    """A decoder that reads the finest level alone."""

    def __init__(self, channels: int, out_channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(channels, out_channels, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(features[0])


def of_levels(channels: Sequence[int], spatial_dims: int = 2, **parts) -> TwoBranchNetwork:
    torch.manual_seed(0)
    decoder = FirstLevel(channels[0], 3, spatial_dims)
    head = ClassHead(channels[-1], 2, spatial_dims=spatial_dims)
    return TwoBranchNetwork(Levels(channels, spatial_dims), decoder, head, **parts).eval()


@DIMENSIONS
@pytest.mark.parametrize("channels", [(3,), (3, 4), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("prior", [None, "sigmoid"])
def test_any_number_of_levels_and_any_decoder(spatial_dims, channels, prior):
    network = of_levels(channels, spatial_dims, prior=None if prior is None else ObjectPrior(prior))
    image = picture(spatial_dims)
    features = network.encoder(image)
    seeds = network.classifier(features[-1])
    finest = features[0]
    if prior is not None:
        strongest = at_size(seeds, image.shape[2:]).sigmoid().amax(1, keepdim=True)
        finest = finest * at_size(strongest, finest.shape[2:])
    torch.testing.assert_close(network(image), at_size(network.decoder.conv(finest), image.shape[2:]))
    outputs = network.branches(image)
    torch.testing.assert_close(outputs.segmentation, network(image))
    torch.testing.assert_close(outputs.seeds, at_size(seeds, image.shape[2:]))
    assert (outputs.auxiliary_logits, outputs.auxiliary_seeds, outputs.affinity) == (None, None, None)


@pytest.mark.parametrize("prior", [None, ObjectPrior()])
def test_parts_of_yours_are_deployed_as_well(prior):
    network, image = of_levels((3, 4), prior=prior), picture()
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    exported = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(picture(batch=3)), network(picture(batch=3)))


@DIMENSIONS
@pytest.mark.parametrize("upsample", [True, False])
def test_an_auxiliary_head_classifies_the_level_before_the_last(spatial_dims, upsample):
    plain = of_levels((3, 4, 5), spatial_dims)
    auxiliary = ClassHead(4, 2, spatial_dims=spatial_dims, pooled="maps")
    network = of_levels((3, 4, 5), spatial_dims, auxiliary=auxiliary)
    image = picture(spatial_dims)
    outputs, without = network.branches(image, upsample=upsample), plain.branches(image, upsample=upsample)
    for got, expected in zip(outputs[:3], without[:3], strict=True):
        torch.testing.assert_close(got, expected)
    maps = auxiliary(network.encoder(image)[1])
    torch.testing.assert_close(outputs.auxiliary_logits, maps.flatten(2).amax(2))
    torch.testing.assert_close(outputs.auxiliary_seeds, at_size(maps, image.shape[2:]) if upsample else maps)
    # It is for training: what is deployed does without it.
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(image), plain(image))
    sum(part.square().sum() for part in outputs if part is not None).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@DIMENSIONS
@pytest.mark.parametrize("decoder", ["large_fov", "all_mlp"])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_two_classifiers_and_either_decoder_stand_on_two_maps_or_more(decoder, levels, spatial_dims):
    torch.manual_seed(0)
    encoder = Levels((3, 4, 5, 6)[:levels], spatial_dims)
    encoder.feature_channels = (3, 4, 5, 6)[:levels]
    network = TwoBranchNetwork.with_auxiliary(encoder, 2, decoder=decoder, decoder_width=4).eval()
    image = picture(spatial_dims)
    outputs, features = network.branches(image, upsample=False), encoder(image)
    torch.testing.assert_close(outputs.seeds, network.classifier(features[-1]))
    torch.testing.assert_close(outputs.auxiliary_seeds, network.auxiliary(features[-2]))
    pooled = features[-2].flatten(2).amax(2)
    torch.testing.assert_close(outputs.auxiliary_logits, pooled @ network.auxiliary.weight.flatten(1).T)
    assert network.classifier.bias is None
    assert network.auxiliary.bias is None
    assert network.auxiliary.weight is not network.classifier.weight
    assert type(network.decoder) is {"large_fov": LargeFOV, "all_mlp": AllMLPDecoder}[decoder]
    assert outputs.segmentation.shape[2:] == features[-1 if decoder == "large_fov" else 0].shape[2:]
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    # Both classifiers, the decoder and the encoder learn.
    sum(part.square().sum() for part in network.branches(image) if part is not None).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_decoders_have_their_published_widths_unless_told():
    with torch.device("meta"):
        for decoder, width in (("large_fov", 512), ("all_mlp", 256)):
            made = TwoBranchNetwork.with_auxiliary(ConvPyramid.tiny(), decoder=decoder).decoder
            assert (made.conv8 if decoder == "large_fov" else made.linear_pred).in_channels == width


def test_shipped_weights_load_strictly():
    """Names and shapes are those of the weights that the bundle ships."""
    network = BMP.network_from_preset("scratch", in_channels=3)
    path = Path(__file__).parents[2] / "bundles" / "brain_mri_bmp_segmentation" / "models" / "model.pt"
    network.load_state_dict(torch.load(path, weights_only=True))
    by_parts = TwoBranchNetwork(
        network.encoder, network.decoder, network.classifier, prior=network.prior, affinity=network.attn_proj
    )
    assert list(by_parts.state_dict()) == list(network.state_dict())
    assert network.eval()(torch.rand(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TwoBranchNetwork.build(nn.Conv2d(1, 1, 1)), "`feature_channels` of four levels, Conv2d has none"),
        (lambda: make("pyramid", num_classes=0), "`num_classes` >= 1 foreground class, got 0"),
        (lambda: make("pyramid", pooled="logits"), "`pooled` to be one of features, maps, got 'logits'"),
        (lambda: make("pyramid", pooling="lse"), "`pooling` to be one of max, average, topk, got 'lse'"),
        (lambda: make("pyramid", ofd_activation="relu"), "`activation` to be one of sigmoid, minmax, none, got 'relu'"),
        (
            lambda: make("pyramid", detach_seeds="seeds"),
            "`detach_seeds` to be one of none, features, weights, all, true or false, got 'seeds'",
        ),
        (
            lambda: TwoBranchNetwork.with_auxiliary(FusedFeatures.tiny()),
            "`encoder` of two maps or more, FusedFeatures gives one: the auxiliary classifier reads the map before",
        ),
        (
            lambda: TwoBranchNetwork.with_auxiliary(ConvPyramid.tiny(), decoder="unet"),
            "`decoder` to be one of large_fov, all_mlp, got 'unet'",
        ),
        (lambda: make("pyramid", ofd="maybe"), "`ofd` to be true or false, got 'maybe'"),
        (lambda: make("pyramid").branches(picture(), affinity=True, radius=-1), "`radius` of at least 0 tokens"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
