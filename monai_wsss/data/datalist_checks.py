# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checks of a datalist: its header, its items one by one, and the splits of its subjects; no image is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from monai_wsss._checks import DataError
from monai_wsss._pictures import MILLIMETERS, ORDERS, PIXELS
from monai_wsss.data.splits import SPLITS

__all__ = ["SPLIT_OF_LIST", "check_datalist", "check_header", "placed_items"]

SPLIT_OF_LIST = {
    **{split: split for split in SPLITS},
    "training_images": "training",
    "validation_tiles": "validation",
    "test_tiles": "test",
}
"""List of a datalist → the split that its subjects belong to.

Where training is on tiles, ``training_images`` holds the whole images that they were cut from, and the tiles of other
splits measure a classifier.
"""

_REQUIRED = ("id", "image", "label", "subject")


def _are_names(values: Any) -> TypeGuard[list[str]]:
    """Tell whether this is a list of texts, not empty and without an empty text."""
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) and value for value in values)


def _are_numbers(values: Any, count: int) -> bool:
    """Tell whether this is a list of ``count`` finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(isinstance(value, (int, float)) and np.isfinite(value) for value in values)


def check_header(datalist: Mapping[str, Any], source: str) -> None:
    """Check the header of a datalist, which is all but its items.

    Args:
        datalist: the content of the JSON file.
        source: name of the file, for messages.

    Raises:
        DataError: an entry is missing or has the wrong form.
    """
    classes, modality = datalist.get("classes"), datalist.get("modality")
    if not _are_names(classes) or len(set(classes)) != len(classes):
        raise DataError(f'{source}: "classes" must list the foreground classes by name, each once; got {classes!r}.')
    if (
        not isinstance(modality, dict)
        or set(modality) != {str(i) for i in range(len(modality))}
        or not _are_names(list(modality.values()))
    ):
        raise DataError(f'{source}: "modality" must map "0", "1", … to the names of the channels; got {modality!r}.')
    for name in SPLIT_OF_LIST:
        if not isinstance(datalist.get(name, []), list):
            raise DataError(f'{source}: "{name}" must be a list of cases.')
    order = datalist.get("order")
    if order is not None and order not in ORDERS:
        raise DataError(f'{source}: "order" must be one of {", ".join(ORDERS)}; got {order!r}.')
    scored = datalist.get("scored_class")
    if not datalist.get("background", True) and scored not in classes:
        raise DataError(
            f'{source}: "background" is false, so "scored_class" must name one of the classes '
            f"{', '.join(map(str, classes))}; got {scored!r}."
        )
    context = datalist.get("context", {})
    if (
        not isinstance(context, dict)
        or not set(context) <= set(classes)
        or (context and not _are_names([*context.values()]))
    ):
        raise DataError(
            f'{source}: "context" must map classes to what always accompanies them and has no label, as '
            f'{{"bird": "branch"}}; the classes are {", ".join(map(str, classes))}; got {context!r:.80}.'
        )
    statistics = datalist.get("statistics", {})
    if not isinstance(statistics, dict):
        raise DataError(
            f'{source}: "statistics" must map each subject to its "mean" and "std"; got {statistics!r:.80}.'
        )
    for subject, values in statistics.items():
        if not (isinstance(values, dict) and all(_are_numbers(values.get(k), len(modality)) for k in ("mean", "std"))):
            raise DataError(
                f'{source}: "statistics" of subject {subject} must hold one finite "mean" and "std" '
                f"for each of {len(modality)} modalities."
            )


def placed_items(datalist: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give every item as (split, where it stands, item)."""
    for name, split in SPLIT_OF_LIST.items():
        for index, item in enumerate(datalist.get(name, [])):
            yield split, f"{name}[{index}]", item


