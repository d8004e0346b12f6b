# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A phantom of photographs whose classes come with unlabeled things: birds sit on branches, trains stand on rails.

The third class, a kite, comes alone.  A branch is in an image if and only if a bird is, and so rails with trains, so
that image-level labels cannot tell a class from its context.  Masks hold the classes alone; everything else is
background, the context too.  Arrays are (X, Y) = :data:`SHAPE`, y downward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["CLASSES", "CONTEXT", "SHAPE", "SceneImage", "draw_scene"]

SHAPE = (96, 96)

CLASSES = ("bird", "train", "kite")
"""The classes, in the order of their values in the mask."""

CONTEXT = {"bird": "branch", "train": "rails"}
"""Class → what always accompanies it and has no label."""

Array = np.ndarray

_X, _Y = np.arange(SHAPE[0])[:, None] + 0.5, np.arange(SHAPE[1])[None] + 0.5
_LIVELY = ((205, 60, 50), (60, 90, 190), (225, 190, 60), (110, 70, 130), (60, 150, 110))
"""Colors of objects; no class has one of its own."""


@dataclass(frozen=True)
class SceneImage:
    """One drawn image.

    Attributes:
        image: (3, X, Y) uint8, red, green, blue.
        mask: (1, X, Y) uint8, 0 background and context, 1 bird, 2 train, 3 kite.
    """

    image: Array
    mask: Array


class _Canvas:
    """An image (3, X, Y) and its mask (X, Y); what is painted covers both."""

    def __init__(self, image: Array) -> None:
        self.image = image
        self.mask = np.zeros(SHAPE, dtype=np.uint8)

    def paint(self, where: Array, color: tuple[float, ...], number: int = 0) -> None:
        """Give the pixels of a region (X, Y) a color and the number of their class."""
        self.image[:, where] = np.array(color, dtype=np.float64)[:, None]
        self.mask[where] = number


def _ellipse(x: float, y: float, width: float, height: float) -> Array:
    """Give the region of an ellipse, whose axes are half of width and height long."""
    region: Array = np.square((_X - x) / (width / 2)) + np.square((_Y - y) / (height / 2)) < 1
    return region


def _box(x: float, y: float, width: float, height: float) -> Array:
    """Give the region of a rectangle from its upper left corner on."""
    region: Array = (x <= _X) & (x + width > _X) & (y <= _Y) & (y + height > _Y)
    return region


def _sky(rng: np.random.Generator) -> Array:
    """Draw a sky that fades into a meadow, with clouds."""
    horizon = rng.uniform(0.55, 0.75) * SHAPE[1]
    share = 1 / (1 + np.exp(-(_Y - horizon) / 3))[None]
    sky = np.array([150, 190, 225])[:, None, None] + rng.normal(0, 8, (3, 1, 1))
    meadow = np.array([120, 150, 95])[:, None, None] + rng.normal(0, 8, (3, 1, 1))
    clouds = gaussian_filter(rng.standard_normal(SHAPE), (9, 4), mode="wrap")
    light: Array = sky * (1 - share) + meadow * share + 14 * clouds / clouds.std()
    return light


def _bird_on_branch(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Draw a branch with leaves from border to border and a bird on it."""
    slope, start, thick = rng.uniform(-0.25, 0.25), rng.uniform(0.25, 0.5) * SHAPE[1], rng.uniform(4.0, 7.0)
    line = start + slope * (_X - SHAPE[0] / 2) + 2 * np.sin(_X / rng.uniform(8, 14))
    canvas.paint(np.abs(_Y - line) < thick / 2, (95, 65, 45))
    for _ in range(int(rng.integers(4, 9))):
        x = rng.uniform(0, SHAPE[0])
        y = line[int(x), 0] + rng.uniform(-9, 9)
        canvas.paint(_ellipse(x, y, rng.uniform(5, 9), rng.uniform(3, 6)), (70, 125, 55))
    x, size = rng.uniform(0.25, 0.75) * SHAPE[0], rng.uniform(13, 22)
    foot = line[int(x), 0] - thick / 2 + 1
    side = rng.choice([-1, 1])
    body = _ellipse(x, foot - 0.35 * size, size, 0.7 * size)
    head = _ellipse(x + side * 0.42 * size, foot - 0.75 * size, 0.45 * size, 0.42 * size)
    tail = (np.abs(_Y - (foot - 0.3 * size)) < 0.12 * size) & (0.85 * size > -side * (_X - x)) & (-side * (_X - x) > 0)
    color = _LIVELY[rng.integers(len(_LIVELY))]
    canvas.paint(body | head | tail, color, 1)
    wing = _ellipse(x - side * 0.1 * size, foot - 0.38 * size, 0.6 * size, 0.3 * size)
    canvas.paint(wing, tuple(0.7 * value for value in color), 1)


def _train_on_rails(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Draw rails with sleepers from border to border and a train on them."""
    ground = rng.uniform(0.8, 0.93) * SHAPE[1]
    sleepers = np.mod(_X + rng.uniform(0, 8), 8) < 3.5
    canvas.paint(sleepers & _box(0, ground, SHAPE[0], 6), (100, 85, 75))
    for offset in (0.0, 4.0):
        canvas.paint(_box(0, ground + offset, SHAPE[0], 1.6), (70, 70, 78))
    length, height = rng.uniform(28, 50), rng.uniform(12, 18)
    x = rng.uniform(2, SHAPE[0] - length - 2)
    canvas.paint(_box(x, ground - height, length, height), _LIVELY[rng.integers(len(_LIVELY))], 2)
    for place in np.arange(x + 3, x + length - 6, 8):
        canvas.paint(_box(place, ground - 0.8 * height, 5, 0.35 * height), (215, 225, 230), 2)


def _kite(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Draw a kite in the sky."""
    x, y, size = rng.uniform(14, SHAPE[0] - 14), rng.uniform(12, 0.4 * SHAPE[1]), rng.uniform(7, 11)
    region = np.abs(_X - x) / (0.7 * size) + np.abs(_Y - y) / size < 1
    first, second = rng.choice(len(_LIVELY), 2, replace=False)
    canvas.paint(region, _LIVELY[first], 3)
    canvas.paint(region & (x > _X), _LIVELY[second], 3)


def draw_scene(rng: np.random.Generator, *, label: tuple[int, int, int]) -> SceneImage:
    """Draw one image.

    Args:
        rng: source of all chance.
        label: 0 or 1 for bird, train and kite.

    Returns:
        The image and its exact mask.

    Example:
        >>> drawn = draw_scene(np.random.default_rng(0), label=(1, 0, 1))
        >>> drawn.image.shape, sorted(set(drawn.mask.flat))
        ((3, 96, 96), [np.uint8(0), np.uint8(1), np.uint8(3)])
    """
    for_sky, *for_classes, for_noise = rng.spawn(2 + len(CLASSES))
    canvas = _Canvas(_sky(for_sky))
    drawings = {2: _train_on_rails, 1: _bird_on_branch, 3: _kite}  # the nearest last
    for number, draw in drawings.items():
        if label[number - 1]:
            draw(for_classes[number - 1], canvas)
    image = gaussian_filter(canvas.image, (0, 0.6, 0.6))
    image = np.clip(np.rint(image + for_noise.normal(0, 4, image.shape)), 0, 255)
    return SceneImage(image.astype(np.uint8), canvas.mask[None])
