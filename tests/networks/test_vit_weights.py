# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Public vision-transformer weights: timm's and both Hugging Face namings, filters for other channels, refusals."""

from __future__ import annotations

import logging

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.networks import TwoBranchNetwork, VisionTransformer, load_encoder_weights, load_vision_transformer
from monai_wsss.networks.published_weights import unfilled_sentence
from monai_wsss.networks.vit_weights import convert_vision_transformer_weights


def tiny(in_channels: int = 3) -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer.tiny(2, in_channels).eval()
    with torch.no_grad():
        # Every entry is told apart.
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


# The entries of a checkpoint outside its blocks, and those of block 0: timm's name, then those of transformers 4 and 5.
OUTSIDE = {
    "cls_token": ("embeddings.cls_token",) * 2,
    "pos_embed": ("embeddings.position_embeddings",) * 2,
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",) * 2,
    "norm": ("layernorm",) * 2,
}
BLOCK = {
    "norm1": ("layernorm_before",) * 2,
    "norm2": ("layernorm_after",) * 2,
    "attn.q": ("attention.attention.query", "attention.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
WHERE = ("encoder.layer", "layers")


def named_by_transformers(version: int) -> dict[str, torch.Tensor]:
    """Give the tiny network's entries under the names of transformers 4 or 5, without a prefix."""
    result = {}
    for name, value in tiny().state_dict().items():
        thirds = [
            (name.replace(".qkv.", f".{part}."), third) for part, third in zip("qkv", value.chunk(3), strict=False)
        ]
        for timm, part in thirds if ".qkv." in name else [(name, value)]:
            if timm.startswith("blocks."):
                _, block, rest = timm.split(".", 2)
                stem, kind = rest.rsplit(".", 1)
                result[f"{WHERE[version - 4]}.{block}.{BLOCK[stem][version - 4]}.{kind}"] = part
            else:
                stem, kind = timm.rsplit(".", 1) if timm not in OUTSIDE else (timm, "")
                result[f"{OUTSIDE[stem][version - 4]}.{kind}".rstrip(".")] = part
    return result


def stored(naming: str) -> dict[str, torch.Tensor]:
    """Give a made-up checkpoint, with its head."""
    head = {
        "head.weight": torch.zeros(1000, 24),
        "fc_norm.bias": torch.zeros(24),
        "pre_logits.fc.bias": torch.zeros(24),
    }
    if naming == "timm":
        return {**tiny().state_dict(), **head}
    if naming == "cosa":
        named = {f"encoder.{name}": value for name, value in tiny().state_dict().items()}
        return {
            **named,
            "decoder.conv6.weight": torch.zeros(8, 24, 3, 3),
            "aux_classifier.weight": torch.zeros(3, 24, 1, 1),
        }
    version = int(naming[-1])
    prefix = "" if naming.startswith("bare") else "vit."
    named = {prefix + name: value for name, value in named_by_transformers(version).items()}
    return {**named, "classifier.bias": torch.zeros(1000), f"{prefix}pooler.dense.bias": torch.zeros(24)}


NAMINGS = ["timm", "cosa", "transformers 4", "bare transformers 4", "transformers 5", "bare transformers 5"]


def test_names_are_those_of_the_files():
    """Check a few names of each kind, spelled out."""
    for naming, names in (
        ("timm", ("patch_embed.proj.weight", "blocks.3.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "norm.bias")),
        ("cosa", ("encoder.cls_token", "encoder.pos_embed")),
        (
            "transformers 4",
            (
                "vit.embeddings.patch_embeddings.projection.bias",
                "vit.encoder.layer.3.attention.attention.value.weight",
                "vit.encoder.layer.0.attention.output.dense.bias",
                "vit.encoder.layer.0.output.dense.bias",
                "vit.layernorm.weight",
            ),
        ),
        ("bare transformers 5", ("layers.1.attention.k_proj.bias", "layers.1.mlp.fc1.weight", "embeddings.cls_token")),
    ):
        assert set(names) <= stored(naming).keys(), naming


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_every_naming_gives_the_same_network(naming, wrapper, tmp_path, caplog):
    path, weights = tmp_path / "weights.pt", stored(naming)
    torch.save(weights if wrapper is None else {wrapper: weights}, path)
    torch.manual_seed(1)
    network, expected = VisionTransformer.tiny().eval(), tiny()
    with caplog.at_level(logging.WARNING):
        report = load_vision_transformer(network, path)
    assert not report.unfilled
    assert not report.unexpected
    assert not caplog.records
    image = torch.rand(1, 3, 40, 32)
    for got, part in zip(network(image), expected(image), strict=True):
        assert torch.equal(got, part)
    assert not network.pos_embed.requires_grad


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("naming", ["timm", "transformers 4"])
def test_filters_for_other_channels_see_gray_as_rgb_filters_do(in_channels, naming, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(stored(naming), path)
    network = tiny(in_channels)
    assert not load_vision_transformer(network, path).unfilled
    gray = torch.rand(1, 1, 40, 32)
    expected = tiny()(gray.expand(-1, 3, -1, -1))
    for got, part in zip(network(gray.expand(-1, in_channels, -1, -1)), expected, strict=True):
        torch.testing.assert_close(got, part, rtol=1e-4, atol=1e-5)


def test_encoders_of_a_network_are_filled_by_path_and_recorded(tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(stored("transformers 5"), path)
    network = TwoBranchNetwork.with_auxiliary(VisionTransformer.tiny(2, 1), 2, decoder_width=4)
    record = load_encoder_weights(network, path)
    assert (record["pretrained"], record["encoder"], record["file"]) == ("file", "VisionTransformer", "mine.pt")
    assert torch.equal(network.encoder.norm.bias, tiny().norm.bias)


def test_published_sizes_say_that_they_presume_weights():
    with torch.device("meta"):
        image, volume = VisionTransformer.from_preset("vit_base"), VisionTransformer.from_preset("vit_tiny", 3)
    assert unfilled_sentence(image).startswith("VisionTransformer presumes published weights, and nothing says")
    assert unfilled_sentence(volume) == unfilled_sentence(tiny()) == ""
    with pytest.raises(DataError, match=r"No package has ImageNet weights of VisionTransformer: give a file that you"):
        load_encoder_weights(image, "imagenet")


SIZES = {"hidden_size": 24, "num_layers": 4, "num_heads": 3, "patch_size": 8, "image_size": 32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"holds besides 12 entries, such as blocks\.3\."),
        ({"num_layers": 5}, r"lacks 12 entries, such as blocks\.4\.norm1\.weight: build the network with the file's"),
        (
            {"image_size": 64},
            r"has in another shape 1 entries, such as pos_embed \(1, 17, 24\) for \(1, 65, 24\).*`image_",
        ),
        ({"patch_size": 16, "image_size": 64}, r"patch_embed\.proj\.weight \(24, 3, 8, 8\) for \(24, 3, 16, 16\)"),
    ],
)
@pytest.mark.parametrize("naming", ["timm", "transformers 4"])
def test_files_of_other_encoders_are_refused_and_change_nothing(change, message, naming, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(stored(naming), path)
    network = VisionTransformer(**{**SIZES, **change})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=r"encoder in .*weights\.pt to be the network's, but it .*" + message):
        load_vision_transformer(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    report = load_vision_transformer(network, path, strict=False)
    assert report.loaded
    assert report.unfilled or report.unexpected


def test_weights_of_images_are_refused_for_volumes_which_load_their_own(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(stored("timm"), path)
    for strict in (True, False):
        with pytest.raises(DataError, match=r"weights\.pt are for images, the network is for volumes: build it with"):
            load_vision_transformer(VisionTransformer.tiny(3), path, strict=strict)
    torch.save(VisionTransformer.tiny(3).state_dict(), path)
    assert not load_vision_transformer(VisionTransformer.tiny(3), path).unfilled


def test_conversion_leaves_its_input_alone():
    weights = stored("transformers 4")
    before = {name: value.clone() for name, value in weights.items()}
    convert_vision_transformer_weights(weights, in_channels=1)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_distilled_weights_and_other_networks_are_named(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({**stored("timm"), "dist_token": torch.zeros(1, 1, 24)}, path)
    with pytest.raises(DataError, match="holds besides 1 entries, such as dist_token"):
        load_vision_transformer(tiny(), path)
    torch.save({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, path)
    with pytest.raises(DataError, match=r"Nothing in .* fits the network"):
        load_vision_transformer(tiny(), path)
    with pytest.raises(TypeError, match="to be a VisionTransformer, got TwoBranchNetwork: of a whole network give its"):
        load_vision_transformer(TwoBranchNetwork.tiny(), path)
