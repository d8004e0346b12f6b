# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""From a network's output over a whole image or volume to its mask: map, rule, pooling, in one function.

A rule has two numbers for each image and class: the *level* that counts as zero, and the *cut*, as a share of the way
from that level to the peak. Above (strictly) is foreground.

| rule                 | level                                    | peak                | cut              |
|----------------------|------------------------------------------|---------------------|------------------|
| `minmax`             | the image's lowest ReLU(m)               | the class's highest | `threshold`, 0.5 |
| `max`                | 0                                        | the class's highest | `threshold`, 0.5 |
| `negative_reference` | median of training-negative pixels       | the class's highest | `threshold`, 0.5 |
| `logit`              | 0: a pixel's own logit                   | of all classes      | 0                |
| `negative_quantile`  | high quantile of training-negative ones  | of all classes      | 0                |
| `otsu`               | Otsu's threshold of this image and class | of all classes      | 0                |
| `fixed`              | `threshold`, on the raw map              | of all classes      | 0                |
| `argmax`             | none: two or more real classes, no background; the class with the largest signed response     |

With the rules of the upper half, classes that compete for a pixel are compared as shares of their own peak; with those
of the lower half by how far their raw responses exceed the level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, check_label, check_shape, float32_or_wider
from monai_wsss.cams import decision_rule, fuse_groups, normalize_maps, pool_maps, subtract_negative_reference
from monai_wsss.refinement.threshold import otsu_threshold

__all__ = ["cut_score_maps", "score_maps", "to_mask"]

_SHARE_OF_PEAK = ("minmax", "max", "negative_reference")
_RAW = ("logit", "negative_quantile", "otsu", "fixed")


def to_mask(
    scores: torch.Tensor,
    *,
    output_kind: str = "activation",
    pooling: str = "average",
    rule: str | None = None,
    threshold: float | None = None,
    negative_reference: torch.Tensor | None = None,
    negative_quantile: torch.Tensor | None = None,
    groups: int = 1,
    reliable: torch.Tensor | None = None,
    fusion: str = "max",
    gate: str | None = None,
    label: torch.Tensor | None = None,
    topk_share: float = 0.1,
    lse_sharpness: float = 5.0,
) -> torch.Tensor:
    """Decide each pixel's class from what the network gave for the *whole* image or volume.

    Activations: class k is present in the image if its pooled raw logit is positive (``gate="predicted"``); the maps of
    present classes are cut by ``rule``; a pixel above the cut for several classes takes the one with the highest score;
    other pixels are 0. With G > 1 groups, presence is decided for each group and class, and the groups are fused.
    Segmentations: the argmax over background and classes; with ``gate``, absent classes are left out of it.

    Args:
        scores: ``"activation"``: raw maps (B, G*K, *S), channel g K + k. ``"segmentation"``: logits (B, K+1, *S),
            channel 0 background (with ``rule="argmax"``: (B, K, *S), no background).
        output_kind: the network's attribute, ``"activation"`` or ``"segmentation"``.
        pooling: the network's attribute, see :func:`~monai_wsss.cams.pool_maps`.
        rule: see the table of this module; None: the one that ``pooling`` calls for
            (:func:`~monai_wsss.cams.decision_rule`), for segmentations the argmax.
        threshold: the cut in [0, 1] of minmax, max and negative_reference (None: 0.5); the raw response of ``"fixed"``.
        negative_reference: the network's buffer (G*K,), for that rule.
        negative_quantile: the network's buffer (G*K,), for that rule.
        groups: G, the network's attribute.
        reliable: (G,) bool, the network's buffer: other groups take no part, neither in the maps nor in the presence.
        fusion: ``"max"`` or ``"mean"`` over groups.
        gate: ``"predicted"`` (None for activations), ``"given"`` (by ``label``) or ``"none"`` (None for segmentations).
            Segmentations predict presence by pooling class minus background: choose ``"topk"`` or ``"max"`` for them.
        label: (B, K), 0/1, for ``gate="given"``.
        topk_share: of the pooling ``"topk"``.
        lse_sharpness: of the pooling ``"lse"``.

    Returns:
        uint8 mask (B, 1, *S): 0, or 1..K for class k = 0..K-1. An image without any present class is 0 throughout.

    Raises:
        ValueError: NaN or infinity in ``scores``; a rule whose reference is absent or NaN; arguments that do not fit.

    Example:
        >>> scores = torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]])
        >>> to_mask(scores, pooling="max", rule="logit").flatten().tolist()
        [0, 0, 1, 1]
        >>> to_mask(scores, pooling="max", negative_reference=torch.tensor([-4.0])).flatten().tolist()
        [0, 0, 1, 1]
        >>> to_mask(scores - 5, pooling="max", rule="minmax").sum().item()  # pooled logit -1: absent
        0
    """
    with torch.no_grad():
        maps, rule = _checked(scores, output_kind, pooling, rule, groups, fusion)
        _cut(rule, threshold)
        maps, *references = _taking_part(maps, reliable, negative_reference, negative_quantile)
        presence = _presence(maps, output_kind, rule, gate, label, pooling, topk_share, lse_sharpness)
        if rule in ("argmax", "background"):
            return _argmax_mask(_competing(maps, rule, presence, fusion), rule, presence)
        shares = _scores(maps, rule, presence, fusion, threshold, *references)
        return cut_score_maps(shares, rule, threshold)


