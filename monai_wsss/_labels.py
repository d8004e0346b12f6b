# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What all labels share: the one pixel value that is no class, and where a batch keeps them."""

from __future__ import annotations

__all__ = ["IGNORED", "ON_HOST"]

IGNORED = 255
"""Value of pixels whose class is unknown or in doubt: no loss learns from them and no metric counts them."""

ON_HOST = ("label", "boxes")
"""Entries of a batch that methods read on the host, so that nothing waits for a GPU."""
