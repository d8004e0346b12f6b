# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The datalist: one JSON file that says which images, labels and subjects belong to which split.

It has the style of MONAI's Decathlon datalists, with image-level labels.  Mistakes (a subject in two splits, a label
other than 0 and 1, a missing file) are found when the list is written and again when it is read.  Any split may name
masks; the reader leaves them out unless asked, and only evaluation asks.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import make_directory, write_json
from monai_wsss._pictures import MILLIMETERS, PICTURE_SUFFIXES, XY
from monai_wsss.data.datalist_checks import SPLIT_OF_LIST, check_datalist, check_header, placed_items
from monai_wsss.data.modalities import canonical_modality
from monai_wsss.data.splits import SPLITS

__all__ = [
    "UNFINISHED",
    "check_trainable",
    "load_datalist",
    "load_header",
    "modality_entry",
    "read_content",
    "slice_entry",
    "statistics_entry",
    "write_datalist",
]

UNFINISHED = ".unfinished"
"""Name of an empty folder in a folder whose preparation has begun and has not yet written its datalist."""

_UNNAMED = re.compile(r"image|channel \d+")

_logger = logging.getLogger(__name__)

_told: set[Path] = set()


def modality_entry(names: Sequence[str]) -> dict[str, str]:
    """Give the entry ``modality`` of a datalist: number of the channel, as a text, -> name.

    Example:
        >>> modality_entry(["T1", "FLAIR"])
        {'0': 'T1', '1': 'FLAIR'}
    """
    return {str(channel): name for channel, name in enumerate(names)}


def statistics_entry(mean: np.ndarray, std: np.ndarray) -> dict[str, list[float]]:
    """Give an entry of ``statistics`` in a datalist from the mean (C,) and the standard deviation (C,).

    Example:
        >>> statistics_entry(np.array([2.0]), np.array([0.5]))
        {'mean': [2.0], 'std': [0.5]}
    """
    return {"mean": mean.tolist(), "std": std.tolist()}


def slice_entry(volume: str, index: int, affine: np.ndarray | None) -> dict[str, Any]:
    """Give the entries of an item that say where its slice lies in its volume, for distances in 3D.

    Args:
        volume: name of the volume, unique within its subject.
        index: number of the slice along the last axis.
        affine: (4, 4) of the volume, in millimeters; None where it is unknown.

    Example:
        >>> slice_entry("anna", 7, np.diag([-1.0, 1.0, 3.0, 1.0]))
        {'volume': 'anna', 'slice': 7, 'voxel_size': [1.0, 1.0, 3.0]}
    """
    size = {} if affine is None else {"voxel_size": np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()}
    return {"volume": volume, "slice": int(index), **size}


def check_trainable(items: Sequence[Mapping[str, Any]]) -> None:
    """Check that every class has a positive and a negative item: without both there is nothing to learn.

    Args:
        items: items as :func:`load_datalist` gives them, with ``label`` (K,).

    Raises:
        DataError: there are no items, or a class has no positive or no negative item.

    Example:
        >>> check_trainable([{"label": [1, 0]}, {"label": [0, 1]}])
    """
    if not items:
        raise DataError("There is no case to train on: put cases into the split, or choose another one.")
    labels = np.stack([np.asarray(item["label"], dtype=np.float32) for item in items])
    for number, column in enumerate(labels.T, start=1):
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (column == value).any():
                raise DataError(
                    f"None of the {len(items)} cases is {kind} for class {number} of {labels.shape[1]}: "
                    f"training needs both, so add {kind} cases or split anew."
                )


def _paths(item: Mapping[str, Any], base: Path) -> list[str]:
    """Give the absolute paths of the image files of an item."""
    files = item["image"] if isinstance(item["image"], list) else [item["image"]]
    return [os.path.normpath(base / file) for file in files]


def _check_exists(path: str, item: Mapping[str, Any], kind: str, source: str) -> None:
    if not os.path.exists(path):
        raise DataError(
            f'{source}: the {kind} {path} of case "{item["id"]}" does not exist: '
            "restore the file, take the case out of the list, or prepare the data anew."
        )


