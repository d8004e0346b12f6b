# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The one pixel value that is no class, in masks on disk, in pseudo-labels and in every loss."""

from __future__ import annotations

__all__ = ["IGNORED"]

IGNORED = 255
"""Value of pixels whose class is unknown or in doubt: no loss learns from them and no metric counts them."""
