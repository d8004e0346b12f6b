# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A phantom of chest X-rays from formulas: lungs, heart, spine and ribs, and in half of the subjects opacities.

What absorbs more is brighter, as readers see it (MONOCHROME2).  An opacity is a cloud inside a lung whose outline,
size and strength vary; its mask is exact.  Heart, diaphragm, ribs and vessels are as bright as an opacity, so that no
threshold finds it alone.  Healthy and diseased subjects are drawn by the same steps but for the opacities.  Arrays are
(X, Y) = :data:`SHAPE`; x runs along the columns, y down the rows.  Lengths are shares of half the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["SHAPE", "ChestImage", "draw_chest"]

SHAPE = (96, 96)

_SEEN = 0.35
"""A pixel belongs to an opacity where the cloud has more than this share of its strength."""

_LARGEST_GRAY = 250.0

Array = np.ndarray


@dataclass(frozen=True)
class ChestImage:
    """One drawn image.

    Attributes:
        image: (1, X, Y) uint8.
        mask: (1, X, Y) uint8, 1 in opacities.
        lungs: (1, X, Y) uint8, 1 in the lungs.
    """

    image: Array
    mask: Array
    lungs: Array


def _axes() -> tuple[Array, Array]:
    """Give x (X, 1) and y (1, Y) of the pixel centers, from -1 to 1."""
    x, y = ((np.arange(size) + 0.5) / size * 2 - 1 for size in SHAPE)
    return x[:, None], y[None]


def _field(rng: np.random.Generator, wavelength: float) -> Array:
    """Draw a smooth random field (X, Y), mean 0, standard deviation 1; ``wavelength`` in pixels."""
    field = gaussian_filter(rng.standard_normal(SHAPE), wavelength / 3, mode="wrap")
    return (field - field.mean()) / field.std()


def _inside(x: Array, y: Array, center: tuple[float, float], radii: tuple[float, float], soft: float) -> Array:
    """Give 1 inside of an ellipse and 0 outside, with an edge of the width ``soft``, (X, Y)."""
    distance = np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1])
    edge: Array = 1 / (1 + np.exp(np.clip((distance - 1) * min(radii) / soft, -30, 30)))
    return edge


def _lungs(rng: np.random.Generator, x: Array, y: Array) -> tuple[Array, Array]:
    """Draw the two lungs, softly (X, Y), and the heart that lies over the left one, softly (X, Y)."""
    size = rng.uniform(0.92, 1.08)
    air = np.zeros(SHAPE)
    for side in (-1, 1):
        center = (side * rng.normal(0.40, 0.02), rng.normal(-0.05, 0.03))
        radii = (size * rng.normal(0.29, 0.015), size * rng.normal(0.62, 0.03))
        dome = rng.normal(0.42, 0.04) + 0.5 * np.square(x - center[0])
        lung = _inside(x, y, center, radii, 0.02) / (1 + np.exp(np.clip((y - dome) / 0.02, -30, 30)))
        air = np.maximum(air, lung)
    heart = _inside(x, y, (rng.normal(0.13, 0.02), rng.normal(0.24, 0.03)), (rng.uniform(0.24, 0.32), 0.30), 0.025)
    return air * (1 - heart), heart


def _ribs(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Draw the ribs, (X, Y) from 0 to 1: arcs that fall off to the sides."""
    step, phase, bend = rng.uniform(0.2, 0.25), rng.uniform(0, 1), rng.uniform(0.28, 0.42)
    waves = np.cos(2 * np.pi * ((y + bend * np.square(x) - 0.1 * np.abs(x)) / step + phase))
    ribs: Array = np.clip(waves - 0.55, 0, None) / 0.45
    return ribs * np.clip(np.abs(x) / 0.25, 0, 1)


def _vessels(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Draw the vessels (X, Y), densest near the hila."""
    near = np.exp(-np.square((np.abs(x) - 0.18) / 0.22) - np.square((y + 0.02) / 0.4))
    vessels: Array = near * np.clip(_field(rng, 4.0), 0, None)
    return vessels


def _opacities(rng: np.random.Generator, lungs: Array) -> tuple[Array, Array]:
    """Draw one to three clouds inside the lungs: their absorption (X, Y), and where they are seen, (X, Y) bool."""
    x, y = _axes()
    places = np.argwhere(lungs > 0.9)
    absorbed, seen = np.zeros(SHAPE), np.zeros(SHAPE, dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        column, row = places[rng.integers(len(places))]
        center = (float(x[column, 0]), float(y[0, row]))
        radii = (rng.uniform(0.13, 0.26), rng.uniform(0.13, 0.30))
        ragged = 0.22 * _field(rng, 9.0) + 0.12 * _field(rng, 4.0)
        distance = np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1]) + ragged
        cloud = lungs / (1 + np.exp(np.clip((distance - 1) / 0.16, -30, 30)))
        absorbed = np.maximum(absorbed, rng.uniform(0.24, 0.48) * cloud)
        seen |= cloud > _SEEN
    return absorbed, seen


def draw_chest(rng: np.random.Generator, *, diseased: bool) -> ChestImage:
    """Draw one chest X-ray.

    Args:
        rng: source of all chance.
        diseased: whether the lungs hold opacities.

    Returns:
        The image, the exact mask of the opacities, and the lungs.

    Example:
        >>> drawn = draw_chest(np.random.default_rng(0), diseased=True)
        >>> drawn.image.shape, sorted(set(drawn.mask.flat))
        ((1, 96, 96), [np.uint8(0), np.uint8(1)])
    """
    for_lungs, for_rest, for_disease, for_light = rng.spawn(4)
    x, y = _axes()
    x = x + for_lungs.normal(0, 0.03)
    body = _inside(x, y, (0.0, 0.25), (for_rest.uniform(0.88, 1.0), 1.35), 0.04)
    lungs, heart = _lungs(for_lungs, x, y)
    spine = np.exp(-np.square(x / 0.09)) * (1 + 0.15 * np.cos(2 * np.pi * y / 0.16))
    absorbed = 0.62 * body * (1 - 0.78 * lungs) + 0.10 * heart + 0.16 * spine
    absorbed = absorbed + 0.13 * body * _ribs(for_rest, x, y) + 0.10 * lungs * _vessels(for_rest, x, y)
    absorbed = absorbed + 0.015 * body * _field(for_rest, 12.0)
    seen = np.zeros(SHAPE, dtype=bool)
    if diseased:
        cloud, seen = _opacities(for_disease, lungs)
        absorbed = absorbed + cloud
    exposure, contrast = for_light.uniform(0.92, 1.08), for_light.uniform(0.85, 1.15)
    light = gaussian_filter(np.clip(absorbed * exposure, 0, None) ** contrast, 0.6)
    noise = for_light.normal(0, 2.0, SHAPE)
    image = np.clip(np.rint(_LARGEST_GRAY * np.clip(light, 0, 1) + noise), 0, 255).astype(np.uint8)
    return ChestImage(image[None], seen.astype(np.uint8)[None], (lungs > 0.5).astype(np.uint8)[None])
