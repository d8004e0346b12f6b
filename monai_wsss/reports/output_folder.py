# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Which folders a run may write its results to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss.data.datalist_checks import SPLIT_OF_LIST

__all__ = ["refuse_data_folder"]

_WRITTEN = ("masks", "panels", "heat", "converted")
"""Folders below an output folder that a run fills and empties."""


def refuse_data_folder(output_dir: str | os.PathLike[str], datalist: str | os.PathLike[str]) -> None:
    """Refuse an output folder in which predictions would replace images or reference masks.

    Args:
        output_dir: where masks are to be written; it may not exist yet.
        datalist: path of the datalist.

    Raises:
        DataError: the folder holds the datalist or any datalist, or files that the datalist names lie where masks,
            panels and maps are written, also by way of links.
    """
    folder, source = Path(output_dir), Path(datalist)
    written = [(folder / name).resolve() for name in _WRITTEN]
    holds_list = (folder / "datalist.json").exists() or folder.resolve() == source.resolve().parent
    if holds_list or any(place.is_relative_to(name) for place in _data_folders(source) for name in written):
        raise DataError(
            f"The output folder {folder} holds data: results would replace the masks of {source}. Choose another "
            "--output_dir."
        )


def _data_folders(datalist: Path) -> set[Path]:
    """Give the folders of all files that a datalist names."""
    content: dict[str, Any] = json.loads(datalist.read_text(encoding="utf-8"))
    items = [item for name in SPLIT_OF_LIST for item in content.get(name) or []]
    files = [item[key] for item in items for key in ("image", "mask") if item.get(key)]
    flat = [path for entry in files for path in (entry if isinstance(entry, list) else [entry])]
    return {parent.resolve() for parent in {(datalist.parent / path).parent for path in flat}}
