# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Public names that have moved or changed: scripts and configurations that were written before still find them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping

__all__ = ["old_names"]


def old_names(room: str, moved: Mapping[str, str]) -> Callable[[str], object]:
    """Make the ``__getattr__`` of a room, which gives names that have moved and warns where they are now.

    Args:
        room: the module that had the names.
        moved: old name -> module and name today, such as ``"monai_wsss.bundle_scan.scan_bundle"``.

    Example:
        >>> give = old_names("monai_wsss.benchmark", {"scan_bundle": "monai_wsss.bundle_scan.scan_bundle"})
        >>> give("make_nothing")
        Traceback (most recent call last):
        AttributeError: module 'monai_wsss.benchmark' has no attribute 'make_nothing'
    """

    def give(name: str) -> object:
        if name not in moved:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        module, _, today = moved[name].rpartition(".")
        warnings.warn(f"`{room}.{name}` is `{moved[name]}` now: use that name.", FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(module), today)

    return give
