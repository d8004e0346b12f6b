# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files that are complete or absent: they are written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from monai_wsss._checks import DataError
from monai_wsss._locks import is_alive, process_mark

__all__ = [
    "WriteError",
    "atomic_path",
    "case_file_name",
    "file_sha256",
    "load_tensors",
    "make_directory",
    "remove_partial",
    "save_tensors",
    "write_error",
    "write_json",
]

_logger = logging.getLogger(__name__)

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another output folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another output folder",
    errno.EACCES: "no permission to write there: choose another output folder or change its permissions",
    errno.EPERM: "no permission to write there: choose another output folder or change its permissions",
    errno.EROFS: "the file system is read-only: choose another output folder",
}


class WriteError(DataError):
    """A file cannot be written; no other file of the run can be, either."""


def write_error(path: Path, error: OSError) -> WriteError:
    """Say in one sentence why a file or folder cannot be written."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: check the path and try again")
    return WriteError(f"Cannot write {path}: {reason}.")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; rename it to ``path`` if the block succeeds, else remove it.

    The first call for a folder removes what killed processes of this machine left there.

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
    if str(target.parent) not in _CLEANED:
        _CLEANED.add(str(target.parent))
        remove_partial(target.parent)
    temporary = target.with_name(f".{process_mark()}.partial.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


_CLEANED: set[str] = set()
"""Folders that this process has looked through for left-overs."""


def remove_partial(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files that processes of this machine left when they were killed; give their number.

    Files of processes that still run stay, and so do those of other machines that write to the same disk.
    """
    removed = 0
    for path in Path(folder).glob(".*.partial.*"):
        if not is_alive(path.name[1:].split(".partial.")[0]):
            try:
                path.unlink()
            except OSError:
                continue
            removed += 1
    return removed


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents.

    Raises:
        DataError: the folder cannot be created, or is a file.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(directory, error) from error
    return directory


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(content, indent=4, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: str | os.PathLike[str], what: str = "file") -> str:
    """Give the SHA-256 of a file as a hexadecimal string.

    Raises:
        DataError: it cannot be read; ``what`` says what it is.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read the {what} {path}: {error.strerror}; check the path.") from error


_CHECKSUM = b"monai_wsss sha256 "
"""Begins the comment of the zip archive that a file of tensors is; the SHA-256 of all bytes before it follows."""


def save_tensors(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write tensors and plain values as ``torch.save`` does, whole or not at all, with a checksum of the whole file.

    The checksum is the comment of the zip archive, which ``torch.load`` passes over.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> save_tensors(path, {"weight": torch.ones(2)})
        >>> load_tensors(path)
        {'weight': tensor([1., 1.])}
    """
    # By way of memory, since torch's own writer hides that a disk is full.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # The last two bytes of an archive are the length of its comment.
    buffer.seek(-2, io.SEEK_END)
    buffer.write((len(_CHECKSUM) + 64).to_bytes(2, "little") + _CHECKSUM)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(digest.encode())
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _is_whole(path: Path) -> bool:
    """Tell whether the bytes of a file are those that were written; of old files, whether its entries are."""
    length = len(_CHECKSUM) + 64
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - length))
        comment = file.read()
        if comment.startswith(_CHECKSUM):
            file.seek(0)
            digest, left = hashlib.sha256(), size - 64
            while left > 0 and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
            return digest.hexdigest().encode() == comment[-64:]
    if not zipfile.is_zipfile(path):
        _logger.info("%s has no checksum, as files in torch's oldest form: whether it is whole is not known.", path)
        return True
    with zipfile.ZipFile(path) as archive:
        # An archive ends with the length of its comment. Nobody but us writes one, so it was ours and is damaged.
        if comment[-2:] != b"\0\0" or archive.testzip() is not None:
            return False
    _logger.info(
        "%s has no checksum of the whole file, as files of earlier versions: that of each tensor in it is right.", path
    )
    return True


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint or a state dict with ``weights_only=True``, onto the CPU, and check that it is as written.

    Files that :func:`save_tensors` wrote have a checksum of all bytes.  Others, such as those of earlier versions, load
    as well, and the log says so; of them each entry is checked by the CRC-32 that torch writes.

    Raises:
        DataError: the file is absent, damaged, or holds other objects than tensors and plain values.
    """
    try:
        whole = _is_whole(Path(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True) if whole else {}
    except FileNotFoundError as error:
        raise DataError(f"No weights at {path}: check the path, or train first.") from error
    except Exception as error:  # damaged zip, foreign pickle: torch raises many types
        raise DataError(
            f"Cannot read {path} as tensors: it is damaged or no checkpoint of this package; use another file."
        ) from error
    if not whole:
        raise DataError(f"{path} is damaged: its checksum is not that of its content; copy it again or use another.")
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} in place of a table of tensors: use another file.")
    return content


def case_file_name(id: object) -> str:
    """Give a file name, without suffix, for the id of an item; characters are escaped, so that two ids never share one.

    Example:
        >>> case_file_name("ward 3/anna")
        'ward%203%2Fanna'
    """
    return re.sub(r"[^\w.+-]", lambda found: f"%{ord(found[0]):02X}", str(id))
