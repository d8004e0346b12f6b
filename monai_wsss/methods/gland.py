# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Gland segmentation from patch tags (Feng et al., AAAI 2025): the classifier, which is the first of two stages.

    F = network.signed_map(image)         signed class map, (B, K, *s)
    z = network.image_logits(F)           Eq. 9 (MPFP) or Eq. 3 (average), (B, K)
    L = mean_k BCE(z_k, y_k)              on multi-hot tags: a patch may hold gland, other tissue, or both

Its maps become pseudo-masks (:class:`~monai_wsss.inferers.PseudoMaskWriter`), on which the second stage trains a
segmenter with purified label filtration: :class:`~monai_wsss.methods.PseudoMaskSupervision`.

| symbol | name        | here                                                              |
|--------|-------------|-------------------------------------------------------------------|
| CCA    | attention   | ``networks.ConsistencyCorrelationAttention``, Eq. 1-2             |
| MPFP   | pyramid     | ``networks.PyramidFusionPooling``, Eq. 5-9                        |
| PLF    |             | ``losses.PurifiedLabelLoss``, Eq. 10-11                           |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss.engines import Progress, takes_arguments_of
from monai_wsss.methods.base import WSSSMethod, grouped_parameters
from monai_wsss.networks import (
    EncoderLevel,
    FusedFeatures,
    GlandClassifier,
    ResNet38,
    fused_gland_classifier,
    resnet38_classifier,
)
from monai_wsss.networks.encoder_facts import encoder_name
from monai_wsss.networks.gland_classifier import PART_WORDS

__all__ = ["GlandClassification"]

_PRESETS: dict[str, dict[str, Any]] = {
    # Trains from scratch on a small machine.
    "default": {
        "small": True,
        "width": 12,
        "frozen": "none",
        "attention": "none",
        "pyramid": None,
        "pooling": "topk",
    },
    # As printed; it needs ImageNet weights, see networks.load_encoder_weights.
    "paper": {},
}
_WORDS: tuple[Callable[..., Any] | str, ...] = (
    *(resnet38_classifier, ResNet38, fused_gland_classifier, FusedFeatures),
    *(word for words in PART_WORDS.values() for word in words),
)
# Words of the ResNet38's preset, which mean something else to other encoders, or nothing.
_OF_RESNET38 = ("small", "width", "frozen")
_OF_RESNET38_ALONE = ("small", "frozen", "attention_stages")


class GlandClassification(WSSSMethod):
    """Multi-label classification of patches through a signed class map.

    Args:
        network: gives the map and its logits.

    Example:
        >>> import torch
        >>> method = GlandClassification.tiny()
        >>> batch = {"image": torch.rand(2, 3, 32, 32), "label": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
        >>> list(method(batch, Progress(epoch=1, iteration=1, fraction=0.0)))
        ['classification']
    """

    network: GlandClassifier

    def __init__(self, network: GlandClassifier) -> None:
        super().__init__(network)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3, num_classes: int = 2) -> GlandClassification:
        """Build one that overfits one batch in seconds on a CPU."""
        return cls(GlandClassifier.tiny(spatial_dims, in_channels, num_classes))

    @classmethod
    @takes_arguments_of(*_WORDS)
    def from_preset(cls, preset: str = "default", **settings: Any) -> GlandClassification:
        """Build the whole stage by name.

        Args:
            preset: ``"default"``: a small ResNet38 with top-25 % pooling, to train from scratch; ``"paper"``: the
                published network, whose weights are random until
                :func:`~monai_wsss.networks.load_encoder_weights` fills them.
            settings: arguments of :func:`~monai_wsss.networks.resnet38_classifier`, which replace the preset's; with
                an ``encoder`` those of :func:`~monai_wsss.networks.fused_gland_classifier`.

        Example:
            >>> GlandClassification.from_preset(width=4).network.pooling
            'topk'
        """
        return cls(cls.network_from_preset(preset, **settings))

    @classmethod
    @takes_arguments_of(*_WORDS)
    def network_from_preset(
        cls, preset: str = "default", *, encoder: nn.Module | None = None, **settings: Any
    ) -> GlandClassifier:
        """Build the network of a preset, with the arguments of :meth:`from_preset`.

        Args:
            preset: as :meth:`from_preset`.
            encoder: another encoder in the place of the ResNet38, whose words then have no preset; ``in_channels`` has
                no effect.
            settings: as :meth:`from_preset`.

        Raises:
            ValueError: an unknown preset, or a word of the ResNet38 beside an ``encoder``.
        """
        check_choice("preset", preset, tuple(_PRESETS))
        told = {**_PRESETS[preset], **settings}
        if encoder is None:
            network = resnet38_classifier(**told)
        elif strange := [name for name in _OF_RESNET38_ALONE if name in settings]:
            raise ValueError(
                f"Expected no `{'`, `'.join(strange)}` beside an `encoder`: the ResNet38 alone takes it, which "
                "`encoder=None` builds."
            )
        else:
            told = {name: value for name, value in told.items() if name in settings or name not in _OF_RESNET38}
            told.pop("in_channels", None)
            network = fused_gland_classifier(encoder, **told)
            told["encoder"] = encoder_name(encoder)
        network.settings = {"preset": preset, **told}  # type: ignore[assignment]
        return network

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``classification``: binary cross-entropy, mean over images and classes."""
        class_map = float32_or_wider(self.network.signed_map(batch["image"]))
        label = batch["label"].to(class_map)
        self.observe(class_map, label)
        logits = self.network.image_logits(class_map)
        return {"classification": F.binary_cross_entropy_with_logits(logits, label)}

    def parameter_groups(
        self, learning_rate: float, *, encoder_learning_rate: float | None = None, player: str | None = None
    ) -> list[dict[str, Any]]:
        """Split the parameters by rate, as in the code that the paper builds on.

        New layers have 10 times the rate of the loaded backbone, or of the encoder in its place.  Biases have twice the
        rate of their layer, and no weight decay.

        Args:
            learning_rate: rate of the backbone's weights.
            encoder_learning_rate: the plain division instead: the encoder has this rate, all other layers have
                ``learning_rate``.
            player: the one player, or None.

        Returns:
            At most four groups for ``torch.optim``, without frozen parameters.
        """
        if encoder_learning_rate is not None:
            return super().parameter_groups(learning_rate, encoder_learning_rate=encoder_learning_rate, player=player)

        # Of fused maps, the encoder alone is loaded.
        fused = isinstance(self.network.backbone, (FusedFeatures, EncoderLevel))

        def options(name: str) -> dict[str, Any]:
            loaded = name.startswith("backbone.") and ".attention" not in name
            loaded = name.startswith("backbone.encoder.") if fused else loaded
            rate = learning_rate * (1 if loaded else 10)
            return {"lr": 2 * rate, "weight_decay": 0.0} if name.endswith(".bias") else {"lr": rate}

        return grouped_parameters(self.network, options)
