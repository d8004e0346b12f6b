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


def content_sha256(datalist: Path) -> str:
    """Give the SHA-256 of a datalist with the digests of its files in place of their paths.

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
    # The name is that of the folder, which is anybody's choice.
    content.pop("name", None)
    for entries in content.values():
        if isinstance(entries, list):
            for entry in entries:
                _replace_paths(entry, Path(datalist).parent)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _replace_paths(item: Any, folder: Path) -> None:
    """Replace the paths of an item by the digests of their files."""
    if not isinstance(item, dict):
        return
    for key, value in item.items():
        files = value if isinstance(value, list) else [value]
        if key not in ("id", "subject", "source") and all(isinstance(file, str) for file in files) and files:
            digests = [file_sha256(folder / file) if (folder / file).is_file() else file for file in files]
            item[key] = digests if isinstance(value, list) else digests[0]
