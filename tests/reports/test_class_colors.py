# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Colors of classes, as color-blind readers see them: a published simulation, and a distance of colors."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports.charts import CHART_COLORS
from monai_wsss.reports.panels import MASK_COLOR

LIMIT = 25  # CIE76; two colors that differ by 2.3 can just be told apart side by side

# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: severity 1.0, on linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = TO_XYZ.sum(axis=1)


def lab(colors: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """Turn sRGB, 0..255, (N, 3), into L*a*b* of the color that is seen."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = (linear @ vision.T).clip(0, 1)
    ratio = seen @ TO_XYZ.T / WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def least_difference(colors, vision: np.ndarray) -> float:
    seen = lab(np.array(colors, dtype=float), vision)
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


def contrast(one, other) -> float:
    """Give the ratio of relative luminances of two sRGB colors, WCAG 2."""
    values = np.array([one, other]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    dark, light = sorted((linear @ TO_XYZ[1]).tolist())
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
def test_eight_classes_differ_for_every_kind_of_color_vision(vision):
    assert len(CLASS_COLORS) >= 8
    assert least_difference(CLASS_COLORS[:8], VISIONS[vision]) >= LIMIT


def test_the_simulation_confuses_what_these_readers_confuse():
    """Red and green of one lightness are one color without green cones, and differ without blue ones."""
    pair = [(190, 105, 60), (120, 135, 60)]
    assert least_difference(pair, VISIONS["deuteranopia"]) < 12 < 40 < least_difference(pair, VISIONS["tritanopia"])


@pytest.mark.parametrize("scheme", CHART_COLORS)
def test_six_curves_differ_for_every_kind_of_color_vision_and_stand_out(scheme):
    names = ("accent", "second", "third", "fourth", "fifth", "sixth", "paper")
    *curves, paper = (tuple(bytes.fromhex(CHART_COLORS[scheme][name][1:])) for name in names)
    assert min(least_difference(curves, vision) for vision in VISIONS.values()) >= LIMIT
    assert min(contrast(curve, paper) for curve in curves) >= 3, "of graphics, WCAG 1.4.11"


def test_the_first_class_has_the_color_of_outlines():
    assert "#{:02x}{:02x}{:02x}".format(*CLASS_COLORS[0]) == MASK_COLOR
