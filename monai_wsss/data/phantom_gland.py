# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A phantom of H&E-stained glands from formulas: layout → tissue → nuclei → stains → image, with the exact mask.

A section is drawn as two maps of concentrations, hematoxylin and eosin; the stains of a laboratory turn them into light
(Beer-Lambert).  Glands are closed tubes with a ring of elongated nuclei along the border.  Inside are cytoplasm with
pale droplets of mucin and a pale lumen; large glands have several lumina.  Around them is stroma with fibers, spindle
cells, crowds of round cells, vessels with red cells, fat and clefts.  Lengths are pixels, at about 0.62 µm (20x, as in
GlaS); arrays are (X, Y) = :data:`SHAPE`.

No color tells gland from other tissue.  Both have dark nuclei (crowds of round cells), pale holes (fat, vessels,
clefts, bare glass) and pink; only their arrangement differs.

===========  =========================================================================================================
depth        signed distance to the border of the nearest gland, positive inside; the mask is depth > 0
angle        direction of a pixel as seen from the center of its gland, in radians
crowding     density of round cells in the stroma of a subject, about 1
===========  =========================================================================================================
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.fft import idctn
from scipy.ndimage import gaussian_filter

from monai_wsss._checks import check_choice

__all__ = ["LAYOUTS", "SHAPE", "GlandSection", "Laboratory", "draw_gland", "draw_laboratory"]

SHAPE = (320, 256)
LAYOUTS = {"many": (24.0, 46.0), "few": (110.0, 165.0), "none": (0.0, 0.0)}
"""Layout → smallest and largest radius of its glands; a patch can lie within a large gland, or without any gland."""

_HEMATOXYLIN = np.array([0.62, 0.72, 0.30])
_EOSIN = np.array([0.16, 0.92, 0.35])
_FAR = -200.0
_REACH = 8  # half the width of the window in which a nucleus is drawn

Array = np.ndarray


@dataclass(frozen=True)
class Laboratory:
    """Properties that all sections of a subject share.

    Attributes:
        stains: (2, 3), optical density of hematoxylin and of eosin in red, green and blue.
        crowding: density of round cells in the stroma, about 1.
        mucin: amount of mucin in the glands, 0..1.
        layers: rows of nuclei on the border of a gland, 1 or 2.
    """

    stains: Array
    crowding: float
    mucin: float
    layers: int


@dataclass(frozen=True)
class GlandSection:
    """One drawn section.

    Attributes:
        image: (3, X, Y) uint8, red, green, blue.
        mask: (1, X, Y) uint8, 1 in glands with their lumen, 2 in all other tissue and glass.
    """

    image: Array
    mask: Array


@dataclass(frozen=True)
class _Gland:
    """A closed outline: radius times an ellipse times waves along the angle."""

    x: float
    y: float
    radius: float
    tilt: float
    flat: float  # short axis over long axis
    waves: Array  # amplitude and phase of the waves 2, 3, 4, 5: (2, 4)
    wall: float  # thickness of the epithelium


@dataclass(frozen=True)
class _Nuclei:
    """Places and shapes of nuclei; all (N)."""

    x: Array
    y: Array
    angle: Array
    length: Array  # half of the long axis
    width: Array  # half of the short axis


def draw_laboratory(rng: np.random.Generator) -> Laboratory:
    """Draw the properties that all sections of a subject share: stains, density of the stroma, kind of epithelium.

    Example:
        >>> draw_laboratory(np.random.default_rng(0)).stains.shape
        (2, 3)
    """
    stains = np.stack([_HEMATOXYLIN, _EOSIN]) + rng.normal(0, 0.04, (2, 3))
    stains *= rng.normal([[1.0], [1.0]], 0.12)
    return Laboratory(stains, rng.uniform(0.4, 1.5), rng.uniform(0.0, 1.0), int(rng.choice([1, 2])))


def _field(rng: np.random.Generator, wavelength: float) -> Array:
    """Draw a smooth random field (X, Y), mean 0, standard deviation 1, with waves below ``wavelength`` damped."""
    axes = []
    for size in SHAPE:
        kept = min(size, int(6 * size / wavelength) + 2)
        axes.append(np.square(np.arange(kept, dtype=np.float32) * (wavelength / (2 * size))))
    weight = np.exp(-(axes[0][:, None] + axes[1]))
    field = idctn(rng.standard_normal(weight.shape, dtype=np.float32) * weight, s=SHAPE, norm="ortho")
    field -= field.mean()
    return field / field.std()


