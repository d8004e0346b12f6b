# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The attention of CoinGAN: what an image has in common with healthy ones is strengthened, the rest is removed.

Eq. 6 to 9 and 14 to 16 of the paper.  P (c, L) are the features of an image at L positions, A their mean over healthy
images (``average_buffer.py``), and B = SE(A).  R (L, L) is the incidence matrix of the positions of B and those of P::

    M_c = P R        M_s = P where the probability of M_c is below 0.5, else 0        output = P + M_c - M_s

Eq. 6 does not say over which axis its softmax runs, nor Eq. 8:

| `incidence`          | R                                                    | memory                                 |
|----------------------|------------------------------------------------------|----------------------------------------|
| `reference_channel`  | softmax over the channels of B, transposed, times P  | c x c: M_c = (P softmax(B)^T) P        |
| `reference_position` | softmax over the positions of B, transposed, times P | the same                               |
| `affinity`           | softmax of B^T P over the positions of B             | L x L                                  |
| `affinity_path`      | softmax of B^T P over the positions of P             | L x L                                  |

| `specificity` | the probability of M_c                                                                              |
|---------------|-----------------------------------------------------------------------------------------------------|
| `channel`     | softmax over channels; at most one channel of a position reaches 0.5                                |
| `spatial`     | softmax over positions; at most one position of a channel reaches 0.5                               |
| `sigmoid`     | logistic of M_c, a softmax against a logit of zero                                                  |
| `zsigmoid`    | logistic of M_c, standardized over the positions of each channel                                    |
| `zposition`   | logistic of the mean over channels, standardized over positions: one decision for all channels      |
| `twoway`      | softmax over M_c, scaled as P, and P                                                                |
"""

import torch
from monai.networks.blocks import ChannelSELayer

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss.networks.checked import CheckedModule

__all__ = ["CommonalitySpecificityAttention"]

INCIDENCES = ("reference_channel", "reference_position", "affinity", "affinity_path")
SPECIFICITIES = ("channel", "spatial", "sigmoid", "zsigmoid", "zposition", "twoway")


class CommonalitySpecificityAttention(CheckedModule):
    """Attention that adds what features share with healthy ones and removes what is specific: Eq. 6 to 9, 14 to 16.

    ``(B, c, *s)`` and a reference ``(c, *s)`` to ``(B, c, *s)``.  Everything runs in float32 or wider, under autocast
    too; a scripted module follows autocast.

    Args:
        channels: c.
        spatial_dims: 2 or 3.
        se_reduction: the hidden layer of the squeeze-and-excitation has c / ``se_reduction`` units, at least one.
        incidence: see the table of this module.
        specificity: see the other table; it is decided on M_c as Eq. 7 gives it, whatever its scale.
        commonality_scale: ``"rms"``, M_c of each image gets the root mean square of its P; ``"none"``, as printed.  M_c
            grows with the number of positions, and beside it P vanishes.
        commonality_values: what M_c is a mean of: ``"pathological"``, P as printed, or ``"reference"``, B.
        affinity_scale: divide B^T P by the square root of c.
        reference_temperature: divide B by its standard deviation and by this number before the softmax of the readings
            ``reference_...``, which the paper does not do.  Small values of B make that softmax uniform, so that M_c
            depends on the healthy images by next to nothing; 1 or less makes it depend on them.  None: as printed.
        use_ca: add M_c.
        use_sa: subtract M_s.
        max_attention_elements: most entries of an R (L, L) per image that are held.

    Attributes:
        observed: scalars of the last call in training: ``mask_open``, the share of entries that are specific (M'_c is
            1); ``commonality_ratio``, |M_c| / |P| by Euclidean norms, before any scaling.

    Raises:
        ValueError: an unknown word, or a temperature that is not positive; features whose R would be larger.

    Example:
        >>> import torch
        >>> attention = CommonalitySpecificityAttention(4)
        >>> attention(torch.randn(2, 4, 5, 6), torch.randn(4, 5, 6)).shape
        torch.Size([2, 4, 5, 6])
        >>> attention.incidence_matrix(torch.randn(2, 4, 5, 6), torch.randn(4, 5, 6)).shape
        torch.Size([2, 30, 30])
    """

    observed: dict[str, torch.Tensor]

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 2,
        *,
        se_reduction: int = 16,
        incidence: str = "reference_channel",
        specificity: str = "sigmoid",
        commonality_scale: str = "rms",
        commonality_values: str = "pathological",
        affinity_scale: bool = True,
        reference_temperature: float | None = None,
        use_ca: bool = True,
        use_sa: bool = True,
        max_attention_elements: int = 2**26,
    ) -> None:
        super().__init__()
        check_choice("incidence", incidence, INCIDENCES)
        check_choice("specificity", specificity, SPECIFICITIES)
        check_choice("commonality_scale", commonality_scale, ("rms", "none"))
        check_choice("commonality_values", commonality_values, ("pathological", "reference"))
        if reference_temperature is not None and not reference_temperature > 0:
            raise ValueError(f"Expected `reference_temperature` > 0 or None, got {reference_temperature}.")
        self.incidence = incidence
        self.specificity = specificity
        self.commonality_scale = commonality_scale
        self.commonality_values = commonality_values
        self.affinity_scale = affinity_scale
        self.reference_temperature = reference_temperature
        self.use_ca = use_ca
        self.use_sa = use_sa
        self.max_attention_elements = max_attention_elements
        self.excitation = ChannelSELayer(spatial_dims, channels, r=min(se_reduction, channels))
        self.observed = {}

    def forward(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, c, *s)``, beside a healthy mean ``(c, *s)``, to ``(B, c, *s)`` in their own type."""
        if features.shape[1:] != reference.shape:
            raise ValueError(
                f"Expected `reference` of shape (c, *s) = {features.shape[1:]}, as the features, got {reference.shape}."
            )
        if torch.jit.is_scripting():
            return self._attend(features, reference)
        with torch.autocast(features.device.type, enabled=False):
            return self._attend(features, reference)

    def excite(self, reference: torch.Tensor) -> torch.Tensor:
        """Give B = SE(A): ``(c, *s) -> (c, *s)``."""
        return self.excitation(reference[None])[0]

    def incidence_matrix(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Give R ``(B, L, L)``; its rows are the positions of the reference, its columns those of the features.

        Args:
            features: P, (B, c, *s).
            reference: A, (c, *s).

        Raises:
            ValueError: more than ``max_attention_elements`` entries per image.
        """
        return self._incidence(
            float32_or_wider(features).flatten(2), self.excite(float32_or_wider(reference)).flatten(1)
        )

    def commonality(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Give M_c of Eq. 7, unscaled: P ``(B, c, *s)`` and A ``(c, *s)`` to ``(B, c, *s)``."""
        wide = float32_or_wider(features)
        return self._commonality(wide.flatten(2), self.excite(float32_or_wider(reference)).flatten(1)).reshape(
            wide.shape
        )

    def probability(self, commonality: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Give the probability that Eq. 8 compares with 0.5: M_c and P, ``(B, c, *s)`` each, to ``(B, c, *s)``."""
        given = self._probability(commonality.flatten(2), features.flatten(2))
        return given.expand(commonality.flatten(2).shape).reshape(commonality.shape)

    def _attend(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        if not (self.use_ca or self.use_sa):
            return features
        own = float32_or_wider(features).flatten(2)
        healthy = self.excite(float32_or_wider(reference)).flatten(1)
        kept = own
        # Without its own term M_c only decides what is specific, and decisions have no gradient.
        common = self._commonality(own, healthy) if self.use_ca else self._commonality(own.detach(), healthy.detach())
        if self.use_sa:
            specific = self._is_specific(common.detach(), own.detach())
            kept = own.masked_fill(specific, 0.0)
            if self.training:
                self._observe("mask_open", specific.float().mean())
        if self.training:
            self._observe("commonality_ratio", (_norm(common.detach()) / _norm(own.detach()).clamp(min=1e-10)).mean())
        if self.use_ca:
            kept = kept + (_scaled_as(common, own) if self.commonality_scale == "rms" else common)
        return kept.to(features.dtype).reshape(features.shape)

    def _commonality(self, own: torch.Tensor, healthy: torch.Tensor) -> torch.Tensor:
        """Compute M_c: P ``(B, c, L)`` and B ``(c, L)`` to ``(B, c, L)``, without any R where it has factors."""
        values = own if self.commonality_values == "pathological" else healthy
        if self.incidence == "affinity" or self.incidence == "affinity_path":
            return torch.matmul(values, self._incidence(own, healthy))
        return torch.matmul(torch.matmul(values, self._reference_weights(healthy).transpose(0, 1)), own)

    def _incidence(self, own: torch.Tensor, healthy: torch.Tensor) -> torch.Tensor:
        entries = own.shape[-1] * own.shape[-1]
        if entries > self.max_attention_elements:
            raise ValueError(
                f"Expected at most {self.max_attention_elements} entries in the incidence matrix of an image, got "
                f"{entries} ({entries * 4 // 2**20} MiB in float32): choose incidence='reference_channel', smaller "
                "features (csa_position='bottleneck', embed_stride), or raise max_attention_elements."
            )
        if self.incidence == "reference_channel" or self.incidence == "reference_position":
            return torch.matmul(self._reference_weights(healthy).transpose(0, 1), own)
        logits = torch.matmul(healthy.transpose(0, 1), own)
        if self.affinity_scale:
            logits = logits / float(own.shape[1]) ** 0.5
        return logits.softmax(1 if self.incidence == "affinity" else 2)

    def _reference_weights(self, healthy: torch.Tensor) -> torch.Tensor:
        """Give the softmax of Eq. 6: B ``(c, L)`` to ``(c, L)``."""
        temperature = self.reference_temperature
        if temperature is not None:
            healthy = healthy / (temperature * healthy.std(correction=0) + 1e-12)
        return healthy.softmax(0 if self.incidence == "reference_channel" else 1)

    def _is_specific(self, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Tell where the probability is below 0.5: that of a logit by its sign, which no rounding to 0.5 changes."""
        if self.specificity == "channel" or self.specificity == "spatial":
            return self._probability(common, own) < 0.5
        return self._logit(common, own) < 0

    def _probability(self, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Give the probability for ``(B, c, L)``; ``zposition`` has one channel."""
        if self.specificity == "channel" or self.specificity == "spatial":
            return common.softmax(1 if self.specificity == "channel" else 2)
        return self._logit(common, own).sigmoid()

    def _logit(self, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Give the logit of the readings by a logistic."""
        if self.specificity == "zsigmoid":
            return _standardized(common)
        if self.specificity == "zposition":
            return _standardized(common.mean(1, keepdim=True))
        if self.specificity == "twoway":
            return _scaled_as(common, own) - own
        return common

    @torch.jit.unused
    def _observe(self, name: str, value: torch.Tensor) -> None:
        self.observed = {**self.observed, name: value}


def _scaled_as(maps: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Give maps ``(B, c, L)`` the root mean square of ``model``, for each image; differentiable also at zero."""
    wanted, given = _norm(model), _norm(maps)
    return maps * ((wanted + 1e-10) / (given + 1e-10))


def _norm(maps: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(maps, dim=[1, 2], keepdim=True)


def _standardized(maps: torch.Tensor) -> torch.Tensor:
    centered = maps - maps.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True).sqrt() + 1e-12)
