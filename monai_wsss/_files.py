# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files that are complete or absent: they are written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from monai_wsss._checks import DataError

__all__ = ["WriteError", "atomic_path", "case_file_name", "file_sha256", "load_tensors", "make_directory", "write_json"]

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another output folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another output folder",
    errno.EACCES: "no permission to write there: choose another output folder or change its permissions",
    errno.EPERM: "no permission to write there: choose another output folder or change its permissions",
    errno.EROFS: "the file system is read-only: choose another output folder",
}


class WriteError(DataError):
    """A file cannot be written; no other file of the run can be, either."""


def _write_error(path: Path, error: OSError) -> WriteError:
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: check the path and try again")
    return WriteError(f"Cannot write {path}: {reason}.")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; rename it to ``path`` if the block succeeds, else remove it.

    Raises:
        DataError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(path)
    temporary = target.with_name(f".{os.getpid()}.partial.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents.

    Raises:
        DataError: the folder cannot be created, or is a file.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(directory, error) from error
    return directory


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(content, indent=4, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Give the SHA-256 of a file as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint or a state dict with ``weights_only=True``, onto the CPU.

    Raises:
        DataError: the file is absent, damaged, or holds other objects than tensors and plain values.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"No weights at {path}: check the path, or train first.") from error
    except Exception as error:  # damaged zip, foreign pickle: torch raises many types
        raise DataError(
            f"Cannot read {path} as tensors: it is damaged or no checkpoint of this package; use another file."
        ) from error
    return content


def case_file_name(id: object) -> str:
    """Give a file name, without suffix, for the id of an item; characters are escaped, so that two ids never share one.

    Example:
        >>> case_file_name("ward 3/anna")
        'ward%203%2Fanna'
    """
    return re.sub(r"[^\w.+-]", lambda found: f"%{ord(found[0]):02X}", str(id))
