# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""From a network's output over a whole image or volume to its mask: presence, score map and cut, as one value.

A rule has two numbers for each image and class: the *level* that counts as zero, and the *cut*, as a share of the way
from that level to the peak. Above (strictly) is foreground.

| rule                 | level                                     | peak                | cut              |
|----------------------|-------------------------------------------|---------------------|------------------|
| `minmax`             | the image's lowest ReLU(m)                | the class's highest | `threshold`, 0.5 |
| `max`                | 0                                         | the class's highest | `threshold`, 0.5 |
| `negative_reference` | healthy level (median of negative pixels) | the class's highest | `threshold`, 0.5 |
| `logit`              | 0: a pixel's own logit                    | of all classes      | 0                |
| `negative_quantile`  | high quantile of negative pixels          | of all classes      | 0                |
| `otsu`               | Otsu's threshold of this image and class  | of all classes      | 0                |
| `mixture`            | where two Gaussians of its scores cross   | of all classes      | 0                |
| `fixed`              | `threshold`, on the raw map               | of all classes      | 0                |
| `percentile`         | that of this image and class, `threshold` | of all classes      | 0                |
| `argmax`             | none: two or more real classes, no background; the class with the largest signed response     |

The rules of the upper half compare classes that compete for a pixel as shares of their own peak. Those of the lower
half compare how far the raw responses exceed the level. `mixture` fits the scores of `minmax`, for each image and
class, and where they do not show two populations it cuts at their 0.5. One cut for many images together is found by
:func:`~monai_wsss.refinement.mixture_rule` and :func:`~monai_wsss.refinement.otsu_rule`.

Every rule but `logit`, `negative_quantile` and `fixed` finds something in whatever map it gets. So an image has to pass
the presence gate first: its map, pooled as the network was trained, must exceed the *presence level* of the class: 0
for maps whose pooled value is a logit. Maps that are never negative, such as differences of two images, need a level of
their own. `min_contrast` guards them also where there is no gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider
from monai_wsss._labels import IGNORED
from monai_wsss.cams import decision_rule, fuse_groups, normalize_maps, pool_maps, subtract_negative_reference
from monai_wsss.refinement.gaussian_mixture import mixture_levels
from monai_wsss.refinement.score_cut import RAW, SHARE_OF_PEAK, cut_of, cut_score_maps, of_pixels
from monai_wsss.refinement.threshold import otsu_threshold, percentile_threshold

__all__ = ["MaskDecision", "MaskRule"]

# What a network tells of itself.
_TOLD = (
    "pooling", "topk_share", "lse_sharpness", "groups", "reliable",
    "negative_reference", "negative_quantile", "filled", "presence_level", "rule", "min_contrast", "background_map",
)  # fmt: skip


