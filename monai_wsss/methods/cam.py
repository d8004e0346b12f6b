# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Plain class activation maps: a multi-label classifier whose map, before the pooling, is the segmentation.

    m_k = head_k(features)            raw map of class k, (B, K, *S)
    s_k = pool(m_k)                   image-level logit
    L   = mean_k BCE(s_k, y_k)        the only loss, on image-level labels

Zhou et al. 2016, "Learning deep features for discriminative localization".  There pool is the average and the mask is
the min-max normalized map above a half: preset ``"paper"``, which needs ImageNet weights.  From scratch, average
pooling finds shortcuts.  Preset ``"default"`` works from scratch: it has a stride-4 encoder, maximum pooling and three
members, and it cuts half-way between the healthy level (measured on training-negative images) and the peak.

| symbol | name           |
|--------|----------------|
| m_k    | ``maps``       |
| s_k    | ``logits``     |
| y_k    | ``label``      |
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss.engines import Progress, takes_arguments_of
from monai_wsss.methods.base import WSSSMethod
from monai_wsss.networks import ActivationNetwork, CAMEncoder, MapEnsemble

__all__ = ["ClassActivationMapping"]

_PRESETS: dict[str, dict[str, Any]] = {
    "default": {"stride": 4, "pooling": "max", "members": 3},
    "paper": {"stride": 4, "pooling": "average", "members": 1},
}


class ClassActivationMapping(WSSSMethod):
    """Multi-label classification through pooled class maps.

    Args:
        network: gives raw activation maps and carries its pooling; each member of an ensemble is trained by its own
            loss on the same batches.

    Example:
        >>> import torch
        >>> method = ClassActivationMapping.tiny()
        >>> batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.tensor([[0.0], [1.0]])}
        >>> losses = method(batch, Progress(epoch=1, iteration=1, fraction=0.0))
        >>> list(losses)
        ['classification']
    """

    network: ActivationNetwork

    def __init__(self, network: ActivationNetwork) -> None:
        super().__init__(network)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> ClassActivationMapping:
        """Build one that overfits one batch in seconds on a CPU."""
        return cls(CAMEncoder.tiny(spatial_dims, in_channels, num_classes))

    @classmethod
    def from_preset(
        cls, preset: str = "default", *, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1
    ) -> ClassActivationMapping:
        """Build the whole method by name.

        Args:
            preset: ``"default"``: three stride-4 encoders with maximum pooling; ``"paper"``: one, with average pooling.
            spatial_dims: 2 or 3.
            in_channels: C of the images.
            num_classes: K, the foreground classes.
        """
        network = cls.network_from_preset(
            preset, spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes
        )
        return cls(network)

    @classmethod
    @takes_arguments_of(CAMEncoder)
    def network_from_preset(
        cls,
        preset: str = "default",
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 1,
        members: int | None = None,
        **words: Any,
    ) -> ActivationNetwork:
        """Build the network of a preset.

        Args:
            preset: as :meth:`from_preset`, and so the arguments up to ``num_classes``.
            members: number of encoders whose maps are averaged; None: as the preset says.
            words: of :class:`~monai_wsss.networks.CAMEncoder`, to set otherwise than the preset.

        Raises:
            ValueError: an unknown preset, or no member.
        """
        check_choice("preset", preset, tuple(_PRESETS))
        told = {**_PRESETS[preset], **words} | ({} if members is None else {"members": members})
        count = told["members"]
        if not count >= 1:
            raise ValueError(f"Expected `members` >= 1, got {count}.")
        built = {name: value for name, value in told.items() if name != "members"}
        encoders = [CAMEncoder(spatial_dims, in_channels, num_classes, **built) for _ in range(count)]
        network = MapEnsemble(encoders) if count > 1 else encoders[0]
        network.settings = {"preset": preset, **told}  # type: ignore[assignment]
        return network

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``classification``: binary cross-entropy, mean over images and classes, summed over members."""
        label = batch["label"].to(batch["image"].device)
        member_maps = float32_or_wider(self.network.member_maps(batch["image"]))
        self.observe(member_maps.mean(0), label)
        logits = torch.stack([self.network.pool(maps) for maps in member_maps])
        target = label.to(logits.dtype).expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        return {"classification": loss * len(member_maps)}
