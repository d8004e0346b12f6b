# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Loading of public weights into a :class:`~monai_wsss.networks.mix_transformer.MixTransformer`.

The network has the names of the official checkpoints (``mit_b1.pth``).  Files of the Hugging Face SegFormer have other
names, which depend on the version of transformers:

| official, i = n - 1     | transformers 4                             | transformers 5                              |
|-------------------------|--------------------------------------------|---------------------------------------------|
| `patch_embed{n}.proj`   | `patch_embeddings.{i}.proj`                | `stages.{i}.patch_embeddings.proj`          |
| `patch_embed{n}.norm`   | `patch_embeddings.{i}.layer_norm`          | `stages.{i}.patch_embeddings.layer_norm`    |
| `block{n}.{m}.`         | `block.{i}.{m}.`                           | `stages.{i}.blocks.{m}.`                    |
| its `norm1`, `norm2`    | `layer_norm_1`, `layer_norm_2`             | `layernorm_before`, `layernorm_after`       |
| `attn.q`                | `attention.self.query`                     | `attention.q_proj`                          |
| halves of `attn.kv`     | `attention.self.key`, `.value`             | `attention.k_proj`, `.v_proj`               |
| `attn.proj`             | `attention.output.dense`                   | `attention.o_proj`                          |
| `attn.sr`, `attn.norm`  | `attention.self.sr`, `.layer_norm`         | `attention.sequence_reduction.` likewise    |
| `mlp.fc1`, `mlp.fc2`    | `mlp.dense1`, `mlp.dense2`                 | `mlp.fc1`, `mlp.fc2`                        |
| `norm{n}`               | `layer_norm.{i}`                           | `stages.{i}.layer_norm`                     |

Any of these names may begin with ``segformer.``, ``encoder.`` or ``backbone.``; classifiers and decoders are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.pretrained import WeightReport, load_converted, spread_rgb_filters

__all__ = ["convert_mix_transformer_weights", "load_mix_transformer"]

_PREFIX = re.compile(r"^(segformer\.|backbone\.|encoder\.)+")
_STAGES = {"patch_embeddings": "patch_embed", "block": "block", "blocks": "block", "layer_norm": "norm"}
_OURS = re.compile(r"^(patch_embed|block|norm)[1-4]\.")
_PARTS = {
    "layer_norm_1": "norm1", "layernorm_before": "norm1",
    "layer_norm_2": "norm2", "layernorm_after": "norm2",
    "attention.self.query": "attn.q", "attention.q_proj": "attn.q",
    "attention.self.key": "attn.k", "attention.k_proj": "attn.k",
    "attention.self.value": "attn.v", "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    "attention.self.sr": "attn.sr", "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.self.layer_norm": "attn.norm", "attention.sequence_reduction.layer_norm": "attn.norm",
    "mlp.dense1": "mlp.fc1", "mlp.dense2": "mlp.fc2",
    # For patch embeddings; it stands last so that the longer names of the blocks are tried first.
    "layer_norm": "norm",
}  # fmt: skip
_PART = re.compile(r"\.(" + "|".join(map(re.escape, _PARTS)) + r")(?=\.)")


def load_mix_transformer(network: MixTransformer, path: str | os.PathLike[str], *, strict: bool = True) -> WeightReport:
    """Fill a mix transformer from a public checkpoint, official or of Hugging Face, for any number of channels.

    Mix transformers of all sizes share names, so weights of one size fit a part of another: that is an error.

    Args:
        network: e.g. ``MixTransformer.from_preset("mit_b1", in_channels=1)``, or the ``encoder`` of a
            :class:`~monai_wsss.networks.two_branch.TwoBranchNetwork`.
        path: see :func:`~monai_wsss.networks.pretrained.load_pretrained`; you download it yourself, since its license
            is yours to accept.
        strict: refuse a file whose encoder differs from the network in any entry; its classifiers and decoders are
            left out in any case.  False takes what fits and names the rest in a warning.

    Returns:
        The names of entries by what was done with them.

    Raises:
        TypeError: another network.
        DataError: the file's encoder is another one, or the file cannot be read, as in ``load_pretrained``; the network
            then stays as it is.
    """
    return load_converted(
        network,
        path,
        lambda stored: convert_mix_transformer_weights(stored, network.in_channels),
        kind=MixTransformer,
        settings="size, `spatial_dims` and `in_channels`",
        strict=strict,
    )


def convert_mix_transformer_weights(
    stored: Mapping[str, torch.Tensor], in_channels: int | None = None
) -> dict[str, torch.Tensor]:
    """Give a checkpoint's encoder the official names, and its first convolution ``in_channels`` channels.

    Args:
        stored: entries under any of the names at the head of this file.
        in_channels: C, see :func:`~monai_wsss.networks.pretrained.spread_rgb_filters`; None leaves the filters.

    Returns:
        Entries under the official names, without classifiers and decoders.

    Example:
        >>> import torch
        >>> stored = {
        ...     "segformer.encoder.patch_embeddings.0.proj.weight": torch.ones(8, 3, 7, 7),
        ...     "segformer.encoder.block.0.1.attention.self.key.bias": torch.zeros(8),
        ...     "segformer.encoder.block.0.1.attention.self.value.bias": torch.ones(8),
        ...     "classifier.bias": torch.zeros(1000),
        ... }
        >>> converted = convert_mix_transformer_weights(stored, in_channels=2)
        >>> {name: tuple(value.shape) for name, value in converted.items()}
        {'patch_embed1.proj.weight': (8, 2, 7, 7), 'block1.1.attn.kv.bias': (16,)}
        >>> converted["patch_embed1.proj.weight"].unique()
        tensor([1.5000])
    """
    renamed = {_official_name(name): value for name, value in stored.items()}
    result = {name: value for name, value in renamed.items() if _OURS.match(name)}
    for name in [name for name in result if ".attn.k." in name]:
        value = name.replace(".attn.k.", ".attn.v.")
        if value in result:
            result[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([result.pop(name), result.pop(value)])
    first = result.get("patch_embed1.proj.weight")
    if first is not None and in_channels is not None:
        result["patch_embed1.proj.weight"] = spread_rgb_filters(first, in_channels)
    return result


def _official_name(name: str) -> str:
    """Translate ``segformer.stages.0.blocks.1.layernorm_before.bias -> block1.1.norm1.bias``; keep official names."""
    name = _PREFIX.sub("", name)
    name = re.sub(r"^stages\.(\d)\.(patch_embeddings|blocks|layer_norm)\.", r"\2.\1.", name)
    stage = re.match(r"^(patch_embeddings|blocks?|layer_norm)\.(\d)\.", name)
    if stage is None:
        return name
    rest = _PART.sub(lambda part: f".{_PARTS[part[1]]}", name[stage.end() - 1 :])
    return f"{_STAGES[stage[1]]}{int(stage[2]) + 1}{rest}"
