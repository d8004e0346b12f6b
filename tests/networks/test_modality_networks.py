# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One network per modality in one module: order of groups, channels by name, absent modalities, mistakes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.networks import CAMEncoder, CAMUNet, ModalityNetworks, networks_by_modality
from monai_wsss.refinement import ToMaskd, to_mask

NAMES = ("T1", "T1c", "T2", "FLAIR")


def make_members(count: int = 4, spatial_dims: int = 2, num_classes: int = 1, **options) -> list[CAMEncoder]:
    torch.manual_seed(3)
    members = [CAMEncoder(spatial_dims, 1, num_classes, width=2, norm="instance", **options) for _ in range(count)]
    for member in members:
        nn.init.normal_(member.head.weight)  # maps that differ visibly
    return members


def make_image(spatial_dims: int = 2, channels: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, *(16, 20, 12)[:spatial_dims], generator=generator)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_group_g_is_network_g_on_channel_g(spatial_dims, num_classes):
    members = make_members(4, spatial_dims, num_classes)
    network, image = ModalityNetworks(members, NAMES), make_image(spatial_dims)
    maps = network(image)
    assert maps.shape == (2, 4 * num_classes, *image.shape[2:])
    for g, member in enumerate(members):
        torch.testing.assert_close(maps[:, g * num_classes : (g + 1) * num_classes], member(image[:, g : g + 1]))
    assert (network.groups, network.num_classes, network.output_kind) == (4, num_classes, "activation")
    assert network.modalities == network.present_modalities == NAMES
    assert network.negative_reference.shape == network.negative_quantile.shape == (4 * num_classes,)
    assert network.pool(maps).shape == (2, 4 * num_classes)
    assert network.member_maps(image).shape == (1, *maps.shape)


def test_modalities_have_numbers_where_they_have_no_names():
    assert ModalityNetworks(make_members(2)).modalities == ("0", "1")


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)])
def test_channels_find_their_network_by_name(order):
    members, image = make_members(), make_image()
    shuffled = ModalityNetworks(members, NAMES, present=[NAMES[i] for i in order])
    torch.testing.assert_close(shuffled(image[:, order]), ModalityNetworks(members, NAMES)(image))
    assert shuffled.present_modalities == NAMES


@pytest.mark.parametrize("present", [("FLAIR",), ("FLAIR", "T1"), ("T1c", "T2", "FLAIR")])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2])
def test_present_modalities_give_the_maps_they_give_among_all(present, standardize, num_classes):
    members, image = make_members(num_classes=num_classes), make_image()
    whole = ModalityNetworks(members, NAMES, standardize=standardize)(image).unflatten(1, (4, num_classes))
    some = ModalityNetworks(members, NAMES, present=present, standardize=standardize)
    in_order = [g for g, name in enumerate(NAMES) if name in present]
    got = some(image[:, [NAMES.index(name) for name in present]])
    torch.testing.assert_close(got.unflatten(1, (len(present), num_classes)), whole[:, in_order])
    assert some.groups == len(present)
    assert some.present_modalities == tuple(NAMES[g] for g in in_order)


def test_weights_of_all_modalities_load_whatever_is_present():
    trained = ModalityNetworks(make_members(), NAMES)
    trained.set_healthy_level(torch.arange(4.0), 9.0)
    torch.manual_seed(9)
    others = [CAMEncoder(2, 1, 1, width=2, norm="instance") for _ in NAMES]
    loaded = ModalityNetworks(others, NAMES, present=("T2", "T1"))
    assert list(loaded.state_dict()) == list(trained.state_dict())
    loaded.load_state_dict(trained.state_dict())
    image = make_image()
    torch.testing.assert_close(loaded(image[:, [2, 0]]), trained(image)[:, [0, 2]])
    assert loaded.negative_reference.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_standardized_images_are_z_scored_by_modality():
    members, image = make_members(), make_image()
    network = ModalityNetworks(members, NAMES, standardize=True)
    pixels = image.double().flatten(2).numpy()
    scores = (pixels - pixels.mean(2, keepdims=True)) / pixels.std(2, ddof=1, keepdims=True)
    expected = ModalityNetworks(members, NAMES)(torch.from_numpy(scores).float().reshape(image.shape))
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
    gains = torch.tensor([3.0, 0.5, 40.0, 1.0]).reshape(1, -1, 1, 1)
    torch.testing.assert_close(network(gains * image - 7), network(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_constant_sequence_gives_finite_maps(value):
    image = make_image()
    image[:, 1] = value
    network = ModalityNetworks(make_members(), NAMES, standardize=True)
    maps = network(image)
    assert maps.isfinite().all()
    torch.testing.assert_close(maps[:, [0, 2, 3]], network(make_image())[:, [0, 2, 3]])


@pytest.mark.parametrize("present", [None, ("FLAIR", "T1")])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torchscript_agrees_and_keeps_the_buffers(present, spatial_dims):
    network = ModalityNetworks(make_members(4, spatial_dims), NAMES, present=present, standardize=True).eval()
    network.set_healthy_level(torch.arange(4.0), 9.0)
    image = make_image(spatial_dims, channels=network.groups)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    torch.testing.assert_close(scripted(image), network(image))
    assert (scripted.groups, scripted.pooling) == (network.groups, "max")
    assert scripted.negative_reference.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("present", [None, ("FLAIR", "T1")])
def test_torch_export_agrees(present):
    network = ModalityNetworks(make_members(), NAMES, present=present, standardize=True).eval()
    image = make_image(channels=network.groups)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))