def _soft(distance: Array) -> Array:
    """Turn a signed distance into a weight 0..1, by a ramp of 2 pixels."""
    return np.clip(distance * np.float32(0.5) + np.float32(0.5), 0, 1)


def _at(field: Array, x: Array, y: Array) -> Array:
    """Read the values (N) of a field (X, Y) at the pixels nearest to (x, y); outside, those at the border."""
    column, row = (np.clip(np.rint(p), 0, size - 1).astype(int) for p, size in zip((x, y), SHAPE, strict=True))
    return field[column, row]


# --- layout


def _place_glands(rng: np.random.Generator, layout: str) -> list[_Gland]:
    """Place glands that do not overlap; the border may cut some."""
    smallest, largest = LAYOUTS[layout]
    glands: list[_Gland] = []
    for _ in range(0 if layout == "none" else 300):
        radius = rng.uniform(smallest, largest)
        x, y = (rng.uniform(-0.4 * radius, size + 0.4 * radius) for size in SHAPE)
        if all(math.hypot(x - g.x, y - g.y) > 0.93 * (radius + g.radius) + 6 for g in glands):
            waves = np.stack([rng.normal(0, 0.045, 4) / np.sqrt([1, 1.5, 2, 3]), rng.uniform(0, 2 * np.pi, 4)])
            wall = rng.uniform(0.5, 0.8) * radius if layout == "many" else rng.uniform(24, 34)
            glands.append(_Gland(x, y, radius, rng.uniform(0, np.pi), rng.uniform(0.72, 1.0), waves, wall))
    return glands


def _outline(gland: _Gland, angle: Array) -> Array:
    """Give the distance from the center to the border in the directions ``angle``, in the frame of the gland."""
    ellipse = gland.flat / np.sqrt(np.square(gland.flat * np.cos(angle)) + np.square(np.sin(angle)))
    waves = sum(a * np.cos((k + 2) * angle + phase) for k, (a, phase) in enumerate(gland.waves.T))
    return gland.radius * ellipse * (1 + waves)


def _window(x: float, y: float, reach: float) -> tuple[tuple[slice, slice], Array, Array]:
    """Cut out the part of a section within ``reach`` of a point: slices, and offsets from the point (columns, rows)."""
    start = [max(0, int(p - reach)) for p in (x, y)]
    stop = [max(0, min(size, int(p + reach) + 2)) for p, size in zip((x, y), SHAPE, strict=True)]
    across, down = (np.arange(*ends, dtype=np.float32) for ends in zip(start, stop, strict=True))
    return (slice(start[0], stop[0]), slice(start[1], stop[1])), across[:, None] - np.float32(x), down - np.float32(y)


def _depth(glands: list[_Gland], ragged: Array) -> tuple[Array, Array, Array]:
    """Give depth, angle and number of the nearest gland, each (X, Y); far from all glands -200, 0 and -1."""
    depth, angle = np.full(SHAPE, _FAR, dtype=np.float32), np.zeros(SHAPE, dtype=np.float32)
    owner = np.full(SHAPE, -1)
    steps = 2048  # directions in which an outline is tabulated
    for number, gland in enumerate(glands):
        window, x, y = _window(gland.x, gland.y, 1.3 * gland.radius + 24)
        border = _outline(gland, 2 * np.pi / steps * np.arange(steps)).astype(np.float32)
        direction = np.arctan2(y, x) - np.float32(gland.tilt)
        own = border[(direction * np.float32(steps / (2 * np.pi))).astype(int) % steps] - np.hypot(x, y)
        nearer = own > depth[window]
        for whole, part in ((depth, own), (angle, direction), (owner, np.full(own.shape, number))):
            whole[window][nearer] = part[nearer]
    return depth + ragged, angle, owner


def _scatter(rng: np.random.Generator, room: Array, spacing: float, tries: int) -> Array:
    """Draw up to ``tries`` points (N, 2) where ``room`` is true, no two of them nearer than ``spacing``."""
    places = np.flatnonzero(room)
    points: list[tuple[int, int]] = []
    for place in places[rng.integers(0, len(places), tries)].tolist() if len(places) else ():
        x, y = divmod(place, SHAPE[1])
        if all(math.hypot(x - column, y - row) > spacing for column, row in points):
            points.append((x, y))
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _discs(points: Array, radii: Array, ragged: Array | float) -> Array:
    """Give the signed distance (X, Y) to discs with ragged borders, positive inside; far from all of them -200."""
    distance = np.full(SHAPE, _FAR, dtype=np.float32)
    for (column, row), radius in zip(points, radii, strict=True):
        window, x, y = _window(column, row, radius + 6)
        distance[window] = np.maximum(distance[window], np.float32(radius) - np.hypot(x, y))
    return distance + ragged