class MaskDecision(NamedTuple):
    """What a :class:`MaskRule` decides of a batch.

    Attributes:
        mask: uint8 (B, 1, *S): 0, or 1..K for class k = 0..K-1. An image without any present class is 0 throughout.
        cam: score maps (B, K, *S) in [0, 1]; None for segmentations.
        presence: image-level logits (B, K), of each class the greatest over the groups; None for segmentations.
    """

    mask: torch.Tensor
    cam: torch.Tensor | None
    presence: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class MaskRule:
    """How what a network gives for the *whole* image or volume becomes a mask.

    Activations: class k is present if its pooled raw map exceeds the presence level (``gate="predicted"``). The maps of
    present classes are cut by ``rule``. A pixel above the cut for several classes takes the one with the highest score.
    With G > 1 groups, presence is decided for each group and class, and the groups are fused.
    Segmentations: the argmax over background and classes; with ``gate``, absent classes are left out of it.

    ``network.mask_rule()`` gives the rule of a network, :meth:`of` that of a compiled one too, and
    ``dataclasses.replace`` changes single words of it.

    Args:
        output_kind: the network's attribute, ``"activation"`` or ``"segmentation"``.
        pooling: the network's attribute, see :func:`~monai_wsss.cams.pool_maps`.
        rule: see the table of this module; None: the one that ``pooling`` calls for
            (:func:`~monai_wsss.cams.decision_rule`), for segmentations ``"background"``, the argmax.
        threshold: the cut in [0, 1] of minmax, max and negative_reference (None: 0.5); the raw response of ``"fixed"``;
            the share of pixels below the cut, in percent, of ``"percentile"``.
        negative_reference: the network's buffer (G*K,), the healthy level, for that rule.
        negative_quantile: the network's buffer (G*K,), for that rule.
        filled: the network's buffer (G*K,) bool: where both of them have been measured; None: where they are finite.
        groups: G, the network's attribute.
        reliable: (G,) bool, the network's buffer: other groups take no part, neither in the maps nor in the presence.
        fusion: ``"max"`` or ``"mean"`` over groups.
        gate: ``"predicted"`` (None for activations), ``"given"`` (by the label) or ``"none"`` (None for segmentations).
            Segmentations predict presence by pooling class minus background: choose ``"topk"`` or ``"max"`` for them.
        presence_level: what the pooled raw map of a class has to exceed, one number or (G*K,); None: 0.
        topk_share: of the pooling ``"topk"``.
        topk_pixels: how many pixels ``"topk"`` averages, as many as of a training tile; None: ``topk_share`` of them.
        lse_sharpness: of the pooling ``"lse"``.
        min_contrast: a class is absent, whatever the gate says, where no pixel of its raw map exceeds this; None for no
            such guard. Activations alone have it.
        background_map: whether each group of activations begins with a map of the background, as with a softmax over
            background and class (CMER). It decides on presence with the class, whose own map is cut.

    Raises:
        ValueError: words that do not fit one another.

    Example:
        >>> rule = MaskRule(pooling="max", negative_reference=torch.tensor([-4.0]))
        >>> decision = rule(torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]]))
        >>> decision.mask.flatten().tolist(), decision.presence.item()
        ([0, 0, 1, 1], 4.0)
        >>> replace(rule, presence_level=5.0)(torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]])).mask.sum().item()
        0
    """

    output_kind: str = "activation"
    pooling: str = "average"
    rule: str | None = None
    threshold: float | None = None
    negative_reference: torch.Tensor | None = None
    negative_quantile: torch.Tensor | None = None
    filled: torch.Tensor | None = None
    groups: int = 1
    reliable: torch.Tensor | None = None
    fusion: str = "max"
    gate: str | None = None
    presence_level: float | torch.Tensor | None = None
    topk_share: float = 0.1
    lse_sharpness: float = 5.0
    min_contrast: float | None = None
    background_map: bool = False
    topk_pixels: int | None = None

    def __post_init__(self) -> None:
        check_choice("output_kind", self.output_kind, ("activation", "segmentation"))
        check_choice("fusion", self.fusion, ("max", "mean"))
        decision_rule(self.pooling)  # raises for an unknown pooling
        if self.output_kind == "segmentation":
            rule, gate = self.rule or "background", self.gate or "none"
            if self.background_map:
                raise ValueError("Expected `background_map` for activations alone: segmentations have a background.")
            if rule not in ("background", "argmax") or self.groups != 1 or self.min_contrast is not None:
                raise ValueError(
                    "Expected `rule` None or 'argmax' (no background channel), `groups` 1 and no `min_contrast` for "
                    f"output_kind 'segmentation', got {rule!r}, {self.groups} and {self.min_contrast}."
                )
        else:
            rule, gate = self.rule or decision_rule(self.pooling), self.gate or "predicted"
            check_choice("rule", rule, (*SHARE_OF_PEAK, *RAW, "argmax"))
        check_choice("gate", gate, ("none", "predicted", "given"))
        cut_of(rule, self.threshold)
        for name, value in (("rule", rule), ("gate", gate)):
            object.__setattr__(self, name, value)
        for name, number in (("groups", self.groups), ("topk_pixels", self.topk_pixels)):
            if number is not None and number < 1:
                raise ValueError(f"Expected `{name}` >= 1, got {number}.")
        known = self.reliable
        if known is not None and (known.dtype != torch.bool or known.shape != (self.groups,) or not bool(known.any())):
            shape = f"of shape (G,) = ({self.groups},) with at least one group"
            raise ValueError(f"Expected bool `reliable` {shape}, got {known.tolist()}.")
        level = torch.as_tensor(0.0 if self.presence_level is None else self.presence_level)
        if level.ndim > 1 or not bool(level.isfinite().all()):
            raise ValueError(f"Expected `presence_level` to be a finite number or (G*K,), got {level.tolist()}.")
        if isinstance(self.presence_level, (list, tuple)):
            object.__setattr__(self, "presence_level", level)

    @classmethod
    def of(cls, network: Any, **changes: Any) -> MaskRule:
        """Read the rule from a deployable network: one of this package, compiled, or anybody's.

        Args:
            network: gives its ``mask_rule()``, or has ``output_kind`` and, for activations, ``pooling``, its options,
                ``groups``, ``reliable``, ``presence_level`` and the buffers of the healthy level as attributes. What
                it lacks keeps its default.
            changes: words to take instead of the network's; with ``rule=None``, its own stays.

        Raises:
            ValueError: a network that does not tell its ``output_kind``, a compiled one that was built for some of its
                modalities, or words that do not fit.

        Example:
            >>> from monai_wsss.networks import CAMEncoder
            >>> MaskRule.of(torch.jit.script(CAMEncoder.tiny()), gate="none").rule
            'negative_reference'
        """
        if changes.get("rule", "") is None:
            del changes["rule"]
        if hasattr(network, "mask_rule") and not isinstance(network, torch.jit.ScriptModule):
            return replace(network.mask_rule(), **changes)
        kind = changes.get("output_kind", getattr(network, "output_kind", None))
        if kind is None:
            raise ValueError(
                f"Expected a network with the attribute `output_kind`, 'activation' or 'segmentation', got "
                f"{type(network).__name__}: give a segmenter to monai_wsss.methods.SegmentationNetwork first."
            )
        if -1 in list(getattr(network, "channels", ())):
            raise ValueError("A compiled network with `present` modalities cannot be decided: use the network itself.")
        names = _TOLD if kind == "activation" and hasattr(network, "output_kind") else ()
        told = {name: getattr(network, name) for name in names if hasattr(network, name)}
        return cls(**{**told, "output_kind": kind, **changes})

    @torch.no_grad()
    def __call__(
        self, scores: torch.Tensor, label: torch.Tensor | None = None, refined: torch.Tensor | None = None
    ) -> MaskDecision:
        """Decide masks, score maps and presence in one pass.

        Args:
            scores: ``"activation"``: raw maps (B, G*K, *S), channel g K + k; with ``background_map`` (B, G*(K+1), *S).
                ``"segmentation"``: logits (B, K+1, *S), channel 0 background (with ``rule="argmax"``: (B, K, *S)).
            label: (B, K), 0/1, with ``gate="given"`` and only then.
            refined: what is cut in the place of ``scores``, of their shape; presence stays that of ``scores``.

        Returns:
            ``(mask, cam, presence)``.

        Raises:
            ValueError: NaN or infinity in ``scores``, a rule whose reference has not been measured, a label that is
                missing or not asked for, or shapes that do not fit.
        """
        maps = self._taking_part(scores)
        shown = self.of_classes(maps if refined is None else self._taking_part(refined))
        if self.output_kind == "segmentation":
            return MaskDecision(self._winners(shown, self._present(maps, label)), None, None)
        logits = self.pool(maps)
        present = self._present(maps, label, logits)
        cam = self._score_maps(shown, present)
        mask = self._winners(shown, present) if self.rule == "argmax" else self._cut_maps(cam)
        return MaskDecision(mask, cam, logits.amax(dim=1))

    @torch.no_grad()
    def mask(self, scores: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Decide masks alone, uint8 (B, 1, *S); arguments and errors as of a call."""
        maps = self._taking_part(scores)
        present, maps = self._present(maps, label), self.of_classes(maps)
        if self.rule in ("argmax", "background"):
            return self._winners(maps, present)
        return self._cut_maps(self._score_maps(maps, present))

    def score_maps(self, scores: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Give the maps (B, K, *S) in [0, 1] that are cut, differentiable; arguments and errors as of a call."""
        maps = self._taking_part(scores)
        return self._score_maps(self.of_classes(maps), self._present(maps, label))

    def of_classes(self, maps: torch.Tensor) -> torch.Tensor:
        """Give maps (B, G, K, *S) of the classes alone, without those of the background where groups have one."""
        return maps[:, :, 1:] if self.background_map else maps

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool maps into logits, differentiable: ``(B, G, K, *S) -> (B, G, K)``; class minus background of K+1 maps."""
        pixels = math.prod(maps.shape[3:])
        share = self.topk_share if self.topk_pixels is None else min(1.0, self.topk_pixels / max(1, pixels))
        logits = pool_maps(maps.flatten(1, 2), self.pooling, topk_share=share, lse_sharpness=self.lse_sharpness)
        logits = logits.unflatten(1, maps.shape[1:3])
        return logits[:, :, 1:] - logits[:, :, :1] if self.background_map else logits

    def settings(self) -> dict[str, Any]:
        """Give all words as plain values, for a record: lists instead of tensors."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}

    def _taking_part(self, scores: torch.Tensor) -> torch.Tensor:
        """Check scores; give (B, G, K, *S) of reliable groups, K+1 with a background, of segmentations G = 1."""
        check_shape("scores", scores, "(B, channels, *S)")
        if scores.shape[1] % self.groups:
            got = f"got {scores.shape[1]} with {self.groups} groups"
            raise ValueError(f"Expected `scores` of groups x classes channels, {got}.")
        classes = scores.shape[1] // self.groups - (self.rule == "background" or self.background_map)
        if not (2 if self.rule == "argmax" else 1) <= classes < IGNORED:
            words = f"Expected 1 to {IGNORED - 1} classes (argmax: 2 or more) in `scores`, got {classes}"
            raise ValueError(f"{words}: {IGNORED} in a mask means ignored.")
        if not bool(scores.isfinite().all()):
            raise ValueError(
                "Expected finite `scores`, got NaN or infinity: the input image or the network's weights hold such "
                "values; check the image's intensities and that the training did not diverge."
            )
        maps = float32_or_wider(scores).unflatten(1, (self.groups, -1))
        return maps if self.reliable is None else maps[:, self.reliable.to(maps.device)]

    def _of_channels(self, name: str, values: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Give the part of values (G*K,) that belongs to maps (B, reliable G, K, *S), on their device: (G, K)."""
        classes = maps.shape[2]
        if values.shape != (self.groups * classes,):
            raise ValueError(
                f"Expected `{name}` of shape (G*K,) = {(self.groups * classes,)}, got {tuple(values.shape)}."
            )
        values = values.unflatten(0, (self.groups, classes))
        values = values if self.reliable is None else values[self.reliable.to(values.device)]
        return values.to(maps.device)

    def _present(
        self, maps: torch.Tensor, label: torch.Tensor | None, logits: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Decide which classes may appear (B, G, K), bool; None: all."""
        passed = self._gated(maps, label, logits)
        if self.min_contrast is None:
            return passed
        contrasting = self.of_classes(maps).flatten(3).amax(dim=3) > self.min_contrast
        return contrasting if passed is None else passed & contrasting

    def _gated(
        self, maps: torch.Tensor, label: torch.Tensor | None, logits: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Decide which classes pass the gate (B, G, K), bool; None: all."""
        if (label is not None) != (self.gate == "given"):
            given = "no label" if label is None else "a label"
            raise ValueError(f"Expected `label` with gate='given' and only then, got gate={self.gate!r} and {given}.")
        if self.gate == "none":
            return None
        maps = maps[:, :, 1:] - maps[:, :, :1] if self.rule == "background" else maps
        classes = self.of_classes(maps)
        if label is not None:
            check_label(label, maps.shape[0], classes.shape[2])
            return (label > 0)[:, None].expand(-1, maps.shape[1], -1).to(maps.device)
        level: float | torch.Tensor = 0.0 if self.presence_level is None else self.presence_level
        if isinstance(level, torch.Tensor):
            level = self._of_channels("presence_level", level, classes) if level.ndim else level.to(maps.device)
        return (self.pool(maps) if logits is None else logits) > level

    def _score_maps(self, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Scale and fuse maps (B, G, K, *S); segmentations become the probabilities of their classes."""
        if self.rule not in ("argmax", "background"):
            return self._shares(maps, present)
        competing = self._competing(maps, present)
        if self.rule == "background":
            return competing.softmax(dim=1)[:, 1:]
        # An image without any present class has -inf in every channel, hence NaN: its probabilities are zero.
        return competing.softmax(dim=1).nan_to_num(nan=0.0)

    def _shares(self, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Normalize, then fuse groups (upper half of the table); or fuse raw margins, then normalize (lower half)."""
        channels = maps.flatten(1, 2)
        if self.rule in SHARE_OF_PEAK:
            if self.rule == "negative_reference":
                shares = subtract_negative_reference(channels, self._reference(maps))
            else:
                shares = normalize_maps(channels, self.rule)
            return fuse_groups(shares.unflatten(1, maps.shape[1:3]), fusion=self.fusion, presence=present)
        positive = F.relu(fuse_groups(self._margins(maps), fusion=self.fusion, presence=present))
        peak = positive.amax(dim=tuple(range(1, positive.ndim)), keepdim=True)
        return positive / torch.where(peak > 0, peak, torch.ones_like(peak))

    def _margins(self, maps: torch.Tensor) -> torch.Tensor:
        """Give by how much maps (B, G, K, *S) exceed the level of a rule of the lower half."""
        channels = maps.flatten(1, 2)
        if self.rule == "otsu":
            level = otsu_threshold(channels)
        elif self.rule == "mixture":
            level = mixture_levels(channels)
        elif self.rule == "percentile":
            level = percentile_threshold(channels, self.threshold or 0.0)
        elif self.rule == "negative_quantile":
            level = self._reference(maps)[None]
        else:
            level = channels.new_full((1, 1), self.threshold or 0.0)
        return (channels - of_pixels(level, channels)).unflatten(1, maps.shape[1:3])

    def _reference(self, maps: torch.Tensor) -> torch.Tensor:
        """Give the network's buffer for this rule, of the channels of the maps, or say how to get it."""
        name = str(self.rule)
        reference, state = getattr(self, name), "absent"
        if reference is not None:
            reference = self._of_channels(name, reference, maps).flatten()
            known = reference.isfinite()
            if self.filled is not None:
                known = known & self._of_channels("filled", self.filled, maps).flatten()
            if bool(known.all()):
                return reference.to(maps)
            state = f"not measured for channels {(~known).nonzero().flatten().tolist()}"
        raise ValueError(
            f"Rule {name!r} needs the network's `{name}`, which is {state}: run `method.finalize(train_loader)` "
            "(training to its last epoch does), or choose a rule that needs no reference, e.g. rule='otsu'."
        )

    def _competing(self, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Fuse groups into signed responses that exclude one another (B, channels, *S); absent classes are -inf."""
        competing = maps.amax(dim=1) if self.fusion == "max" else maps.mean(dim=1)
        if present is None:
            return competing
        allowed = present.any(dim=1)
        if self.rule == "background":
            allowed = F.pad(allowed, (1, 0), value=True)
        return competing.masked_fill(~of_pixels(allowed, competing), -torch.inf)

    def _winners(self, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Give each pixel the class with the largest response, uint8 (B, 1, *S)."""
        # Not argmax: over few channels of a large image torch's is twenty times as slow on a CPU.
        winner = self._competing(maps, present).max(dim=1, keepdim=True).indices
        if self.rule == "background":
            return winner.to(torch.uint8)
        mask = (winner + 1).to(torch.uint8)
        if present is None:
            return mask
        return mask * present.flatten(1).any(dim=1).reshape(-1, *[1] * (mask.ndim - 1))

    def _cut_maps(self, shares: torch.Tensor) -> torch.Tensor:
        return cut_score_maps(shares, str(self.rule), self.threshold)
