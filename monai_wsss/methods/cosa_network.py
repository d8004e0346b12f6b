# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA's networks by words: two classifiers and a decoder on two maps of an encoder.

| word                       | is                                                                                     |
|----------------------------|----------------------------------------------------------------------------------------|
| ``encoder``                | ``vit_tiny`` .. ``vit_base``, ``mit_b0`` .. ``mit_b5``, ``lite0`` .. ``lite2``,        |
|                            | ``conv_pyramid``                                                                       |
| ``early_block``,           | of ``vit``: see :class:`~monai_wsss.networks.VisionTransformer`                        |
| ``patch_size``,            |                                                                                        |
| ``image_size``             |                                                                                        |
| ``input_range``            | of ``lite``: see :class:`~monai_wsss.networks.EfficientNetLite`                        |
| ``width``, ``stride``      | around all but ``vit``: see :class:`~monai_wsss.networks.TwoFusedMaps`                 |
| ``decoder`` and all others | see :meth:`~monai_wsss.networks.TwoBranchNetwork.with_auxiliary`                       |

The values of the presets stand in ``COSA_NETWORKS`` of ``cosa_settings.py``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss.methods.cosa_settings import COSA_NETWORKS
from monai_wsss.networks import (
    ConvPyramid,
    EfficientNetLite,
    MixTransformer,
    TwoBranchNetwork,
    TwoFusedMaps,
    VisionTransformer,
)
from monai_wsss.networks.encoder_facts import encoder_name
from monai_wsss.networks.mix_transformer import PRESETS as MIT
from monai_wsss.networks.vit import PRESETS as VIT

__all__ = ["ENCODER_WORDS", "cosa_network"]

ENCODER_WORDS = ("encoder", "early_block", "patch_size", "image_size", "input_range", "width", "stride")
"""Words that are not those of ``TwoBranchNetwork.with_auxiliary``."""

LITE = ("lite0", "lite1", "lite2")


def cosa_network(
    preset: str,
    encoder: nn.Module | str | None,
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    **changes: Any,
) -> TwoBranchNetwork:
    """Build the network of a preset with some words set otherwise, around an encoder, or one that they name.

    Raises:
        ValueError: an unknown preset, encoder or other choice; TypeError: an unknown word.
    """
    check_choice("preset", preset, tuple(COSA_NETWORKS))
    given = COSA_NETWORKS[preset]
    words = {name: one.value for name, one in given.items()} | changes
    if isinstance(encoder, str):
        words["encoder"], encoder = encoder, None
    told = dict(words)
    own = {word: words.pop(word) for word in ENCODER_WORDS if word in words}
    if encoder is None:
        encoder = _encoder(own, spatial_dims, in_channels)
    else:
        told["encoder"] = encoder_name(encoder)
    if not isinstance(encoder, (VisionTransformer, TwoFusedMaps)):
        encoder = TwoFusedMaps(encoder, **{word: own[word] for word in ("width", "stride") if word in own})
    network = TwoBranchNetwork.with_auxiliary(encoder, num_classes, **words)
    kept = {name: name in given and given[name].value == value for name, value in told.items()}
    sources = {name: given[name].source if kept[name] else "set otherwise" for name in told}
    network.settings = {"preset": preset, **told, "sources": sources}  # type: ignore[assignment]
    return network


def _encoder(words: dict[str, Any], spatial_dims: int, in_channels: int) -> nn.Module:
    name = words["encoder"]
    check_choice("encoder", name, (*VIT, *MIT, *LITE, "conv_pyramid"))
    if name in VIT:
        own = {word: words[word] for word in ("early_block", "patch_size", "image_size") if word in words}
        return VisionTransformer.from_preset(name, spatial_dims, in_channels, **own)
    if name in MIT:
        return MixTransformer.from_preset(name, spatial_dims, in_channels)
    if name in LITE:
        read = {"input_range": words["input_range"]} if "input_range" in words else {}
        return EfficientNetLite(name, in_channels, spatial_dims=spatial_dims, **read)
    return ConvPyramid(spatial_dims, in_channels, attention_heads=0)