def write_datalist(directory: str | os.PathLike[str], datalist: Mapping[str, Any]) -> Path:
    """Check a datalist and write it as ``directory/datalist.json``, whole or not at all.

    An item holds ``id``, ``image``, ``label``, ``subject`` and optionally ``mask``.  The label of a test case may be
    None: nobody knows it, so the case is predicted and not measured.  Its entry ``statistics`` is the
    key of its intensity statistics; without this entry the key is its ``subject``.  The item of a patch may name the
    image from which it was cut, ``source``, and its first column and row there, ``origin``, which is [x, y] in any
    ``order``.  The item of a slice may say where it lies (:func:`slice_entry`): ``volume``, ``slice`` and, in mm along
    x, y and between slices, ``voxel_size``.  An item whose files do not say the size of their pixels, though their kind
    can, has the ``unit`` "px": distances are told in pixels.

    Args:
        directory: the folder of the list; relative paths in it are relative to this folder.
        datalist: ``name``, ``modality`` ({"0": "T1", …}), ``classes``, ``background``, optionally ``scored_class``,
            ``statistics`` ({key: {"mean": [C], "std": [C]}}), ``context`` ({class: what always accompanies it and has
            no label}) and ``order``, and the splits ``training``, ``validation``
            and ``test``, each a list of items.  ``order`` says how networks get 2D images: "rows_columns" is
            (C, rows, columns), right for photographs, tiles and X-rays; "xy" is (C, x, y), right for slices cut from
            volumes.

    Returns:
        The path of the JSON file.

    Raises:
        DataError: a subject is in two splits, an id occurs twice, a label has the wrong length, holds values other
            than 0 and 1, or holds only zeros where there is no background, a file does not exist, or the folder cannot
            be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.png").touch()
        >>> case = {"id": "a", "image": "a.png", "label": [1], "subject": "s"}
        >>> write_datalist(folder, {"modality": {"0": "T1"}, "classes": ["tumor"], "training": [case]}).name
        'datalist.json'
    """
    directory = make_directory(directory)
    path = directory / "datalist.json"
    content = {"name": directory.name, "background": True, **datalist}
    content.update({split: datalist.get(split, []) for split in SPLITS})
    check_datalist(content, str(path))
    for _, _, item in placed_items(content):
        for file in _paths(item, directory):
            _check_exists(file, item, "image", str(path))
        for kind in ("mask", "region"):
            if kind in item:
                _check_exists(os.path.normpath(directory / item[kind]), item, kind, str(path))
    write_json(path, content)
    if (directory / UNFINISHED).is_dir():
        (directory / UNFINISHED).rmdir()
    return path


def read_content(path: Path) -> dict[str, Any]:
    """Read the JSON object of a datalist, unchecked.

    Raises:
        DataError: the file is absent, no JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"Cannot read the datalist {path} ({error.strerror}): "
            "give the path of a datalist.json as `monai-wsss prepare` writes it."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file ({error}): correct it, or prepare the data anew.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no datalist but a {type(content).__name__}: prepare the data anew.")
    return content


def _channels(names: list[str], wanted: Sequence[str], replace_missing: Mapping[str, str], source: str) -> list[int]:
    """Give the channel of the list that serves each wanted modality."""
    if all(_UNNAMED.fullmatch(name) for name in names):
        if len(names) != len(wanted):
            raise DataError(
                f"{source} has {len(names)} unnamed channels, but {len(wanted)} modalities are wanted "
                f'({", ".join(wanted)}): give the bundle --modalities "{names}" --in_channels {len(names)}, '
                'or name its channels under "modality".'
            )
        return list(range(len(names)))
    available = {canonical_modality(name): channel for channel, name in enumerate(names)}
    replacements = {canonical_modality(key): canonical_modality(name) for key, name in replace_missing.items()}
    channels = []
    for name in map(canonical_modality, wanted):
        chosen = name if name in available else replacements.get(name, name)
        if chosen not in available:
            raise DataError(
                f"{source} lacks the modality {chosen}, it has {', '.join(names)}: prepare the data with it, use a "
                "network for the modalities at hand (`present`, where each modality has a network of its own), or ask "
                "for another one in its place (`replace_missing`)."
            )
        if chosen != name:
            _logger.warning("%s lacks %s: %s is used in its place, as asked.", source, name, chosen)
        channels.append(available[chosen])
    return channels


def _selected_paths(files: list[str], channels: list[int], num_modalities: int, item: Any, source: str) -> list[str]:
    """Give the files of the wanted channels; one file with all channels can only be taken whole and in order."""
    if len(files) == num_modalities:
        return [files[channel] for channel in channels]
    if channels != list(range(num_modalities)):
        raise DataError(
            f'{source}: the image of case "{item["id"]}" is one file with {num_modalities} channels, from which '
            "modalities cannot be chosen: take all of them in their order, or prepare the data with a file for each."
        )
    return files


def _statistics_of(entry: Mapping[str, Any], datalist: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give the intensity statistics that an item names, else those of its subject, else None."""
    known: Mapping[str, Any] = datalist.get("statistics", {})
    return known.get(entry.get("statistics", entry["subject"]), known.get(entry["subject"]))


