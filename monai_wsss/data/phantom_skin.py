# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A phantom of dermoscopy from formulas: skin, a pigmented lesion with its exact mask, hairs, dark corners.

Light is absorbed by pigment (Beer-Lambert, blue most), so that a lesion is brown where it is thin and nearly black
where it is dense.  Every image shows one lesion, whose size, place, contrast and outline vary, as in real sets.  What
else is dark has no mask: hairs, freckles, the corners beyond the round field of view.  Lengths are pixels; arrays are
(X, Y) = :data:`SHAPE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["SHAPE", "SkinImage", "draw_skin"]

SHAPE = (256, 192)

_PIGMENT = np.array([0.45, 0.85, 1.15])  # absorption of melanin in red, green, blue
_BLOOD = np.array([0.05, 0.5, 0.4])
_SKIN = np.array([236.0, 190.0, 168.0])
_RADIUS = (24.0, 76.0)  # of lesions
_NO_CORNERS = 0.2  # share of images without dark corners

Array = np.ndarray


@dataclass(frozen=True)
class SkinImage:
    """One drawn image.

    Attributes:
        image: (3, X, Y) uint8, red, green, blue.
        mask: (1, X, Y) uint8, 1 in the lesion.
    """

    image: Array
    mask: Array


def _field(rng: np.random.Generator, wavelength: float) -> Array:
    """Draw a smooth random field (X, Y), mean 0, standard deviation 1, with waves below ``wavelength`` damped."""
    field = gaussian_filter(rng.standard_normal(SHAPE), wavelength / 3, mode="wrap")
    return (field - field.mean()) / field.std()


def _offsets(x: float, y: float) -> tuple[Array, Array]:
    """Give the offsets of all pixels from a point, (X, 1) and (1, Y)."""
    return np.arange(SHAPE[0])[:, None] - x, np.arange(SHAPE[1])[None] - y


def _lesion_depth(rng: np.random.Generator) -> Array:
    """Draw an outline, an ellipse with waves and a ragged border; give the signed distance, positive inside."""
    radius = math.exp(rng.uniform(math.log(_RADIUS[0]), math.log(_RADIUS[1])))
    flat, tilt = rng.uniform(0.62, 1.0), rng.uniform(0, np.pi)
    across, down = _offsets(*(size / 2 + rng.normal(0, 0.11 * size) for size in SHAPE))
    angle = np.arctan2(down, across) - tilt
    ellipse = flat / np.sqrt(np.square(flat * np.cos(angle)) + np.square(np.sin(angle)))
    waves = sum(
        rng.normal(0, 0.08 / math.sqrt(count - 1)) * np.cos(count * angle + rng.uniform(0, 2 * np.pi))
        for count in range(2, 9)
    )
    ragged = radius * (0.05 * _field(rng, 22.0) + 0.02 * _field(rng, 8.0))
    depth: Array = radius * ellipse * (1 + waves) - np.hypot(across, down) + ragged
    return depth


def _lesion_pigment(rng: np.random.Generator, depth: Array) -> Array:
    """Draw the pigment (X, Y) of a lesion: a fading border, blotches, a network of lines, and a lighter patch."""
    fade = rng.uniform(3.0, 9.0)
    inside = 1 / (1 + np.exp(-np.clip(depth / fade * 2.5, -30, 30)))
    blotches = np.clip(1 + 0.22 * _field(rng, 30.0) + 0.13 * _field(rng, 9.0), 0.25, None)
    network = 1 + rng.uniform(0.0, 0.14) * np.cos(2.4 * _field(rng, 7.0))
    core = 1 + rng.uniform(0.0, 0.6) * np.clip(depth / max(depth.max(), 1.0), 0, 1)
    pigment: Array = math.exp(rng.uniform(math.log(0.5), math.log(1.6))) * inside * blotches * network * core
    return pigment


def _hairs(rng: np.random.Generator) -> Array:
    """Draw the weight 0..1 (X, Y) of thin curved hairs, in some images many."""
    weight = np.zeros(SHAPE)
    count = int(rng.choice([0, 0, 1, 3, 10])) + int(rng.integers(0, 2))
    for _ in range(count):
        start = np.array([rng.uniform(0, size) for size in SHAPE])
        turn, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.008)
        steps = np.arange(0, rng.uniform(50, 170), 0.5)
        angle = turn + bend * steps
        points = start[:, None] + 0.5 * np.stack([np.cos(angle), np.sin(angle)]).cumsum(axis=1)
        column, row = np.rint(points).astype(int)
        seen = (column >= 0) & (column < SHAPE[0]) & (row >= 0) & (row < SHAPE[1])
        line = np.zeros(SHAPE)
        line[column[seen], row[seen]] = 1
        weight = np.maximum(weight, np.clip(2.2 * gaussian_filter(line, rng.uniform(0.5, 0.8)), 0, 1))
    return weight


def _freckles(rng: np.random.Generator) -> Array:
    """Draw the pigment (X, Y) of small spots that are no lesion."""
    pigment = np.zeros(SHAPE)
    for _ in range(int(rng.integers(0, 7))):
        across, down = _offsets(*(rng.uniform(0, size) for size in SHAPE))
        radius = rng.uniform(1.0, 2.6)
        pigment += rng.uniform(0.1, 0.35) * np.exp(-(across**2 + down**2) / (2 * radius**2))
    return pigment


def _field_of_view(rng: np.random.Generator) -> Array:
    """Draw the light (X, Y) of a round field of view, 1 in the middle and nearly 0 in the corners."""
    across, down = _offsets(*(size / 2 + rng.normal(0, 0.02 * size) for size in SHAPE))
    distance = np.hypot(across, down)
    half = math.hypot(*SHAPE) / 2
    shading = 1 - rng.uniform(0.02, 0.12) * np.square(distance / half)
    if rng.random() < _NO_CORNERS:
        return shading
    edge, width = rng.uniform(0.88, 1.02) * half, rng.uniform(2.5, 6.0)
    return shading * (0.06 + 0.94 / (1 + np.exp(np.clip((distance - edge) / width, -30, 30))))


def draw_skin(rng: np.random.Generator) -> SkinImage:
    """Draw one image of skin with a lesion.

    Args:
        rng: source of all chance.

    Returns:
        The image and its exact mask.

    Example:
        >>> drawn = draw_skin(np.random.default_rng(0))
        >>> drawn.image.shape, sorted(set(drawn.mask.flat))
        ((3, 256, 192), [np.uint8(0), np.uint8(1)])
    """
    for_skin, for_lesion, for_rest, for_light = rng.spawn(4)
    depth = _lesion_depth(for_lesion)
    texture = ((50.0, 0.05), (14.0, 0.02), (3.0, 0.022))  # wavelength, share
    pigment = sum(share * _field(for_skin, wavelength) for wavelength, share in texture)
    pigment = pigment + for_skin.uniform(0.0, 0.3) + _freckles(for_rest) + _lesion_pigment(for_lesion, depth)
    blood = np.clip(for_skin.uniform(0.0, 0.25) + 0.05 * _field(for_skin, 60.0), 0, None)
    density = _PIGMENT[:, None, None] * pigment + _BLOOD[:, None, None] * blood
    tone = _SKIN * for_skin.uniform(0.86, 1.06) * for_skin.normal(1, 0.03, 3)
    light = tone[:, None, None] * np.exp(-density)
    hairs = 0.75 * _hairs(for_rest)
    light = light * (1 - hairs) + 30.0 * hairs
    light = gaussian_filter(light * _field_of_view(for_light), (0, 0.6, 0.6))
    noise = for_light.normal(0, 1.6, (3, *SHAPE))
    image = np.clip(np.rint(light + noise), 0, 255).astype(np.uint8)
    return SkinImage(image, (depth > 0).astype(np.uint8)[None])
