# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the commands that put bundles to work say at their end; each gives the exit code."""

from __future__ import annotations

import textwrap
from collections.abc import Sized
from pathlib import Path
from typing import Any

__all__ = ["NOT_ALL", "tell_bundles", "tell_prediction", "tell_training"]

_WIDTH = 100
_NAMED = 10
NOT_ALL = 3
"""Exit code of what is done, but not all of it."""


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
    print(f"In {result[0].path.parent}. Research use only, none is for diagnosis.")
    print("To segment images with one: monai-wsss predict IMAGES --bundle NAME --out MASKS")
    return 0


def tell_prediction(result: Any) -> int:
    """Print where masks, table and page lie, and what could not be read; give the exit code."""
    masks = result.out / "masks"
    if result.rows:
        print(f"Masks:  {masks if masks.is_dir() else result.out} ({_counted(result.rows)})")
        print(f"Table:  {result.out / 'predictions.csv'}")
    print(f"Report: {result.report}")
    if not result.failures:
        return 0
    print(f"{_counted(result.failures)} could not be read, see {result.out / 'failures.csv'}:")
    for name, why in result.failures[:_NAMED]:
        print(f"  {name}: {why}")
    if len(result.failures) > _NAMED:
        print(f"  and {len(result.failures) - _NAMED} more")
    return NOT_ALL


def tell_training(result: Any) -> int:
    """Print the verdict, and the command that comes next; give the exit code."""
    print(f"Wrote {result.out / 'model.pt'}")
    print(result.verdict.sentence)
    print("Next, to segment images that nobody has labeled:" if result.verdict.learned else "To look at masks even so:")
    print(f"  {result.predict}")
    return NOT_ALL if result.verdict.learned is False else 0


def _counted(cases: Sized) -> str:
    return "1 case" if len(cases) == 1 else f"{len(cases)} cases"
