# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare coco``: photographs with annotations of instances in COCO's format (Lin et al., ECCV 2014), any classes.

The folder holds ``annotations/instances_<set>.json`` and the images of each set in ``<set>/``, ``images/<set>/`` or
``images/``.  The classes are the categories, in ascending order of their ids: 80 for COCO.  Papers train on train2014
and measure on val2014.

The label of an image names the categories of all its annotations, crowds too.  An image without annotations is all
background, or is left out if asked, as papers do it (82,081 of the 82,783 images of train2014 have annotations, 40,137
of the 40,504 of val2014).

Masks, for evaluation only, are drawn from the outlines if asked, smaller objects over larger ones.  Pixels of a crowd
that belong to no single object are 255, ignored: the outline of a crowd is rough, and COCO's own evaluation ignores it.
So are the pixels of an annotation that has a box and no outline, or one that cannot be drawn.  An image with an
annotation that has neither gets no mask.  Both are told in the log; labels come from all annotations.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from monai_wsss._checks import DataError
from monai_wsss._files import case_file_name
from monai_wsss._labels import IGNORED
from monai_wsss.data.outlines import draw_box, draw_outline, has_outline, is_box
from monai_wsss.data.photographs import Photograph, check_classes, path_inside, spelled_on_disk, write_photographs
from monai_wsss.data.prepared_folder import check_output
from monai_wsss.data.reading import image_stem

__all__ = ["prepare_coco"]

_SETS = {"training": "train", "validation": "val"}
"""Beginning of the names of the sets that are searched where none is named."""

_NUMBERS = ("id", "image_id", "category_id", "width", "height")
_PARTS = ("images", "annotations", "categories")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Instances:
    """Content of ``instances_<set>.json``.

    Attributes:
        path: the file.
        categories: id of a category -> its name, in ascending order of the ids.
        images: id of an image -> where it stands, and its entry.
        annotations: id of an image -> its annotations, each with where it stands.
    """

    path: Path
    categories: dict[int, str]
    images: dict[Any, tuple[str, dict[str, Any]]]
    annotations: dict[Any, list[tuple[str, dict[str, Any]]]]


def _find_set(root: Path, split: str, wanted: str | None) -> Path | None:
    """Give the annotations of a split: the wanted file, else the only one whose set has the right name."""
    folder = root / "annotations"
    if wanted is not None:
        path = folder / f"instances_{wanted}.json"
        if not path.is_file():
            raise DataError(f"The {split} annotations {path} do not exist: name a set of that folder, e.g. train2014.")
        return path
    if split not in _SETS:
        return None
    found = sorted(folder.glob(f"instances_{_SETS[split]}*.json"))
    if len(found) > 1:
        names = ", ".join(path.stem.removeprefix("instances_") for path in found)
        raise DataError(f"{folder} has several sets for {split}, {names}: name one of them (`{split}`).")
    if not found and split == "training":
        raise DataError(
            f"{folder} has no instances_train*.json: give the folder that holds `annotations`, or name the set "
            "(`training`)."
        )
    return found[0] if found else None


def _whole(value: Any) -> Any:
    """Give a whole number for "7" and 7.0; any other value, such as "007", stays."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,17}", value) else value


def _entries(content: Mapping[str, Any], part: str, keys: Mapping[str, Any], path: Path) -> list[tuple[str, Any]]:
    """Give (where, entry) for a part of the file; each entry must have the keys, with values of the right types.

    Whole numbers may be written as texts or with a point.
    """
    entries = []
    for index, entry in enumerate(content[part]):
        where = f"{path}, {part}[{index}]"
        if isinstance(entry, dict):
            entry = {key: _whole(value) if key in _NUMBERS else value for key, value in entry.items()}
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in keys.items()):
            raise DataError(f"{where} is {entry!r:.80}: give {', '.join(keys)}, as COCO does.")
        entries.append((where, entry))
    return entries


def _read_json(path: Path) -> dict[str, Any]:
    """Read the file; each of its parts must be a list."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {path} as JSON ({error}): copy the annotations again.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
        raise DataError(
            f"{path} holds no instances of COCO: it needs the lists {', '.join(_PARTS)}, as instances_train2014.json."
        )
    return content


def _read_instances(path: Path) -> _Instances:
    """Read and check the annotations of a set."""
    content = _read_json(path)
    categories: dict[int, str] = {}
    for where, entry in _entries(content, "categories", {"id": int, "name": str}, path):
        if entry["id"] in categories:
            raise DataError(f"{where}: the id {entry['id']} is of two categories: give each its own.")
        categories[entry["id"]] = entry["name"]
    images: dict[Any, tuple[str, dict[str, Any]]] = {}
    for where, entry in _entries(content, "images", {"id": (int, str), "file_name": str}, path):
        if entry["id"] in images:
            raise DataError(f"{where}: the id {entry['id']!r} is of two images: give each its own.")
        images[entry["id"]] = (where, entry)
    annotations: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for where, entry in _entries(content, "annotations", {"image_id": (int, str), "category_id": int}, path):
        for key, known in (("image_id", images), ("category_id", categories)):
            if entry[key] not in known:
                raise DataError(
                    f"{where} has the {key} {entry[key]!r}, which the file does not list: add it, or take the "
                    "annotation out."
                )
        annotations.setdefault(entry["image_id"], []).append((where, entry))
    if not images:
        raise DataError(f"{path} lists no image: give the annotations of a set with images.")
    return _Instances(path, dict(sorted(categories.items())), images, annotations)


