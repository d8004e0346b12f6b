# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Static checks of every other file of a bundle that MONAI or Python's logging would read, wherever it lies.

Both take any file by its path: a configuration in a subfolder, or a logging configuration under another name.
"""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from monai_wsss.bundle_scan.config_scan import scan_expressions

__all__ = ["bundle_files", "foreign_faults", "hidden_faults", "logging_faults"]

_SHIPPED = (".json", ".md", ".txt", ".conf", ".pt", ".png", ".jpg")
_GENERATED = (*_SHIPPED, ".csv", ".html", ".nii", ".gz", ".tif", ".tiff", ".jpeg", ".bmp", ".dcm", ".log", ".xml")
"""Suffixes of files that neither Python nor MONAI would import or unpickle, for the bundle and for what it writes."""

_NAMES = re.compile(r"LICENSE|\.in_use|\.unfinished|events\.out\.tfevents\.[\w.-]+|\..*\.partial\..*")

_RESULTS = re.compile(r"(eval|sample_data|models/stage[^/]*)/")
"""Folders that a default run fills."""

_KEYS = {
    "loggers": "keys",
    "handlers": "keys",
    "formatters": "keys",
    "logger": "level handlers qualname propagate",
    "handler": "class level formatter args",
    "formatter": "format datefmt",
}
"""Keys of a logging configuration by the kind of section.  Python evaluates or imports several of the others."""


def bundle_files(root: Path, *, results: bool = False) -> Iterator[tuple[str, Path]]:
    """Give (path relative to the bundle, file) of each file and link, with or without those that a run generates."""
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if (file.is_symlink() or not file.is_dir()) and (results or not _RESULTS.match(name)):
            yield name, file


def foreign_faults(root: Path) -> list[str]:
    """Check that no file lies here that Python would import or MONAI would unpickle, such as programs and archives."""
    faults = []
    for name, file in bundle_files(root, results=True):
        if file.is_symlink():
            faults.append(f"{name} is a link: put the file itself in its place.")
        elif not file.is_file():
            faults.append(f"{name} is no plain file: leave it out.")
        elif hidden := re.match(r"((?:[^/]+/)*?(?:\.[^/]+|__pycache__))/", name):
            faults.append(f"{hidden[1]} does not belong here: a bundle has no hidden folders.")
        elif file.suffix not in (_GENERATED if _RESULTS.match(name) else _SHIPPED) and not _NAMES.fullmatch(file.name):
            faults.append(f"{name} does not belong here: a bundle is JSON, text and models/model.pt.")
    return faults


def hidden_faults(root: Path) -> list[str]:
    """Check configurations outside of ``configs/*.json``, and other weights than ``models/model.pt``."""
    faults = []
    for name, file in bundle_files(root, results=True):
        if not file.is_file() or file.is_symlink():
            continue
        if file.name.lower().endswith("json") and not re.fullmatch(r"configs/[^/]+\.json", name):
            faults += [f"{name}: {fault}" for fault in _config_faults(file)]
        elif file.suffix == ".pt" and name != "models/model.pt" and not _is_plain(file):
            faults.append(f"{name} does not load with weights_only=True: leave it out.")
    return faults


def _config_faults(file: Path) -> list[str]:
    try:
        return scan_expressions(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        return [f"it is no JSON ({error}): correct it, or leave it out."]


def _is_plain(file: Path) -> bool:
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types of errors here
        return False
    return True


def logging_faults(root: Path) -> list[str]:
    """Check every file that could be a logging configuration: Python evaluates and imports what it says."""
    faults = []
    for name, file in bundle_files(root, results=True):
        known = name == "configs/logging.conf"
        if not file.is_file() or file.is_symlink() or file.suffix in (".pt", ".json"):
            continue
        parser = configparser.RawConfigParser()
        try:
            # As Python's logging reads it: every kind of line end counts.
            with io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8", errors="replace") as text:
                parser.read_file(text)
        except configparser.Error:
            # What cannot be parsed cannot be used as one, either.
            if known:
                faults.append(f"{name} is no logging configuration: use the plain form of the other bundles.")
            continue
        if known or {"loggers", "handlers", "formatters"}.intersection(parser.sections()):
            faults += [
                f"{name}: {fault}" for section in parser.sections() for fault in _section_faults(parser, section)
            ]
    return faults


def _section_faults(parser: configparser.RawConfigParser, section: str) -> list[str]:
    """Check the keys of a section, with those of ``[DEFAULT]``, and what a handler is made of."""
    kind = section if section in _KEYS else section.split("_")[0]
    other = [key for key in parser[section] if key not in _KEYS.get(kind, "").split()]
    faults = [f"[{section}] has the key `{other[0]}`: leave it out."] if other else []
    made = parser.get(section, "class", fallback=None)
    arguments = parser.get(section, "args", fallback="()")
    plain = re.fullmatch(r"\(\s*(sys\.std(out|err)\s*,?)?\s*\)", arguments)
    if made not in (None, "StreamHandler", "logging.StreamHandler") or not plain:
        faults.append(
            f"[{section}] asks for {made}{arguments}: StreamHandler to sys.stdout or sys.stderr is all that is needed."
        )
    return faults
