# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The second stage of every method: a segmenter learns from pseudo-masks, which were made from image-level labels.

    L = mean_q w_q CE(logits_q, pseudo_q)     over the pixels q that are not ignored

with w = 1 (plain cross-entropy), or the weights of purified label filtration (Feng et al., AAAI 2025, Eq. 11).  It
reads no pixel mask: pseudo-masks have a key of their own, and :class:`~monai_wsss.inferers.PseudoMaskWriter` makes them
from a network's maps.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import as_flag, check_choice, float32_or_wider
from monai_wsss.engines.schedules import Progress
from monai_wsss.losses import PurifiedLabelLoss
from monai_wsss.methods.base import WSSSMethod
from monai_wsss.methods.full_supervision import SegmentationNetwork, class_targets

__all__ = ["PseudoMaskSupervision"]


class PseudoMaskSupervision(WSSSMethod):
    """Cross-entropy on ``pseudo_mask`` (B, 1, *S), plain or with purified label filtration.

    Args:
        network: any MONAI segmenter: K+1 logits with a background, K logits without.
        loss: weights of purified label filtration; None: plain cross-entropy.
        background: whether channel 0 is the background.  Without one every class is real tissue, masks on disk are the
            channel plus one, and pixels of value 0 are ignored.
        warmup: share of the run with plain cross-entropy before the weights count.

    Raises:
        ValueError: a warm-up outside [0, 1].

    Example:
        >>> import torch
        >>> batch = {
        ...     "image": torch.rand(2, 1, 16, 16),
        ...     "label": torch.tensor([[0.0], [1.0]]),
        ...     "pseudo_mask": torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
        ... }
        >>> list(PseudoMaskSupervision.tiny()(batch, Progress(epoch=1, iteration=1, fraction=0.0)))
        ['pseudo_supervision']
    """

    learns_presence: ClassVar[bool] = False

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: PurifiedLabelLoss | None = None,
        background: bool = True,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(network)
        if not 0.0 <= warmup <= 1.0:
            raise ValueError(f"Expected `warmup` as a share of the run in [0, 1], got {warmup}.")
        self.purifies = loss is not None
        self.loss = PurifiedLabelLoss() if loss is None else loss
        self.background = background
        self.warmup = warmup

    @classmethod
    def build(
        cls,
        network: nn.Module,
        *,
        background: bool | str = True,
        plf: str = "none",
        warmup: float = 0.0,
        ignore_mode: str = "valid",
    ) -> PseudoMaskSupervision:
        """Build it by words.

        Args:
            network: see the class.
            background: see there.
            plf: weights of purified label filtration: ``none``, ``paper`` (Eq. 11), ``official``, ``oeem`` or
                ``oeem_conf``, see :func:`~monai_wsss.losses.purified_label_loss`.
            warmup: see the class.
            ignore_mode: how ignored pixels affect the weights, see there.

        Raises:
            ValueError: an unknown variant, or a warm-up outside [0, 1].
        """
        check_choice("plf", plf, ("none", "paper", "official", "oeem", "oeem_conf"))
        check_choice("ignore_mode", ignore_mode, ("valid", "all"))
        loss = None if plf == "none" else PurifiedLabelLoss(variant=plf, ignore_mode=ignore_mode)
        method = cls(network, loss=loss, background=as_flag("background", background), warmup=warmup)
        method.settings |= {"plf": plf, "background": method.background, "warmup": warmup, "ignore_mode": ignore_mode}
        return method

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> PseudoMaskSupervision:
        """Build one that overfits one batch in seconds on a CPU, with purified label filtration."""
        return cls(SegmentationNetwork.tiny(spatial_dims, in_channels, num_classes), loss=PurifiedLabelLoss())

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``pseudo_supervision``: the weighted cross-entropy against ``pseudo_mask`` (B, 1, *S).

        A network with an auxiliary head (:class:`~monai_wsss.networks.PyramidSceneParsing`) also gives ``auxiliary`` in
        training.
        """
        if "pseudo_mask" not in batch:
            raise ValueError(
                "The second stage needs `pseudo_mask` in its batch: write them with PseudoMaskWriter "
                "and name them with attach_pseudo_masks."
            )
        target = class_targets(batch["pseudo_mask"], background=self.background)
        purify = self.purifies and progress.fraction >= self.warmup
        network: Any = self.network
        if not (self.training and getattr(network, "auxiliary", None) is not None):
            return {"pseudo_supervision": self._loss(network(batch["image"]), target, purify)}
        logits, auxiliary = network.auxiliary_logits(batch["image"])
        return {
            "pseudo_supervision": self._loss(logits, target, purify),
            "auxiliary": network.auxiliary_weight * self._loss(auxiliary, target, purify),
        }

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, purify: bool) -> torch.Tensor:
        return self.loss(float32_or_wider(logits), target, purify=purify)