def cut_score_maps(shares: torch.Tensor, rule: str, threshold: float | None = None) -> torch.Tensor:
    """The mask of maps that :func:`score_maps` gave by the same rule: the second half of :func:`to_mask`.

    Args:
        shares: (B, K, *S) in [0, 1].
        rule: any but argmax, by name.
        threshold: as :func:`to_mask`.

    Returns:
        uint8 mask (B, 1, *S), 0..K.

    Raises:
        ValueError: a threshold outside [0, 1], or one for a rule that takes none.

    Example:
        >>> cut_score_maps(torch.tensor([[[[0.2, 0.6]]]]), "minmax").tolist()
        [[[[0, 1]]]]
    """
    cut = _cut(rule, threshold)
    highest, winner = shares.max(dim=1, keepdim=True)
    return torch.where(highest > cut, winner + 1, 0).to(torch.uint8)


def score_maps(
    scores: torch.Tensor,
    *,
    output_kind: str = "activation",
    pooling: str = "average",
    rule: str | None = None,
    threshold: float | None = None,
    negative_reference: torch.Tensor | None = None,
    negative_quantile: torch.Tensor | None = None,
    groups: int = 1,
    reliable: torch.Tensor | None = None,
    fusion: str = "max",
    gate: str | None = None,
    label: torch.Tensor | None = None,
    topk_share: float = 0.1,
    lse_sharpness: float = 5.0,
) -> torch.Tensor:
    """The maps in [0, 1] that :func:`to_mask` cuts, gated and fused: for overlays and threshold sweeps.

    Cut at 0.5 (minmax, max, negative_reference) or at 0 (logit, negative_quantile, otsu, fixed) they give the mask.
    For argmax and segmentations: the softmax probabilities over the classes (and the background, which is left out).
    The arguments are those of :func:`to_mask`; half precision becomes float32.

    Returns:
        (B, K, *S) in [0, 1]; differentiable.

    Raises:
        ValueError: as :func:`to_mask`.

    Example:
        >>> scores = torch.tensor([[[[-4.0, -1.0], [1.0, 4.0]]]])
        >>> score_maps(scores, pooling="max", rule="max").flatten().tolist()
        [0.0, 0.0, 0.25, 1.0]
    """
    maps, rule = _checked(scores, output_kind, pooling, rule, groups, fusion)
    _cut(rule, threshold)
    maps, *references = _taking_part(maps, reliable, negative_reference, negative_quantile)
    presence = _presence(maps, output_kind, rule, gate, label, pooling, topk_share, lse_sharpness)
    if rule not in ("argmax", "background"):
        return _scores(maps, rule, presence, fusion, threshold, *references)
    competing = _competing(maps, rule, presence, fusion)
    if rule == "background":
        return competing.softmax(dim=1)[:, 1:]
    # An image without any present class has -inf in every channel, hence NaN: its probabilities are zero.
    return competing.softmax(dim=1).nan_to_num(nan=0.0)


