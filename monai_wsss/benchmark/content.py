# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A digest of prepared data that is the same on every machine, so that committed rows are found again."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from monai_wsss._files import file_sha256

__all__ = ["content_sha256"]

_LEARNED = ("classes", "background", "scored_class", "modality", "statistics", "order")


def content_sha256(datalist: Path) -> str:
    """Give the SHA-256 of the items of a datalist, with the digests of their files in place of paths.

    Of the header, only what says how items are learned counts: classes, modality, statistics and the order of pixels.

    Args:
        datalist: path of a prepared ``datalist.json``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.png").write_bytes(b"pixels")
        >>> _ = (folder / "datalist.json").write_text('{"training": [{"id": "a", "image": "a.png"}]}')
        >>> content_sha256(folder / "datalist.json")[:8]
        'fa03fd26'
    """
    content = json.loads(Path(datalist).read_text(encoding="utf-8"))
    items = {name: entries for name, entries in content.items() if _are_items(entries)}
    for entries in items.values():
        for entry in entries:
            _replace_paths(entry, Path(datalist).parent)
    content = {**{name: content[name] for name in _LEARNED if name in content}, **items}
    if content.get("order") == "xy":
        # Lists without this entry are read in the same order.
        del content["order"]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _are_items(entries: Any) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(entry, dict) for entry in entries)


def _replace_paths(item: Any, folder: Path) -> None:
    """Replace the paths of an item by the digests of their files."""
    for key, value in item.items():
        files = value if isinstance(value, list) else [value]
        if key not in ("id", "subject", "source") and all(isinstance(file, str) for file in files) and files:
            digests = [file_sha256(folder / file) if (folder / file).is_file() else file for file in files]
            item[key] = digests if isinstance(value, list) else digests[0]
