# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A brain phantom from formulas: anatomy → tumor → sequences → artefacts, with the exact mask.

The head is a stack of soft *layers* (tissue, weight map), painted one over the other.  Each sequence is the same stack
with another column of the table of signals.  Lengths are millimeters in head coordinates: x across,
y from front (-) to back (+), z from the skull base (-) to the vertex (+).  Arrays are (X, Y, Z) = :data:`SHAPE` in the
axial orientation of BraTS: x and y indices grow to the left and to the back (LPS).

Contrasts are relative to white matter on T1.  They were tuned by eye and by z-scores against the public TCGA-LGG slices
(z over the foreground of a subject: tumor about -0.3 on T1, 0.9 on FLAIR).  Healthy heads have bright spots and
ventricle caps on FLAIR and T2, bright fat on all sequences, and dark cysts on T1, so that no threshold on one sequence
finds the tumor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.fft import idctn
from scipy.special import expit

__all__ = ["BRAIN_AFFINE", "CONTRAST", "SHAPE", "BrainStudy", "draw_brain"]

SHAPE = (64, 64, 24)
SPACING = (3.75, 3.75, 6.0)
_LOWEST = -60.0  # z of the first slice's center: the skull base is seen, the neck is not
BRAIN_AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
BRAIN_AFFINE[:3, 3] = [SPACING[0] * 31.5, SPACING[1] * 31.5, _LOWEST]

# Signal of each tissue, sequences in the package's order; white matter on T1 is 1.
_TISSUES = {
    #              T1    T1c   T2    FLAIR
    "fat": (2.15, 2.15, 1.20, 1.75),
    "muscle": (0.85, 1.05, 0.45, 0.70),
    "bone": (0.12, 0.12, 0.10, 0.12),
    "marrow": (1.25, 1.25, 0.60, 0.85),
    "air": (0.02, 0.02, 0.02, 0.02),
    "fluid": (0.32, 0.32, 1.90, 0.22),
    "gray": (0.80, 0.84, 0.95, 0.88),
    "white": (1.00, 1.02, 0.72, 0.76),
    "vessel": (0.70, 1.90, 0.25, 0.45),
    "spot": (0.80, 0.82, 1.30, 1.25),
    "edema": (0.76, 0.78, 1.35, 1.45),
    "core": (0.52, 0.55, 1.60, 1.05),
    "rim": (0.80, 1.70, 1.15, 1.10),
}
_VARIED = ("fat", "edema", "core")  # tissues whose signal differs most between subjects
CONTRAST = {name: {t: row[i] for t, row in _TISSUES.items()} for i, name in enumerate(("T1", "T1c", "T2", "FLAIR"))}

Array = np.ndarray
Layer = tuple[str, Array]


@dataclass(frozen=True)
class BrainStudy:
    """One drawn subject.

    Attributes:
        volumes: sequence name → uint8 (X, Y, Z).
        mask: uint8 (X, Y, Z), 1 in the whole tumor (edema, rim and core), all zeros when healthy.
        organ: bool (X, Y, Z), true inside the brain.
        affine: (4, 4) float64, voxel index → millimeters (RAS+ world, as NIfTI).
    """

    volumes: dict[str, Array]
    mask: Array
    organ: Array
    affine: Array


@dataclass(frozen=True)
class _Tumor:
    """Place (head coordinates), size and signals of a tumor."""

    center: Array
    radius: float
    core: float  # radius of the core as a share of the whole; 0 = edema only
    enhancing: float  # 0..1, strength of the rim on T1c
    border: float  # millimeters over which the edema fades


