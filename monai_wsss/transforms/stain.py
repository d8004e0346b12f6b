# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Stains of H&E images: normalized to those of another laboratory (Macenko et al., ISBI 2009), or varied at random.

The stains absorb light one after the other (Beer-Lambert), so optical densities add up:

=======  =============================================================================================================
symbol   meaning
=======  =============================================================================================================
I        image (3, H, W), 0 to ``white``
OD       optical density (3, H, W), ``-ln(I / white)``; 0 where light passes: white glass stays white
S        stains (3, 2): the direction of hematoxylin, then of eosin, in (red, green, blue) densities, of length 1
C        concentrations (2, H, W): ``OD = S C``
=======  =============================================================================================================

MONAI has ``monai.apps.pathology.NormalizeHEStains``.  It is not used here for three reasons (MONAI 1.6.1).  It raises
on a tile without tissue.  It takes only uint8 in NumPy.  It orders the stains by the red-to-blue ratio of *light* but
computes densities, so that hematoxylin and eosin come out exchanged (``tests/transforms/test_stain.py`` shows it).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from monai_wsss._intensity import GLASS
from monai_wsss.transforms.color_pictures import SeenPictures, change_picture, check_color_picture

__all__ = [
    "HEStains",
    "NormalizeStaind",
    "RandStainJitterd",
    "estimate_stains",
    "jitter_stains",
    "normalize_stains",
]

REFERENCE_STAINS = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
"""S (3, 2) of the usual target image, as in MONAI and in implementations of Macenko et al."""

REFERENCE_CONCENTRATIONS = (1.9705, 1.0308)
"""99th percentiles of the concentrations of hematoxylin and eosin in that image."""

