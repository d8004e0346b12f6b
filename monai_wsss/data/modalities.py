# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names of modalities: one spelling and one order of MRI sequences, and the channels of color images."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["COLORS", "SEQUENCES", "canonical_modality", "sort_modalities"]

SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
"""The sequences of brain MRI that this package knows, in the order that they have everywhere."""

COLORS = ("red", "green", "blue")
"""The channels of a color image."""

_ALIASES = {
    "T1": ("t1", "t1w", "t1n", "t1native", "t1pre"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "t1km", "t1contrast", "t1wce", "t1cw"),
    "T2": ("t2", "t2w"),
    "FLAIR": ("flair", "t2f", "t2flair", "fl"),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def canonical_modality(name: str) -> str:
    """Give the name that this package uses for an MRI sequence; an unknown name comes back as it is.

    Example:
        >>> canonical_modality("t1ce"), canonical_modality("T2-FLAIR"), canonical_modality("ADC")
        ('T1c', 'FLAIR', 'ADC')
    """
    return _CANONICAL.get(re.sub(r"[^a-z0-9]", "", name.lower()), name)


def sort_modalities(names: Sequence[str]) -> list[str]:
    """Sort sequence names in the order T1, T1c, T2, FLAIR; unknown names follow in the order given.

    Raises:
        ValueError: two names mean the same sequence.

    Example:
        >>> sort_modalities(["flair", "ADC", "t1ce", "T1w"])
        ['T1', 'T1c', 'FLAIR', 'ADC']
    """
    canonical = [canonical_modality(name) for name in names]
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"Expected `names` to name each sequence once, got {', '.join(names)}.")
    known = [name for name in SEQUENCES if name in canonical]
    return known + [name for name in canonical if name not in SEQUENCES]
