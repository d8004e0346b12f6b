# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The classifier of the gland paper (Feng et al., AAAI 2025): a signed class map and how tags follow from it.

    X = attention(backbone(image))        features, (B, F, *s); consistency correlation attention is optional
    F = head(X)                           signed class map, (B, K, *s): 1x1 convolution without bias, Xavier uniform
    z = pyramid(F)  or  pool(F)           image-level logits: multi-scale pyramid fusion pooling, or a plain pooling

The paper's backbone is a ResNet38, see :func:`resnet38_classifier`; :func:`fused_gland_classifier` has any encoder in
its place. Attention and pyramid go with any other backbone that gives dense features;
:func:`~monai_wsss.networks.dense_features` makes one of MONAI's classifiers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss.networks.activation import ActivationNetwork
from monai_wsss.networks.consistency_attention import ConsistencyCorrelationAttention
from monai_wsss.networks.feature_fusion import EncoderLevel, FusedFeatures
from monai_wsss.networks.pyramid_fusion import PyramidFusionPooling
from monai_wsss.networks.resnet38 import ResNet38

__all__ = ["GlandClassifier", "fused_gland_classifier", "resnet38_classifier"]

_SOURCES = ("class_map", "pyramid", "product")
_ATTENTION = ("none", "cc1", "cc2", "cca")

PART_WORDS = {
    "attention": (
        "criss_cross_reduction",
        "gamma_init",
        "official_quirk",
        "pam_normalizer",
        "pam_reduction",
        "pam_residual",
    ),
    "pyramid": ("pool_mode", "relu_class_map", "share_sign_weights"),
}
"""Words of the builders below that go to the attention (CCA) and to the pyramid (MPFP), beside those by name."""