_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Hematoxylin, eosin, DAB, one per row (Ruifrok and Johnston 2001); in H&E the third takes the remainder."""

_LEAST_DENSITY = 0.15  # beta of Macenko et al.: pixels that are paler in any channel say little about the stains
_LEAST_SHARE = 0.01  # share of the pixels that must be denser
_LEAST_PIXELS = 64
_LEAST_ANGLE = math.radians(5.0)  # between the two stains; a single color gives a single direction
_LARGEST_SAMPLE = 200_000  # pixels that an estimate uses: enough for percentiles, and bounded on slides


def _densities(picture: torch.Tensor, white: float) -> torch.Tensor:
    """Compute OD (3, H, W) of an image; one level of 255 is added, so that black has a density too."""
    return -torch.log((picture.float() * (255 / white) + 1) / 256)


def _picture(densities: torch.Tensor, white: float) -> torch.Tensor:
    """Compute the image of densities, (3, H, W), 0 to ``white``: undo :func:`_densities`."""
    return ((256 * torch.exp(-densities) - 1) * (white / 255)).clamp(0, white)


class HEStains(NamedTuple):
    """The stains of an image.

    Attributes:
        stains: S (3, 2) float32, hematoxylin and eosin as columns of length 1.
        concentrations: (2,) float32, the 99th percentiles of their concentrations in the tissue.
    """

    stains: torch.Tensor
    concentrations: torch.Tensor


def _stain_directions(dense: torch.Tensor) -> torch.Tensor | None:
    """Find S (3, 2) in the densities (3, N) of tissue: the extreme directions in their plane, 1st and 99th percentile.

    Macenko et al. take the two largest singular vectors of the densities themselves, not of their deviations from the
    mean: the plane of the stains passes through the origin, where there is no stain.
    """
    _, vectors = torch.linalg.eigh(dense @ dense.T)  # ascending
    main, second = vectors[:, 2], vectors[:, 1]
    main = main * torch.sign(main.sum())  # positive like densities, so that all angles are near 0
    angles = torch.atan2(second @ dense, main @ dense)
    low, high = torch.quantile(angles, angles.new_tensor([0.01, 0.99]))
    if high - low < _LEAST_ANGLE:
        return None
    stains = torch.stack([torch.cos(angle) * main + torch.sin(angle) * second for angle in (low, high)], dim=1)
    return stains if stains[0, 0] > stains[0, 1] else stains.flip(1)  # hematoxylin is blue: it absorbs more of the red


def estimate_stains(picture: torch.Tensor, *, white: float = 255.0) -> HEStains | None:
    """Estimate the directions and the strength of hematoxylin and eosin in an image (Macenko et al., ISBI 2009).

    Args:
        picture: image I (3, H, W), 0 to ``white``.
        white: value of white, 255 or 1.

    Returns:
        The stains, or None where the image does not show them: less than 1 % of the pixels (or fewer than 64) have a
        density above 0.15 in all channels, or these have about one color (their directions are within 5 degrees).

    Raises:
        ValueError: see :func:`check_color_picture`.

    Example:
        >>> rows = torch.tensor(REFERENCE_STAINS) @ torch.rand(2, 900, generator=torch.Generator().manual_seed(0))
        >>> found = estimate_stains(torch.exp(-rows).reshape(3, 30, 30), white=1.0)
        >>> bool(found.stains[0, 0] > found.stains[0, 1])
        True
        >>> estimate_stains(torch.full((3, 30, 30), 250.0)) is None
        True
    """
    check_color_picture("picture", picture, white)
    return _estimate_stains(picture, white)


def _estimate_stains(picture: torch.Tensor, white: float) -> HEStains | None:
    pixels = picture.reshape(3, -1)
    pixels = pixels[:, :: max(1, pixels.shape[1] // _LARGEST_SAMPLE)]
    densities = _densities(pixels, white)
    dense = densities[:, (densities > _LEAST_DENSITY).all(dim=0)].double()
    if dense.shape[1] < max(_LEAST_PIXELS, _LEAST_SHARE * pixels.shape[1]):
        return None
    stains = _stain_directions(dense)
    if stains is None:
        return None
    strongest = torch.quantile(torch.linalg.pinv(stains) @ dense, 0.99, dim=1)
    if bool((strongest <= 0).any()):
        return None
    return HEStains(stains.float(), strongest.float())


def normalize_stains(
    picture: torch.Tensor,
    *,
    white: float = 255.0,
    target_stains: Sequence[Sequence[float]] = REFERENCE_STAINS,
    target_concentrations: Sequence[float] = REFERENCE_CONCENTRATIONS,
) -> torch.Tensor:
    """Exchange the stains of an image for those of a target (Macenko et al., ISBI 2009).

    ``C = S⁺ OD``, ``I' = white · exp(-S_target (C · c_target / c))``, c the 99th percentiles.  An image in
    which :func:`estimate_stains` finds no stains, such as a tile of bare glass, comes back as it is.

    Args:
        picture: image I (3, H, W), 0 to ``white``.
        white: value of white, 255 or 1.
        target_stains: S of the target (3, 2), hematoxylin and eosin as columns.
        target_concentrations: 99th percentiles of their concentrations in the target (2,).

    Returns:
        Image (3, H, W) float32, 0 to ``white``.

    Raises:
        ValueError: see :func:`check_color_picture`.

    Example:
        >>> glass = torch.full((3, 16, 16), 248.0)
        >>> bool((normalize_stains(glass) == glass).all())
        True
    """
    check_color_picture("picture", picture, white)
    return _normalize_stains(picture, white, target_stains, target_concentrations)


def _normalize_stains(
    picture: torch.Tensor,
    white: float,
    target_stains: Sequence[Sequence[float]],
    target_concentrations: Sequence[float],
) -> torch.Tensor:
    found = _estimate_stains(picture, white)
    if found is None:
        return picture.float()
    target = torch.as_tensor(target_stains, dtype=torch.float32, device=picture.device)
    wanted = torch.as_tensor(target_concentrations, dtype=torch.float32, device=picture.device)
    strength = wanted / found.concentrations
    exchange = target @ torch.diag(strength) @ torch.linalg.pinv(found.stains)
    return _picture(torch.einsum("ij,jhw->ihw", exchange, _densities(picture, white)), white)


class NormalizeStaind(MapTransform):
    """Application of :func:`normalize_stains` to color images (3, H, W) of an item.

    It is meant for whole images or large tiles, before patches are cut: a small patch, which may show only gland, does
    not show the stains of its section.

    Args:
        keys: images to normalize.
        white: value of white, 255 or 1.
        target_stains: see :func:`normalize_stains`; :func:`estimate_stains` gives those of your own image.
        target_concentrations: see :func:`normalize_stains`.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: a target of another shape, or no color image, see :func:`check_color_picture`.

    Example:
        >>> item = {"image": torch.full((3, 16, 16), 248.0)}
        >>> NormalizeStaind("image")(item)["image"].shape
        torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        white: float = 255.0,
        target_stains: Sequence[Sequence[float]] = REFERENCE_STAINS,
        target_concentrations: Sequence[float] = REFERENCE_CONCENTRATIONS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        shapes = np.shape(target_stains), np.shape(target_concentrations)
        if shapes != ((3, 2), (2,)):
            raise ValueError(
                "Expected `target_stains` of shape (3, 2) and `target_concentrations` of shape (2,), "
                f"got {shapes[0]} and {shapes[1]}: the columns are hematoxylin and eosin."
            )
        self.white = white
        self._normalize = partial(
            _normalize_stains,
            white=white,
            target_stains=target_stains,
            target_concentrations=target_concentrations,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = change_picture(self._normalize, key, item, self.white)
        return item


def jitter_stains(
    picture: torch.Tensor, scale: Sequence[float], shift: Sequence[float], *, white: float = 255.0
) -> torch.Tensor:
    """Change the concentrations of hematoxylin, eosin and the rest in the tissue of an image (Tellez et al., 2018).

    Each of the three concentrations c of a pixel becomes ``c · scale + w · shift``.  The weight w grows from 0 on white
    to 1 on tissue (mean below 235 of 255), so that white glass stays white and no seam shows.

    Args:
        picture: image I (3, H, W), 0 to ``white``.
        scale: factors of the three concentrations (3,).
        shift: amounts that are added to them (3,), in units of natural optical density.
        white: value of white, 255 or 1.

    Returns:
        Image (3, H, W) float32, 0 to ``white``.

    Example:
        >>> picture = torch.tensor([255.0, 120.0]).expand(3, 1, 2)
        >>> darker = jitter_stains(picture, (1.2, 1.2, 1.2), (0.0, 0.0, 0.0))
        >>> darker[0].round().tolist()
        [[255.0, 103.0]]
    """
    densities = _densities(picture, white)
    stains = torch.tensor(_HED, device=densities.device)
    stains = stains / torch.linalg.vector_norm(stains, dim=1, keepdim=True)
    factors = torch.as_tensor(scale, dtype=torch.float32, device=densities.device)
    added = torch.as_tensor(shift, dtype=torch.float32, device=densities.device) @ stains
    change = torch.linalg.inv(stains) @ torch.diag(factors) @ stains
    tissue = (picture.float().mean(dim=0) * (255 / white)).neg().add(255).div(255 - GLASS).clamp(0, 1)
    changed = torch.einsum("jhw,ji->ihw", densities, change) + added[:, None, None] * tissue
    return _picture(changed, white)


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Application of :func:`jitter_stains` by random amounts, as laboratories stain with different strength.

    Each of the three factors is drawn from ``1 ± scale``, each of the three shifts from ``± shift``; all keys of an
    item get the same.  It goes before a standardization of color by the statistics of the datalist.  A standardization
    that measures the changed image would undo most of it.

    Args:
        keys: color images (3, H, W), 0 to ``white``.
        prob: chance that an item is changed.
        scale: largest relative change of a concentration.
        shift: largest change of a concentration, in units of natural optical density.
        white: value of white, 255 or 1.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: a scale outside of [0, 1), a negative shift, or no color image, see :func:`check_color_picture`.

    Example:
        >>> jitter = RandStainJitterd("image", prob=1.0).set_random_state(seed=0)
        >>> changed = jitter({"image": torch.full((3, 8, 8), 120.0)})["image"]
        >>> changed.shape, bool((changed != 120).all())
        (torch.Size([3, 8, 8]), True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        *,
        scale: float = 0.15,
        shift: float = 0.05,
        white: float = 255.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= scale < 1 or shift < 0:
            raise ValueError(f"Expected `scale` in [0, 1) and `shift` of 0 or more, got {scale} and {shift}.")
        self.scale = scale
        self.shift = shift
        self.white = white
        self._seen = SeenPictures()

    def randomize(self, data: Any = None) -> None:
        """Draw the decision to change an item, and the amounts."""
        super().randomize(data)
        self._factors = self.R.uniform(1 - self.scale, 1 + self.scale, 3).tolist()
        self._added = self.R.uniform(-self.shift, self.shift, 3).tolist()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        jitter = partial(jitter_stains, scale=self._factors, shift=self._added, white=self.white)
        if self._do_transform:
            for key in self.key_iterator(item):
                item[key] = change_picture(jitter, key, item, self.white, self._seen)
        return item
