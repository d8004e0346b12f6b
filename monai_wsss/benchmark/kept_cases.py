# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a run keeps of its cases for the page: counts, curves, and small masks and score maps, without any name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F

from monai_wsss._files import atomic_path, make_directory
from monai_wsss.benchmark.encoder_table import Decided
from monai_wsss.metrics import CaseTable

__all__ = ["KeptCases", "made_small", "read_kept_cases", "write_kept_cases"]

_SIDE = 128
_COUNTED = ("finding", "healthy", "found", "dice", "tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class KeptCases:
    """The cases of one run, in the order of the split.

    Attributes:
        path: the file.
        rows: of each case what ``per_case.csv`` would hold of overlap; subjects are numbered.
        sweep: as :meth:`~monai_wsss.metrics.CaseTable.sweep` gives it.
        pixels: class to pixels by their score, in the class's reference and out of it: two lists of T + 1 numbers, of
            scores of 0 and of those above each threshold up to the next.
        masks: uint8 (x, y) of each case, of at most 128 pixels a side.
        uncertain: mean uncertainty of each case, in [0, 1], of an ensemble; empty for others.
    """

    path: Path
    rows: Sequence[Mapping[str, str]]
    sweep: Mapping[str, Any]
    pixels: Mapping[str, Sequence[Sequence[int]]]
    masks: Sequence[np.ndarray]
    uncertain: Sequence[float] = ()

    def scores(self, places: Sequence[int]) -> dict[int, np.ndarray]:
        """Read the score maps (K, x, y) in [0, 1] of some cases; those that have none are left out."""
        return self._maps("scores", "score_shapes", places)

    def uncertainties(self, places: Sequence[int]) -> dict[int, np.ndarray]:
        """Read the maps of uncertainty (1, x, y) in [0, 1] of some cases; those that have none are left out."""
        return self._maps("uncertainties", "uncertainty_shapes", places) if self.uncertain else {}

    def _maps(self, name: str, of_shapes: str, places: Sequence[int]) -> dict[int, np.ndarray]:
        with np.load(self.path) as file:
            flat, shapes = file[name], file[of_shapes]
        ends = np.cumsum(shapes.prod(axis=1))
        found = {}
        for place in places:
            shape = tuple(shapes[place].tolist())
            if all(shape):
                found[place] = flat[ends[place] - np.prod(shape) : ends[place]].reshape(shape) / np.float32(255)
        return found


def write_kept_cases(path: Path, table: CaseTable, decided: Sequence[Decided], metrics: Mapping[str, Any]) -> None:
    """Write the cases of a run, all or nothing.

    Args:
        path: the ``.npz`` file.
        table: of the cases.
        decided: of each case, in the order of the table, whole or small; an uncertainty of all of them or of none.
        metrics: of the table, by which a reader knows whether they belong to a row.
    """
    subjects = {name: number for number, name in enumerate(sorted({row["subject"] for row in table.rows}), start=1)}
    rows = [
        {"subject": str(subjects[row["subject"]])}
        | {key: str(value) for key, value in row.items() if key.split("/")[0] in _COUNTED}
        for row in table.rows
    ]
    told: dict[str, Any] = {
        "metrics": {name: entry["mean"] for name, entry in metrics.items()},
        "rows": rows,
        "sweep": table.sweep(),
        "pixels": _pixels_by_score(table),
    }
    small = [made_small(one) for one in decided]
    uncertain = [one.uncertainty for one in small if one.uncertainty is not None]
    if uncertain:
        told["uncertain"] = [float(each.float().mean()) for each in uncertain]
    masks = [one.mask[0].to(torch.uint8).numpy() for one in small]
    scores, uncertainties = ([_bytes(each) for each in maps] for maps in ([one.scores for one in small], uncertain))
    more: dict[str, Any] = {}
    if uncertain:
        more["uncertainties"] = np.concatenate([each.ravel() for each in uncertainties])
        more["uncertainty_shapes"] = np.array([each.shape for each in uncertainties])
    make_directory(path.parent)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            told=np.array(json.dumps(told)),
            masks=np.concatenate([mask.ravel() for mask in masks]),
            mask_shapes=np.array([mask.shape for mask in masks]),
            scores=np.concatenate([each.ravel() for each in scores]),
            score_shapes=np.array([each.shape for each in scores]),
            **more,
        )


def read_kept_cases(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> KeptCases | None:
    """Read the cases of a run; None where there is no whole file, or one of other metrics than the run's.

    Args:
        path: file of :func:`write_kept_cases`.
        metrics: of the run.
    """
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            told = json.loads(str(file["told"]))
            flat, shapes = file["masks"], file["mask_shapes"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    if any(metrics.get(name, {}).get("mean") != value for name, value in told["metrics"].items()):
        return None
    parts = np.split(flat, np.cumsum(shapes.prod(axis=1))[:-1])
    masks = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    return KeptCases(path, told["rows"], told["sweep"], told["pixels"], masks, told.get("uncertain", ()))


def made_small(decided: Decided) -> Decided:
    """Shrink what was decided of a case to what is kept of it: mask and maps of at most 128 pixels a side."""
    maps = [None if each is None else _smaller(each[None].float(), "area")[0] for each in decided[3:]]
    return Decided(_smaller(decided.mask[None].float(), "nearest-exact")[0].to(torch.uint8), None, None, *maps)


def _bytes(maps: torch.Tensor | None) -> np.ndarray:
    """Give maps (C, x, y) in [0, 1] as bytes; an empty array for none."""
    if maps is None:
        return np.zeros((0, 0, 0), dtype=np.uint8)
    return (255 * maps).round().to(torch.uint8).numpy()


def _smaller(maps: torch.Tensor, mode: str) -> torch.Tensor:
    """Shrink (1, C, x, y) to at most 128 pixels a side."""
    share = _SIDE / max(maps.shape[2:])
    if share >= 1:
        return maps
    return F.interpolate(maps, size=[max(1, round(length * share)) for length in maps.shape[2:]], mode=mode)


def _pixels_by_score(table: CaseTable) -> dict[str, list[list[int]]]:
    """Count the pixels of all cases with a score map, by score; nothing where there is none."""
    swept = [row for row in table.rows if "sweep" in row]
    if not swept:
        return {}
    scheme, found = table.scheme, {}
    above = np.sum([row["sweep"] for row in swept], axis=0)  # (K, 2, T)
    for label, name in zip(scheme.labels, scheme.classes, strict=True):
        wholes = [
            sum(row[scheme.key(part, label)] for row in swept for part in pair) for pair in (("tp", "fn"), ("fp", "tn"))
        ]
        found[name] = [
            (-np.diff([whole, *counts.tolist(), 0])).tolist()
            for whole, counts in zip(wholes, above[label - 1], strict=True)
        ]
    return found
