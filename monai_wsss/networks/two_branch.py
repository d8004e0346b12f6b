# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two branches on one encoder: a classifier whose class maps are the seeds, and a segmentation decoder.

The network of BMP (Zhu et al., TNNLS, arXiv:2308.04949) and, without OFD, of AFA (Ru et al., CVPR 2022).

| symbol     | name           | what                                                                 | shape          |
|------------|----------------|----------------------------------------------------------------------|----------------|
| X^1 .. X^4 | features       | of the encoder                                                       | (B, F_i, *s_i) |
| c          | `logits`       | pooled X^4 times the classifier's weight                             | (B, K)         |
| C          | `seeds`        | X^4 times the same weight: raw class maps                            | (B, K, *S)     |
| C^m        | `object_prior` | max_k sigmoid(C_k); OFD decodes X^i * C^m, object-aware features     | (B, 1, *S)     |
| S^s        | `segmentation` | logits of the All-MLP decoder (SegFormer), channel 0 background      | (B, K+1, *S)   |
| A          | `affinity`     | sigmoid(w . (a + a^T) + b), a the raw attention logits of all heads  | (B, N, N)      |

Two sums are written in another order than in the papers, with the same values.  The decoder's linear layers, their
interpolation and the fusing 1x1 convolution follow one another without an activation, so one matrix a level is applied
before the interpolation, and the 4 x `decoder_width` channels at the finest level are never built.  The affinity's
weighted sum over heads of q . k^T is one product of weighted queries with keys, and no map of a head is built.
"""

# Annotations stay real types: TorchScript reads them.
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Norm
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._windows import inside_window
from monai_wsss.cams import pool_maps
from monai_wsss.networks.attention_logits import attention_logits
from monai_wsss.networks.conv_pyramid import ConvPyramid

__all__ = ["AllMLPDecoder", "BranchOutputs", "TwoBranchNetwork"]


class BranchOutputs(NamedTuple):
    """What :meth:`TwoBranchNetwork.branches` gives.

    Attributes:
        logits: (B, K) of the image's classes.
        seeds: (B, K, *S) raw class maps; of the last level's size (B, K, *s4) if not upsampled.
        segmentation: (B, K + 1, *S) logits; of the first level's size (B, K + 1, *s1) if not upsampled.
        affinity: (B, N, N) in (0, 1) between the tokens of the last level, or (B, W, *s4), or None.
    """

    logits: torch.Tensor
    seeds: torch.Tensor
    segmentation: torch.Tensor
    affinity: torch.Tensor | None


class _LevelProjection(nn.Module):
    """A level's linear layer and its share of the fusing convolution, as one matrix."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)

    def forward(self, features: torch.Tensor, fuse: torch.Tensor) -> torch.Tensor:
        """``(B, F, *s) -> (B, width, *s)``; ``fuse`` (width, width)."""
        # Channels last, as the levels are and as the CPU's upsampling wants them: it would copy them so.
        tokens = F.linear(features.flatten(2).mT, fuse @ self.proj.weight, fuse @ self.proj.bias)
        return tokens.mT.unflatten(2, list(features.shape[2:]))


class _Fusion(nn.Module):
    """The weights of the fusing convolution, which the levels apply, and the batch norm behind it."""

    def __init__(self, spatial_dims: int, width: int) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](4 * width, width, kernel_size=1, bias=False)
        self.bn = Norm[Norm.BATCH, spatial_dims](width)