def _field(rng: np.random.Generator, wavelength: float, *, band: bool = False) -> Array:
    """Draw a smooth random field (X, Y, Z) with mean 0 and standard deviation 1.

    It is white noise in the cosine domain, in which waves shorter than ``wavelength`` mm are damped; with ``band``
    longer waves too.
    """
    axes = []
    for size, step in zip(SHAPE, SPACING, strict=True):
        kept = min(size, int(6 * size * step / wavelength) + 1)  # beyond, the weight is below exp(-9)
        axes.append(np.square(np.arange(kept, dtype=np.float32) * (wavelength / (2 * size * step))))
    relative = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    weight = np.exp(-relative) * (relative if band else 1)
    field = idctn(rng.standard_normal(weight.shape, dtype=np.float32) * weight, s=SHAPE, norm="ortho")
    field -= field.mean()
    return field / field.std()


def _pose(rng: np.random.Generator) -> Array:
    """Give the head coordinates (3, X, Y, Z) of all voxels, for a head of random size, tilt, shift and asymmetry."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE[:2], SPACING[:2], strict=True)]
    axes.append(_LOWEST + np.arange(SHAPE[2]) * SPACING[2])
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    yaw, pitch, roll = np.deg2rad(rng.normal(0, [5.0, 5.0, 3.0]))
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    size = rng.normal(1.0, 0.04) * rng.normal(1.0, 0.025, (3, 1))
    shift = rng.normal(0, [4.0, 5.0, 4.0])[:, None]
    matrix = (about_z @ about_x @ about_y / size).astype(np.float32)
    moved = matrix @ (points.reshape(3, -1) - shift).astype(np.float32)
    warp = np.stack([2.5 * _field(rng, 110.0) for _ in range(3)])
    return moved.reshape(points.shape) + warp


def _ellipsoid(head: Array, center: Sequence[float], radii: Sequence[float]) -> Array:
    """Approximate the signed distance (mm) to the surface of an ellipsoid, positive inside."""
    squared = np.full(SHAPE, 1e-6, dtype=np.float32)
    slope = np.full(SHAPE, 1e-9, dtype=np.float32)
    for coordinate, middle, radius in zip(head, center, radii, strict=True):
        scaled = np.square((coordinate - np.float32(middle)) * np.float32(1 / radius))
        squared += scaled
        slope += scaled * np.float32(1 / radius**2)
    level = np.sqrt(squared)
    return (level - squared) / np.sqrt(slope)


def _soft(distance: Array, width: float = 1.2) -> Array:
    """Turn a signed distance (mm) into a weight 0..1 for partial volume: a ramp that is 4 ``width`` wide."""
    return np.clip(distance * np.float32(0.25 / width) + np.float32(0.5), 0, 1)


def _twice(head: Array) -> Array:
    """Fold head coordinates at the midline, for structures that come in pairs."""
    return np.stack([np.abs(head[0]), head[1], head[2]])


def _cavity(head: Array) -> Array:
    """Give the signed distance (mm) to the inside of the skull, positive inside; its floor rises towards the front."""
    x, y, z = head
    dome = _ellipsoid(np.stack([x, y, np.where(z > 0, z, 0.8 * z)]), (0, 3, 0), (63, 80, 68))
    temporal = 20 * np.exp(-(((np.abs(x) - 38) / 14) ** 2) - ((y + 18) / 18) ** 2)
    floor = -16 - 36 * expit((y + 2) / 7) - temporal
    return np.minimum(dome, z - floor)


def _outside(rng: np.random.Generator, head: Array, cavity: Array) -> list[Layer]:
    """Give the layers of scalp, face and skull."""
    x, y, z = head
    pair = _twice(head)
    skin = _ellipsoid(np.stack([x, y, np.where(z > 0, z, 0.45 * z)]), (0, 0, 0), (75, 94, 80))
    skin = np.maximum(skin, _ellipsoid(head, (0, -90, -48), (11, 22, 20)))
    below = np.maximum(-cavity, 0)
    flesh, bones = _field(rng, 22.0, band=True), _field(rng, 18.0, band=True)
    fat_depth = rng.uniform(3.5, 6.0)
    eye = _ellipsoid(pair, (31, -66, -28), (12.5, 13, 12.5))
    return [
        ("fat", _soft(skin)),
        ("muscle", _soft(skin - fat_depth - 3) * _soft(flesh + 0.6, 0.3)),
        ("bone", _soft(skin - 9) * _soft(bones - 0.55, 0.2)),
        ("air", _soft(_ellipsoid(pair, (9, -58, -46), (10, 24, 18)) + 2.5 * flesh)),
        ("air", _soft(_ellipsoid(pair, (34, -52, -56), (12, 14, 14)) + 2.5 * flesh)),
        ("air", 0.8 * _soft(_ellipsoid(pair, (50, 28, -44), (10, 15, 14)) + 4 * bones)),
        ("fat", _soft(_ellipsoid(pair, (29, -58, -28), (17, 26, 16)))),
        ("fluid", _soft(eye)),
        ("bone", _soft(rng.uniform(6.0, 8.0) - below)),
        ("marrow", 0.55 * np.exp(-(((below - 3.5) / 1.3) ** 2)) * (cavity < 0)),
        ("vessel", 0.7 * _soft(_ellipsoid(pair, (27, 8, -52), (5, 5, 20)))),
    ]


def _inside(rng: np.random.Generator, head: Array, cavity: Array, tumor: _Tumor | None) -> list[Layer]:
    """Give the layers of brain, fluid spaces and healthy structures that look like disease."""
    brain = head if tumor is None else _pushed(head, tumor)
    x, y, z = brain
    pair = _twice(brain)
    atrophy = rng.uniform(0.0, 1.0)
    folds = np.abs(_field(rng, 26.0, band=True)) * 4.5  # about millimeters to the nearest sulcus
    depth = cavity - 2.0 - 1.5 * atrophy
    reach = 9.0 + 5.0 * rng.uniform()  # how deep the sulci cut
    sulcus = folds + 0.5 * np.maximum(depth - reach, 0) - 0.4 - 1.0 * atrophy
    fissure = np.abs(x) - 0.8 - 0.5 * atrophy
    fissure = np.where((z > 24) | (np.abs(y - 2) > 42) | (z < -8), fissure, 20.0)
    sylvian = _ellipsoid(pair, (48, -8, -2), (18, 5 + 3 * atrophy, 4 + 3 * atrophy))
    surface = np.minimum(depth, fissure)
    stem = _ellipsoid(brain, (0, 12, -40), (14, 13, 40))
    tent = np.maximum(z + 20 + 0.1 * (y - 40), 0.5 * np.abs(x) - 2 - y)  # positive above and in front of the tentorium
    upper = _soft(surface) * _soft(sulcus, 1.6) * _soft(tent)
    cerebellum = np.minimum(np.minimum(cavity - 2.5, -tent - 1), y - 24 + 0.3 * np.abs(x))
    lower = np.maximum(cerebellum, np.minimum(stem, np.minimum(-tent, cavity - 2)))
    return [
        ("fluid", _soft(cavity)),
        ("gray", upper),
        ("white", upper * _soft(np.minimum(surface, sulcus) - rng.uniform(2.2, 3.2), 1.0)),
        ("gray", _soft(lower)),
        ("white", 0.8 * _soft(np.minimum(lower, np.maximum(cerebellum - 7 - folds, stem)))),
        ("gray", 0.9 * _soft(_ellipsoid(pair, (13, 8, 6), (9, 14, 9)))),
        ("gray", 0.8 * _soft(_ellipsoid(pair, (26, -6, 5), (6, 17, 10)))),
        *_bright_spots(rng, pair, brain),
        ("vessel", _soft(_ellipsoid(head, (0, 76, 10), (4.5, 5, 52)) + 1)),
        ("fluid", _soft(sylvian)),
        *_ventricles(rng, pair, atrophy),
    ]


def _pushed(head: Array, tumor: _Tumor) -> Array:
    """Push tissue near the tumor outwards, by up to a fifth of its distance from the center (mass effect)."""
    offset = head - tumor.center.astype(np.float32).reshape(3, 1, 1, 1)
    near = np.exp(-0.5 * (offset**2).sum(0) / (1.2 * tumor.radius) ** 2)
    return head - 0.2 * near * offset


def _ventricles(rng: np.random.Generator, pair: Array, atrophy: float) -> list[Layer]:
    """Give the layer of the lateral ventricles (bent outwards at the back), the third and the fourth ventricle."""
    wide = 3.0 + 4.0 * atrophy + rng.uniform(0, 2)
    bent = np.stack([pair[0] - 0.006 * (pair[1] - 2) ** 2, pair[1], pair[2] + 0.15 * pair[1]])
    lateral = _ellipsoid(bent, (5 + wide, 4, 15), (wide, 40, 8 + 3 * atrophy))
    third = _ellipsoid(pair, (0, 4, 2), (2 + 1.5 * atrophy, 13, 9))
    fourth = _ellipsoid(pair, (0, 30, -40), (6, 5, 9))
    return [("fluid", _soft(np.maximum(np.maximum(lateral, third), fourth)))]


def _bright_spots(rng: np.random.Generator, pair: Array, brain: Array) -> list[Layer]:
    """Give layers of caps on the ventricles' horns, of a few small hyperintensities and, in some heads, of a cyst."""
    caps = np.maximum(
        _ellipsoid(pair, (17, -36, 18), (7, 8, 9)), _ellipsoid(pair, (24, 44, 10), (8, 9, 10))
    ) * rng.uniform(0.6, 1.0)
    layers = [("spot", rng.uniform(0.1, 0.7) * _soft(caps, 2.0))]
    spots = np.full(SHAPE, -50.0, dtype=np.float32)
    for _ in range(rng.poisson(2.5)):
        center = rng.choice([-1, 1]) * rng.uniform(14, 40), rng.uniform(-45, 50), rng.uniform(8, 45)
        spots = np.maximum(spots, _ellipsoid(brain, center, tuple(rng.uniform(2.5, 6.0, 3))))
    layers.append(("spot", rng.uniform(0.5, 1.0) * _soft(spots)))
    if rng.uniform() < 0.25:
        center = rng.choice([-1, 1]) * rng.uniform(25, 50), rng.uniform(-50, 50), rng.uniform(0, 35)
        layers.append(("fluid", _soft(_ellipsoid(brain, center, tuple(rng.uniform(6, 14, 3))))))
    return layers


