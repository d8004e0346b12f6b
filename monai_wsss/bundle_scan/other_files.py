# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Static checks of every other file of a bundle that MONAI or Python's logging would read, wherever it lies.

Both take any file by its path: a configuration in a subfolder, or a logging configuration under another name.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from monai_wsss.bundle_scan.config_scan import scan_expressions

__all__ = ["hidden_faults", "logging_faults"]

_LARGEST_TEXT = 2**20

_KEYS = {
    "loggers": "keys",
    "handlers": "keys",
    "formatters": "keys",
    "logger": "level handlers qualname propagate",
    "handler": "class level formatter args",
    "formatter": "format datefmt",
}
"""Keys of a logging configuration by the kind of section.  Python evaluates or imports several of the others."""


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Give (path relative to the bundle, file) of each file and link."""
    for file in sorted(root.rglob("*")):
        if "__pycache__" not in file.parts and (file.is_symlink() or file.is_file()):
            yield file.relative_to(root).as_posix(), file


def hidden_faults(root: Path) -> list[str]:
    """Check links, configurations outside of ``configs/*.json``, and other weights than ``models/model.pt``."""
    faults = []
    for name, file in _files(root):
        lower = file.name.lower()
        if file.is_symlink():
            faults.append(f"{name} is a link: put the file itself in its place.")
        elif lower.endswith("json") and not re.fullmatch(r"configs/[^/]+\.json", name):
            faults += [f"{name}: {fault}" for fault in _config_faults(file)]
        elif lower.endswith(("yaml", "yml")) and file.suffix not in (".yaml", ".yml"):
            faults.append(f"{name} does not belong here: MONAI reads it as a configuration.")
        elif file.suffix in (".pt", ".pth") and name != "models/model.pt" and not name.startswith(("eval/", "sample_")):
            faults += [] if _is_plain(file) else [f"{name} does not load with weights_only=True: leave it out."]
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
    for name, file in _files(root):
        known = name == "configs/logging.conf"
        if not known and (file.is_symlink() or file.stat().st_size > _LARGEST_TEXT or file.suffix in (".pt", ".json")):
            continue
        text = file.read_bytes().decode("utf-8", errors="replace")
        if not known and not re.search(r"^\[(loggers|handlers|formatters)\]", text, flags=re.MULTILINE):
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            # What cannot be parsed cannot be used as one, either.
            if known:
                faults.append(f"{name} is no logging configuration: use the plain form of the other bundles.")
            continue
        faults += [f"{name}: {fault}" for section in parser.sections() for fault in _section_faults(parser, section)]
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
