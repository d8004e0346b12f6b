# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cases of a comparison, all methods side by side, and the worst cases of each method.

Cases and subjects are numbered, since their names may be those of patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from monai_wsss.benchmark.kept_cases import KeptCases
from monai_wsss.benchmark.method_recipes import ALL_WEAK
from monai_wsss.benchmark.prepared import Cases
from monai_wsss.reports.case_table import cell, outcome_of, picture_address, pixels_of
from monai_wsss.reports.case_tiles import CaseTiles
from monai_wsss.reports.panels import choose_cases

__all__ = ["LISTED", "ComparedCases", "disagreement"]

_BUDGET = 24 * 2**20  # bytes of all pictures of a page
LISTED = 1000
"""So many cases a page lists; more only where those of the failures are more."""
_WORST, _ALARMS = 3, 1
_SMALL = 128
_KINDS = {"worst": "lowest Dice", "false alarm": "most pixels on a healthy image"}


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """Tell by how much masks of one image differ: 0 where all are alike, 1 where no two share a pixel.

    Of each two masks it is the share of the pixels that either marks and that they label otherwise.

    Args:
        masks: labels 0..K, of one shape.

    Example:
        >>> one, other = np.array([[1, 1, 0]]), np.array([[0, 1, 0]])
        >>> disagreement([one, other]), disagreement([one, one, other]), disagreement([one])
        (0.5, 0.3333333333333333, 0.0)
    """
    shares = []
    for one, other in combinations(masks, 2):
        marked = int(((one > 0) | (other > 0)).sum())
        shares.append(int((one != other).sum()) / marked if marked else 0.0)
    return float(np.mean(shares)) if shares else 0.0


