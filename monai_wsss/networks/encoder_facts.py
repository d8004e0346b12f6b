# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Facts that an encoder tells about itself: by attributes, by timm's ``feature_info``, or by its first layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = [
    "encoder_channels",
    "encoder_dims",
    "encoder_in_channels",
    "encoder_name",
    "encoder_strides",
    "new_layers_in",
]


def encoder_channels(encoder: nn.Module, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """Give the channels of an encoder's maps: as given, or as the encoder tells them.

    Raises:
        ValueError: neither is there.
    """
    told = getattr(encoder, "feature_channels", None) or _feature_info(encoder, "channels")
    channels = tuple(told if given is None else given)
    if not channels:
        raise ValueError(
            f"Expected an `encoder` with `feature_channels` or timm's `feature_info`, {type(encoder).__name__} has "
            "neither: give `feature_channels`, the channels of its maps in their order."
        )
    return channels


def encoder_name(encoder: nn.Module) -> str:
    """Name an encoder and what wraps it, for the record of a run.

    Example:
        >>> from monai_wsss.networks import AttentionPyramid, ConvPyramid, FrozenEncoder, TwoFusedMaps
        >>> encoder_name(AttentionPyramid(FrozenEncoder(ConvPyramid.tiny()), heads=2))
        'AttentionPyramid of FrozenEncoder (all) of ConvPyramid'
        >>> encoder_name(TwoFusedMaps.tiny())
        'TwoFusedMaps of FusedFeatures of ConvPyramid'
    """
    frozen, inner = getattr(encoder, "frozen", None), getattr(encoder, "encoder", getattr(encoder, "fused", None))
    name = type(encoder).__name__ + (f" ({frozen})" if isinstance(frozen, str) else "")
    return f"{name} of {encoder_name(inner)}" if isinstance(inner, nn.Module) else name


def encoder_strides(encoder: nn.Module) -> tuple[int, ...]:
    """Give the strides of an encoder's maps, none where it does not tell them."""
    return tuple(getattr(encoder, "feature_strides", None) or _feature_info(encoder, "reduction"))


def encoder_dims(encoder: nn.Module) -> int:
    """Give 2 or 3 spatial dimensions: as the encoder tells, or those of its first convolution."""
    told = getattr(encoder, "spatial_dims", None)
    return (3 if isinstance(_first_convolution(encoder), nn.Conv3d) else 2) if told is None else int(told)


def encoder_in_channels(encoder: nn.Module) -> int:
    """Give the channels of the image: as the encoder tells, or those of its first convolution.

    Raises:
        ValueError: neither is there.
    """
    told = getattr(encoder, "in_channels", None)
    first = _first_convolution(encoder)
    if told is not None:
        return int(told)
    if first is None:
        raise ValueError(f"Expected an `encoder` with `in_channels`, {type(encoder).__name__} has none.")
    return first.in_channels


def new_layers_in(network: nn.Module) -> tuple[str, ...]:
    """Give the beginnings of the names of all layers that wrap an encoder and have no published weights.

    An encoder that wraps another names them in ``new_parts``.

    Example:
        >>> from monai_wsss.networks import AttentionPyramid
        >>> new_layers_in(nn.Sequential(AttentionPyramid.tiny()))
        ('0.query.', '0.key.')
    """
    return tuple(
        f"{path}.{part}.".lstrip(".")
        for path, module in network.named_modules()
        for part in getattr(module, "new_parts", ())
    )


def _first_convolution(encoder: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    return next((module for module in encoder.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))), None)


def _feature_info(encoder: nn.Module, name: str) -> tuple[int, ...]:
    """Read what timm's networks tell of their maps; nothing of others."""
    tell: Any = getattr(getattr(encoder, "feature_info", None), name, None)
    return tuple(tell()) if callable(tell) else ()
