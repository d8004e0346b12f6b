# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Public mix-transformer weights: official and both Hugging Face namings, filters for other channels, reports."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from monai_wsss._checks import DataError
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.mix_transformer_weights import convert_mix_transformer_weights, load_mix_transformer
from monai_wsss.networks.two_branch import TwoBranchNetwork


def tiny(in_channels: int = 3) -> MixTransformer:
    torch.manual_seed(0)
    return MixTransformer.tiny(2, in_channels).eval()


def replaced(name: str, replacements: dict[str, str]) -> str:
    for pattern, replacement in replacements.items():
        name = re.sub(pattern, replacement, name)
    return name


def with_separate_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, value in state.items():
        if ".attn.kv." in name:
            result[name.replace(".kv.", ".k.")], result[name.replace(".kv.", ".v.")] = value.chunk(2)
        else:
            result[name] = value
    return result


def counted_from_zero(name: str) -> str:
    return re.sub(r"^(patch_embed|block|norm)(\d)", lambda m: f"{m[1]}.{int(m[2]) - 1}", name)


# Names as the two versions write them; they were compared once with transformers 5.23, which reads and writes both.
TRANSFORMERS_4 = {
    r"^norm\.": "layer_norm.", r"^patch_embed\.(\d)\.norm": r"patch_embeddings.\1.layer_norm",
    r"^patch_embed\.": "patch_embeddings.", r"\.norm1": ".layer_norm_1", r"\.norm2": ".layer_norm_2",
    r"attn\.q\.": "attention.self.query.", r"attn\.k\.": "attention.self.key.",
    r"attn\.v\.": "attention.self.value.", r"attn\.proj": "attention.output.dense",
    r"attn\.sr": "attention.self.sr", r"attn\.norm": "attention.self.layer_norm", r"mlp\.fc": "mlp.dense",
}  # fmt: skip
TRANSFORMERS_5 = {
    r"^norm\.(\d)": r"stages.\1.layer_norm", r"^patch_embed\.(\d)\.norm": r"stages.\1.patch_embeddings.layer_norm",
    r"^patch_embed\.(\d)": r"stages.\1.patch_embeddings", r"^block\.(\d)": r"stages.\1.blocks",
    r"\.norm1": ".layernorm_before", r"\.norm2": ".layernorm_after", r"attn\.([qkv])\.": r"attention.\1_proj.",
    r"attn\.proj": "attention.o_proj", r"attn\.sr": "attention.sequence_reduction.sequence_reduction",
    r"attn\.norm": "attention.sequence_reduction.layer_norm",
}  # fmt: skip