def _check_item(item: Any, datalist: Mapping[str, Any], split: str, where: str) -> None:
    """Check one item by itself."""
    missing = [key for key in _REQUIRED if not isinstance(item, dict) or key not in item]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: a case needs {', '.join(_REQUIRED)}.")
    for key in ("id", "subject", *(key for key in ("mask", "region") if key in item)):
        if not _are_names([item[key]]):
            raise DataError(f'{where} has {key} {item[key]!r}: give a text in quotes, as "{key}": "a1".')
    _check_label(item, datalist, split, where)
    image, modality = item["image"], datalist["modality"]
    if not _are_names(image if isinstance(image, list) else [image]):
        raise DataError(f'{where} (id "{item["id"]}") has image {image!r}: give a path, or a list of one per modality.')
    if isinstance(image, list) and len(image) != len(modality):
        raise DataError(
            f'{where} (id "{item["id"]}") names {len(image)} image files, "modality" has {len(modality)} names: '
            "give one file per modality."
        )
    if item.get("unit", MILLIMETERS) not in (MILLIMETERS, PIXELS):
        raise DataError(f'{where} has unit {item["unit"]!r}: give "{MILLIMETERS}" or "{PIXELS}", or leave it out.')
    _check_patch(item, where)


def _check_label(item: Mapping[str, Any], datalist: Mapping[str, Any], split: str, where: str) -> None:
    """Check the label of an item; None, which is not known, is for test cases alone."""
    label, classes = item["label"], datalist["classes"]
    if label is None and split == "test":
        return
    if label is None:
        raise DataError(
            f'{where} (id "{item["id"]}") has no label (null), which only cases of the test split may lack: give it '
            "one, or put the case into the test split."
        )
    if not isinstance(label, list) or len(label) != len(classes) or any(value not in (0, 1) for value in label):
        raise DataError(
            f'{where} (id "{item["id"]}") has label {label!r}: '
            f"give a list with one 0 or 1 for each of {', '.join(map(str, classes))}."
        )
    if not datalist.get("background", True) and not any(label):
        raise DataError(
            f'{where} (id "{item["id"]}") has a label of zeros, but "background" is false, so that every pixel belongs '
            f"to one of {', '.join(map(str, classes))}: give it the classes that it shows, or leave it out."
        )


def _check_patch(item: Mapping[str, Any], where: str) -> None:
    """Check the entries of an item that say from which image it was cut."""
    for key in ("source", "statistics"):
        if key in item and not _are_names([item[key]]):
            raise DataError(f'{where} has {key} {item[key]!r}: give a text in quotes, as "{key}": "a1".')
    origin = item.get("origin", [0, 0])
    if not isinstance(origin, list) or not all(isinstance(start, int) and start >= 0 for start in origin):
        raise DataError(f"{where} has origin {origin!r}: give the first column and row as whole numbers from 0 on.")
    _check_slice(item, where)


def _check_slice(item: Mapping[str, Any], where: str) -> None:
    """Check the entries of an item that say where its slice lies in a volume."""
    if "volume" not in item and "slice" not in item:
        return
    number, size = item.get("slice"), item.get("voxel_size", [1, 1, 1])
    whole = isinstance(number, int) and number >= 0
    if not (_are_names([item.get("volume")]) and whole and _are_numbers(size, 3) and min(size) > 0):
        raise DataError(
            f"{where} has volume {item.get('volume')!r}, slice {number!r} and voxel_size {size!r}: give the name of "
            "the volume, the number of the slice from 0 on and, where known, three sizes in mm."
        )


def check_datalist(datalist: Mapping[str, Any], source: str) -> None:
    """Check the header, every item, that ids are unique, and that no subject is in two splits.

    Args:
        datalist: the content of the JSON file.
        source: name of the file, for messages.

    Raises:
        DataError: the header or an item has the wrong form, an id occurs twice, or a subject is in two splits.
    """
    check_header(datalist, source)
    seen: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for split, place, item in placed_items(datalist):
        _check_item(item, datalist, split, f"{source}: {place}")
        if item["id"] in seen:
            raise DataError(f'{source}: id "{item["id"]}" stands in {seen[item["id"]]} and in {place}: ids are unique.')
        seen[item["id"]] = place
        first = split_of.setdefault(item["subject"], split)
        if first != split:
            raise DataError(
                f'{source}: subject "{item["subject"]}" is in {first} and in {split} ({place}): '
                "put all cases of a subject into one split."
            )