def _image_folder(root: Path, path: Path) -> Path:
    """Find the folder with the images of a set."""
    name = path.stem.removeprefix("instances_")
    folders = [root / name, root / "images" / name, root / "images"]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise DataError(
            f"None of {', '.join(map(str, folders))} is a folder with the images of {path.name}: put them into one of "
            "these."
        )
    return found


def _draw_mask(
    image: MetaTensor,
    entry: Mapping[str, Any],
    annotations: Sequence[tuple[str, Mapping[str, Any]]],
    numbers: Mapping[int, int],
    where: str,
    undrawn: list[str],
) -> np.ndarray | None:
    """Draw the mask (1, x, y) uint8 of an image: first crowds and boxes, as ignored, then objects, large ones first.

    An outline that cannot be drawn is added to ``undrawn``, and its box takes its place.  Without a box there is no
    mask.
    """
    columns, rows = image.shape[1:]
    size = [entry.get("width") or columns, entry.get("height") or rows]  # 0 and null are unknown
    if size != [columns, rows]:
        turned = columns != rows and size == [rows, columns]
        remedy = (
            "an EXIF entry may turn it for viewers, so annotate it as viewers show it, or save it without the entry"
            if turned
            else "take the image that was annotated"
        )
        raise DataError(
            f"{where} says that the image is of {size[0]} x {size[1]}, but {entry['file_name']} is of {columns} x "
            f"{rows}: {remedy}."
        )
    mask = np.zeros((columns, rows), dtype=np.uint8)
    objects: list[tuple[int, np.ndarray]] = []
    for place, annotation in annotations:
        pixels, ignored = _pixels(annotation, columns, rows, place, undrawn)
        if pixels is None:
            return None
        if ignored:
            mask[pixels] = IGNORED
        else:
            objects.append((numbers[annotation["category_id"]], pixels))
    for number, pixels in sorted(objects, key=lambda pair: -int(np.count_nonzero(pair[1]))):
        mask[pixels] = number
    return mask[None]


def _pixels(
    annotation: Mapping[str, Any], columns: int, rows: int, place: str, undrawn: list[str]
) -> tuple[np.ndarray | None, bool]:
    """Give the pixels (x, y) of an annotation, and whether they are ignored; None where nobody knows them."""
    outline = annotation.get("segmentation")
    if has_outline(outline):
        if isinstance(outline, list):
            outline = [part for part in outline if has_outline([part])]
        try:
            return draw_outline(outline, columns, rows, place), bool(annotation.get("iscrowd"))
        except DataError as error:
            undrawn.append(str(error))
    box: Any = annotation.get("bbox")
    return (draw_box(box, columns, rows) if is_box(box) else None), True


def _to_photographs(
    root: Path, instances: _Instances, split: str, masks: bool, annotated_only: bool, undrawn: list[str]
) -> list[Photograph]:
    """List the images of a set with their labels; outlines that cannot be drawn will be added to ``undrawn``."""
    folder = _image_folder(root, instances.path)
    numbers = {category: number for number, category in enumerate(instances.categories, start=1)}
    photographs = []
    for key, (where, entry) in instances.images.items():
        annotations = instances.annotations.get(key, [])
        if annotated_only and not annotations:
            continue
        present = {numbers[annotation["category_id"]] for _, annotation in annotations}
        label = [int(number in present) for number in numbers.values()]
        image = _find_image(root, folder, entry["file_name"], where)
        id = case_file_name(image.relative_to(folder).with_name(image_stem(image)).as_posix())
        draw = partial(_draw_mask, entry=entry, annotations=annotations, numbers=numbers, where=where, undrawn=undrawn)
        drawn = masks and not any(_unknown(annotation) for _, annotation in annotations)
        ignored = {numbers[annotation["category_id"]] for _, annotation in annotations if _is_ignored(annotation)}
        mask = draw if drawn else None
        photographs.append(Photograph(where, id, split, label, image, mask, frozenset(ignored)))
    if masks:
        _check_pixels(instances)
        _tell_of_outlines(instances, [annotation for pairs in instances.annotations.values() for annotation in pairs])
    return photographs


