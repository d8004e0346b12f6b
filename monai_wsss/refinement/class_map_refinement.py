# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Class maps drawn to the edges of their image before they are cut: PAR or a CRF between a network and its mask.

Presence is always decided by the raw maps, as the network was trained. Only what is cut is refined.

- PAR takes raw maps, each channel of each group on its own. Its weights must sum to 1. A refined response is then a
  mean of responses and stays on the scale on which healthy level, cut and presence level were measured. The rule cuts
  it as it cuts raw maps. (AFA and CoSA refine maps in [0, 1] beside a constant background.)
- The CRF takes probabilities of the present classes and of the background, after the fusion of groups: see
  :mod:`~monai_wsss.refinement.score_cut`. The most probable class wins. That is the rule's mask if the CRF changes
  nothing.
- For segmentations, both take the softmax over background and classes. For argmax without a background, PAR takes raw
  maps, and the CRF their softmax.

PAR does not depend on gain and offset of an image channel. A CRF reads gray levels. An image outside
0..``intensity_range`` (z-scores, MR intensities) is first stretched to that range, each channel from its 0.5 % to its
99.5 % quantile, and clipped. With ``intensity_range=None`` the image is taken as it is.

Maps of a 2D network over a volume are refined slice by slice, those of a 3D network in 3D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import check_choice, check_shape, float32_or_wider, plain_tensor
from monai_wsss.cams import fuse_groups
from monai_wsss.refinement.dense_crf import DenseCRF, has_gray_levels
from monai_wsss.refinement.mask_rule import MaskDecision, MaskRule
from monai_wsss.refinement.pixel_adaptive import PixelAdaptiveRefinement
from monai_wsss.refinement.score_cut import (
    SHARE_OF_PEAK,
    cut_of,
    cut_score_maps,
    of_pixels,
    probabilities_of,
    score_maps_of,
    signed_share,
)
from monai_wsss.refinement.slice_axis import slice_axis_of

__all__ = ["ClassMapRefinement"]

_TAILS = 0.005  # share of the pixels of a channel that a stretch clips, at either end


