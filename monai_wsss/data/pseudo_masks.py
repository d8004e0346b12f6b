# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files of the pseudo-masks, for the second stage: one file per item, named by its id."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss._files import case_file_name, file_sha256

__all__ = ["attach_pseudo_masks", "check_pseudo_masks", "pseudo_mask_path"]


def pseudo_mask_path(pseudo_dir: str | os.PathLike[str], id: str) -> Path:
    """Find the pseudo-mask of an item, ``<id>.png`` or ``<id>.nii.gz``.

    Raises:
        DataError: there is no such file.
    """
    stem = Path(pseudo_dir) / case_file_name(id)
    for suffix in (".png", ".nii.gz"):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise DataError(f'There is no pseudo-mask of the case "{id}" in {pseudo_dir}: write the pseudo-masks first.')


def attach_pseudo_masks(
    items: Sequence[Mapping[str, Any]], pseudo_dir: str | os.PathLike[str], *, check: bool = True
) -> list[dict[str, Any]]:
    """Add the paths of the pseudo-masks to items, under the key ``pseudo_mask``.

    Args:
        items: items of :func:`~monai_wsss.data.load_datalist`, read without masks.
        pseudo_dir: the output folder of :class:`~monai_wsss.inferers.PseudoMaskWriter`.
        check: whether the files must exist.  If not, each is taken to be a PNG file, for a run that writes them before
            it reads them.

    Returns:
        New dictionaries.

    Raises:
        DataError: an item has no pseudo-mask.

    Example:
        >>> attach_pseudo_masks([{"id": "a1"}], "pseudo", check=False)
        [{'id': 'a1', 'pseudo_mask': 'pseudo/a1.png'}]
    """
    if check:
        return [{**item, "pseudo_mask": str(pseudo_mask_path(pseudo_dir, item["id"]))} for item in items]
    return [{**item, "pseudo_mask": f"{os.fspath(pseudo_dir)}/{case_file_name(item['id'])}.png"} for item in items]


def check_pseudo_masks(
    items: Sequence[Mapping[str, Any]],
    pseudo_dir: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
) -> None:
    """Check that all pseudo-masks of these items exist, and that these weights made them.

    Args:
        items: the items of a second stage.
        pseudo_dir: the output folder of :class:`~monai_wsss.inferers.PseudoMaskWriter`.
        weights: the weights of the first stage; not compared if None or if the file does not exist.

    Raises:
        DataError: the writer has not finished, an item has no pseudo-mask, or other weights made them.
    """
    manifest = Path(pseudo_dir) / "manifest.json"
    if not manifest.is_file():
        raise DataError(f"There is no finished set of pseudo-masks in {pseudo_dir}: write the pseudo-masks first.")
    content = json.loads(manifest.read_text(encoding="utf-8"))
    missing = [str(item["id"]) for item in items if str(item["id"]) not in content["files"]]
    if missing:
        raise DataError(
            f'The pseudo-masks in {pseudo_dir} lack {len(missing)} of {len(items)} cases, e.g. "{missing[0]}": '
            "write the pseudo-masks of this dataset first."
        )
    if (
        weights is not None
        and Path(weights).is_file()
        and content["settings"]["weights_sha256"] != file_sha256(weights)
    ):
        raise DataError(f"The pseudo-masks in {pseudo_dir} are of other weights than {weights}: write them anew.")