def test_members_learn_apart():
    members = make_members()
    network = ModalityNetworks(members, NAMES)
    network(make_image())[:, 1].square().sum().backward()
    with_gradient = [any(p.grad is not None and bool(p.grad.any()) for p in m.parameters()) for m in members]
    assert with_gradient == [False, True, False, False]


def test_the_mask_rule_is_that_of_the_groups_present():
    members = make_members(num_classes=2, pooling="topk", topk_share=0.2)
    network = ModalityNetworks(members, NAMES, present=("FLAIR", "T1c"))
    network.set_healthy_level(torch.arange(8.0), torch.arange(8.0) + 10)
    network.register_buffer("presence_level", torch.arange(8.0) / 10)
    rule = network.mask_rule()
    assert rule.negative_reference.tolist() == [2.0, 3.0, 6.0, 7.0]
    assert rule.negative_quantile.tolist() == [12.0, 13.0, 16.0, 17.0]
    assert rule.filled.tolist() == [True] * 4
    assert rule.reliable.tolist() == [True, True]
    torch.testing.assert_close(rule.presence_level, torch.tensor([0.2, 0.3, 0.6, 0.7]))
    told = (rule.output_kind, rule.pooling, rule.topk_share, rule.lse_sharpness, rule.groups)
    assert told == ("activation", "topk", 0.2, 5.0, 2)


@pytest.mark.filterwarnings("ignore:Training found")
@pytest.mark.parametrize(
    ("reliable", "present", "expected"),
    [
        ((True, False, True, True), ("FLAIR", "T1c"), [False, True]),
        ((True, False, False, False), ("FLAIR", "T1c"), [True, True]),  # better those than nothing
        ((False, True, True, False), NAMES, [False, True, True, False]),
    ],
)
def test_unreliable_modalities_count_where_no_reliable_one_is_present(reliable, present, expected):
    network = ModalityNetworks(make_members(), NAMES, present=present)
    network.reliable.copy_(torch.tensor(reliable))
    assert network.mask_rule().reliable.tolist() == expected


@pytest.mark.parametrize("reliable_only", [True, False])
def test_masks_leave_out_unreliable_modalities_unless_asked(reliable_only):
    network = ModalityNetworks(make_members(2), ("T1", "T2"))
    network.reliable.copy_(torch.tensor([False, True]))
    scores = torch.tensor([[[5.0, -1.0, -1.0]], [[-1.0, 2.0, -1.0]]])
    item = ToMaskd("pred", network, rule="logit", reliable_only=reliable_only)({"pred": scores})
    assert item["pred"].flatten().tolist() == ([0, 1, 0] if reliable_only else [1, 1, 0])
    assert item["presence"].item() == (2.0 if reliable_only else 5.0)


def test_parts_are_networks_with_their_input():
    members, image = make_members(), make_image(channels=2)
    network = ModalityNetworks(members, NAMES, present=("FLAIR", "T1"), standardize=True)
    parts = network.parts(image)
    assert [member for member, _ in parts] == [members[0], members[3]]
    maps = torch.cat([member(channel) for member, channel in parts], dim=1)
    torch.testing.assert_close(maps, network(image))


