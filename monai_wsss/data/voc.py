# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare voc``: photographs laid out as PASCAL VOC 2012 (Everingham et al., IJCV 2010), with any classes.

The folder holds ``JPEGImages/``, ``Annotations/*.xml``, ``ImageSets/Segmentation/*.txt`` and optionally the masks
``SegmentationClass/`` and ``SegmentationClassAug/`` (SBD: Hariharan et al., ICCV 2011).  A line of a list is a name, or
two paths such as ``/JPEGImages/a.jpg /SegmentationClassAug/a.png``.  Papers train on the 10,582 images of ``train_aug``
(or ``trainaug``) and evaluate on the 1,449 of ``val``.

The labels are the names of the objects in the annotations, difficult and truncated ones too; parts of objects (head,
hand, foot) do not count as objects.  Masks are for evaluation, and no label comes from them unless asked.  The images
of VOC's test list have neither: their labels are not known, and they can be predicted, not measured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monai_wsss._checks import DataError
from monai_wsss.data.csv_table import plain_name
from monai_wsss.data.photographs import (
    Photograph,
    check_classes,
    path_inside,
    read_indices,
    spelled_on_disk,
    write_photographs,
)
from monai_wsss.data.plain_xml import read_plain_xml
from monai_wsss.data.prepared_folder import check_output
from monai_wsss.data.reading import image_stem

__all__ = ["VOC_CLASSES", "prepare_voc"]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 classes of VOC, in the order of their values in the masks."""

VOC_CONTEXT = {"bird": "tree branches", "boat": "the sea", "train": "railways"}
"""Class of VOC -> what always accompanies it without a label: the examples of CoSA (Yang et al., ECCV 2024), Fig. 4."""

_LISTS = {"training": ("train_aug", "trainaug", "train"), "validation": ("val",), "test": ()}
"""Lists that are searched where none is named; the first one found is taken."""

_SUFFIXES = (".jpg", ".jpeg", ".png")
_MASKS = ("SegmentationClass", "SegmentationClassAug")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    """A line of a list: its place in the file, its split, and the files that it names."""

    where: str
    split: str
    image: Path
    mask: Path | None

    @property
    def id(self) -> str:
        return image_stem(self.image)


def _read_annotation(path: Path, name: str) -> list[str]:
    """Read the class names of all objects in an annotation, which must belong to the image ``name``."""
    root = read_plain_xml(path)
    if root.tag != "annotation":
        raise DataError(f"{path} is no annotation of VOC but a <{root.tag}>: give <annotation> with its <object>s.")
    named = (root.findtext("filename") or name).strip()
    if plain_name(image_stem(named)) != plain_name(name):
        raise DataError(f'{path} says that it is of the image "{named}", not of "{name}": correct its <filename>.')
    objects = [(element.findtext("name") or "").strip() for element in root.findall("object")]
    if "" in objects:
        raise DataError(f"{path}: object {objects.index('') + 1} has no <name>: write its class.")
    return objects


def _label(path: Path, name: str, classes: Sequence[str]) -> list[int]:
    """Read the label of an annotation: 0/1 per class, (K)."""
    objects = _read_annotation(path, name)
    for found in objects:
        if found not in classes:
            raise DataError(
                f'{path}: an object is of the class "{found}", but the classes are {", ".join(classes)}: name all '
                "classes (`classes`), in the order of their values in the masks, or correct the name."
            )
    return [int(one in objects) for one in classes]


def _find_list(root: Path, split: str, wanted: str | os.PathLike[str] | None) -> Path | None:
    """Find the list of a split: the wanted one, else the first of the usual ones that exists."""
    folder = root / "ImageSets" / "Segmentation"
    if wanted is None:
        lists = [folder / f"{name}.txt" for name in _LISTS[split]]
        found = next((path for path in lists if path.is_file()), None)
        if found is None and split == "training":
            names = ", ".join(path.name for path in lists)
            raise DataError(f"{folder} has none of {names}: name the list of the training images (`training`).")
        return found
    path = Path(wanted) if str(wanted).endswith(".txt") else folder / f"{wanted}.txt"
    if not path.is_file():
        raise DataError(
            f"The {split} list {path} does not exist: name one of those in {folder}, or give the path of a .txt file."
        )
    return path


def _find_image(root: Path, text: str, where: str) -> Path:
    """Find the image that a line names by its path or by its name alone."""
    if text.lower().endswith(_SUFFIXES):
        path = text.lstrip("/\\") if "/" in text or "\\" in text else f"JPEGImages/{text}"
        return spelled_on_disk(path_inside(root, path, where))
    paths = [path_inside(root, f"JPEGImages/{text}{suffix}", where) for suffix in _SUFFIXES]
    return _existing(paths) or paths[0]


def _existing(paths: Sequence[Path]) -> Path | None:
    """Give the first of the paths that exists, as it is spelled on the disk."""
    return next((found for path in paths if (found := spelled_on_disk(path)).is_file()), None)


def _find_mask(root: Path, name: str) -> Path | None:
    """Find the mask of an image: the official one, which has contours, before that of SBD."""
    return next((path for folder in _MASKS if (path := _existing([root / folder / f"{name}.png"]))), None)


def _read_list(root: Path, path: Path, split: str) -> Iterator[_Line]:
    """Read the lines of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the list {path} ({error}): give a text file with one name per line.") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f"The {split} list {path} is empty: give a name, or the paths of image and mask, per line.")
    for number, words in rows:
        where = f"{path}, line {number}"
        if len(words) > 2 or (len(words) == 2 and not words[1].lower().endswith(".png")):
            raise DataError(
                f'{where}: "{" ".join(words)}" is neither a name nor the paths of an image and its mask (PNG): '
                "write one of the two."
            )
        image = _find_image(root, words[0], where)
        mask = spelled_on_disk(path_inside(root, words[1].lstrip("/\\"), where)) if len(words) == 2 else None
        yield _Line(where, split, image, mask if len(words) == 2 else _find_mask(root, image_stem(image)))


def _without_lost_masks(lines: Sequence[_Line]) -> list[_Line]:
    """Drop masks that do not exist and log their number; only evaluation needs them."""
    lost = [line for line in lines if line.mask is not None and not line.mask.is_file()]
    if lost:
        _logger.warning("%d masks that the lists name do not exist, first %s.", len(lost), lost[0].mask)
    missing = {line.where for line in lost}
    return [_Line(line.where, line.split, line.image, None) if line.where in missing else line for line in lines]


def _to_photograph(root: Path, line: _Line, classes: Sequence[str], labels_from_masks: bool) -> Photograph:
    """Give a line its label; None where the label is taken from the mask, or is not known."""
    annotation = root / "Annotations" / f"{line.id}.xml"
    annotation = _existing([annotation]) or annotation
    label = _label(annotation, line.id, classes) if annotation.is_file() else None
    if label is None and line.mask is None and line.split == "test":
        return Photograph(line.where, line.id, line.split, None, line.image, None)
    if label is None and not labels_from_masks:
        raise DataError(
            f'{line.where}: the annotation {annotation} does not exist, so the image "{line.id}" has no label: add it, '
            "take the image out of the list, or simulate labels from masks where there is none (`labels_from_masks`)."
        )
    if label is None and line.mask is None:
        raise DataError(
            f'{line.where}: the image "{line.id}" has neither annotation nor mask, so it has no label: add one of '
            "them, or take the image out of the list."
        )
    read = None if line.mask is None else partial(read_indices, line.mask, num_classes=len(classes))
    return Photograph(line.where, line.id, line.split, label, line.image, read)


def prepare_voc(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] = VOC_CLASSES,
    training: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    labels_from_masks: bool = False,
) -> Path:
    """Turn a folder laid out as VOC 2012 into a prepared folder; every image is a subject of its own.

    Images keep their sizes, so training has to crop or resize them.  With the classes of VOC, the datalist names those
    that have an unlabeled context, for their C-mIoU.  A mask is the one that the line names, else that
    of ``SegmentationClass``, else that of ``SegmentationClassAug``.  Its palette indices are read, not its colors, and
    no metric counts 255 (contours).

    Args:
        root: the folder that holds ``JPEGImages``, e.g. ``VOCdevkit/VOC2012``.
        out: the folder to write.
        classes: names of the classes, in the order of their values in the masks, 1 to K.
        training: the list of the training images, a name in ``ImageSets/Segmentation`` or the path of a ``.txt`` file;
            None takes the first of train_aug, trainaug and train that exists.
        validation: the list of the validation images; None takes val, if it exists.
        test: the list of the test images, e.g. "test"; None takes none.  An image without annotation and mask, as those
            of VOC's test list, gets the label None, which is not known.
        labels_from_masks: whether an image without annotation is labeled with the classes of which its mask shows any
            pixel.  Such labels are simulated, and the datalist says so (``"simulated_supervision"``, ``"labels"``).

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file or line is wrong; one sentence says what, and the remedy.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        ...     (root / folder).mkdir(parents=True)
        >>> Image.fromarray(200 * np.eye(8, dtype=np.uint8)).save(root / "JPEGImages" / "a.jpg")
        >>> text = "<annotation><object><name>cat</name></object></annotation>"
        >>> _ = (root / "Annotations" / "a.xml").write_text(text)
        >>> _ = (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a")
        >>> prepare_voc(root, root / "prepared").name
        'datalist.json'
    """
    folder = Path(root)
    names = check_classes(classes)
    if not (folder / "JPEGImages").is_dir():
        raise DataError(f"{folder} holds no folder JPEGImages: give the folder that does, e.g. VOCdevkit/VOC2012.")
    target = check_output(out, folder)
    lines: list[_Line] = []
    wanted: dict[str, Any] = {"training": training, "validation": validation, "test": test}
    for split, name in wanted.items():
        path = _find_list(folder, split, name)
        if path is not None:
            lines += _read_list(folder, path, split)
            _logger.info("The %s images are those of %s.", split, path)
    photographs = [_to_photograph(folder, line, names, labels_from_masks) for line in _without_lost_masks(lines)]
    simulated = sum(photograph.label is None and photograph.mask is not None for photograph in photographs)
    labels = "of the image, from its annotation"
    if simulated:
        labels = f"simulated: labels of {simulated} of {len(photographs)} images from masks (present with any pixel)"
    _logger.info("The labels are %s.", labels)
    entries = {"context": VOC_CONTEXT} if tuple(names) == VOC_CLASSES else {}
    return write_photographs(target, photographs, names, labels=labels, simulated=simulated > 0, entries=entries)