def _place_tumor(rng: np.random.Generator) -> _Tumor:
    """Draw a tumor above the tentorium and off the midline, moved inwards where it would touch the skull."""
    center = np.array([rng.choice([-1, 1]) * rng.uniform(15, 46), rng.uniform(-52, 56), rng.uniform(-10, 48)])
    eccentricity = np.sqrt(np.sum(np.square((center - [0, 3, 0]) / [63, 80, 68])))
    center = center * min(1.0, 0.72 / eccentricity)
    return _Tumor(
        center=center,
        radius=float(np.clip(27 * np.exp(rng.normal(0, 0.33)), 13, 45)),
        core=float(rng.choice([0.0, rng.uniform(0.35, 0.65)], p=[0.3, 0.7])),
        enhancing=float(rng.choice([0.0, rng.uniform(0.4, 1.0)], p=[0.45, 0.55])),
        border=float(rng.uniform(1.0, 3.0)),
    )


def _tumor_layers(rng: np.random.Generator, head: Array, tumor: _Tumor, room: Array) -> tuple[list[Layer], Array]:
    """Give the layers of edema, rim and core, and the weight (X, Y, Z) of the whole tumor; the mask is weight > 0.5.

    Args:
        rng: source of all chance.
        head: head coordinates (3, X, Y, Z).
        tumor: the tumor.
        room: weight (X, Y, Z) of the brain tissue that it may fill.
    """
    stretch = tuple(tumor.radius * np.exp(rng.normal(0, 0.15, 3)))
    ragged = 0.22 * tumor.radius * _field(rng, 2.0 * tumor.radius) + 1.2 * _field(rng, 14.0)
    distance = _ellipsoid(head, tuple(tumor.center), stretch) + ragged
    whole = _soft(distance, tumor.border) * np.clip(2 * room, 0, 1)
    inner = _ellipsoid(head, tuple(tumor.center + rng.normal(0, 0.12 * tumor.radius, 3)), stretch)
    inner = inner - (1 - tumor.core) * tumor.radius + 0.6 * ragged
    texture = np.clip(0.9 + 0.15 * _field(rng, 16.0), 0.5, 1.0)
    layers: list[Layer] = [("edema", whole * texture * rng.uniform(0.65, 1.0))]
    if tumor.core > 0:
        if tumor.enhancing > 0:
            layers.append(("rim", tumor.enhancing * _soft(inner + rng.uniform(3, 5)) * whole))
        layers.append(("core", _soft(inner) * whole))
    return layers, whole


