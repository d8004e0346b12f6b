# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The bundles that come with the package: which there are, what they find, under which terms, and copies of them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss._files import load_tensors, make_directory, write_error
from monai_wsss.bundle_scan import scan_bundle

__all__ = ["ShippedBundle", "check_shipped", "copy_shipped", "find_bundle", "list_bundles", "manage_bundles"]

_logger = logging.getLogger(__name__)
_LEFT_OUT = shutil.ignore_patterns("eval", "sample_data", "stage*", "__pycache__", ".*")
_CLASS = re.compile(r"(\d+) ([^,(]+)")


@dataclass(frozen=True)
class ShippedBundle:
    """A bundle on disk, and what its metadata say.

    Attributes:
        path: its folder.
        metadata: the content of ``configs/metadata.json``.
    """

    path: Path
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the folder, ``<data>_<method>_segmentation``."""
        return self.path.name

    @property
    def task(self) -> str:
        """Say what the bundle does, in words."""
        return str(self.metadata.get("task", ""))

    @property
    def inputs(self) -> str:
        """Say what the images must be, in words."""
        return str(self.metadata.get("image_classes", ""))

    @property
    def trained_on(self) -> str:
        """Say what the weights were trained on, in words."""
        return str(self.metadata.get("data_source", "not known"))

    @property
    def license(self) -> str:
        """Give the terms of the weights, in words; the whole text is ``docs/data_license.txt``."""
        return str(self.metadata.get("weights_license", "not stated: read docs/data_license.txt"))

    @property
    def classes(self) -> list[str]:
        """Give the names of the classes 1..K of masks."""
        return [name for number, name in self._mask_values if number > 0]

    @property
    def background(self) -> bool:
        """Tell whether masks have a background, 0."""
        return any(number == 0 for number, _ in self._mask_values)

    @property
    def _mask_values(self) -> list[tuple[int, str]]:
        found = _CLASS.findall(str(self.metadata.get("pred_classes", "")))
        return sorted((int(number), name.strip()) for number, name in found)

    @property
    def size_mb(self) -> float:
        """Count the megabytes of all files that are shipped."""
        files = (file for file in self.path.rglob("*") if file.is_file())
        shipped = (file for file in files if not {"eval", "sample_data"} & set(file.relative_to(self.path).parts))
        return sum(file.stat().st_size for file in shipped) / 1e6

    def config(self, name: str) -> dict[str, Any]:
        """Read a configuration, such as "train", without evaluating anything in it.

        Raises:
            DataError: there is none, or it is damaged.
        """
        return _read(self.path / "configs" / f"{name}.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.parents[1]} is no bundle with configs/{path.name}, or that file is damaged: give the name of a "
            "bundle (`monai-wsss bundles` lists them) or its folder."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table: copy the bundle anew.")
    return content


def _home() -> Path:
    """Give the folder of the bundles: inside the package where it was installed, beside it in its sources."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "bundles"
    return installed if installed.is_dir() else package.parent / "bundles"


def list_bundles() -> list[ShippedBundle]:
    """List the bundles that come with the package, by name.

    Example:
        >>> [bundle.classes for bundle in list_bundles() if bundle.name == "brain_mri_cam_segmentation"]
        [['tumor']]
    """
    return [find_bundle(path.parents[1]) for path in sorted(_home().glob("*/configs/metadata.json"))]


def find_bundle(name: str | os.PathLike[str]) -> ShippedBundle:
    """Find a bundle by its name, by the beginning of it that no other has, or by its folder.

    A folder of the working folder that has the name of a bundle of the package, as a copy has, is meant by "./name".

    Args:
        name: such as "brain_mri_cam_segmentation", "brain_mri_cam" or "my_bundles/brain_mri_cam_segmentation".

    Raises:
        DataError: there is none, or there are several.

    Example:
        >>> find_bundle("histology").classes
        ['gland', 'other tissue']
    """
    folder, known = Path(name), [path.parents[1] for path in sorted(_home().glob("*/configs/metadata.json"))]
    exact = [path for path in known if path.name == str(name)]
    if (folder.is_dir() and not exact) or folder.name != str(name):
        return ShippedBundle(folder.resolve(), _read(folder / "configs" / "metadata.json"))
    if folder.is_dir():
        _logger.info("%s is that of the package: for the folder of this name give ./%s.", name, name)
    found = exact or [path for path in known if path.name.startswith(str(name))]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found or known) or "none, so install the package anew"
        what = "several bundles begin with" if found else "no bundle is called"
        raise DataError(f"Expected `bundle` to name one bundle, but {what} {str(name)!r}: there are {listed}.")
    return ShippedBundle(found[0], _read(found[0] / "configs" / "metadata.json"))


def copy_shipped(name: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Copy a bundle into a folder, whole or not at all, to train it, to change it or to hand it on.

    Args:
        name: see :func:`find_bundle`.
        out: the folder that gets the folder of the bundle.

    Returns:
        The folder of the copy.

    Raises:
        DataError: there is no such bundle, or the copy exists already or cannot be written.
    """
    bundle = find_bundle(name)
    target = make_directory(out) / bundle.name
    if target.exists():
        raise DataError(f"{target} exists already: choose another folder, or move it away.")
    partial = target.with_name(f".{bundle.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(bundle.path, partial, ignore=_LEFT_OUT)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise write_error(target, error) from error
    return target


def check_shipped(name: str | os.PathLike[str]) -> list[str]:
    """Check a bundle without running it: files, metadata, every expression of its configs, and that weights are whole.

    Args:
        name: see :func:`find_bundle`.

    Returns:
        One sentence per fault.

    Raises:
        DataError: there is no such bundle.
    """
    bundle = find_bundle(name)
    faults = list(scan_bundle(bundle.path))
    for weights in sorted((bundle.path / "models").glob("*.pt")):
        try:
            load_tensors(weights)
        except DataError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def manage_bundles(
    *, copy: str | None = None, out: str | os.PathLike[str] | None = None, check: str | None = None
) -> Path | Sequence[str] | Sequence[ShippedBundle]:
    """List the bundles, copy one, or check one: the command ``monai-wsss bundles``.

    Args:
        copy: the bundle to copy.
        out: the folder that gets the copy; None takes the working folder.
        check: the bundle to check.

    Returns:
        The folder of the copy, the faults, or all bundles.

    Raises:
        DataError: see :func:`copy_shipped` and :func:`check_shipped`; or ``copy`` and ``check`` are given together.
    """
    if copy is not None and check is not None:
        raise DataError("--copy and --check are given together: give one of them at a time.")
    if out is not None and copy is None:
        raise DataError("--out says where --copy writes: give --copy NAME, too.")
    if copy is not None:
        return copy_shipped(copy, "." if out is None else out)
    return check_shipped(check) if check is not None else list_bundles()