class ComparedCases:
    """What a page shows of the cases of several rows.

    Args:
        read: the cases, in the order of the split, with ``image`` and, where they have one, ``mask``.
        rows: names of rows and what their runs kept, the best first.
        modalities: names of the channels.
        classes: names of the classes.
        background: whether there is a background.
        budget: bytes of all pictures; those of further cases are not drawn.
    """

    def __init__(
        self,
        read: Cases,
        rows: Sequence[tuple[str, KeptCases]],
        *,
        modalities: Sequence[str],
        classes: Sequence[str],
        background: bool,
        budget: int = _BUDGET,
    ) -> None:
        self.read = read
        self.rows = rows
        self.modalities = modalities
        self.background = background
        self.outlined = background and len(classes) == 1
        self.left = budget
        self.differing = [disagreement([kept.masks[place] for _, kept in rows]) for place in range(len(read))]
        self.uncertain = _uncertain(rows)
        self.worst = {name: _worst(kept) for name, kept in rows}
        self.shown_first = list(dict.fromkeys(number - 1 for chosen in self.worst.values() for _, number in chosen))
        self.listed = self._listed()
        self._drawn: dict[int, list[dict[str, Any]]] = {}
        self._draw()

    def gallery(self) -> list[dict[str, Any]]:
        """Give the worst cases of each row: its name, and pictures with what they are."""
        shown = []
        for place, (name, kept) in enumerate(self.rows):
            panels = []
            for kind, number in self.worst[name]:
                drawn = self._drawn.get(number - 1)
                if drawn is not None:
                    text = f"{_text(kept.rows[number - 1])} ({_KINDS[kind]})"
                    panels.append({**drawn[place + 1], "number": number, "text": text})
            shown.append({"name": name, "panels": panels})
        return shown

    def table(self) -> dict[str, Any]:
        """Give the table of cases, by their disagreement, with the pictures of all rows."""
        columns = ["Case", "Subject", "Reference", "Disagreement", "Lowest Dice", "Highest Dice", "Highest by"]
        columns += ["False alarms"] if self.background else []
        columns += ["Uncertainty"] if self.uncertain else []
        found = []
        for place in self.listed:
            drawn = self._drawn.get(place, [])
            found.append(
                {
                    "number": place + 1,
                    "cells": self._cells(place),
                    "caption": "" if drawn else "It has no picture: the page would become too large.",
                    "no_picture": " ",
                    "notes": [],
                    "link": None,
                    "large": None,
                    "small": drawn[0]["small"] if drawn else None,
                    "panels": drawn,
                }
            )
        cut = ""
        if len(found) < len(self.read):
            cut = f"{len(found)} of {len(self.read)} cases: those that differ most, and all that Failures shows."
        return {"columns": columns, "rows": found, "sorted": (3, "descending"), "cut": cut}

    def _listed(self) -> list[int]:
        """Choose the cases of the table: those of the gallery, then those that differ most, which come first in it."""
        order = sorted(range(len(self.read)), key=lambda place: (-self.differing[place], place))
        wanted = list(dict.fromkeys([*self.shown_first, *order]))
        listed = set(wanted[: max(LISTED, len(self.shown_first))])
        return [place for place in order if place in listed]

    def _cells(self, place: int) -> list[dict[str, Any]]:
        """Give the cells of a case."""
        rows = [kept.rows[place] for _, kept in self.rows]
        first = rows[0]
        state = {"1": "finding", "0": "healthy"}.get(first.get("finding", ""), "not measured")
        if state == "healthy" and first["healthy"] != "1":
            state = "label only"
        differs = self.differing[place] if len(rows) > 1 else None
        cells = [
            cell(str(place + 1), place + 1),
            cell(first["subject"], int(first["subject"])),
            cell(state, state, number=False),
            cell("–" if differs is None else f"{differs:.3f}", differs),
        ]
        dice = [float(row["dice"]) for row in rows] if state == "finding" else []
        if dice:
            best = self.rows[int(np.argmax(dice))][0]
            cells += [cell(f"{end:.3f}", end) for end in (min(dice), max(dice))]
            cells += [cell(best, best, number=False)]
        else:
            cells += [cell("–"), cell("–"), cell("–", number=False)]
        if self.background:
            alarms = sum(row["found"] == "1" for row in rows) if state == "healthy" else None
            cells += [cell("–" if alarms is None else f"{alarms} of {len(rows)}", alarms)]
        if self.uncertain:
            cells += [cell(f"{self.uncertain[place]:.3f}", self.uncertain[place])]
        return cells

    def _draw(self) -> None:
        """Draw the cases of the gallery, then those on which the rows differ most, until the budget is spent."""
        first = self.shown_first
        wanted = list(dict.fromkeys([*first, *self.listed]))
        # A case has two pictures at least 8 kB per row, so no more score maps than these are ever shown.
        wanted = wanted[: max(len(first), self.left // (2048 * (len(self.rows) + 1)))]
        maps = [(kept.scores(wanted), kept.uncertainties(wanted)) for _, kept in self.rows]
        for place in wanted:
            if self.left <= 0:
                return
            self._drawn[place] = self._panels(place, [(scores.get(place), other.get(place)) for scores, other in maps])
            self.left -= sum(len(panel["picture"]) for panel in self._drawn[place])

    def _panels(self, place: int, maps: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> list[dict[str, Any]]:
        """Draw a case: the image first, then each row."""
        case, reference = self.read[place], self.read[place].get("mask")
        tiles = CaseTiles(case["image"], reference, self.modalities, outlined=self.outlined)
        image, known = tiles.of_image(), reference is not None
        small = image.crop((image.width - tiles.size[0], 0, image.width, image.height))
        small.thumbnail((3 * _SMALL, _SMALL))
        panels = [
            {
                **_address(image),
                "name": self.modalities[-1] if self.outlined and len(self.modalities) != 3 else "Image",
                "alt": "image, and the reference over it" if known else "image",
                "text": "image, and its reference on the right" if known else "image, without a reference",
                "small": picture_address(small, "JPEG", quality=85, subsampling=0),
            }
        ]
        shape = "outlines of reference and mask" if self.outlined else "mask in the colors of its classes"
        for (name, kept), (scores, uncertainty) in zip(self.rows, maps, strict=True):
            text = _text(kept.rows[place])
            parts = [*(["score map"] if scores is not None else []), shape]
            if uncertainty is not None:
                parts.append("uncertainty")
                text += f"; uncertainty {kept.uncertain[place]:.3f}"
            panels.append(
                {
                    **_address(tiles.of_method(kept.masks[place], scores, uncertainty)),
                    "name": name,
                    "alt": ", ".join(parts),
                    "text": text,
                }
            )
        return panels


def _uncertain(rows: Sequence[tuple[str, KeptCases]]) -> Sequence[float]:
    """Give the mean uncertainty of each case by the ensemble of all methods, else by the first one; empty without."""
    told = sorted((not name.startswith(ALL_WEAK), place) for place, (name, kept) in enumerate(rows) if kept.uncertain)
    return rows[told[0][1]][1].uncertain if told else ()


def _address(picture: Any) -> dict[str, Any]:
    return {"picture": picture_address(picture, "WEBP", quality=85), "width": picture.width}


def _worst(kept: KeptCases) -> list[tuple[str, int]]:
    """Choose the worst cases of a row by their masks: kind and number from 1."""
    chosen = choose_cases(kept.rows, each=_WORST)
    return [("worst", number) for number in chosen["worst"]] + [
        ("false alarm", number) for number in chosen["false alarm"][:_ALARMS]
    ]


def _text(row: Mapping[str, str]) -> str:
    """Tell what became of a case."""
    outcome = outcome_of(row)
    if row.get("finding") == "1":
        return f"Dice {float(row['dice']):.2f}" + (f", {outcome}" if outcome != "found" else "")
    return f"{outcome}, {pixels_of(row, 'fp')} pixels" if outcome == "false alarm" else outcome