class GlandClassifier(ActivationNetwork):
    """Signed class maps of K real classes, with the pooling that trains them.

    Args:
        backbone: gives dense features ``(B, F, *s)``.
        feature_channels: F.
        num_classes: K; 2 for gland and other tissue.
        spatial_dims: 2 or 3.
        attention: applied to the features, keeps their shape. Attention inside a backbone belongs to the backbone.
        pyramid: multi-scale pyramid fusion pooling (MPFP); None for a plain ``pooling``.
        cam_source: with a pyramid, the map that is deployed: ``class_map`` F, ``pyramid`` P'_16 or their ``product``.
        pooling: without a pyramid, how logits follow from the map; ``average`` is Eq. 3.
        topk_share: see :class:`~monai_wsss.networks.activation.ActivationNetwork`.
        lse_sharpness: see there.

    Raises:
        ValueError: an unknown source, or one other than the class map without a pyramid.

    Example:
        >>> import torch
        >>> network = GlandClassifier.tiny()
        >>> class_map = network.signed_map(torch.rand(2, 3, 32, 32))
        >>> class_map.shape, network.image_logits(class_map).shape
        (torch.Size([2, 2, 4, 4]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_channels: int,
        num_classes: int = 2,
        *,
        spatial_dims: int = 2,
        attention: nn.Module | None = None,
        pyramid: PyramidFusionPooling | None = None,
        cam_source: str = "class_map",
        pooling: str = "topk",
        topk_share: float = 0.25,
        lse_sharpness: float = 5.0,
    ) -> None:
        # For the presence of a class in a report: MPFP averages over levels, so its plain counterpart is the average.
        pooling = pooling if pyramid is None else "average"
        super().__init__(spatial_dims, num_classes, pooling=pooling, topk_share=topk_share, lse_sharpness=lse_sharpness)
        check_choice("cam_source", cam_source, _SOURCES)
        if pyramid is None and cam_source != "class_map":
            raise ValueError(f"Expected `cam_source` 'class_map' without a pyramid, got {cam_source!r}.")
        self.backbone = backbone
        self.attention = nn.Identity() if attention is None else attention
        self.head = Conv[Conv.CONV, spatial_dims](feature_channels, num_classes, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.head.weight)
        self.pyramid = pyramid
        self.cam_source = cam_source

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3, num_classes: int = 2) -> GlandClassifier:
        """Build all of the paper's parts, small enough to overfit one batch in seconds on a CPU."""
        if spatial_dims == 2:
            resnet = ResNet38.tiny(in_channels=in_channels)
            backbone, channels = nn.Sequential(resnet), resnet.stage_channels[7]
        else:
            conv, channels = Conv[Conv.CONV, spatial_dims], 8
            backbone = nn.Sequential(conv(in_channels, channels, 3, stride=2, padding=1), nn.ReLU())
        return cls(
            backbone,
            channels,
            num_classes,
            spatial_dims=spatial_dims,
            attention=ConsistencyCorrelationAttention(channels, spatial_dims=spatial_dims),
            pyramid=PyramidFusionPooling(num_classes, levels=(2, 4), spatial_dims=spatial_dims, logit="gap_pyramid"),
        )

    def signed_map(self, image: torch.Tensor) -> torch.Tensor:
        """Give F, the class map before any pooling: ``(B, C, *S) -> (B, K, *s)``."""
        return self.head(self.attention(self.backbone(image)))

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give the map that ``cam_source`` names: ``(B, C, *S) -> (B, K, *s)``."""
        class_map = self.signed_map(image)
        if self.pyramid is not None:
            return self.pyramid.maps(class_map, self.cam_source)
        return class_map

    @torch.jit.unused
    def image_logits(self, class_map: torch.Tensor) -> torch.Tensor:
        """Give logits of the tags: ``(B, K, *s) -> (B, K)``, by MPFP (Eq. 9) or the plain pooling (Eq. 3)."""
        return self.pool(class_map) if self.pyramid is None else self.pyramid(class_map)


def resnet38_classifier(
    num_classes: int = 2,
    *,
    small: bool = False,
    attention: str = "cca",
    attention_stages: Collection[int] = (4, 5, 6),
    pyramid: Sequence[int] | None = (2, 4, 8, 16),
    fusion: str = "sign",
    logit: str = "weighted",
    cam_source: str = "class_map",
    pooling: str = "average",
    topk_share: float = 0.25,
    **words: Any,
) -> GlandClassifier:
    """Build the paper's network: ResNet38, attention after chosen stages, multi-scale pyramid fusion pooling.

    The defaults are the paper's full system; the arguments are the switches of its ablation tables.

    Args:
        num_classes: K.
        small: fewer blocks of fewer channels, see :meth:`ResNet38.small`, to train from scratch on a CPU.
        attention: ``none``, ``cc1`` or ``cc2`` (one or two criss-cross modules) or ``cca``.
        attention_stages: the stages among 4, 5, 6, 7 that are followed by attention.
        pyramid: levels of MPFP; None for the baseline with a plain ``pooling`` (Eq. 3).
        fusion: ``sign`` (Eq. 5-8) or ``average`` of the levels.
        logit: ``weighted`` (Eq. 9) or ``gap_pyramid``.
        cam_source: see :class:`GlandClassifier`.
        pooling: the pooling of the baseline.
        topk_share: for the pooling ``topk``.
        words: those of the :class:`~monai_wsss.networks.ResNet38`: ``in_channels``; ``width``, channels of the first
            convolution, 64 as published (105 M parameters); ``frozen``, here ``paper`` by default: the first two stages
            and all normalization stay as they were loaded; ``none`` trains all.  Those of the attention, such as
            ``gamma_init``, see :class:`~monai_wsss.networks.ConsistencyCorrelationAttention`, and of the pyramid,
            ``pool_mode``, ``relu_class_map`` and ``share_sign_weights``, see
            :class:`~monai_wsss.networks.PyramidFusionPooling`; without that part they have no effect.

    Raises:
        ValueError: a stage other than 4 to 7, or what the parts refuse.

    Example:
        >>> import torch
        >>> network = resnet38_classifier(width=4, attention="none", pyramid=None, frozen="none")
        >>> network(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 2, 32, 32])
    """
    check_choice("attention", attention, _ATTENTION)
    of_attention, of_pyramid = (_taken(words, part) for part in ("attention", "pyramid"))
    resnet = (ResNet38.small if small else ResNet38)(**({"frozen": "paper"} | words))
    channels = resnet.stage_channels
    if not set(attention_stages) <= channels.keys():
        raise ValueError(f"Expected `attention_stages` among 4, 5, 6, 7, got {sorted(attention_stages)}.")
    if attention != "none":
        stages = sorted(attention_stages)
        resnet.attend({k: ConsistencyCorrelationAttention(channels[k], attention, **of_attention) for k in stages})
    fused = None
    if pyramid is not None:
        fused = PyramidFusionPooling(num_classes, levels=pyramid, fusion=fusion, logit=logit, **of_pyramid)
    return GlandClassifier(
        resnet,
        channels[7],
        num_classes,
        pyramid=fused,
        cam_source=cam_source,
        pooling=pooling,
        topk_share=topk_share,
    )


def fused_gland_classifier(
    encoder: nn.Module,
    num_classes: int = 2,
    *,
    level: int | None = None,
    attention: str = "cca",
    pyramid: Sequence[int] | None = (2, 4, 8, 16),
    fusion: str = "sign",
    logit: str = "weighted",
    cam_source: str = "class_map",
    pooling: str = "average",
    topk_share: float = 0.25,
    **words: Any,
) -> GlandClassifier:
    """Build the paper's network around another encoder: its fused maps, or one of them, in the place of ResNet38's.

    Args:
        encoder: gives a list of maps, see :class:`~monai_wsss.networks.FusedFeatures`.
        num_classes: K.
        level: index of the one map to take; None fuses all.
        attention: ``none``, ``cc1``, ``cc2`` or ``cca``, of the features.
        pyramid: see :func:`resnet38_classifier`.
        fusion: see there.
        logit: see there.
        cam_source: see :class:`GlandClassifier`.
        pooling: see :func:`resnet38_classifier`.
        topk_share: see there.
        words: those of :class:`~monai_wsss.networks.FusedFeatures`: ``width``, ``stride``, ``dropout``,
            ``feature_channels``; with ``level`` only the last of them.  Those of attention and pyramid, see
            :func:`resnet38_classifier`.

    Raises:
        ValueError: an unknown attention or level, or what the parts refuse.

    Example:
        >>> import torch
        >>> from monai_wsss.networks import ConvPyramid
        >>> network = fused_gland_classifier(ConvPyramid.tiny(2, 3), pyramid=(2, 4), width=8)
        >>> network.signed_map(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 2, 8, 8])
    """
    check_choice("attention", attention, _ATTENTION)
    of_attention, of_pyramid = (_taken(words, part) for part in ("attention", "pyramid"))
    backbone: Any = FusedFeatures(encoder, **words) if level is None else EncoderLevel(encoder, level, **words)
    (channels,), dims = backbone.feature_channels, backbone.spatial_dims
    attend = fused = None
    if attention != "none":
        attend = ConsistencyCorrelationAttention(channels, attention, spatial_dims=dims, **of_attention)
    if pyramid is not None:
        fused = PyramidFusionPooling(
            num_classes, levels=pyramid, fusion=fusion, logit=logit, spatial_dims=dims, **of_pyramid
        )
    return GlandClassifier(
        backbone,
        channels,
        num_classes,
        spatial_dims=dims,
        attention=attend,
        pyramid=fused,
        cam_source=cam_source,
        pooling=pooling,
        topk_share=topk_share,
    )


def _taken(words: dict[str, Any], part: str) -> dict[str, Any]:
    """Take the words of a part out of those of a builder."""
    return {name: words.pop(name) for name in PART_WORDS[part] if name in words}
