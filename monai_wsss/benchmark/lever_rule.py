# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Which lever becomes a default: a rule that was fixed beforehand and reads image-level labels alone.

A lever is preferred where, over three seeds of both,

    mean AUROC of the lever > mean AUROC of the default + 0.01   and
    mean share left clean of the lever >= mean share left clean of the default - 0.01

On tiles these are ``tile_auroc`` and ``tile_clean``, on slices ``presence_auroc`` and ``healthy_clean``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_wsss.benchmark.rows import Row

__all__ = ["format_lever_rule"]

_MARGIN = 0.01
_SEEDS = 3
_EVIDENCE = (("tile_auroc", "tile_clean"), ("presence_auroc", "healthy_clean"))
NO_EVIDENCE = "No image-level evidence: neither tiles nor slices with and without the class were measured."

Values = dict[int, tuple[float, float]]


def format_lever_rule(rows: Sequence[Row], default: str, *, column: str = "as they are") -> str:
    """Apply the rule to rows of a table of levers, and give its verdicts as a Markdown table.

    Args:
        rows: the rows of all levers and seeds; those without an AUROC are left out.
        default: the name of the rows that the others are held against.
        column: the column of the rows to read.

    Returns:
        One line per lever, the default first: number of seeds, both means and their differences, and the verdict.  A
        verdict waits for three seeds, the same of both.

    Example:
        >>> def row(name, seed, auroc):
        ...     metrics = {"tile_auroc": {"mean": auroc}, "tile_clean": {"mean": 0.9}}
        ...     return Row(name, "as they are", "validation", seed, metrics)
        >>> rows = [row(name, seed, auroc) for name, auroc in (("max", 0.93), ("mean", 0.9)) for seed in range(3)]
        >>> print(format_lever_rule(rows, "mean"))
        | lever | seeds | tile_auroc | difference | tile_clean | difference | by the rule |
        |---|---|---|---|---|---|---|
        | mean | 3 | 0.900 |  | 0.900 |  | the default |
        | max | 3 | 0.930 | +0.030 | 0.900 | +0.000 | preferred |
    """
    own = [row for row in rows if row.column == column and row.seed is not None]
    names = next((names for names in _EVIDENCE if any(_is_known(row, names) for row in own)), None)
    if names is None:
        return NO_EVIDENCE
    levers: dict[str, Values] = {default: {}}
    for row in own:
        if names[0] in row.metrics:
            values = levers.setdefault(row.name, {})
            if _is_known(row, names):
                assert row.seed is not None
                values[row.seed] = (row.metrics[names[0]]["mean"], row.metrics[names[1]]["mean"])
    heads = ["lever", "seeds", names[0], "difference", names[1], "difference", "by the rule"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, values in levers.items():
        lines.append(f"| {' | '.join(_cells(name, values, None if name == default else levers[default]))} |")
    return "\n".join(lines)


def _is_known(row: Row, names: tuple[str, str]) -> bool:
    return all(name in row.metrics for name in names)


def _cells(name: str, values: Values, default: Values | None) -> list[str]:
    """Give the cells of one lever; ``default`` is None for the default itself."""
    if not values:
        return [name, "0", *["–"] * 4, "no row yet"]
    auroc, clean = np.mean(list(values.values()), axis=0)
    if default is None:
        return [name, str(len(values)), f"{auroc:.3f}", "", f"{clean:.3f}", "", "the default"]
    if len(values) < _SEEDS or values.keys() != default.keys():
        waits = f"not yet: three seeds, the same of both, got {len(values)} and {len(default)}"
        return [name, str(len(values)), f"{auroc:.3f}", "–", f"{clean:.3f}", "–", waits]
    more, cleaner = (auroc, clean) - np.mean(list(default.values()), axis=0)
    preferred = more > _MARGIN and cleaner >= -_MARGIN
    return [
        name,
        str(len(values)),
        f"{auroc:.3f}",
        f"{more:+.3f}",
        f"{clean:.3f}",
        f"{cleaner:+.3f}",
        "preferred" if preferred else "not preferred",
    ]