class AllMLPDecoder(nn.Module):
    """SegFormer's decoder: ``[(B, F_i, *s_i)] of four levels -> (B, out_channels, *s_1)``.

    Each level through a linear layer to ``width`` channels, interpolated to the first level's size, all fused by a 1x1
    convolution with batch norm and ReLU, dropout of whole channels, 1x1 to the logits (arXiv:2105.15203, Eq. 4).

    Args:
        feature_channels: F_1 to F_4.
        out_channels: K + 1.
        spatial_dims: 2 or 3.
        width: of each level and of the fused features.
        dropout: probability that a whole channel of the fused features is dropped.

    Example:
        >>> import torch
        >>> levels = [torch.zeros(2, channels, 8 // channels, 6) for channels in (1, 2, 4, 8)]
        >>> AllMLPDecoder((1, 2, 4, 8), 3, width=4)(levels).shape
        torch.Size([2, 3, 8, 6])
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        out_channels: int,
        *,
        spatial_dims: int = 2,
        width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.linear_c4 = _LevelProjection(feature_channels[3], width)
        self.linear_c3 = _LevelProjection(feature_channels[2], width)
        self.linear_c2 = _LevelProjection(feature_channels[1], width)
        self.linear_c1 = _LevelProjection(feature_channels[0], width)
        self.linear_fuse = _Fusion(spatial_dims, width)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.linear_pred = conv(width, out_channels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """``[(B, F_i, *s_i)] -> (B, out_channels, *s_1)``."""
        # The channels to fuse come from level 4 first and from level 1 last.
        fuse4, fuse3, fuse2, fuse1 = self.linear_fuse.conv.weight.flatten(1).chunk(4, dim=1)
        fused = self.linear_c1(features[0], fuse1)
        fused = fused + self._like(self.linear_c2(features[1], fuse2), fused)
        fused = fused + self._like(self.linear_c3(features[2], fuse3), fused)
        fused = fused + self._like(self.linear_c4(features[3], fuse4), fused)
        return self.linear_pred(self.dropout(F.relu(self.linear_fuse.bn(fused))))

    def _like(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return F.interpolate(coarse, size=fine.shape[2:], mode=self.mode, align_corners=False)


class TwoBranchNetwork(nn.Module):
    """A deployable segmenter that classifies as well: ``(B, C, *S) -> (B, K + 1, *S)`` logits.

    Args:
        encoder: gives a list of four maps from fine to coarse and says their ``feature_channels`` and
            ``spatial_dims``: :class:`~monai_wsss.networks.mix_transformer.MixTransformer`, :class:`ConvPyramid`, or a
            network of yours.  For an affinity it needs ``attention_channels``, the number of heads, and
            ``forward_with_queries(image)``, which gives the maps and a list of (queries, keys), each
            (B, heads, N, F) over the tokens of the last level.
        num_classes: K, the foreground classes.
        decoder_width: of the decoder.
        dropout: of the decoder.
        pooling: for the image-level logits: ``max``, ``average`` or ``topk``.
        pooled: what is pooled.  ``features``: the last level's, in front of the classifier (the papers); ``maps``: the
            class maps behind it, which then has a bias.  With ``max`` the first may call an image by channels that
            peak at different places, so that no place of the map does; from scratch on small data it will.
        topk_share: share of the pixels that ``topk`` averages, in (0, 1].
        ofd: object-aware feature decoding: the decoder sees features times the seeds' strongest class (BMP); False is
            AFA's decoder.
        ofd_activation: of the seeds there: ``sigmoid`` (the released code), ``minmax`` over the image, a class at a
            time, or ``none`` (the paper's text).
        ofd_detach: whether the decoder's gradient stops there (the released code); the paper does not say.
        detach_seeds: whether losses on the seeds reach neither encoder nor classifier, as in AFA; BMP trains by them.

    Attributes:
        output_kind: ``"segmentation"``.

    Raises:
        ValueError: an encoder without four levels, K below 1, or an unknown pooling or activation.

    Example:
        >>> import torch
        >>> network = TwoBranchNetwork.tiny().eval()
        >>> network(torch.zeros(2, 1, 30, 33)).shape
        torch.Size([2, 2, 30, 33])
        >>> [None if part is None else tuple(part.shape) for part in network.branches(torch.zeros(2, 1, 30, 33))]
        [(2, 1), (2, 1, 30, 33), (2, 2, 30, 33), None]
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "segmentation"

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int = 1,
        *,
        decoder_width: int = 256,
        dropout: float = 0.1,
        pooling: str = "max",
        pooled: str = "features",
        topk_share: float = 0.1,
        ofd: bool = True,
        ofd_activation: str = "sigmoid",
        ofd_detach: bool = True,
        detach_seeds: bool = False,
    ) -> None:
        super().__init__()
        channels = tuple(getattr(encoder, "feature_channels", ()))
        if len(channels) != 4:
            raise ValueError(
                f"Expected an `encoder` with `feature_channels` of four levels, "
                f"{type(encoder).__name__} has {channels or 'none'}."
            )
        if num_classes < 1:
            raise ValueError(f"Expected `num_classes` >= 1 foreground class, got {num_classes}.")
        check_choice("pooling", pooling, ("max", "average", "topk"))
        check_choice("pooled", pooled, ("features", "maps"))
        check_choice("ofd_activation", ofd_activation, ("sigmoid", "minmax", "none"))
        spatial_dims = int(getattr(encoder, "spatial_dims", 2))
        self.output_kind = "segmentation"
        self.spatial_dims = spatial_dims
        self.num_classes = num_classes
        self.pooling = pooling
        self.pooled = pooled
        self.topk_share = topk_share
        self.ofd = ofd
        self.ofd_activation = ofd_activation
        self.ofd_detach = ofd_detach
        self.detach_seeds = detach_seeds
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.encoder = encoder
        self.decoder = AllMLPDecoder(
            channels, num_classes + 1, spatial_dims=spatial_dims, width=decoder_width, dropout=dropout
        )
        self.classifier = Conv[Conv.CONV, spatial_dims](channels[3], num_classes, kernel_size=1, bias=pooled == "maps")
        heads = getattr(encoder, "attention_channels", 0)
        # Over (tokens, tokens) in 2D and 3D alike, so always of two dimensions.
        self.attn_proj = Conv[Conv.CONV, 2](heads, 1, kernel_size=1) if heads else None
        if self.attn_proj is not None:
            nn.init.kaiming_normal_(self.attn_proj.weight, a=math.sqrt(5), mode="fan_out")

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "TwoBranchNetwork":
        """On the tiny :class:`ConvPyramid` with a decoder of 8 channels: trains in seconds on a CPU."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels), num_classes, decoder_width=8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Segmentation logits at the input's size: ``(B, C, *S) -> (B, K + 1, *S)``."""
        features = self.encoder(image)
        if self.ofd:
            features = self.object_aware(features, self._at_size(self.classifier(features[3]), image))
        return self._at_size(self.decoder(features), image)

    def branches(
        self,
        image: torch.Tensor,
        affinity: bool = False,
        *,
        radius: int | None = None,
        dense_up_to: int = 0,
        upsample: bool = True,
    ) -> BranchOutputs:
        """Both branches and, on request, the affinity, for training and pseudo-labels.

        Args:
            image: (B, C, *S).
            affinity: whether to give it.
            radius: of the affinity's windowed form, in tokens of the last level; None for all pairs.
            dense_up_to: number of tokens up to which all pairs are given in spite of a radius.
            upsample: whether seeds and segmentation are brought to the image's size, as in BMP; AFA works with the
                sizes of the levels.

        Returns:
            :class:`BranchOutputs`.

        Raises:
            ValueError: an affinity asked of an encoder without attention.
        """
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        if affinity:
            features, pairs = self._features_and_queries(image)
        else:
            features = self.encoder(image)
        size = features[3].shape[2:]
        logits = self.classify(features)
        coarse = self.classifier(features[3])
        seeds = self._at_size(coarse, image) if upsample or self.ofd else coarse
        segmentation = self.decoder(self.object_aware(features, seeds) if self.ofd else features)
        seeds, segmentation = (seeds, self._at_size(segmentation, image)) if upsample else (coarse, segmentation)
        return BranchOutputs(
            logits,
            seeds.detach() if self.detach_seeds else seeds,
            segmentation,
            self._affinity(pairs, size, None if size.numel() <= dense_up_to else radius) if affinity else None,
        )

    def classify(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Image-level logits of the encoder's maps: ``[(B, F_i, *s_i)] -> (B, K)``."""
        if self.pooled == "maps":
            return pool_maps(self.classifier(features[3]), self.pooling, topk_share=self.topk_share)
        pooled = pool_maps(features[3], self.pooling, topk_share=self.topk_share)
        return F.linear(pooled, self.classifier.weight.flatten(1))

    def object_prior(self, seeds: torch.Tensor) -> torch.Tensor:
        """C^m = max_k of the activated seeds: ``(B, K, *S) -> (B, 1, *S)``."""
        if self.ofd_detach:
            seeds = seeds.detach()
        if self.ofd_activation == "minmax":
            axes = [2, 3] if self.spatial_dims == 2 else [2, 3, 4]
            low, high = seeds.amin(dim=axes, keepdim=True), seeds.amax(dim=axes, keepdim=True)
            seeds = (seeds - low) / (high - low + 1e-5)  # of the code released with AFA and BMP
        prior = seeds.amax(dim=1, keepdim=True)
        # The sigmoid is monotone: once behind the maximum is enough.
        return prior.sigmoid() if self.ofd_activation == "sigmoid" else prior

    def object_aware(self, features: list[torch.Tensor], seeds: torch.Tensor) -> list[torch.Tensor]:
        """X^i * C^m with C^m interpolated to each level: the features that OFD decodes, of the same shapes.

        Args:
            features: four (B, F_i, *s_i).
            seeds: (B, K, *S) at the image's size.
        """
        prior = self.object_prior(seeds)
        result: list[torch.Tensor] = []
        for level in features:
            result.append(level * F.interpolate(prior, size=level.shape[2:], mode=self.mode, align_corners=False))
        return result

    def _at_size(self, maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps, size=image.shape[2:], mode=self.mode, align_corners=False)

    def _features_and_queries(
        self, image: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        forward_with_queries = getattr(self.encoder, "forward_with_queries", None)
        if self.attn_proj is None or forward_with_queries is None:
            raise ValueError(
                f"Expected an encoder with `attention_channels` and `forward_with_queries` for the affinity, "
                f"{type(self.encoder).__name__} lacks them: use one that has them, or train without the affinity."
            )
        return forward_with_queries(image)

    def _affinity(
        self, pairs: list[tuple[torch.Tensor, torch.Tensor]], size: Sequence[int], radius: int | None
    ) -> torch.Tensor:
        """sigmoid(w . (a + a^T) + b); windowed, 0 outside of the image."""
        assert self.attn_proj is not None  # _features_and_queries has looked
        weights = self.attn_proj.weight.flatten().split([query.shape[1] for query, _ in pairs])
        # sum_h w_h q_h . k_h over all heads and blocks is one inner product of their joined channels.
        query = torch.cat(
            [_join_heads(float32_or_wider(q) * w[:, None, None]) for (q, _), w in zip(pairs, weights, strict=True)], -1
        )
        key = torch.cat([_join_heads(float32_or_wider(k)) for _, k in pairs], -1)
        logits = attention_logits(query[:, None], key[:, None], size, radius, symmetric=True)[:, 0]
        affinity = (logits + self.attn_proj.bias).sigmoid()
        return affinity if radius is None else affinity * inside_window(size, radius, affinity.device)


def _join_heads(tokens: torch.Tensor) -> torch.Tensor:
    """``(B, heads, N, F) -> (B, N, heads * F)``."""
    return tokens.transpose(1, 2).flatten(2)
