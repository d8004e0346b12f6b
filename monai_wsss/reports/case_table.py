# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The table of cases on a page: a row per case with its own small picture, the large one below it on request.

Cases and subjects are numbered, since their names may be those of patients.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from monai_wsss.reports.panels import TELLING_TILE

__all__ = ["CasePictures", "cell", "count", "evaluated_cases", "outcome_of", "picture_address", "pixels_of"]

_SMALL = 128  # pixels of the height of a small picture, which is shown at half of it
_BUDGET = 24 * 2**20
_CLASSES = 4  # that have a column of their own
OUTCOMES = ("found", "elsewhere", "missed", "clean", "false alarm", "label only", "not measured")


class CasePictures:
    """Pictures as text for a page.

    Args:
        budget: bytes of all large pictures; those of further cases are not on the page.
    """

    def __init__(self, budget: int = _BUDGET) -> None:
        self.left = budget

    def of(self, path: Path) -> dict[str, str | int | None]:
        """Give ``small`` and ``large``, addresses of pictures, and ``width``; None where there is none."""
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
                box = [int(end) for end in str(file.info.get(TELLING_TILE, "")).split()]
        except (OSError, ValueError):
            return {"small": None, "large": None, "width": None}
        tile = picture.crop((box[0], box[1], box[2], box[3])) if len(box) == 4 else picture
        tile.thumbnail((3 * _SMALL, _SMALL), Image.Resampling.LANCZOS)
        small = picture_address(tile, "JPEG", quality=85, subsampling=0)
        large = picture_address(picture, "WEBP", quality=88) if self.left > 0 else None
        self.left -= len(large or "")
        return {"small": small, "large": large, "width": picture.width}


def picture_address(picture: Image.Image, kind: str, **options: Any) -> str:
    """Write a picture as text that stands for its address on a page."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def cell(text: str, value: float | str | None = None, *, number: bool = True) -> dict[str, Any]:
    """Describe a cell: its text, what it is sorted by (empty comes last), and whether it is a number."""
    return {"text": text, "value": "" if value is None else str(value), "number": number}


def count(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "case"), count(2, "case")
        ('1 case', '2 cases')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def pixels_of(row: Mapping[str, str], *names: str) -> int:
    """Sum counts of a row of ``per_case.csv`` over the classes but the background."""
    return sum(
        int(value)
        for key, value in row.items()
        if value and key.split("/")[0] in names and key.partition("/")[2] != "background"
    )


def outcome_of(row: Mapping[str, str]) -> str:
    """Tell in words what became of a case; see ``OUTCOMES``."""
    if row.get("finding") in (None, ""):
        return "not measured"
    if row["finding"] == "1":
        if row["found"] != "1":
            return "missed"
        return "found" if pixels_of(row, "tp") else "elsewhere"
    if row["healthy"] != "1":
        return "label only"
    return "false alarm" if row["found"] == "1" else "clean"


def evaluated_cases(rows: Sequence[Mapping[str, str]], panels: Path, *, background: bool) -> dict[str, Any]:
    """Prepare the table of an evaluation.

    Args:
        rows: of ``per_case.csv``.
        panels: the folder of the pictures, named by their row.
        background: whether the classes have a background, so that a finding may be missed.

    Returns:
        ``columns``, titles; ``rows``, each with ``number``, ``cells``, ``caption``, ``notes`` and the picture.
    """
    first = rows[0] if rows else {}
    per_class = [name for name in first if name.startswith("dice/")]
    distance = "assd" if "assd" in first else None
    subjects = {name: place for place, name in enumerate(dict.fromkeys(row["subject"] for row in rows), start=1)}
    columns = ["Case", "Subject", *(["Outcome"] if background else []), "Dice"]
    columns += [f"Dice, {name.partition('/')[2]}" for name in per_class[:_CLASSES]]
    columns += [f"ASSD, {first.get('unit', 'px')}"] if distance else []
    columns += ["Reference, px", "Mask, px"]
    pictures = CasePictures()
    shown = []
    for number, row in enumerate(rows, start=1):
        outcome = outcome_of(row)
        measured, finding = row.get("finding") not in (None, ""), row.get("finding") == "1"
        cells = [cell(str(number), number), cell(str(subjects[row["subject"]]), subjects[row["subject"]])]
        cells += [cell(outcome, OUTCOMES.index(outcome), number=False)] if background else []
        cells += [_score(row.get(name, ""), finding, 3) for name in ("dice", *per_class[:_CLASSES])]
        cells += [_score(row.get(distance, ""), finding, 2)] if distance else []
        for names in (("tp", "fn"), ("tp", "fp")):
            size = pixels_of(row, *names)
            cells.append(cell(f"{size}", size) if measured else cell("–"))
        caption = f"Dice {float(row['dice']):.2f}." if finding else f"{outcome.capitalize()}."
        picture = pictures.of(panels / f"{number}.png")
        link = f"panels/{number}.png" if picture["small"] else None
        about = {"number": number, "cells": cells, "caption": caption, "notes": [], "link": link}
        shown.append({**about, "no_picture": f"Its picture, panels/{number}.png, is missing.", **picture})
    return {"columns": columns, "rows": shown}


def _score(text: str, finding: bool, digits: int) -> dict[str, Any]:
    """Give the cell of a score, which says something about cases with a finding alone."""
    return cell(f"{float(text):.{digits}f}", float(text)) if finding and text else cell("–")
