# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Records of finished cases, one file each, so that a run that was killed goes on and repeats nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_wsss._files import case_file_name, make_directory
from monai_wsss.data.input_cases import InputCase

__all__ = ["digest_of", "drop_stale", "finished_case", "record_path", "state_of"]


def digest_of(*parts: Any) -> str:
    """Give a digest of values that JSON can hold, or that have a text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def state_of(case: InputCase) -> list[Any]:
    """Give what tells whether the files of a case are still the same."""
    found = []
    for sequence, files in case.files.items():
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        found.append((sequence, case.subject, stats))
    return found


def record_path(out: Path, name: str) -> Path:
    """Give the path of the record of a case, and make its folder."""
    return make_directory(out / "records") / f"{case_file_name(name)}.json"


def finished_case(out: Path, name: str, digest: str) -> dict[str, Any] | None:
    """Give the record of a case that an earlier run finished, with all its files."""
    try:
        record: dict[str, Any] = json.loads(record_path(out, name).read_text(encoding="utf-8"))
        whole = record["digest"] == digest and all((out / file).is_file() for file in _files_of(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


def _files_of(record: Mapping[str, Any]) -> list[str]:
    """List the files that a record names; heat map and converted image may be several, one per channel."""
    row = record["row"]
    several = [row.get("heat") or "", row.get("converted") or ""]
    files = [row.get(key) for key in ("mask", "segmentation", "overlay", "outlines")]
    return [file for file in [*files, *(file for text in several for file in text.split(" "))] if file]


def drop_stale(out: Path, digests: Mapping[str, str]) -> None:
    """Remove results of cases that are gone from the input, or that have changed."""
    wanted = {f"{case_file_name(name)}.json": digest for name, digest in digests.items()}
    for path in sorted((out / "records").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["digest"] == wanted.get(path.name):
                continue
            files = _files_of(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            files = []
        for file in files:
            place = (out / file).resolve()
            if place.is_relative_to(out.resolve()):
                place.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    slides = {case_file_name(name) for name in digests}
    for path in (out / "slides").glob("*"):
        if path.name not in slides:
            shutil.rmtree(path, ignore_errors=True)