# --- nuclei


def _draw_nuclei(nuclei: _Nuclei) -> Array:
    """Draw the weight 0..1 (X, Y) of all nuclei: soft ellipses, each in a window of its own."""
    offset = np.arange(-_REACH, _REACH + 1, dtype=np.float32)
    near = (nuclei.x > -_REACH) & (nuclei.x < SHAPE[0] + _REACH) & (nuclei.y > -_REACH) & (nuclei.y < SHAPE[1] + _REACH)
    x, y, angle, length, width = (
        part[near, None, None].astype(np.float32)
        for part in (nuclei.x, nuclei.y, nuclei.angle, nuclei.length, nuclei.width)
    )
    column, row = np.floor(x) + offset[:, None], np.floor(y) + offset
    along = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
    across = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
    weight = np.clip((1 - np.hypot(along / length, across / width)) * width * 0.8 + 0.4, 0, 1)
    margin = 2 * _REACH + 1
    padded = (SHAPE[0] + 2 * margin, SHAPE[1] + 2 * margin)
    flat = (column.astype(np.intp) + margin) * padded[1] + row.astype(np.intp) + margin
    canvas = np.zeros(padded, dtype=np.float32)
    np.maximum.at(canvas.reshape(-1), flat.ravel(), weight.ravel())  # NumPy is several times as fast on one axis
    return canvas[margin:-margin, margin:-margin]