def _find_image(root: Path, folder: Path, name: str, where: str) -> Path:
    """Give the file of an image; its name may begin with the folder of the set, as some exports write it."""
    image = spelled_on_disk(path_inside(folder, name, where))
    whole = spelled_on_disk(path_inside(root, name, where))
    return whole if not image.is_file() and whole.is_file() and whole.is_relative_to(folder) else image


def _is_ignored(annotation: Mapping[str, Any]) -> bool:
    """Tell whether the pixels of an annotation are ignored: those of a crowd, and of a box without outline."""
    return bool(annotation.get("iscrowd")) or not has_outline(annotation.get("segmentation"))


def _check_pixels(instances: _Instances) -> None:
    """Refuse outlines and boxes in shares of the size of the image, which all lie in its first pixel."""
    found = [
        [number for part in values for number in (part if isinstance(part, list) else [part])]
        for pairs in instances.annotations.values()
        for _, annotation in pairs
        for values in (annotation.get("segmentation"), annotation.get("bbox"))
        if isinstance(values, list) and values
    ]
    numbers = [number for values in found for number in values if isinstance(number, (int, float))]
    if numbers and max(numbers) <= 1 and any(0 < number < 1 for number in numbers):
        raise DataError(
            f"All outlines and boxes of {instances.path} lie between 0 and 1: write pixels, not shares of the size."
        )


def _unknown(annotation: Mapping[str, Any]) -> bool:
    """Tell whether an annotation has neither an outline nor a box, so that nobody knows its pixels."""
    return not has_outline(annotation.get("segmentation")) and not is_box(annotation.get("bbox"))


def _tell_of_outlines(instances: _Instances, annotations: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Log how many annotations have a box alone, and how many have neither outline nor box."""
    without = [pair for pair in annotations if not has_outline(pair[1].get("segmentation"))]
    for unknown, consequence in (
        (False, "have a box and no outline, so that all pixels in the box are ignored (255) in the mask"),
        (True, "have neither outline nor box, so that their images have no mask"),
    ):
        found = [where for where, annotation in without if _unknown(annotation) == unknown]
        if found:
            _logger.warning("%d annotations of %s %s, first %s.", len(found), instances.path, consequence, found[0])


def prepare_coco(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    training: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    masks: bool = False,
    annotated_only: bool = False,
) -> Path:
    """Turn COCO, or data annotated in its format, into a prepared folder; every image is a subject of its own.

    Images keep their sizes, so training has to crop or resize them.  The head of this file says how overlapping
    objects, crowds and images without annotation are treated.

    Args:
        root: the folder that holds ``annotations``.
        out: the folder to write.
        training: the set to train on, e.g. "train2014"; None takes the only one whose name begins with "train".
        validation: the set to evaluate on; None takes the only one whose name begins with "val", if there is one.
        test: a set with annotations to test on; None takes none, since those of COCO have no annotations.
        masks: whether to draw masks from the outlines, for evaluation.
        annotated_only: whether images without any annotation are left out of all splits.  The datalist says so and how
            many there were (``"left_out"``).

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file or entry is wrong; one sentence says what, and the remedy.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder in ("annotations", "train"):
        ...     (root / folder).mkdir()
        >>> Image.fromarray(200 * np.eye(8, dtype=np.uint8)).save(root / "train" / "a.jpg")
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg"}],
        ...     "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        ...     "annotations": [{"image_id": 7, "category_id": 18}],
        ... }
        >>> _ = (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
        >>> file = prepare_coco(root, root / "prepared")
        >>> json.loads(file.read_text())["training"][0]["label"]
        [0, 1]
    """
    folder = Path(root)
    if not (folder / "annotations").is_dir():
        raise DataError(f"{folder} holds no folder annotations: give the folder that does.")
    target = check_output(out, folder)
    photographs: list[Photograph] = []
    first: _Instances | None = None
    undrawn: list[str] = []
    left_out: dict[str, int] = {}
    for split, name in {"training": training, "validation": validation, "test": test}.items():
        path = _find_set(folder, split, name)
        if path is None:
            continue
        instances = _read_instances(path)
        first = first or instances
        if instances.categories != first.categories:
            raise DataError(f"{path} has other categories than {first.path}: take sets with the same categories.")
        listed = _to_photographs(folder, instances, split, masks, annotated_only, undrawn)
        photographs += listed
        _logger.info("The %s images are those of %s.", split, path)
        if annotated_only:
            left_out[split] = len(instances.images) - len(listed)
            _logger.info("%s: %d images without annotation were left out.", split, left_out[split])
    classes = check_classes(list(first.categories.values()) if first else [])
    labels = "of the image, from its annotations of instances"
    entries = {"left_out": {"images without annotation": left_out}} if annotated_only else {}
    written = write_photographs(target, photographs, classes, labels=labels, entries=entries)
    if undrawn:
        _logger.warning(
            "%d outlines cannot be drawn; their boxes are ignored (255), and images of outlines without a box have no "
            "mask.  The first: %s",
            len(undrawn),
            undrawn[0],
        )
    return written