def stored(naming: str) -> dict[str, torch.Tensor]:
    """Give the tiny network's weights under the names of a checkpoint, with its head."""
    state = tiny().state_dict()
    if naming == "official":
        return {**state, "head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    if naming == "bmp":
        return {**{f"encoder.{n}": v for n, v in state.items()}, "decoder.linear_pred.bias": torch.zeros(4)}
    if naming == "mmseg":
        return {**{f"backbone.{n}": v for n, v in state.items()}, "decode_head.conv_seg.bias": torch.zeros(4)}
    state = with_separate_keys(state)
    if naming == "transformers 4":
        named = {f"segformer.encoder.{replaced(counted_from_zero(n), TRANSFORMERS_4)}": v for n, v in state.items()}
        return {**named, "classifier.weight": torch.zeros(1000, 32)}
    named = {f"segformer.{replaced(counted_from_zero(n), TRANSFORMERS_5)}": v for n, v in state.items()}
    return {**named, "decode_head.linear_c.0.proj.bias": torch.zeros(8), "decode_head.batch_norm.bias": torch.ones(8)}


NAMINGS = ["official", "bmp", "mmseg", "transformers 4", "transformers 5"]


def test_names_are_those_of_the_files():
    """Check a few names of each kind, spelled out."""
    for naming, prefix, names in (
        ("transformers 4", "segformer.encoder.", ("patch_embeddings.0.layer_norm.bias", "layer_norm.3.weight")),
        ("transformers 4", "segformer.encoder.block.0.0.", ("attention.self.layer_norm.bias", "mlp.dense2.bias")),
        ("transformers 4", "segformer.encoder.block.3.1.", ("attention.self.value.weight", "layer_norm_2.weight")),
        ("transformers 5", "segformer.stages.0.", ("patch_embeddings.proj.weight", "layer_norm.weight")),
        ("transformers 5", "segformer.stages.3.blocks.1.", ("attention.k_proj.bias", "layernorm_after.weight")),
        ("transformers 5", "segformer.stages.1.blocks.0.", ("attention.sequence_reduction.layer_norm.bias",)),
        ("official", "", ("patch_embed1.proj.weight", "block1.0.attn.sr.weight", "block4.1.mlp.dwconv.dwconv.bias")),
    ):
        assert {prefix + name for name in names} <= stored(naming).keys(), naming


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_network(naming, tmp_path, caplog):
    path = tmp_path / "weights.pt"
    torch.save(stored(naming), path)
    torch.manual_seed(1)
    network, expected = MixTransformer.tiny().eval(), tiny()
    with caplog.at_level(logging.WARNING):
        report = load_mix_transformer(network, path)
    assert not report.unfilled
    assert not report.unexpected
    assert not caplog.records
    image = torch.rand(1, 3, 40, 32)
    for got, part in zip(network(image), expected(image), strict=True):
        assert torch.equal(got, part)


@pytest.mark.parametrize("in_channels", [1, 2, 3, 5])
@pytest.mark.parametrize("naming", NAMINGS)
def test_filters_for_other_channels_see_gray_as_rgb_filters_do(in_channels, naming, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(stored(naming), path)
    network = tiny(in_channels)
    report = load_mix_transformer(network, path)
    assert not report.unfilled
    gray = torch.rand(1, 1, 40, 32)
    expected = tiny()(gray.expand(-1, 3, -1, -1))
    for got, part in zip(network(gray.expand(-1, in_channels, -1, -1)), expected, strict=True):
        torch.testing.assert_close(got, part, rtol=1e-4, atol=1e-5)
    if in_channels == 3:
        assert torch.equal(network.patch_embed1.proj.weight, tiny().patch_embed1.proj.weight)


def test_what_does_not_fit_is_reported(tmp_path, caplog):
    path = tmp_path / "weights.pt"
    weights = stored("transformers 4")
    del weights["segformer.encoder.block.0.0.attention.self.value.bias"]
    del weights["segformer.encoder.layer_norm.2.bias"]
    torch.save(weights, path)
    with caplog.at_level(logging.WARNING):
        report = load_mix_transformer(tiny(), path, strict=False)
    assert report.missing == ("block1.0.attn.kv.bias", "norm3.bias")
    assert report.unexpected == ("block1.0.attn.k.bias",)
    assert "left 2 entries of the network unfilled: block1.0.attn.kv.bias, norm3.bias" in caplog.text


SIZES = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "sr_ratios": (4, 2, 1, 1)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: MixTransformer(2, 3, depths=(1, 1, 1, 1), attention_blocks=(-1,), **SIZES),
            r"holds besides 16 entries, such as block4\.1\.norm1\.weight: build the network with the file's size",
        ),
        (lambda: MixTransformer(2, 3, depths=(1, 1, 2, 2), **SIZES), r"lacks 16 entries, such as block3\.1\."),
        (
            lambda: MixTransformer(3, 3, depths=(1, 1, 1, 2), **SIZES),
            r"has in another shape \d+ entries, such as patch_embed1\.proj\.weight "
            r"\(8, 3, 7, 7\) for \(8, 3, 7, 7, 7\): build the network .*`spatial_dims`",
        ),
    ],
)
@pytest.mark.parametrize("naming", NAMINGS)
def test_files_of_other_encoders_are_refused_and_change_nothing(build, message, naming, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(stored(naming), path)
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=r"encoder in .*weights\.pt to be the network's, but it " + message):
        load_mix_transformer(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    report = load_mix_transformer(network, path, strict=False)
    assert report.loaded
    assert report.unfilled or report.unexpected


def test_filters_for_four_channels_are_refused_for_one(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(tiny(4).state_dict(), path)
    with pytest.raises(DataError, match=r"patch_embed1\.proj\.weight \(8, 4, 7, 7\) for \(8, 1, 7, 7\).*`in_channels`"):
        load_mix_transformer(tiny(1), path)
    assert not load_mix_transformer(tiny(4), path).unfilled


def test_conversion_leaves_its_input_alone():
    weights = stored("transformers 5")
    before = {name: value.clone() for name, value in weights.items()}
    convert_mix_transformer_weights(weights, in_channels=1)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_four_channels_of_a_file_stay_four():
    weights = {"patch_embed1.proj.weight": torch.ones(8, 4, 7, 7)}
    assert convert_mix_transformer_weights(weights, in_channels=1)["patch_embed1.proj.weight"].shape[1] == 4


def test_other_networks_and_files_are_named(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, path)
    with pytest.raises(DataError, match=r"Nothing in .* fits the network"):
        load_mix_transformer(tiny(), path)
    with pytest.raises(TypeError, match="to be a MixTransformer, got TwoBranchNetwork: of a whole network give its"):
        load_mix_transformer(TwoBranchNetwork.tiny(), path)
