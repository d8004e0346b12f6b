# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Frozen encoders: nothing of them is trained, packed maps are the maps, and their weights are the encoder's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_wsss.engines import Progress
from monai_wsss.methods import BMP, CMER, ClassActivationMapping, FullSupervision, PseudoMaskSupervision
from monai_wsss.networks import (
    AttentionPyramid,
    ConvPyramid,
    EfficientNetLite,
    FrozenEncoder,
    FusedSegmenter,
    MixTransformer,
    ModalityNetworks,
    TwoBranchNetwork,
    fused_cam_network,
)

NOW = Progress(epoch=1, iteration=1, fraction=0.0)
ENCODERS = {
    "conv_pyramid": lambda: ConvPyramid.tiny(2, 3),
    "mit": lambda: MixTransformer.tiny(2, 3),
    "efficientnet_lite": lambda: EfficientNetLite.tiny(2, 3),
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=10, deadline=None)
@given(size=st.tuples(st.integers(30, 48), st.integers(30, 48)), batch=st.integers(1, 2))
def test_packed_maps_are_the_maps_for_any_size(name, size, batch):
    torch.manual_seed(0)
    encoder = FrozenEncoder(ENCODERS[name]())
    image = torch.rand(batch, 3, *size)
    packed = encoder.pack(image)
    assert packed.shape[2:] == size
    assert packed.shape[1] != 3
    maps = encoder(image)
    again = copy.deepcopy(encoder)(packed)
    assert len(maps) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))


def test_volumes_are_packed_too():
    encoder = FrozenEncoder(ConvPyramid.tiny(3, 1))
    volume = torch.rand(2, 1, 9, 8, 11)
    assert all(torch.equal(a, b) for a, b in zip(encoder(encoder.pack(volume)), encoder(volume), strict=True))


def test_maps_never_have_the_channels_of_an_image():
    # An encoder of 8 channels must not take maps that would fill 8 channels for an image.
    encoder = FrozenEncoder(ConvPyramid.tiny(2, 8))
    channels = FrozenEncoder(ConvPyramid.tiny(2, 3)).pack(torch.rand(1, 3, 32, 32)).shape[1]
    image = torch.rand(1, 8, 32, 32)
    packed = encoder.pack(image)
    assert (channels, packed.shape[1]) == (8, 9)
    assert all(torch.equal(a, b) for a, b in zip(encoder(packed), encoder(image), strict=True))


def test_half_precision_halves_the_memory_and_rounds():
    torch.manual_seed(0)
    encoder = FrozenEncoder(ConvPyramid.tiny(2, 3), dtype="float16")
    image = torch.rand(1, 3, 33, 31)
    packed = encoder.pack(image)
    assert packed.dtype == torch.float16
    for half, exact in zip(encoder(packed), encoder(image), strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, exact, rtol=1e-3, atol=1e-4)