def _checked(
    scores: torch.Tensor, output_kind: str, pooling: str, rule: str | None, groups: int, fusion: str
) -> tuple[torch.Tensor, str]:
    """The scores as (B, G, K, *S), or (B, 1, K+1, *S) for segmentations, and the rule by name."""
    check_shape("scores", scores, "(B, channels, *S)")
    check_choice("output_kind", output_kind, ("activation", "segmentation"))
    check_choice("fusion", fusion, ("max", "mean"))
    if output_kind == "segmentation":
        rule = "background" if rule is None else rule
        if rule not in ("background", "argmax") or groups != 1:
            raise ValueError(
                "Expected `rule` None or 'argmax' (no background channel) and `groups` 1 for output_kind "
                f"'segmentation', got {rule!r} and {groups}."
            )
    else:
        rule = decision_rule(pooling) if rule is None else rule
        check_choice("rule", rule, (*_SHARE_OF_PEAK, *_RAW, "argmax"))
    if groups < 1 or scores.shape[1] % groups:
        raise ValueError(f"Expected `scores` of groups x classes channels, got {scores.shape[1]} with {groups} groups.")
    classes = scores.shape[1] // groups - (rule == "background")
    if not (2 if rule == "argmax" else 1) <= classes <= 255:
        raise ValueError(f"Expected 1 to 255 classes (argmax: 2 to 255) in `scores`, got {classes}.")
    if not bool(scores.isfinite().all()):
        raise ValueError(
            "Expected finite `scores`, got NaN or infinity: the input image or the network's weights hold such values; "
            "check the image's intensities and that the training did not diverge."
        )
    return float32_or_wider(scores).unflatten(1, (groups, -1)), rule


def _taking_part(maps: torch.Tensor, reliable: torch.Tensor | None, *references: torch.Tensor | None) -> list[Any]:
    """The maps (B, G, K, *S) and references (G*K,) of the reliable groups."""
    if reliable is None:
        return [maps, *references]
    groups, classes = maps.shape[1:3]
    if reliable.shape != (groups,) or not bool(reliable.any()):
        raise ValueError(
            f"Expected `reliable` of shape (G,) = ({groups},) with at least one group, got {reliable.tolist()}."
        )
    chosen, channels = reliable.to(maps.device), reliable.repeat_interleave(classes)
    kept = [None if reference is None else reference[channels.to(reference.device)] for reference in references]
    return [maps[:, chosen], *kept]


def _presence(
    maps: torch.Tensor,
    output_kind: str,
    rule: str,
    gate: str | None,
    label: torch.Tensor | None,
    pooling: str,
    topk_share: float,
    lse_sharpness: float,
) -> torch.Tensor | None:
    """Which classes may appear (B, G, K), bool; None: all."""
    if gate is None:
        gate = "predicted" if output_kind == "activation" else "none"
    check_choice("gate", gate, ("none", "predicted", "given"))
    if (label is not None) != (gate == "given"):
        raise ValueError(
            f"Expected `label` with gate='given' and only then, got gate={gate!r} "
            f"and {'no label' if label is None else 'a label'}."
        )
    if gate == "none":
        return None
    if rule == "background":
        maps = maps[:, :, 1:] - maps[:, :, :1]
    if label is not None:
        check_label(label, maps.shape[0], maps.shape[2])
        return (label > 0)[:, None].expand(-1, maps.shape[1], -1).to(maps.device)
    logits = pool_maps(maps.flatten(1, 2), pooling, topk_share=topk_share, lse_sharpness=lse_sharpness)
    return (logits > 0).unflatten(1, maps.shape[1:3])


