# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the commands that put bundles to work say at their end; each gives the exit code."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

__all__ = ["tell_bundles"]

_WIDTH = 100


def tell_bundles(result: Any) -> int:
    """Print the list of bundles, the folder of a copy, or the faults of a bundle; give the exit code."""
    if isinstance(result, Path):
        print(f"Wrote {result}; the terms of its weights: {result / 'docs' / 'data_license.txt'}")
        return 0
    if not result or isinstance(result[0], str):
        print("\n".join([*result, f"{len(result)} faults: mend them, or do not run it."] if result else ["no faults"]))
        return 1 if result else 0
    for bundle in result:
        print(f"{bundle.name}  ({bundle.size_mb:.1f} MB)")
        facts = {
            "finds": ", ".join(bundle.classes),
            "in": bundle.inputs,
            "trained on": bundle.trained_on,
            "license": bundle.license,
        }
        for label, text in facts.items():
            lines = textwrap.wrap(text, _WIDTH - 14)
            print("\n".join(f"  {label if number == 0 else '':<11}{line}" for number, line in enumerate(lines)))
    print(f"In {result[0].path.parent if result else '?'}. Research use only, none is for diagnosis.")
    return 0