def _epithelial_nuclei(rng: np.random.Generator, glands: list[_Gland], layers: int) -> _Nuclei:
    """Place rings of elongated nuclei, upright on the borders of the glands."""
    parts = []
    for gland, layer in itertools.product(glands, range(layers)):
        count = int(2 * np.pi * gland.radius * (0.5 + 0.5 * gland.flat) / 5.2)
        angle = 2 * np.pi * (np.arange(count) + rng.uniform(-0.4, 0.4, count)) / count
        inward = 7.5 + 7.5 * layer + rng.normal(0, 1.6, count)
        distance = _outline(gland, angle) - inward
        direction = angle + gland.tilt
        parts.append(
            (
                gland.x + distance * np.cos(direction),
                gland.y + distance * np.sin(direction),
                direction + rng.normal(0, 0.22, count),
                rng.uniform(4.2, 6.8, count),
                rng.uniform(2.1, 3.1, count),
            )
        )
    return _Nuclei(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _ring_nuclei(rng: np.random.Generator, points: Array, radii: Array, distance: float, upright: bool) -> _Nuclei:
    """Place nuclei around discs, upright on the border (lumina in glands) or along it (vessels)."""
    parts = [np.zeros((5, 0))]
    for (x, y), radius in zip(points, radii, strict=True):
        count = max(3, int(2 * np.pi * (radius + distance) / (6.0 if upright else 15.0)))
        angle = 2 * np.pi * (np.arange(count) + rng.uniform(-0.4, 0.4, count)) / count
        away = radius + distance + rng.normal(0, 0.8, count)
        turn = angle + (0.0 if upright else np.pi / 2) + rng.normal(0, 0.2, count)
        size = rng.uniform(4.0, 6.2, count), rng.uniform(1.9, 2.9, count) * (1.0 if upright else 0.6)
        parts.append(np.stack([x + away * np.cos(angle), y + away * np.sin(angle), turn, *size]))
    return _Nuclei(*np.concatenate(parts, axis=1))


def _stromal_nuclei(rng: np.random.Generator, room: Array, crowd: Array, fibers: Array) -> _Nuclei:
    """Place spindle cells along the fibers everywhere, and round cells where they crowd.

    Args:
        rng: source of all chance.
        room: true (X, Y) where there may be a nucleus.
        crowd: density 0..1 (X, Y) of round cells.
        fibers: direction (X, Y) of the fibers.
    """
    spindles = np.stack([rng.uniform(0, size, 420) for size in SHAPE])
    # One place in each cell of a jittered grid, so that round cells touch but hardly overlap.
    grid = np.stack(np.meshgrid(*(np.arange(0, size, 6.6) for size in SHAPE), indexing="ij")).reshape(2, -1)
    rounds = grid + rng.uniform(-0.5, 5.5, grid.shape)
    spindles = spindles[:, _at(room, *spindles)]
    rounds = rounds[:, _at(room, *rounds) & (rng.random(rounds.shape[1]) < _at(crowd, *rounds))]
    parts = []
    for (x, y), lengths, widths in ((spindles, (4.0, 7.5), (1.4, 2.3)), (rounds, (2.7, 3.9), (2.3, 3.1))):
        angle = _at(fibers, x, y) + rng.normal(0, 0.3, len(x))
        parts.append((x, y, angle, rng.uniform(*lengths, len(x)), rng.uniform(*widths, len(x))))
    return _Nuclei(*(np.concatenate(values) for values in zip(*parts, strict=True)))


# --- tissue


class _Canvas:
    """Concentrations (X, Y) of hematoxylin and eosin; layers are painted one over the other."""

    def __init__(self) -> None:
        self.hematoxylin = np.zeros(SHAPE, dtype=np.float32)
        self.eosin = np.zeros(SHAPE, dtype=np.float32)

    def paint(self, weight: Array | float, hematoxylin: Array | float, eosin: Array | float) -> None:
        """Move the concentrations towards these, by ``weight`` (X, Y) from 0 to 1."""
        self.hematoxylin += weight * (hematoxylin - self.hematoxylin)
        self.eosin += weight * (eosin - self.eosin)


def _paint_stroma(rng: np.random.Generator, canvas: _Canvas, outside: Array, laboratory: Laboratory) -> None:
    """Paint fibers, vessels, fat, clefts and nuclei of the stroma; ``outside`` (X, Y) is the distance to the glands."""
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    turn = rng.uniform(0, np.pi)
    fibers = turn + np.pi / 2 + 0.4 * _field(rng, 160.0)
    waves = (x * np.cos(turn) + y * np.sin(turn)) / rng.uniform(7, 11) + 1.6 * _field(rng, 60.0)
    strands = np.square(np.cos(np.pi * waves)) * np.clip(0.6 + 0.5 * _field(rng, 50.0), 0, 1)
    coarse, fine = _field(rng, 70.0), _field(rng, 6.0)
    canvas.paint(1.0, 0.17 + 0.04 * fine, 0.38 + 0.26 * strands + 0.05 * fine)
    vessels = _scatter(rng, outside > 14, 45.0, int(rng.integers(2, 9)))
    fat = _scatter(rng, (outside > 16) & (coarse > 0.9), 24.0, int(rng.integers(0, 60)))
    openings, globules = rng.uniform(4, 12, len(vessels)), rng.uniform(9, 13, len(fat))
    clefts = np.minimum(2.2 - np.abs(outside - 4.5), 2.2 * _field(rng, 45.0) - 2.0)
    holes = np.maximum(_discs(vessels, openings, 0.6 * fine), _discs(fat, globules, 0.8 * fine))
    holes = np.maximum(holes, clefts)
    crowd = np.clip(laboratory.crowding * (0.65 + 0.6 * coarse), 0.03, 0.95)
    nuclei = _draw_nuclei(_stromal_nuclei(rng, (outside > 3) & (holes < -2), crowd, fibers))
    walls = _draw_nuclei(_ring_nuclei(rng, vessels, openings, 1.5, upright=False))
    canvas.paint(_soft(holes), 0.02, 0.05)
    cells = _scatter(rng, _discs(vessels, openings - 3, 0.0) > 0, 5.0, 160)
    canvas.paint(_soft(_discs(cells, np.full(len(cells), 2.6), 0.0)), 0.10, 0.95)
    canvas.paint(np.maximum(nuclei, walls) * (0.85 + 0.1 * fine), 1.0, 0.42)


def _paint_glands(
    rng: np.random.Generator, glands: list[_Gland], place: tuple[Array, Array, Array], laboratory: Laboratory
) -> _Canvas:
    """Paint cytoplasm, mucin, lumina and nuclei of the glands on a canvas that is valid where depth > 0."""
    depth, angle, owner = place
    canvas = _Canvas()
    wall = np.array([gland.wall for gland in glands], dtype=np.float32)[owner]
    radius = np.array([gland.radius for gland in glands], dtype=np.float32)[owner]
    fine, coarse = _field(rng, 6.0), _field(rng, 30.0)
    canvas.paint(1.0, 0.17 + 0.05 * fine + 0.04 * coarse, 0.47 + 0.06 * fine)
    droplets = np.cos(angle * np.rint(radius / 2.6) + 1.5 * coarse) + 0.5 * fine
    between = np.minimum(depth - 11 - 6 * (laboratory.layers - 1), wall - depth)
    mucin = _soft(np.minimum(between, 3.5 * droplets)) * laboratory.mucin * np.clip(0.75 + 0.4 * coarse, 0, 1)
    canvas.paint(mucin, 0.12, 0.10)
    solid = (radius > LAYOUTS["many"][1]) & (depth > wall)
    lumina = _scatter(rng, solid & (depth > wall + 4), 36.0, 300)
    openings = rng.uniform(3.5, 13.0, len(lumina))
    single = np.where(solid, -50.0, depth - wall + 1.5 * coarse)
    canvas.paint(_soft(np.maximum(single, _discs(lumina, openings, 1.2 * coarse))), 0.03 + 0.05 * (fine > 1.2), 0.07)
    rings = _draw_nuclei(_ring_nuclei(rng, lumina, openings, 7.5, upright=True))
    scattered = _stromal_nuclei(rng, solid, np.full(SHAPE, 0.12, dtype=np.float32), coarse)
    border = _draw_nuclei(_epithelial_nuclei(rng, glands, laboratory.layers))
    inner = np.maximum(rings, _draw_nuclei(scattered)) * (_discs(lumina, openings, 0.0) < -1)
    canvas.paint(np.maximum(inner, border) * (0.85 + 0.1 * fine), 1.0, 0.42)
    return canvas


def _paint_glass(rng: np.random.Generator, canvas: _Canvas, depth: Array) -> None:
    """Paint bare glass beyond one edge, in one of three sections on average; glands stay."""
    if rng.random() > 1 / 3:
        return
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    turn = rng.uniform(0, 2 * np.pi)
    along = (x - SHAPE[0] / 2) * np.cos(turn) + (y - SHAPE[1] / 2) * np.sin(turn)
    beyond = along - rng.uniform(70, 110) + 8 * _field(rng, 60.0)
    canvas.paint(_soft(np.minimum(beyond, -3 - depth)), 0.01, 0.01)


def _develop(rng: np.random.Generator, canvas: _Canvas, laboratory: Laboratory) -> Array:
    """Turn stains into light, with the blur and the noise of a scanner: (3, X, Y) uint8."""
    amounts = np.stack([gaussian_filter(map_, 0.7) for map_ in (canvas.hematoxylin, canvas.eosin)])
    light = 246 * np.exp(-np.einsum("sc,sxy->cxy", laboratory.stains.astype(np.float32), amounts))
    noise = 1.2 * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(np.rint(light + noise), 0, 255).astype(np.uint8)


def draw_gland(rng: np.random.Generator, *, laboratory: Laboratory, layout: str) -> GlandSection:
    """Draw one section.

    Args:
        rng: source of all chance.
        laboratory: the properties that all sections of the subject share.
        layout: "many" glands, "few" large ones, or "none".

    Returns:
        The image and its exact mask.

    Raises:
        ValueError: the layout is unknown.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> section = draw_gland(rng, laboratory=draw_laboratory(rng), layout="many")
        >>> section.image.shape, sorted(set(section.mask.flat))
        ((3, 320, 256), [np.uint8(1), np.uint8(2)])
    """
    check_choice("layout", layout, tuple(LAYOUTS))
    for_layout, for_stroma, for_glands, for_light = rng.spawn(4)
    glands = _place_glands(for_layout, layout)
    depth, angle, owner = _depth(glands, 0.6 * _field(for_layout, 12.0))
    canvas = _Canvas()
    _paint_stroma(for_stroma, canvas, -depth, laboratory)
    if glands:
        inside = _paint_glands(for_glands, glands, (depth, angle, owner), laboratory)
        canvas.paint(_soft(depth), inside.hematoxylin, inside.eosin)
    _paint_glass(for_layout, canvas, depth)
    mask = np.where(depth > 0, 1, 2).astype(np.uint8)
    return GlandSection(_develop(for_light, canvas, laboratory), mask[None])