def _tell_of_old_order(file: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """Log, once per datalist without ``order`` that lists pictures, in which order they are read."""
    names = [path.lower() for item in items for path in _paths(item, file.parent)]
    if file not in _told and any(name.endswith(PICTURE_SUFFIXES) for name in names):
        _told.add(file)
        _logger.warning(
            '%s does not say the order of its images, so they are read in the old one, (C, x, y): write "order": "%s" '
            "into it to keep that, or prepare the data anew to read photographs as (C, rows, columns).",
            file,
            XY,
        )


def load_datalist(
    path: str | os.PathLike[str],
    split: str,
    *,
    masks: bool = False,
    regions: bool = False,
    modalities: Sequence[str] | None = None,
    replace_missing: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Read one split of a datalist.

    Args:
        path: the JSON file.
        split: "training", "validation" or "test", or, where there are tiles, "training_images",
            "validation_tiles" or "test_tiles".
        masks: whether to give the masks as well.  They are for evaluation, oracles and full supervision only: a method
            that learns from image-level labels must never see them.
        regions: whether to give the regions as well, masks of the organ in which a finding may lie.
        modalities: the wanted sequences, in the wanted order, e.g. ``("T1", "T1c", "FLAIR")``; None takes those of the
            list.  Channels without names ("channel 0", "image") are taken in order if their number is right.
        replace_missing: stand-ins for modalities that the list lacks, e.g. ``{"T1": "FLAIR"}``; a warning says so.

    Returns:
        One dictionary per item: ``id``, ``subject``, ``image`` (an absolute path, or one per modality) and ``label``
        float32 (K,), which a test case without label lacks; ``mask`` and ``region`` (absolute paths), if asked for and
        in the list; ``intensity_mean`` and ``intensity_std`` float32 (C,), if the list has statistics of the item or
        its subject; ``source`` and ``origin`` of a patch, if the list has them; ``volume``, ``slice`` and
        ``voxel_size`` of a slice likewise, with masks; ``order``, if the list says it, for
        :class:`~monai_wsss.transforms.LoadImageOrderedd`; ``unit``, "mm" or "px", if an item of the split has it.

    Raises:
        DataError: the file is absent, broken or inconsistent, or a modality or an image is missing.
        ValueError: an unknown split.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a_t1.png", "a_flair.png"):
        ...     (folder / name).touch()
        >>> case = {"id": "a", "image": ["a_t1.png", "a_flair.png"], "label": [1], "subject": "s"}
        >>> modality = {"0": "T1", "1": "FLAIR"}
        >>> file = write_datalist(folder, {"modality": modality, "classes": ["tumor"], "training": [case]})
        >>> (item,) = load_datalist(file, "training", modalities=["FLAIR"])
        >>> Path(item["image"]).name, item["label"].tolist()
        ('a_flair.png', [1.0])
    """
    check_choice("split", split, tuple(SPLIT_OF_LIST))
    file = Path(path).absolute()
    datalist = read_content(file)
    check_datalist(datalist, str(file))
    names = [datalist["modality"][str(channel)] for channel in range(len(datalist["modality"]))]
    channels = list(range(len(names)))
    if modalities is not None:
        channels = _channels(names, modalities, replace_missing or {}, str(file))

    if not datalist.get(split):
        _logger.warning('The split "%s" of %s is empty.', split, file)
    order = {"order": datalist["order"]} if datalist.get("order") else {}
    units = any("unit" in entry for entry in datalist.get(split, []))
    if not order:
        _tell_of_old_order(file, datalist.get(split, []))
    items = []
    for entry in datalist.get(split, []):
        files = _selected_paths(_paths(entry, file.parent), channels, len(names), entry, str(file))
        for image in files:
            _check_exists(image, entry, "image", str(file))
        item = {"id": entry["id"], "subject": entry["subject"], "image": files[0] if len(files) == 1 else files}
        if entry["label"] is not None:
            item["label"] = np.asarray(entry["label"], dtype=np.float32)
        item |= {key: entry[key] for key in ("volume", "slice", "voxel_size") if masks and key in entry}
        for key, wanted in (("mask", masks), ("region", regions)):
            if wanted and key in entry:
                item[key] = os.path.normpath(file.parent / entry[key])
                _check_exists(item[key], entry, key, str(file))
        item |= {key: entry[key] for key in ("source", "origin") if key in entry} | order
        item |= {"unit": entry.get("unit", MILLIMETERS)} if units else {}
        statistics = _statistics_of(entry, datalist)
        if statistics is not None:
            item["intensity_mean"] = np.asarray(statistics["mean"], dtype=np.float32)[channels]
            item["intensity_std"] = np.asarray(statistics["std"], dtype=np.float32)[channels]
        items.append(item)
    return items


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the header of a datalist: all entries but the items and the statistics.

    Args:
        path: the JSON file.

    Returns:
        ``name``, ``modality``, ``classes``, ``background``, ``order`` ("rows_columns" or "xy", None where the list does
        not say it) and all other entries.

    Raises:
        DataError: the file is absent or broken.
    """
    datalist = read_content(Path(path))
    check_header(datalist, str(path))
    defaults = {"background": True, "order": None}
    return {**defaults, **{key: value for key, value in datalist.items() if key not in (*SPLIT_OF_LIST, "statistics")}}
