# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Two branches on one encoder: a classifier whose class maps are the seeds, and a segmentation decoder.

The network of BMP (Zhu et al., TNNLS, arXiv:2308.04949) and, without the prior, of AFA (Ru et al., CVPR 2022); with
an auxiliary classifier and without an affinity that of CoSA (Yang et al., ECCV 2024), whose letters stand in brackets.

| symbol     | name           | meaning                                                              | shape          |
|------------|----------------|----------------------------------------------------------------------|----------------|
| X^1 .. X^n | features       | maps of the encoder, from fine to coarse (F† and F)                  | (B, F_i, *s_i) |
| c          | `logits`       | image-level logits of the classifier, from X^n (z)                   | (B, K)         |
| C          | `seeds`        | raw class maps of the classifier, from X^n (M)                       | (B, K, *S)     |
| z†, M†     | `auxiliary_…`  | logits and class maps of a second classifier, from X^(n-1)           | as c, C        |
| C^m        | `prior`        | max_k a(C_k), a a sigmoid; OFD decodes X^i * C^m, object-aware maps   | (B, 1, *S)     |
| S^s        | `segmentation` | logits of the decoder, channel 0 background (S)                      | (B, K+1, *S)   |
| A          | `affinity`     | affinity of the tokens of X^n, from the encoder's attention          | (B, N, N)      |
"""

# Annotations stay real types: TorchScript reads them.
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import as_flag, check_choice
from monai_wsss._resize import linear_mode
from monai_wsss.networks.all_mlp_decoder import AllMLPDecoder
from monai_wsss.networks.attention_affinity import AttentionAffinity
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.class_head import DETACHED, ClassHead
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.encoder_facts import encoder_channels, encoder_dims
from monai_wsss.networks.large_fov import LargeFOV
from monai_wsss.networks.object_prior import ObjectPrior
from monai_wsss.networks.reading_record import add_reading_record
from monai_wsss.refinement import MaskRule

__all__ = ["BranchOutputs", "TwoBranchNetwork"]


class BranchOutputs(NamedTuple):
    """The outputs of both branches, see :meth:`TwoBranchNetwork.branches`.

    Attributes:
        logits: (B, K), image-level.
        seeds: (B, K, *S) raw class maps; of the last level's size (B, K, *s_n) if not upsampled.
        segmentation: (B, K + 1, *S) logits; of the decoder's size if not upsampled, and 0-d if not decoded.
        affinity: (B, N, N) in (0, 1) between the tokens of the last level, or (B, W, *s_n), or None.
        auxiliary_logits: (B, K) of the auxiliary classifier, or None.
        auxiliary_seeds: class maps of the auxiliary classifier, upsampled as ``seeds`` are, or None.
        features: (B, F, *s_n) of the last level, which ``seeds`` are made of.
    """

    logits: torch.Tensor
    seeds: torch.Tensor
    segmentation: torch.Tensor
    affinity: torch.Tensor | None
    auxiliary_logits: torch.Tensor | None = None
    auxiliary_seeds: torch.Tensor | None = None
    features: torch.Tensor | None = None


class TwoBranchNetwork(CheckedModule):
    """A deployable segmenter that classifies as well: ``(B, C, *S) -> (B, K + 1, *S)`` logits.

    Args:
        encoder: gives a list of maps from fine to coarse and has ``spatial_dims``.  For an affinity it also has
            ``forward_with_queries(image)``, which gives the maps and a list of (queries, keys), each (B, heads, N, F)
            over the tokens of the last level.
        decoder: turns the maps into K + 1 logits: ``[(B, F_i, *s_i)] -> (B, K + 1, *s)``.
        classifier: gives class maps and logits of the last level.
        prior: makes C^m for object-aware feature decoding (BMP); None: the decoder gets the features as they are (AFA).
        affinity: gives the affinity between the tokens of the last level; None: there is none.
        auxiliary: a second classifier, of the level before the last (CoSA), or None.
        detach_seeds: what losses on the seeds, also the auxiliary ones, do not train: ``none`` of both (BMP, CoSA), the
            ``features``, the ``weights`` of the classifiers, or ``all`` (AFA); True stands for ``all``, False for
            ``none``.  The image-level logits train both in any case.

    Attributes:
        output_kind: ``"segmentation"``.
        detach_seeds: ``none``, ``features``, ``weights`` or ``all``.

    Raises:
        ValueError: another ``detach_seeds``.

    Example:
        >>> import torch
        >>> network = TwoBranchNetwork.tiny().eval()
        >>> network(torch.zeros(2, 1, 30, 33)).shape
        torch.Size([2, 2, 30, 33])
        >>> [None if part is None else tuple(part.shape) for part in network.branches(torch.zeros(2, 1, 30, 33))[:4]]
        [(2, 1), (2, 1, 30, 33), (2, 2, 30, 33), None]
    """

    # Real types, not strings: TorchScript reads them, so this file does without `from __future__ import annotations`.
    output_kind: str = "segmentation"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: ClassHead,
        *,
        prior: ObjectPrior | None = None,
        affinity: AttentionAffinity | None = None,
        auxiliary: ClassHead | None = None,
        detach_seeds: bool | str = False,
    ) -> None:
        super().__init__()
        self.output_kind = "segmentation"
        self.spatial_dims = int(getattr(encoder, "spatial_dims", 2))
        self.num_classes = classifier.num_classes
        self.mode = linear_mode(self.spatial_dims)
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = classifier
        self.prior = prior
        # The attribute has the name of the authors' checkpoints.
        self.attn_proj = affinity
        self.auxiliary = auxiliary
        self.detach_seeds = _detached(detach_seeds)
        add_reading_record(self)

    @classmethod
    def build(
        cls,
        encoder: nn.Module,
        num_classes: int = 1,
        *,
        decoder_width: int = 256,
        dropout: float = 0.1,
        pooling: str = "max",
        pooled: str = "features",
        topk_share: float = 0.1,
        ofd: bool | str = True,
        ofd_activation: str = "sigmoid",
        ofd_detach: bool | str = True,
        detach_seeds: bool | str = False,
    ) -> "TwoBranchNetwork":
        """Make the parts of AFA and BMP around an encoder of four levels.

        Args:
            encoder: has ``feature_channels``, e.g. :class:`~monai_wsss.networks.MixTransformer` or
                :class:`ConvPyramid`; its ``attention_channels`` are the heads of the affinity, 0 for none.
            num_classes: K, the foreground classes.
            decoder_width: see :class:`~monai_wsss.networks.AllMLPDecoder`.
            dropout: see there.
            pooling: see :class:`~monai_wsss.networks.ClassHead`.
            pooled: see there.
            topk_share: see there.
            ofd: whether the decoder gets object-aware features (BMP) or the features as they are (AFA).
            ofd_activation: see :class:`~monai_wsss.networks.ObjectPrior`.
            ofd_detach: see there.
            detach_seeds: see the class.

        Raises:
            ValueError: an encoder without four levels, K below 1, or an unknown pooling or activation.
        """
        channels = tuple(getattr(encoder, "feature_channels", ()))
        if len(channels) != 4:
            raise ValueError(
                f"Expected an `encoder` with `feature_channels` of four levels, "
                f"{type(encoder).__name__} has {channels or 'none'}: wrap it in AttentionPyramid, with its `levels`."
            )
        if num_classes < 1:
            raise ValueError(f"Expected `num_classes` >= 1 foreground class, got {num_classes}.")
        dims = int(getattr(encoder, "spatial_dims", 2))
        decoder = AllMLPDecoder(channels, num_classes + 1, spatial_dims=dims, width=decoder_width, dropout=dropout)
        classifier = ClassHead(
            channels[3], num_classes, spatial_dims=dims, pooling=pooling, pooled=pooled, topk_share=topk_share
        )
        prior = ObjectPrior(ofd_activation, detach=as_flag("ofd_detach", ofd_detach))
        heads = getattr(encoder, "attention_channels", 0)
        return cls(
            encoder,
            decoder,
            classifier,
            prior=prior if as_flag("ofd", ofd) else None,
            affinity=AttentionAffinity(heads) if heads else None,
            detach_seeds=detach_seeds,
        )

    @classmethod
    def with_auxiliary(
        cls,
        encoder: nn.Module,
        num_classes: int = 1,
        *,
        decoder: str = "large_fov",
        decoder_width: int | None = None,
        dropout: float = 0.1,
        pooling: str = "max",
        pooled: str = "features",
        topk_share: float = 0.1,
        detach_seeds: bool | str = "none",
    ) -> "TwoBranchNetwork":
        """Make the parts of CoSA around an encoder of two maps or more: two classifiers and a decoder.

        The classifier reads the last map, the auxiliary classifier the one before it; they share no weights.

        Args:
            encoder: has ``feature_channels``, e.g. :class:`~monai_wsss.networks.VisionTransformer`, or
                :class:`~monai_wsss.networks.TwoFusedMaps` around any other.
            num_classes: K, the foreground classes.
            decoder: ``large_fov``: :class:`~monai_wsss.networks.LargeFOV` on the last map, as in CoSA; ``all_mlp``:
                :class:`~monai_wsss.networks.AllMLPDecoder` on all maps, as in AFA and BMP; for two to four maps.
            decoder_width: of the decoder; None: the published one, 512 for ``large_fov``, 256 for ``all_mlp``.
            dropout: of ``all_mlp``.
            pooling: of both classifiers, see :class:`~monai_wsss.networks.ClassHead`.
            pooled: see there; the classifiers have a bias where ``maps`` are pooled.
            topk_share: see there.
            detach_seeds: see the class.

        Raises:
            ValueError: an encoder of one map, K below 1, or an unknown word.

        Example:
            >>> network = TwoBranchNetwork.with_auxiliary(ConvPyramid.tiny(), 2, decoder_width=8).eval()
            >>> outputs = network.branches(torch.zeros(1, 1, 32, 32), upsample=False)
            >>> outputs.auxiliary_seeds.shape, outputs.segmentation.shape
            (torch.Size([1, 2, 8, 8]), torch.Size([1, 3, 8, 8]))
        """
        channels, dims = encoder_channels(encoder), encoder_dims(encoder)
        if len(channels) < 2:
            raise ValueError(
                f"Expected an `encoder` of two maps or more, {type(encoder).__name__} gives one: the auxiliary "
                "classifier reads the map before the last."
            )
        check_choice("decoder", decoder, ("large_fov", "all_mlp"))
        width = {"large_fov": 512, "all_mlp": 256}[decoder] if decoder_width is None else decoder_width
        made: nn.Module
        if decoder == "large_fov":
            made = LargeFOV(channels[-1], num_classes + 1, spatial_dims=dims, width=width)
        else:
            made = AllMLPDecoder(channels, num_classes + 1, spatial_dims=dims, width=width, dropout=dropout)
        classifier, auxiliary = (
            ClassHead(
                channels[level], num_classes, spatial_dims=dims, pooling=pooling, pooled=pooled, topk_share=topk_share
            )
            for level in (-1, -2)
        )
        return cls(encoder, made, classifier, auxiliary=auxiliary, detach_seeds=detach_seeds)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "TwoBranchNetwork":
        """Build one on the tiny :class:`ConvPyramid` with a decoder of 8 channels: trains in seconds on a CPU."""
        return cls.build(ConvPyramid.tiny(spatial_dims, in_channels), num_classes, decoder_width=8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give the segmentation logits at the input's size: ``(B, C, *S) -> (B, K + 1, *S)``."""
        features = self.encoder(image)
        if self.prior is not None:
            features = self.object_aware(features, self._at_size(self.classifier(features[-1]), image))
        return self._at_size(self.decoder(features), image)

    @torch.jit.unused
    def branches(
        self,
        image: torch.Tensor,
        affinity: bool = False,
        *,
        radius: int | None = None,
        upsample: bool = True,
        decode: bool = True,
    ) -> BranchOutputs:
        """Give both branches and, on request, the affinity, for training and pseudo-labels.

        Args:
            image: (B, C, *S).
            affinity: whether to give the affinity.
            radius: largest offset of its pairs, in tokens of the last level, see
                :meth:`~monai_wsss.networks.AttentionAffinity.between`; None for all pairs.
            upsample: True brings seeds and segmentation to the image's size, as BMP does; False leaves them at the
                sizes of the levels, as AFA does.
            decode: False leaves the decoder out, which costs nothing then: ``segmentation`` has no meaning, but the
                decoder's parameters in its graph.

        Raises:
            ValueError: an affinity asked of an encoder without attention.
        """
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        features, pairs = self._features_and_queries(image) if affinity else (self.encoder(image), pairs)
        logits = self.classifier.classify(features[-1])
        coarse = self.classifier.seeds(features[-1], self.detach_seeds)
        seeds = self._at_size(coarse, image) if upsample or self.prior is not None else coarse
        decoded = features
        if self.prior is not None:
            # What reaches the classifier by way of the prior is the prior's own choice.
            attached = self.detach_seeds == "none"
            maps = seeds if attached else self._at_size(self.classifier(features[-1]), image)
            decoded = self.object_aware(features, maps)
        if decode:
            segmentation = self.decoder(decoded)
            segmentation = self._at_size(segmentation, image) if upsample else segmentation
        else:
            segmentation = torch.stack([parameter.sum() for parameter in self.decoder.parameters()]).sum()
        outputs = BranchOutputs(logits, seeds if upsample else coarse, segmentation, None, features=features[-1])
        if affinity and self.attn_proj is not None:
            outputs = outputs._replace(affinity=self.attn_proj.between(pairs, features[-1].shape[2:], radius))
        if self.auxiliary is not None:
            maps = self.auxiliary.seeds(features[-2], self.detach_seeds)
            outputs = outputs._replace(
                auxiliary_logits=self.auxiliary.classify(features[-2]),
                auxiliary_seeds=self._at_size(maps, image) if upsample else maps,
            )
        return outputs

    @torch.jit.unused
    def mask_rule(self) -> MaskRule:
        """Give the rule by which the segmentation becomes a mask: the argmax."""
        return MaskRule(output_kind=self.output_kind)

    def object_aware(self, features: list[torch.Tensor], seeds: torch.Tensor) -> list[torch.Tensor]:
        """Give X^i * C^m with C^m interpolated to each level: the features that OFD decodes.

        Args:
            features: (B, F_i, *s_i) each.
            seeds: (B, K, *S) at the image's size.
        """
        assert self.prior is not None
        prior = self.prior(seeds)
        result: list[torch.Tensor] = []
        for level in features:
            result.append(level * F.interpolate(prior, size=level.shape[2:], mode=self.mode, align_corners=False))
        return result

    def _at_size(self, maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps, size=image.shape[2:], mode=self.mode, align_corners=False)

    @torch.jit.unused
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


def _detached(value: bool | str) -> str:
    """Read ``detach_seeds``, which a bundle's command line may hand over as ``"true"`` or ``"false"``."""
    if value in DETACHED:
        return str(value)
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"Expected `detach_seeds` to be one of {', '.join(DETACHED)}, true or false, got {value!r}.")
    return "all" if as_flag("detach_seeds", value) else "none"