def trained(network: torch.nn.Module, steps: int = 3, packed: bool = False) -> list[str]:
    """Train a network by its classification, and give the names of the values that changed."""
    method = ClassActivationMapping(network)
    torch.manual_seed(0)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-2, encoder_learning_rate=1e-3))
    image = torch.rand(4, 3, 32, 32)
    image = network.backbone.encoder.pack(image) if packed else image
    batch = {"image": image, "label": torch.tensor([[0.0], [1.0]] * 2)}
    for _ in range(steps):
        method.train()
        optimizer.zero_grad()
        method(batch, NOW)["classification"].backward()
        optimizer.step()
    return [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_training_changes_nothing_of_a_frozen_encoder(name, packed):
    torch.manual_seed(0)
    network = fused_cam_network(FrozenEncoder(ENCODERS[name]()), width=8)
    changed = trained(network, packed=packed)
    assert not any(".encoder." in each for each in changed)
    for part in ("backbone.laterals", "backbone.fuse", "head"):
        assert any(each.startswith(part) for each in changed)
    assert all(parameter.grad is None for parameter in network.backbone.encoder.parameters())


def test_batch_norm_alone_is_frozen_on_request():
    torch.manual_seed(0)
    network = fused_cam_network(FrozenEncoder(ENCODERS["efficientnet_lite"](), frozen="batch_norm"), width=8)
    of_encoder = {each.removeprefix("backbone.encoder.") for each in trained(network) if ".encoder." in each}
    names = set(network.backbone.encoder.encoder.state_dict())
    norms = {name for name in names if "_bn" in name}
    assert of_encoder == names - norms
    network = fused_cam_network(FrozenEncoder(ENCODERS["efficientnet_lite"](), frozen="none"), width=8)
    of_encoder = {each.removeprefix("backbone.encoder.") for each in trained(network) if ".encoder." in each}
    assert of_encoder == names


def test_modes_reach_all_but_frozen_parts():
    network = fused_cam_network(FrozenEncoder(ConvPyramid.tiny(2, 3)), width=8).train()
    assert network.backbone.dropout.training
    assert not any(module.training for module in network.backbone.encoder.encoder.modules())
    part = FrozenEncoder.tiny(2, 3).train()
    training = {type(module).__name__ for module in part.modules() if not module.training}
    assert training == {"BatchNorm2d"}


@pytest.mark.parametrize("frozen", ["all", "batch_norm", "none"])
def test_weights_are_those_of_the_encoder_s_own_network(frozen):
    torch.manual_seed(0)
    plain = fused_cam_network(EfficientNetLite.tiny(2, 3), width=8).eval()
    wrapped = fused_cam_network(FrozenEncoder(EfficientNetLite.tiny(2, 3), frozen=frozen), width=8).eval()
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    wrapped.load_state_dict(plain.state_dict(), strict=True)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(wrapped(image), plain(image))
    plain.load_state_dict(wrapped.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        wrapped.load_state_dict({key: value for key, value in plain.state_dict().items() if "_bn0" not in key})


def test_an_encoder_with_a_part_named_encoder_keeps_all_its_weights():
    class Inner(ConvPyramid):
        """Has a layer of the name that the wrapper around it gives one of its own."""

        def __init__(self) -> None:
            super().__init__(2, 3, width=4, attention_heads=0)
            self.query = torch.nn.Conv2d(16, 16, kernel_size=1)

    torch.manual_seed(0)
    encoder = AttentionPyramid(Inner(), heads=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    wrapped = FrozenEncoder(encoder)
    state = wrapped.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    other = FrozenEncoder(AttentionPyramid(Inner(), heads=2))
    other.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_maps_of_other_weights_are_refused():
    torch.manual_seed(0)
    encoder, image = FrozenEncoder(EfficientNetLite.tiny(2, 3)), torch.rand(1, 3, 32, 32)
    packed = encoder.pack(image)
    # The same weights once more, as a resumed run loads them, and a copy of all.
    encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    for same in (encoder, copy.deepcopy(encoder)):
        assert all(torch.equal(a, b) for a, b in zip(same(packed), same(image), strict=True))
    encoder.encoder.load_state_dict(EfficientNetLite.tiny(2, 3).state_dict())
    for use in (encoder, encoder.pack):
        with pytest.raises(ValueError, match="Expected the weights of which maps were packed, got others"):
            use(packed if use is encoder else image)
    assert len(encoder(image)) == 4


def test_maps_beyond_half_precision_are_refused():
    encoder = FrozenEncoder(ConvPyramid.tiny(2, 3), dtype="float16")
    with pytest.raises(ValueError, match="Expected maps in the range of float16, got larger ones"):
        encoder.pack(torch.full((1, 3, 32, 32), torch.inf))


def test_a_network_on_a_frozen_encoder_is_scripted_exported_and_copied():
    network = fused_cam_network(FrozenEncoder(EfficientNetLite.tiny(2, 3)), width=8).eval()
    image = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), network(image))
    other = copy.deepcopy(network).train()
    assert not other.backbone.encoder.encoder.training
    assert torch.equal(other.eval()(image), network(image))


def test_every_single_view_method_trains_on_packed_maps():
    label = torch.tensor([[0.0], [1.0]])
    mask = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    mask[1, :, 8:16, 8:16] = 1
    for kind, key in ((PseudoMaskSupervision, "pseudo_mask"), (FullSupervision, "mask")):
        torch.manual_seed(0)
        network = FusedSegmenter(FrozenEncoder(ConvPyramid.tiny(2, 3)), width=8, dropout=0.0)
        method, image = kind(network), torch.rand(2, 3, 40, 40)
        results = []
        for given_image in (image, network.backbone.encoder.pack(image)):
            method.zero_grad()
            loss = next(iter(method({"image": given_image, "label": label, key: mask}, NOW).values()))
            loss.backward()
            results.append((loss.item(), network.head.weight.grad.clone()))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", [BMP, CMER])
def test_methods_that_make_views_refuse_packed_maps(kind):
    encoder = FrozenEncoder(ConvPyramid.tiny(2, 1))
    if kind is BMP:
        method = BMP.from_preset("scratch", network=TwoBranchNetwork.build(encoder, 1, decoder_width=8))
    else:
        method = CMER.from_preset(network=ModalityNetworks([fused_cam_network(encoder, width=8)]))
    image = torch.rand(2, 1, 32, 32)
    batch = {"image": encoder.pack(image), "label": torch.tensor([[0.0], [1.0]]), "encoded": torch.tensor([True] * 2)}
    with pytest.raises(ValueError, match=f"{kind.__name__} makes views of the images in each step"):
        method(batch, NOW)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Expected `frozen` to be one of all, batch_norm, none, got 'norms'"):
        FrozenEncoder(ConvPyramid.tiny(), frozen="norms")
    with pytest.raises(ValueError, match="Expected `frozen` 'all' to pack maps, got 'batch_norm'"):
        FrozenEncoder(ConvPyramid.tiny(), frozen="batch_norm").pack(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="Expected an image of 1 channels, got 8"):
        FrozenEncoder(ConvPyramid.tiny())(torch.zeros(1, 8, 32, 32))  # as many as packed maps would have
    encoder = FrozenEncoder(ConvPyramid.tiny())
    encoder.pack(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="Expected an image of 1 channels, or its packed maps of 8 channels, got 2"):
        encoder(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match="Expected an image of 1 channels, got 2"):
        FrozenEncoder(ConvPyramid.tiny()).pack(torch.zeros(1, 2, 32, 32))
