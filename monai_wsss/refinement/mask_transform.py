# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A network's :class:`MaskRule` as a dictionary transform, for the post-processing of bundles."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from monai.config import KeysCollection
from monai.networks import eval_mode
from monai.transforms import MapTransform
from torch import nn

from monai_wsss._checks import DataError, as_flag, plain_tensor
from monai_wsss._resize import resize_linear
from monai_wsss.refinement.class_map_refinement import ClassMapRefinement
from monai_wsss.refinement.dense_crf import DenseCRF
from monai_wsss.refinement.mask_rule import MaskDecision, MaskRule
from monai_wsss.refinement.pixel_adaptive import PixelAdaptiveRefinement
from monai_wsss.refinement.told_rule import ToldRule, told_rule

__all__ = ["ToMaskd"]


class PresenceWords(TypedDict, total=False):
    """What decides on presence, as :class:`~monai_wsss.refinement.MaskRule` takes it.

    Attributes:
        presence_level: what the pooled raw map of a class has to exceed.
        topk_pixels: how many pixels are pooled.
    """

    presence_level: float | Sequence[float] | torch.Tensor | None
    topk_pixels: int | None


class ToMaskd(MapTransform):
    """Replace a network's output for a whole image (G*K, *S) by its mask (1, *S), uint8 0..K.

    For activations it also adds ``cam`` (K, *S), the score map in [0, 1] that was cut, and ``presence`` (K,), the
    pooled raw maps that the presence gate compares with the presence level: logits, but where maps are differences of
    two images (``presence_kind`` is ``difference`` then). The rule is that of the network which
    made the prediction: an inferer with ``tell_rule=True`` writes it into the metadata of the maps. Maps that tell
    nothing are cut by the rule of ``network``, read each time, since training measures its healthy level anew before
    each validation.

    Args:
        keys: the network's output.
        network: deployable network, see :meth:`MaskRule.of <monai_wsss.refinement.MaskRule.of>`. None where every
            prediction tells its rule.
        rule: see :class:`~monai_wsss.refinement.MaskRule`; None for the network's own, or else the rule that the
            pooling calls for.
        threshold: see there.
        gate: ``predicted`` (default for activations), ``given`` (by ``label_key``) or ``none``. For segmentations it
            is the label filter, ``none`` by default, and the item gets its name as ``label_filter``. ``predicted`` asks
            the classifier of a network that has ``branches``, on ``grid``, and adds its logits as ``presence``; for
            other segmenters see :class:`~monai_wsss.refinement.MaskRule`.
        fusion: see there.
        reliable_only: leave out the groups that the network's training found unreliable; False fuses all of them.
        label_key: image-level label (K,), read with ``gate="given"`` alone.
        refine: draws the maps to the edges of the image before they are cut, ``"none"``, ``"par"``, ``"crf"``, or a
            part with settings of its own, see :class:`~monai_wsss.refinement.ClassMapRefinement`. Presence stays that
            of the unrefined maps.
            It reads ``intensity``, the image before it was normalized, where the item has it, else ``image``, see
            :meth:`~monai_wsss.refinement.ClassMapRefinement.image_of`.
        grid: size to which the image is brought for the classifier, the one at which the inferer runs the network: it
            then sees what the segmentation is made of. None: the image's own size.
        allow_missing_keys: skip keys that an item lacks.
        words: ``presence_level``, what the pooled raw map of a class has to exceed, one number or one per group and
            class (without it the network's own, which is 0 where it has none), and ``topk_pixels``, see
            :class:`~monai_wsss.refinement.MaskRule` (without it the network's share).

    Raises:
        ValueError: as :class:`~monai_wsss.refinement.MaskRule` and its call; a prediction that tells no rule, without
            ``network``; a label filter that would ask a network which did not make the prediction.
        DataError: an item without the label that ``gate="given"`` needs.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> item = {"pred": torch.zeros(1, 8, 8)}
        >>> sorted(ToMaskd("pred", CAMEncoder.tiny(), rule="logit")(item))
        ['cam', 'pred', 'presence']
    """

    taken_words = frozenset({"presence_level", "topk_pixels"})
    """Names of ``words``, for whoever checks overrides of a configuration."""

    def __init__(
        self,
        keys: KeysCollection,
        network: nn.Module | None = None,
        rule: str | None = None,
        threshold: float | None = None,
        gate: str | None = None,
        fusion: str = "max",
        reliable_only: bool | str = True,
        label_key: str = "label",
        refine: str | PixelAdaptiveRefinement | DenseCRF | ClassMapRefinement | None = None,
        grid: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
        **words: Unpack[PresenceWords],
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.network = network
        self.label_key = label_key
        self.refinement = ClassMapRefinement.of(refine, network)
        self.grid = None if grid is None else tuple(grid)
        self.words: dict[str, Any] = {"rule": rule, "threshold": threshold, "gate": gate, "fusion": fusion}
        reliable_only = as_flag("reliable_only", reliable_only)
        used = "none" if self.refinement is None else self.refinement.settings
        self.settings = {**self.words, "reliable_only": reliable_only, "refine": used}
        if getattr(network, "output_kind", None) == "segmentation":
            self.settings["label_filter"] = gate or "none"
        if not reliable_only:
            self.words["reliable"] = None
        if words.get("presence_level") is not None:
            self.words["presence_level"] = torch.as_tensor(words["presence_level"])
        if unknown := sorted(set(words) - set(ToMaskd.taken_words)):
            raise TypeError(f"ToMaskd takes no argument `{unknown[0]}`.")
        if words.get("topk_pixels") is not None:
            self.words["topk_pixels"] = self.settings["topk_pixels"] = words["topk_pixels"]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        told = next((told_rule(item[key]) for key in self.key_iterator(item)), None)
        rule = self._rule(told)
        gate = rule.gate
        if gate == "given" and self.label_key not in item:
            raise DataError(
                f"Case {item.get('id', '?')} has no `{self.label_key}` to filter its classes by: take `gate` "
                "'predicted' or 'none'."
            )
        label = torch.as_tensor(item[self.label_key])[None] if gate == "given" else None
        logits = self._classified(item, rule, told)
        if logits is not None:
            level = 0.0 if rule.presence_level is None else rule.presence_level
            rule, label = replace(rule, gate="given"), (logits > torch.as_tensor(level).to(logits)).float()
        for key in self.key_iterator(item):
            mask, cam, presence = self.decide(rule, plain_tensor(item[key])[None], item, label, told)
            item[key] = mask[0]
            if cam is not None and presence is not None:
                item["cam"], item["presence"] = cam[0], presence[0]
                if rule.min_contrast is not None:  # of maps that are never negative, and so are no logits
                    item["presence_kind"] = "difference"
        if rule.output_kind == "segmentation":
            item["label_filter"] = gate
            if logits is not None:
                item["presence"] = logits[0].cpu()
        return item

    def _rule(self, told: ToldRule | None) -> MaskRule:
        """Give the rule that a prediction tells, else that of the network, with the words that were given here."""
        if told is None and self.network is None:
            raise ValueError(
                "Expected a prediction that tells its rule, got none, and no `network`: infer with "
                "VolumeInferer(tell_rule=True) and keep MONAI's metadata on, or give `network`."
            )
        if told is None:
            return MaskRule.of(self.network, **self.words)
        words = {name: value for name, value in self.words.items() if name != "rule" or value is not None}
        return replace(told.rule, **words)

    def decide(
        self,
        rule: MaskRule,
        scores: torch.Tensor,
        item: Mapping[Hashable, Any],
        label: torch.Tensor | None,
        told: ToldRule | None = None,
    ) -> MaskDecision:
        """Decide the scores (1, channels, *S) of an item, with a label (1, K) where the gate is given."""
        if self.refinement is None:
            return rule(scores, label)
        axis = None if told is None else told.slicing_axis
        return self.refinement(rule, scores, self.refinement.image_of(item), label, axis)

    def _classified(self, item: Mapping[Hashable, Any], rule: MaskRule, told: ToldRule | None) -> torch.Tensor | None:
        """Give the logits (1, K) of a segmenter's own classifier where the label filter asks it, else None."""
        branches = getattr(self.network, "branches", None)
        if self.network is None or rule.output_kind != "segmentation" or rule.gate != "predicted" or branches is None:
            return None
        if told is not None and told.network != id(self.network):
            raise ValueError(
                "The label filter 'predicted' asks the classifier of the network that made the prediction, and has "
                "another one: take `gate` 'none' or 'given', or run the bundle by `python -m monai.bundle run`."
            )
        if "image" not in item:
            raise ValueError("The label filter 'predicted' reads the key 'image' of an item: keep it.")
        image = plain_tensor(torch.as_tensor(item["image"]))[None].float()
        dims = int(getattr(self.network, "spatial_dims", 2))
        if image.ndim - 2 != dims:
            raise ValueError(
                f"Expected an image of {dims} dimensions for the label filter 'predicted', which asks the network's "
                f"classifier, got {image.ndim - 2}: take 'none' or 'given'."
            )
        image = image.to(next(self.network.parameters()).device)
        # An evaluator decides masks after it has put the network back into training mode.
        with eval_mode(self.network):
            logits: torch.Tensor = branches(image if self.grid is None else resize_linear(image, self.grid)).logits
        return logits.float()