def _cut(rule: str, threshold: float | None) -> float:
    """Where the scores in [0, 1] are cut; raises if ``threshold`` does not fit the rule."""
    if rule in _SHARE_OF_PEAK:
        cut = 0.5 if threshold is None else threshold
        if not 0.0 <= cut <= 1.0:
            raise ValueError(f"Expected `threshold` in [0, 1] for rule {rule!r}, got {cut}.")
        return cut
    if rule != "fixed" and threshold is not None:
        raise ValueError(f"Rule {rule!r} takes no `threshold`, got {threshold}: use 'fixed' for a raw response.")
    if rule == "fixed" and (threshold is None or not math.isfinite(threshold)):
        raise ValueError(f"Rule 'fixed' needs a finite `threshold`, the raw response to cut at, got {threshold}.")
    return 0.0


def _scores(
    maps: torch.Tensor,
    rule: str,
    presence: torch.Tensor | None,
    fusion: str,
    threshold: float | None,
    negative_reference: torch.Tensor | None,
    negative_quantile: torch.Tensor | None,
) -> torch.Tensor:
    """The upper half of the table normalizes, then fuses groups; the lower half fuses raw margins, then normalizes."""
    size = maps.shape[1:3]
    channels = maps.flatten(1, 2)
    if rule in _SHARE_OF_PEAK:
        if rule == "negative_reference":
            shares = subtract_negative_reference(channels, _required(rule, negative_reference, channels))
        else:
            shares = normalize_maps(channels, rule)
        return fuse_groups(shares.unflatten(1, size), fusion=fusion, presence=presence)
    if rule == "otsu":
        level = otsu_threshold(channels)
    elif rule == "negative_quantile":
        level = _required(rule, negative_quantile, channels)[None]
    else:
        level = channels.new_full((1, 1), threshold or 0.0)
    margins = channels - level.reshape(*level.shape, *[1] * (channels.ndim - 2))
    positive = F.relu(fuse_groups(margins.unflatten(1, size), fusion=fusion, presence=presence))
    peak = positive.amax(dim=tuple(range(1, positive.ndim)), keepdim=True)
    return positive / torch.where(peak > 0, peak, torch.ones_like(peak))


def _required(rule: str, reference: torch.Tensor | None, channels: torch.Tensor) -> torch.Tensor:
    """The network's buffer for ``rule``, on the maps' device, or a message that says how to get it."""
    if reference is None or not bool(reference.isfinite().all()):
        state = "absent" if reference is None else f"{reference.tolist()}"
        raise ValueError(
            f"Rule {rule!r} needs the network's `{rule}`, which is {state}: run `method.finalize(train_loader)` "
            "(training to its last epoch does), or choose a rule that needs no reference, e.g. rule='otsu'."
        )
    if reference.shape != channels.shape[1:2]:
        raise ValueError(
            f"Expected `{rule}` of shape (G*K,) = {tuple(channels.shape[1:2])}, got {tuple(reference.shape)}."
        )
    return reference.to(channels)


def _competing(maps: torch.Tensor, rule: str, presence: torch.Tensor | None, fusion: str) -> torch.Tensor:
    """Signed responses over channels that exclude one another (B, channels, *S); absent classes are -inf."""
    competing = maps.amax(dim=1) if fusion == "max" else maps.mean(dim=1)
    if presence is None:
        return competing
    allowed = presence.any(dim=1)
    if rule == "background":
        allowed = F.pad(allowed, (1, 0), value=True)
    return competing.masked_fill(~allowed.reshape(*allowed.shape, *[1] * (competing.ndim - 2)), -torch.inf)


def _argmax_mask(competing: torch.Tensor, rule: str, presence: torch.Tensor | None) -> torch.Tensor:
    # Not argmax: over few channels of a large image torch's is twenty times as slow on a CPU.
    winner = competing.max(dim=1, keepdim=True).indices
    if rule == "background":
        return winner.to(torch.uint8)
    mask = (winner + 1).to(torch.uint8)
    if presence is None:
        return mask
    return mask * presence.flatten(1).any(dim=1).reshape(-1, *[1] * (mask.ndim - 1))