class ClassMapRefinement:
    """PAR or a CRF on class maps, as a step before a :class:`~monai_wsss.refinement.MaskRule`: see the module.

    Args:
        part: ``"par"``, ``"crf"`` (each with its defaults), a
            :class:`~monai_wsss.refinement.PixelAdaptiveRefinement` with ``row_stochastic=True``, or a
            :class:`~monai_wsss.refinement.DenseCRF`.
        spatial_dims: 2 refines volumes slice by slice, 3 in 3D; None: as many as the image has.
        slice_axis: array axis of a volume along which its slices follow one another, 0..2 or negative; None: the
            anatomical axis that ``network`` has a record of (its buffer ``reading_axes``), found by the image's affine,
            or else the last.
        network: the one that gives the maps, asked for its record alone.

    Raises:
        ValueError: another part, PAR whose weights do not sum to 1, or other dimensions.

    Example:
        >>> image = torch.zeros(1, 1, 6, 6)
        >>> image[..., 3:] = 200.0
        >>> maps = image / 50 - 1
        >>> maps[..., 2] = 2.0  # one column too many
        >>> refine = ClassMapRefinement(PixelAdaptiveRefinement(dilations=(1, 2), row_stochastic=True))
        >>> refine(MaskRule(rule="logit"), maps, image).mask[0, 0, 0].tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        part: str | PixelAdaptiveRefinement | DenseCRF,
        *,
        spatial_dims: int | None = None,
        slice_axis: int | None = None,
        network: nn.Module | None = None,
    ) -> None:
        if isinstance(part, str):
            check_choice("refine", part, ("par", "crf"))
            part = PixelAdaptiveRefinement(row_stochastic=True) if part == "par" else DenseCRF()
        if not isinstance(part, (PixelAdaptiveRefinement, DenseCRF)):
            raise ValueError(
                "Expected `refine` to be none, par, crf, a PixelAdaptiveRefinement or a DenseCRF, got "
                f"{type(part).__name__}."
            )
        if isinstance(part, PixelAdaptiveRefinement) and not part.row_stochastic:
            raise ValueError(
                "Expected PixelAdaptiveRefinement with `row_stochastic=True` for class maps: other weights scale raw "
                "maps, and the levels of the rule would no longer fit them."
            )
        if spatial_dims not in (None, 2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2, 3 or None, got {spatial_dims}.")
        if slice_axis is not None and not -3 <= slice_axis <= 2:
            raise ValueError(f"Expected `slice_axis` in -3..2 or None, got {slice_axis}.")
        self.part = part
        self.spatial_dims = spatial_dims
        self.slice_axis = slice_axis
        self.network = network

    @classmethod
    def of(cls, refine: Any, network: nn.Module | None, slice_axis: int | None = None) -> ClassMapRefinement | None:
        """Read the word of a configuration, for the maps of a network; give None for None and ``"none"``.

        Args:
            refine: ``"none"``, ``"par"``, ``"crf"``, one of their modules, or a finished :class:`ClassMapRefinement`.
            network: its ``spatial_dims``, or else its weights, tell whether it takes slices or volumes.  None is enough
                for None, ``"none"`` and a finished part.
            slice_axis: see the class.

        Raises:
            ValueError: as the class.
        """
        if refine is None or refine == "none":
            return None
        if isinstance(refine, cls):
            return refine
        if isinstance(refine, str):
            check_choice("refine", refine, ("none", "par", "crf"))
        if network is None:
            raise ValueError(
                "Expected `network` with `refine`, which tells whether volumes are refined slice by slice, got None: "
                "give it, or ClassMapRefinement(..., spatial_dims=2 or 3)."
            )
        return cls(refine, spatial_dims=_spatial_dims(network), slice_axis=slice_axis, network=network)

    @property
    def settings(self) -> dict[str, Any]:
        """Give its name and all settings as plain values, for a record."""
        of_part = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.part.settings.items()
        }
        return {
            "part": type(self.part).__name__,
            **of_part,
            "spatial_dims": self.spatial_dims,
            "slice_axis": self.slice_axis,
        }

    @torch.no_grad()
    def __call__(
        self,
        rule: MaskRule,
        scores: torch.Tensor,
        image: torch.Tensor,
        label: torch.Tensor | None = None,
        slicing_axis: int | None = None,
    ) -> MaskDecision:
        """Decide as ``rule(scores, label)`` does, with refined maps.

        Args:
            rule: of the network.
            scores: what the rule takes, (B, channels, *S).
            image: (B, C, *S), see the module for its values.
            label: as the rule takes it.
            slicing_axis: 1, 2 or 3, the anatomical axis that the network which made ``scores`` has a record of, 0 for
                none; None: asked of ``network``.

        Returns:
            ``(mask, cam, presence)``; cut by the rule, ``cam`` gives the mask.

        Raises:
            ValueError: as the rule, or an image of another size.
        """
        scores = plain_tensor(scores)
        if isinstance(self.part, DenseCRF):
            refine = partial(self._by_slices, self._image(image, scores), self._axis(image, slicing_axis))
            return _decide_through(rule, refine, scores, label)
        if rule.output_kind == "activation":
            return rule(scores, label, refined=self.maps(scores, image, slicing_axis=slicing_axis))
        shares = float32_or_wider(scores).softmax(dim=1)
        return rule(scores, label, refined=_log(self.maps(shares, image, slicing_axis=slicing_axis)))

    @torch.no_grad()
    def maps(
        self,
        maps: torch.Tensor,
        image: torch.Tensor,
        allowed: torch.Tensor | None = None,
        slicing_axis: int | None = None,
    ) -> torch.Tensor:
        """Refine the signed maps (B, K, *S) of classes that compete by argmax, without a background.

        Args:
            maps: raw maps. PAR refines any, one by one.
            image: (B, C, *S).
            allowed: (B, K), 0/1, the classes that take part in a CRF; None: all.
            slicing_axis: as of a call.

        Returns:
            (B, K, *S): PAR, on the scale of the maps; CRF, the logarithm of probabilities.

        Raises:
            ValueError: an image of another size.
        """
        refine = partial(self._by_slices, self._image(image, maps), self._axis(image, slicing_axis))
        maps = float32_or_wider(plain_tensor(maps))
        if isinstance(self.part, PixelAdaptiveRefinement):
            # Rounding must not take a mean beyond the extremes of its map: a constant map stays constant.
            axes = tuple(range(2, maps.ndim))
            return refine(maps).clamp(maps.amin(dim=axes, keepdim=True), maps.amax(dim=axes, keepdim=True))
        if allowed is not None:
            maps = maps.masked_fill(~of_pixels(allowed.to(maps.device) > 0, maps), -torch.inf)
        return _log(refine(maps.softmax(dim=1).nan_to_num(nan=0.0)))

    def image_of(self, item: Mapping[Any, Any], key: str | None = None) -> torch.Tensor:
        """Give the image (1, C, *S) of an item by which its maps are refined.

        Args:
            item: with ``image``, and ``intensity`` where it keeps the image before it was normalized.
            key: of the image. None: ``intensity`` where the item has it, else ``image``. A CRF with
                ``intensity_range=None`` always reads ``image``, since its settings are in the unit of that input.

        Raises:
            ValueError: an item without that key.
        """
        own_unit = isinstance(self.part, DenseCRF) and self.part.settings["intensity_range"] is None
        key = key or ("intensity" if "intensity" in item and not own_unit else "image")
        if key not in item:
            raise ValueError(
                f"Refinement reads the key {key!r} of an item, which has {sorted(map(str, item))}: keep it."
            )
        image: torch.Tensor = torch.as_tensor(item[key])[None]
        return image

    def _image(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Check the image, and give it on the maps' device with gray levels where the part needs them."""
        check_shape("image", image, "(B, C, *S)")
        if image.shape[0] != maps.shape[0] or image.shape[2:] != maps.shape[2:]:
            raise ValueError(
                f"Expected `image` of the maps' batch and size, (B, C, *S) beside {tuple(maps.shape)}, got "
                f"{tuple(image.shape)}: infer maps at the image's own size (VolumeInferer does)."
            )
        image = plain_tensor(image).to(maps.device)
        if isinstance(self.part, DenseCRF) and (highest := self.part.settings["intensity_range"]) is not None:
            return torch.stack([_gray_levels(one, highest) for one in image])
        return image

    def _axis(self, image: torch.Tensor, slicing_axis: int | None) -> int:
        """Give the array axis along which the slices of a volume follow one another."""
        if self.slice_axis is not None:
            return self.slice_axis
        return slice_axis_of(image, self.network if slicing_axis is None else slicing_axis)

    def _by_slices(self, image: torch.Tensor, axis: int, maps: torch.Tensor) -> torch.Tensor:
        """Apply the part, to a volume of a 2D network slice by slice along an array axis."""
        if maps.ndim == 4 or self.spatial_dims != 2:
            refined: torch.Tensor = self.part(image, maps)
            return refined
        axis = axis % 3 + 2
        slices = [tensor.movedim(axis, 1).flatten(0, 1) for tensor in (image, maps)]
        refined = self.part(*slices).unflatten(0, (len(maps), -1))
        return refined.movedim(1, axis)


