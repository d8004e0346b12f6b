# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The inventory of default numbers: one that changes is a decision, written down in ``tests/public_defaults.txt``.

``python tests/contract/test_defaults.py`` writes the inventory anew.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

INVENTORY = Path(__file__).parents[1] / "public_defaults.txt"
ROOMS = ("cams", "data", "engines", "inferers", "losses", "metrics", "networks", "refinement", "transforms")


def defaults() -> list[str]:
    """List the default numbers and flags of public functions and constructors, a callable per line."""
    lines = []
    for room in ROOMS:
        module = importlib.import_module(f"monai_wsss.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
                continue
            numbers = [
                f"{one.name}={one.default!r}"
                for one in inspect.signature(value).parameters.values()
                if isinstance(one.default, (bool, int, float, tuple))
            ]
            lines += [f"{room}.{name} {' '.join(numbers)}"] if numbers else []
    return sorted(lines)


def test_default_numbers_are_those_of_the_inventory():
    assert defaults() == INVENTORY.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    INVENTORY.write_text("\n".join(defaults()) + "\n", encoding="utf-8")
