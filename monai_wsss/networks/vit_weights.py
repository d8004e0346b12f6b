# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Loading of public weights into a :class:`~monai_wsss.networks.vit.VisionTransformer`.

The network has the names of timm's checkpoints.  Files of the Hugging Face ``ViTModel`` have other names, which depend
on the version of transformers:

| timm                 | transformers 4                                | transformers 5                           |
|----------------------|-----------------------------------------------|------------------------------------------|
| `cls_token`          | `embeddings.cls_token`                        | the same                                 |
| `pos_embed`          | `embeddings.position_embeddings`              | the same                                 |
| `patch_embed.proj`   | `embeddings.patch_embeddings.projection`      | the same                                 |
| `blocks.{m}.`        | `encoder.layer.{m}.`                          | `layers.{m}.`                            |
| its `norm1`, `norm2` | `layernorm_before`, `layernorm_after`         | the same                                 |
| thirds of `attn.qkv` | `attention.attention.query`, `.key`, `.value` | `attention.q_proj`, `.k_proj`, `.v_proj` |
| `attn.proj`          | `attention.output.dense`                      | `attention.o_proj`                       |
| `mlp.fc1`, `mlp.fc2` | `intermediate.dense`, `output.dense`          | `mlp.fc1`, `mlp.fc2`                     |
| `norm`               | `layernorm`                                   | the same                                 |

Any of these names may begin with ``vit.``, ``deit.``, ``encoder.`` (as in CoSA's code) or ``backbone.``; classifiers,
decoders and poolers are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from monai_wsss._checks import DataError
from monai_wsss.networks.pretrained import WeightReport, load_converted, spread_rgb_filters
from monai_wsss.networks.vit import VisionTransformer

__all__ = ["convert_vision_transformer_weights", "load_vision_transformer"]

_OURS = re.compile(r"^(cls_token$|pos_embed$|patch_embed\.|blocks\.\d+\.|norm\.|dist_token$)")
_PREFIX = re.compile(r"^((vit|deit|backbone)\.|encoder\.(?!layer\.))+")
_BEGINNINGS = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^(encoder\.layer|layers)\.(?=\d)": "blocks.",
    r"^layernorm\.": "norm.",
}
_PARTS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2",
    "attention.attention.query": "attn.q", "attention.attention.key": "attn.k", "attention.attention.value": "attn.v",
    "attention.q_proj": "attn.q", "attention.k_proj": "attn.k", "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    # It stands behind the attention's, which ends alike.
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}  # fmt: skip
_PART = re.compile(r"(?<=\.)(" + "|".join(map(re.escape, _PARTS)) + r")(?=\.)")


def load_vision_transformer(
    network: VisionTransformer, path: str | os.PathLike[str], *, strict: bool = True
) -> WeightReport:
    """Fill a vision transformer from a public checkpoint, of timm or Hugging Face, for any number of channels.

    Args:
        network: e.g. ``VisionTransformer.from_preset("vit_base", in_channels=1)``, or the ``encoder`` of a
            :class:`~monai_wsss.networks.two_branch.TwoBranchNetwork`.
        path: see :func:`~monai_wsss.networks.pretrained.load_pretrained`; you download it yourself, since its license
            is yours to accept.
        strict: refuse a file whose encoder differs from the network in any entry; its classifiers and decoders are
            left out in any case.  False takes what fits and names the rest in a warning.

    Returns:
        The names of entries by what was done with them.

    Raises:
        TypeError: another network.
        DataError: weights of images for a network of volumes; the file's encoder is another one, or the file cannot be
            read, as in ``load_pretrained``; the network then stays as it is.
    """

    def convert(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converted = convert_vision_transformer_weights(stored, network.in_channels)
        first = converted.get("patch_embed.proj.weight")
        if first is not None and first.ndim == 4 and network.spatial_dims == 3:
            raise DataError(
                f"The weights in {path} are for images, the network is for volumes: build it with `spatial_dims` 2, "
                "whose VolumeInferer goes through volumes slice by slice, or train it without them."
            )
        return converted

    settings = "size, `patch_size`, `image_size`, `spatial_dims` and `in_channels`"
    return load_converted(network, path, convert, kind=VisionTransformer, settings=settings, strict=strict)


def convert_vision_transformer_weights(
    stored: Mapping[str, torch.Tensor], in_channels: int | None = None
) -> dict[str, torch.Tensor]:
    """Give a checkpoint's encoder the names of timm, and its first convolution ``in_channels`` channels.

    Args:
        stored: entries under any of the names at the head of this file.
        in_channels: C, see :func:`~monai_wsss.networks.pretrained.spread_rgb_filters`; None leaves the filters.

    Returns:
        Entries under the names of timm, without classifiers and decoders.

    Example:
        >>> import torch
        >>> stored = {
        ...     "vit.embeddings.patch_embeddings.projection.weight": torch.ones(8, 3, 4, 4),
        ...     **{f"vit.encoder.layer.1.attention.attention.{part}.bias": torch.zeros(8) for part in ("key", "value")},
        ...     "vit.encoder.layer.1.attention.attention.query.bias": torch.ones(8),
        ...     "classifier.bias": torch.zeros(1000),
        ... }
        >>> converted = convert_vision_transformer_weights(stored, in_channels=2)
        >>> {name: tuple(value.shape) for name, value in converted.items()}
        {'patch_embed.proj.weight': (8, 2, 4, 4), 'blocks.1.attn.qkv.bias': (24,)}
    """
    renamed = {_timm_name(name): value for name, value in stored.items()}
    result = {name: value for name, value in renamed.items() if _OURS.match(name)}
    for name in [name for name in result if ".attn.q." in name]:
        thirds = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(third in result for third in thirds):
            result[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([result.pop(third) for third in thirds])
    first = result.get("patch_embed.proj.weight")
    if first is not None and in_channels is not None:
        result["patch_embed.proj.weight"] = spread_rgb_filters(first, in_channels)
    return result


def _timm_name(name: str) -> str:
    """Translate ``vit.encoder.layer.0.layernorm_before.bias -> blocks.0.norm1.bias``; keep names of timm."""
    name = _PREFIX.sub("", name)
    for beginning, replacement in _BEGINNINGS.items():
        name = re.sub(beginning, replacement, name)
    return _PART.sub(lambda part: _PARTS[part[1]], name) if name.startswith("blocks.") else name
