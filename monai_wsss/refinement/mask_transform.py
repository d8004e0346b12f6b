# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A network's :class:`MaskRule` as a dictionary transform, for the post-processing of bundles."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import nn

from monai_wsss._checks import as_flag, float32_or_wider, plain_tensor
from monai_wsss.refinement.dense_crf import DenseCRF
from monai_wsss.refinement.mask_rule import MaskRule

__all__ = ["ToMaskd"]


class ToMaskd(MapTransform):
    """Replace a network's output for a whole image (G*K, *S) by its mask (1, *S), uint8 0..K.

    For activations it also adds ``cam`` (K, *S), the score map in [0, 1] that was cut, and ``presence`` (K,), the
    pooled raw logits that the presence gate compares with the presence level. The rule is read from the network each
    time, since training measures its healthy level anew before each validation.

    Args:
        keys: the network's output.
        network: deployable network, see :meth:`MaskRule.of <monai_wsss.refinement.MaskRule.of>`.
        rule: see :class:`~monai_wsss.refinement.MaskRule`; None for the rule that the pooling calls for.
        threshold: see there.
        gate: ``predicted`` (default for activations), ``given`` (by ``label_key``) or ``none`` (default for
            segmentations).
        fusion: see there.
        reliable_only: leave out the groups that the network's training found unreliable; False fuses all of them.
        label_key: image-level label (K,), read with ``gate="given"`` alone.
        crf: for segmentations: draws the probabilities to the edges of the image before they are decided.
        image_key: the image (C, *S) of the same size, read by ``crf`` alone.
        allow_missing_keys: skip keys that an item lacks.
        presence_level: what the pooled raw map of a class has to exceed, one number or one per group and class; None
            for the network's own, which is 0 where it has none.

    Raises:
        ValueError: as :class:`~monai_wsss.refinement.MaskRule` and its call.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> item = {"pred": torch.zeros(1, 8, 8)}
        >>> sorted(ToMaskd("pred", CAMEncoder.tiny(), rule="logit")(item))
        ['cam', 'pred', 'presence']
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module,
        rule: str | None = None,
        threshold: float | None = None,
        gate: str | None = None,
        fusion: str = "max",
        reliable_only: bool | str = True,
        label_key: str = "label",
        crf: DenseCRF | None = None,
        image_key: str = "image",
        allow_missing_keys: bool = False,
        presence_level: float | Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.network = network
        self.label_key = label_key
        self.crf = crf
        self.image_key = image_key
        self.words: dict[str, Any] = {"rule": rule, "threshold": threshold, "gate": gate, "fusion": fusion}
        reliable_only = as_flag("reliable_only", reliable_only)
        used = None if crf is None else type(crf).__name__
        self.settings = {**self.words, "reliable_only": reliable_only, "crf": used}
        if not reliable_only:
            self.words["reliable"] = None
        if presence_level is not None:
            self.words["presence_level"] = torch.as_tensor(presence_level)
        if crf is not None and network.output_kind != "segmentation":
            raise ValueError("Expected a network that gives segmentations with `crf`, not activations.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        rule = MaskRule.of(self.network, **self.words)
        label = torch.as_tensor(item[self.label_key])[None] if rule.gate == "given" else None
        for key in self.key_iterator(item):
            scores = plain_tensor(item[key])[None]
            if self.crf is not None:
                image = plain_tensor(item[self.image_key])[None].to(scores.device)
                scores = self.crf(image, float32_or_wider(scores).softmax(1)).log()
            mask, cam, presence = rule(scores, label)
            item[key] = mask[0]
            if cam is not None and presence is not None:
                item["cam"], item["presence"] = cam[0], presence[0]
        return item