def _paint(layers: list[Layer], signals: dict[str, float]) -> Array:
    """Paint the layers one over the other, each tissue with its signal; a tissue without signal gets 0."""
    image = np.zeros(SHAPE, dtype=np.float32)
    for tissue, weight in layers:
        image += weight * (np.float32(signals.get(tissue, 0.0)) - image)
    return image


def _acquire(rng: np.random.Generator, image: Array, shared_bias: Array) -> Array:
    """Add the bias field, Rician noise and gain of one scan; give uint8, with the 99.9th percentile at 150 to 255."""
    biased = image * np.exp(shared_bias + np.float32(0.06) * _field(rng, 150.0))
    real, imaginary = np.float32(rng.uniform(0.02, 0.05)) * rng.standard_normal((2, *SHAPE), dtype=np.float32)
    noisy = np.sqrt(np.square(biased + real) + np.square(imaginary))
    gain = rng.uniform(150, 255) / np.quantile(noisy, 0.999)
    return np.minimum(np.rint(noisy * np.float32(gain)), 255).astype(np.uint8)


def draw_brain(rng: np.random.Generator, *, modalities: tuple[str, ...], diseased: bool) -> BrainStudy:
    """Draw one subject.

    Args:
        rng: source of all chance; each sequence has its own stream, so it is the same whichever other sequences are
            drawn.
        modalities: any of ``T1``, ``T1c``, ``T2``, ``FLAIR``.
        diseased: whether there is a tumor.

    Returns:
        The sequences, the exact mask, the brain, and the affine.

    Example:
        >>> import numpy as np
        >>> study = draw_brain(np.random.default_rng(0), modalities=("T1", "FLAIR"), diseased=True)
        >>> study.volumes["FLAIR"].shape, study.volumes["FLAIR"].dtype.name, sorted(set(study.mask.flat))
        ((64, 64, 24), 'uint8', [np.uint8(0), np.uint8(1)])
    """
    for_anatomy, for_tumor, for_signal, *for_sequences = rng.spawn(3 + len(CONTRAST))
    head = _pose(for_anatomy)
    tumor = _place_tumor(for_tumor) if diseased else None
    cavity = _cavity(head)
    layers = [*_outside(for_anatomy, head, cavity), *_inside(for_anatomy, head, cavity, tumor)]
    brain = _paint(layers, dict.fromkeys(("gray", "white", "spot"), 1.0))
    whole = np.zeros(SHAPE, dtype=np.float32)
    if tumor is not None:
        lesion, whole = _tumor_layers(for_tumor, head, tumor, brain)
        layers += lesion
    tone = {tissue: for_signal.normal(1.0, 0.12 if tissue in _VARIED else 0.05) for tissue in _TISSUES}
    shared_bias = 0.10 * _field(for_signal, 200.0)
    volumes = {}
    for name, stream in zip(CONTRAST, for_sequences, strict=True):
        if name in modalities:
            signals = {tissue: signal * tone[tissue] for tissue, signal in CONTRAST[name].items()}
            volumes[name] = _acquire(stream, _paint(layers, signals), shared_bias)
    return BrainStudy(volumes, (whole > 0.5).astype(np.uint8), brain > 0.5, BRAIN_AFFINE)