@pytest.mark.parametrize("rule", ["logit", "negative_reference", "negative_quantile", "minmax"])
def test_masks_of_present_modalities_are_cut_at_their_own_healthy_level(rule):
    network = ModalityNetworks(make_members(), NAMES, present=("FLAIR", "T1"))
    network.set_healthy_level(torch.tensor([-1.0, 50.0, 50.0, -3.0]), torch.tensor([0.5, 90.0, 90.0, 1.5]))
    scores = 4 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(5))
    item = ToMaskd("pred", network, rule=rule, gate="none")({"pred": scores})
    expected = to_mask(
        scores[None],
        rule=rule,
        pooling="max",
        gate="none",
        groups=2,
        negative_reference=torch.tensor([-1.0, -3.0]),
        negative_quantile=torch.tensor([0.5, 1.5]),
    )
    assert torch.equal(item["pred"], expected[0])
    assert item["presence"].shape == (1,)
    assert item["presence"].item() == pytest.approx(scores.max().item())
    if rule == "logit":
        assert np.array_equal(item["pred"][0].numpy() > 0, (scores.numpy() > 0).any(0))


@pytest.mark.parametrize(("spatial_dims", "in_channels", "num_classes"), [(2, 1, 1), (3, 2, 3)])
def test_tiny(spatial_dims, in_channels, num_classes):
    network = ModalityNetworks.tiny(spatial_dims, in_channels, num_classes)
    image = make_image(spatial_dims, in_channels)
    assert network(image).shape == (2, in_channels * num_classes, *image.shape[2:])


def test_networks_of_several_kinds_stand_side_by_side():
    members = [CAMEncoder(2, 1, 1, width=2), CAMUNet(2, 1, 1, width=2, pooling="max")]
    assert ModalityNetworks(members)(make_image(channels=2)).shape == (2, 2, 16, 20)


def encoder(**options) -> CAMEncoder:
    return CAMEncoder(**({"spatial_dims": 2, "width": 2} | options))


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        ([], {}, "`members` to hold at least one network, got none"),
        ([encoder(), encoder(spatial_dims=3)], {}, r"agree in spatial_dims, got \[2, 3\]"),
        ([encoder(), encoder(num_classes=2)], {}, r"agree in num_classes, got \[1, 2\]"),
        ([encoder(), encoder(pooling="topk")], {}, r"agree in pooling, got \['max', 'topk'\]"),
        ([encoder(topk_share=0.2), encoder()], {}, r"agree in topk_share, got \[0.1, 0.2\]"),
        ([encoder()] * 2, {}, "with weights of their own, got the same network twice"),
        ([encoder(), encoder()], {"modalities": ("T1",)}, r"2 different `modalities`, one per member, got \('T1',\)"),
        ([encoder(), encoder()], {"modalities": ("T1", "T1")}, r"2 different `modalities`.*got \('T1', 'T1'\)"),
        ([encoder(), encoder()], {"modalities": ("T1", "T1", "T2")}, "2 different `modalities`"),
        ([encoder()], {"present": ()}, r"`present` to name some of the modalities \('0',\), each once, got \(\)"),
        ([encoder()], {"present": ("T2",)}, r"`present` to name some of .* got \('T2',\)"),
        ([encoder()], {"present": ("0", "0")}, r"each once, got \('0', '0'\)"),
    ],
)
def test_mistakes_are_named(members, arguments, message):
    with pytest.raises(ValueError, match=message):
        ModalityNetworks(members, **arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_other_modalities_is_refused(channels):
    network = ModalityNetworks(make_members(2), ("T1", "T2"))
    with pytest.raises(ValueError, match=f"image of 2 channels, one per modality, got {channels}: .* as `present`"):
        network(make_image(channels=channels))


@pytest.mark.parametrize("names", [("FLAIR", "T1"), ("T1", "T2"), ("T1", "FLAIR", "T2")])
def test_weights_of_other_modalities_or_in_another_order_are_refused(names):
    trained = networks_by_modality(("T1", "FLAIR"), width=2).state_dict()
    with pytest.raises(DataError, match=r"weights are of the modalities T1,FLAIR, the network was built for"):
        networks_by_modality(names, width=2).load_state_dict(trained)
    networks_by_modality(("T1", "FLAIR"), width=2, present=("FLAIR",)).load_state_dict(trained)


def test_names_that_do_not_fit_into_the_weights():
    with pytest.raises(ValueError, match=r"at most 128 bytes together, got 201"):
        networks_by_modality(("a" * 100, "b" * 100), width=2)


def test_members_of_several_groups_are_refused():
    with pytest.raises(ValueError, match=r"`members` of one modality each"):
        ModalityNetworks([ModalityNetworks.tiny(2, 2), ModalityNetworks.tiny(2, 2)])