def _decide_through(
    rule: MaskRule,
    refine: Callable[[torch.Tensor], torch.Tensor],
    scores: torch.Tensor,
    label: torch.Tensor | None,
) -> MaskDecision:
    """Decide as the rule does, by probabilities (B, channels, *S) of present classes that ``refine`` changes."""
    maps = rule._taking_part(scores)
    logits = rule.pool(maps) if rule.output_kind == "activation" else None
    present, maps = rule._present(maps, label, logits), rule.of_classes(maps)
    presence = None if logits is None else logits.amax(dim=1)
    probabilities = refine(competing_probabilities(rule, maps, present))
    if rule.rule in ("argmax", "background"):
        refined = _log(probabilities)[:, None]
        cam = None if logits is None else rule._score_maps(refined, present)
        return MaskDecision(rule._winners(refined, present), cam, presence)
    name, cut = str(rule.rule), cut_of(str(rule.rule), rule.threshold)
    cam = score_maps_of(probabilities, cut)
    cam = cam * _allowed(present, cam)
    return MaskDecision(cut_score_maps(cam, name, rule.threshold), cam, presence)


def competing_probabilities(rule: MaskRule, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Give probabilities of what competes for a pixel, so that the highest is what the rule finds.

    Args:
        rule: decides.
        maps: (B, G, K, *S) of the classes; of segmentations also of the background, G = 1.
        present: (B, G, K), the classes that may appear; None: all.

    Returns:
        (B, K+1, *S), the background first; with ``argmax`` (B, K, *S), zeros where no class may appear.
    """
    if rule.rule in ("argmax", "background"):
        return rule._competing(maps, present).softmax(dim=1).nan_to_num(nan=0.0)
    signed = signed_share(responses_of(rule, maps, present), cut_of(str(rule.rule), rule.threshold))
    return probabilities_of(signed, _allowed(present, signed))


def _allowed(present: torch.Tensor | None, maps: torch.Tensor) -> torch.Tensor:
    """Give which classes may appear, 0 or 1, with the dimensions of maps (B, K, *S)."""
    classes = maps.new_ones(maps.shape[:2]) if present is None else present.any(dim=1).to(maps)
    return of_pixels(classes, maps)


def responses_of(rule: MaskRule, maps: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Fuse shares (rules of the upper half), or margins with what lies below the level (lower half): (B, K, *S)."""
    if rule.rule in SHARE_OF_PEAK:
        return rule._shares(maps, present)
    margins = rule._margins(maps)
    if present is not None and rule.fusion == "max":  # zeros of absent groups would lift what lies below the level
        return margins.masked_fill(~of_pixels(present, margins), -torch.inf).amax(dim=1)
    return fuse_groups(margins, fusion=rule.fusion, presence=present)


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _gray_levels(image: torch.Tensor, highest: float) -> torch.Tensor:
    """Give an image (C, *S) in 0..``highest``: as it is, or stretched between two quantiles of each channel."""
    if has_gray_levels(image, highest):
        return image
    values = float32_or_wider(image)
    pixels = values.flatten(1)
    tail = int(_TAILS * (pixels.shape[1] - 1))
    low = of_pixels(pixels.kthvalue(1 + tail, dim=1).values, values)
    high = of_pixels(pixels.kthvalue(pixels.shape[1] - tail, dim=1).values, values)
    return ((values - low) / torch.where(high > low, high - low, torch.ones_like(low))).clamp(0, 1) * highest


def _spatial_dims(network: nn.Module) -> int | None:
    """Tell whether a network takes slices (2) or volumes (3): by its attribute, or by its convolutions."""
    told = getattr(network, "spatial_dims", None)
    dims = max((parameter.ndim for parameter in network.parameters()), default=0) - 2 if told is None else int(told)
    return dims if dims in (2, 3) else None
