# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``tiles.csv``: one row per tile, with the id of its image, its first column and row, and its 0/1 labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss.data.csv_table import LABEL_WORDS, plain_name, read_csv_table
from monai_wsss.data.label_table import WHOLE, LabelTable

__all__ = ["ListedTiles", "read_tile_table"]

ListedTiles = Mapping[str, Mapping[tuple[int, int], list[int]]]
"""Id of an image → first column and row of a tile → 0 or 1 per class, (K)."""

_SHOWN_FAULTS = 5


def _fault(row: dict[str, Any], ids: set[str], labels: list[str]) -> str:
    """Say what is wrong with a row, and bring its id to one form; an empty text means nothing."""
    if None in row or None in row.values():
        return "it has more or fewer fields than the header"
    row["id"] = plain_name(row["id"])
    if row["id"] not in ids:
        return f'no image is called "{row["id"]}"'
    if not all(re.fullmatch("[0-9]{1,9}", row[column]) for column in ("x", "y")):
        return f'x and y are "{row["x"]}" and "{row["y"]}", no whole numbers from 0 on'
    wrong = [name for name in labels if row[name].lower() not in LABEL_WORDS]
    return f'the label in column "{wrong[0]}" is "{row[wrong[0]]}", neither 0 nor 1' if wrong else ""


def read_tile_table(path: Path, table: LabelTable) -> ListedTiles:
    """Read and check a table of tiles; all its faults are said at once.

    Args:
        path: the CSV file, with the columns ``id``, ``x``, ``y`` (first column and row of the tile in the scaled image)
            and those with 0/1 labels, called as in the table of images.
        table: the table of images.

    Returns:
        The tiles of every image that the table names.

    Raises:
        DataError: the file is missing, lacks a column, or rows are wrong.

    Example:
        >>> import tempfile
        >>> from monai_wsss.data.label_table import LabeledRow
        >>> file = Path(tempfile.mkdtemp()) / "tiles.csv"
        >>> _ = file.write_text("id,x,y,label\\na,0,0,1\\na,32,0,0\\n")
        >>> rows = [LabeledRow("row 2", "a", "anna", [1], "training", {})]
        >>> read_tile_table(file, LabelTable(Path("labels.csv"), ["foreground"], rows))
        {'a': {(0, 0): [1], (32, 0): [0]}}
    """
    if not path.is_file():
        raise DataError(
            f"Nothing says what the tiles show: take their tags from the masks (`--labels-from-masks`), which "
            f"simulates image-level labels and is recorded, or list tiles with id, x, y and labels in {path}."
        )
    labels = ["label"] if table.classes == [WHOLE] else table.classes
    content = read_csv_table(path)
    columns = {name: content.column(name) for name in ("id", "x", "y", *labels)}
    missing = [name for name, found in columns.items() if found is None]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: give id, x, y, {', '.join(labels)} per tile.")
    name_of = {found: name for name, found in columns.items()}
    rows = [(number, {name_of.get(key, key): field for key, field in row.items()}) for number, row in content.rows]
    ids = {row.id for row in table.rows}
    faults = [f"row {number}: {fault}" for number, row in rows if (fault := _fault(row, ids, labels))]
    tiles: dict[str, dict[tuple[int, int], list[int]]] = {}
    for number, row in rows if not faults else ():
        of_image, place = tiles.setdefault(row["id"], {}), (int(row["x"]), int(row["y"]))
        if place in of_image:
            faults.append(f"row {number}: the tile is listed before")
        of_image[place] = [LABEL_WORDS[row[name].lower()] for name in labels]
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise DataError(f"{path}: {'; '.join(faults[:_SHOWN_FAULTS])}{more}: correct the rows.")
    return tiles
