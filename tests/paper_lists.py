# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the frozen lists of the papers share: an item, its value, its source, and what looks it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Item"]


class Item(NamedTuple):
    """An item of a list.

    Attributes:
        name: of the item.
        value: what it has to be.
        source: where that stands.
        found: looks it up, in a run where the list has several.
    """

    name: str
    value: Any
    source: str
    found: Callable[..., Any]
