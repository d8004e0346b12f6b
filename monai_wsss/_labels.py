# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What all labels share: the one pixel value that is no class, their colors, and where a batch keeps them."""

from __future__ import annotations

__all__ = ["CLASS_COLORS", "IGNORED", "ON_HOST"]

IGNORED = 255
"""Value of pixels whose class is unknown or in doubt: no loss learns from them and no metric counts them."""

CLASS_COLORS = (
    (255, 159, 28),
    (0, 169, 123),
    (160, 73, 173),
    (222, 42, 35),
    (233, 207, 126),
    (59, 92, 236),
    (27, 240, 255),
    (212, 255, 218),
)
"""Red, green and blue, 0..255, of the classes 1, 2, … in pictures of masks; further classes begin anew.

Any two differ by 25 or more (CIE76) for readers with any kind of color blindness.  The first two are seen on gray
images, on skin and on stained tissue, which is pink and violet.
"""

ON_HOST = ("label", "boxes")
"""Entries of a batch that methods read on the host, so that nothing waits for a GPU."""
