# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The rules of the house: which room may import which, and names that MONAI and pydoc can tell apart."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from pydoc import locate

import monai
import pytest

import monai_wsss

PACKAGE = Path(monai_wsss.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms of a lower level may be imported, rooms of the same level may not.
LEVELS = [
    {
        "_checks",
        "_files",
        "_intensity",
        "_labels",
        "_locks",
        "_orientation",
        "_pictures",
        "_processes",
        "_resize",
        "_running",
        "_spread",
    }
    | {"_dicom", "_dicom_frames", "_dicom_pixels", "_dicom_stack", "_image_formats", "_image_readers", "_nifti"}
    | {"_checksums", "_moved", "_picture_values", "_windows"},
    {"_doors"},
    {"cams"},
    {"refinement"},
    {"losses", "networks", "transforms", "data", "metrics"},
    {"engines", "inferers"},
    {"methods"},
    {"reports"},
    {"benchmark", "bundle_scan"},
    {"bundle_run"},
    {"command_line"},
    {"__main__"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "monai_wsss" else {f"monai_wsss.{x.name}" for x in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("monai_wsss.")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    upwards = {
        other
        for other in imported_rooms(path) - {room, "__version__"}
        if LEVEL_OF[other] > LEVEL_OF[room] or (LEVEL_OF[other] == LEVEL_OF[room] and LEVEL_OF[room] > 0)
    }
    assert not upwards, f"{room} may not import {upwards}: see docs/architecture.md"


def public_names() -> dict[str, object]:
    """Everything in the rooms' ``__all__``, by dotted path."""
    found = {}
    for room in monai_wsss.ROOMS:
        module = importlib.import_module(f"monai_wsss.{room}")
        found |= {f"monai_wsss.{room}.{name}": getattr(module, name) for name in getattr(module, "__all__", [])}
    return found


def monai_names() -> set[str]:
    names: set[str] = set()
    for info in pkgutil.walk_packages(monai.__path__, "monai.", onerror=lambda name: None):
        try:
            module = importlib.import_module(info.name)
        except BaseException:
            continue
        own = (name for name, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value))
        names |= {name for name in own if not name.startswith("_")}
    return names


def test_no_public_name_exists_in_monai():
    clashes = {path for path in public_names() if path.rsplit(".", 1)[1] in monai_names()}
    assert not clashes, "ComponentLocator would take MONAI's instead"


def test_no_class_of_any_module_exists_in_monai():
    """ComponentLocator knows every class of the loaded modules, exported or not."""
    modules = [importlib.import_module(info.name) for info in pkgutil.walk_packages([str(PACKAGE)], "monai_wsss.")]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    ours = {value.__name__ for value in classes if value.__module__.startswith("monai_wsss.")}
    assert not ours & monai_names()


def test_every_public_name_can_be_a_target():
    for path, value in public_names().items():
        assert locate(path) is value, f"{path} resolves to something else: is it named like its module?"


def test_every_public_name_has_a_docstring_and_every_file_its_header():
    bare = [path for path, value in public_names().items() if callable(value) and not inspect.getdoc(value)]
    assert bare == []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# Copyright (c) monai_wsss contributors.\n# Licensed under the Apache"), path
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say its one idea"


def test_the_command_line_imports_no_torch_for_its_help():
    code = "import sys, monai_wsss.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_surface():
    """The inventory: a name that goes away or comes is a decision, written down here and in CHANGELOG.md."""
    inventory = (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").split()
    assert sorted(public_names()) == inventory
