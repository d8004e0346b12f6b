# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare folder``: a folder of images and a table of labels become one self-contained folder with a datalist.

:mod:`monai_wsss.data.find_files` says how images are found by the ids of the table.  Where the rows are slices of
volumes, the slices are cut out and become the images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss._pictures import ROWS_COLUMNS, XY
from monai_wsss.data.case_files import ImageCase, read_case, write_case
from monai_wsss.data.datalist import statistics_entry
from monai_wsss.data.faults import Faults
from monai_wsss.data.find_files import common_modalities, find_images, find_masks
from monai_wsss.data.label_table import LabeledRow, LabelTable, read_label_table
from monai_wsss.data.patches import contradicting_pairs
from monai_wsss.data.prepared_folder import check_output, log_sizes, warn_of_contradictions, write_prepared
from monai_wsss.data.reading import image_format, is_color_picture, is_radiograph
from monai_wsss.data.slice_cutting import SliceCut, write_slices
from monai_wsss.data.splits import DRAWN_SHARES
from monai_wsss.data.table_warnings import warn_of_kinds

__all__ = ["LabelColumns", "check_like_first", "prepare_folder", "prepare_images"]

_logger = logging.getLogger(__name__)


class LabelColumns(TypedDict, total=False):
    """Names of columns in a table of labels, each optional: see :func:`~monai_wsss.data.label_table.read_label_table`.

    Attributes:
        id_column: the column with the ids of the cases.
        subject_column: the column with the subjects.
        label_columns: the columns with 0/1 labels, one per class.
        split_column: the column with train, val or test.
        slice_column: the column with the number of the slice, "slice" if left out; read only with ``as_slices``.
        slice_numbers: what these numbers are: "index" (default), "instance" or "position", see
            :mod:`monai_wsss.data.slice_cutting`.
        slicing_axis: "RL", "AP" or "SI", along which volumes are cut, "SI" (axial slices) if left out.
    """

    id_column: str
    subject_column: str | None
    label_columns: Sequence[str] | None
    split_column: str | None
    slice_column: str | None
    slice_numbers: str
    slicing_axis: str | None


def check_like_first(row: LabeledRow, case: ImageCase, first: ImageCase) -> None:
    """Check that a case has the channels and the number of dimensions of the first case."""
    described = [f"{one.images[0].ndim - 1}D with {', '.join(one.names)}" for one in (case, first)]
    if described[0] != described[1]:
        raise DataError(
            f'{row.where}: the image of case "{row.id}" is {described[0]}, that of the first case {described[1]}: '
            "prepare images of one kind at a time."
        )


def _write_image(
    out: Path,
    rows: Sequence[LabeledRow],
    case: ImageCase,
    mask: Path | None,
    classes: Sequence[str],
    cut: SliceCut,
) -> tuple[list[tuple[dict[str, Any], bool]], np.ndarray, str | None]:
    """Write an image whole, or its slices.

    Returns:
        Per row what :func:`~monai_wsss.data.case_files.write_case` returns, the values (C, *S) for the statistics, and
        of a volume that is cut the sides toward which its axes run.
    """
    if rows[0].volume is not None:
        return write_slices(out, rows, case, mask, classes, cut)
    return [write_case(out, rows[0], case, mask, classes)], case.volume, None


def _by_image(rows: Sequence[LabeledRow]) -> dict[str, list[LabeledRow]]:
    """Collect the rows of each image, in the order of the table: the slices of a volume, or the image itself."""
    images: dict[str, list[LabeledRow]] = {}
    for row in rows:
        images.setdefault(row.image_id, []).append(row)
    return images


def _statistics_key(row: LabeledRow, case: ImageCase, table: LabelTable) -> str | None:
    """Give the key under which the intensity statistics of a case are pooled; None where it has no statistics."""
    if not case.is_color:
        return row.subject
    return row.source_or_id if table.scored_class is not None else None


def _order(row: LabeledRow, files: Iterable[Path]) -> str:
    """Give the order in which networks get the images: rows and columns of pictures and X-rays, else [x, y]."""
    if row.volume is not None:
        return XY
    return ROWS_COLUMNS if all(image_format(file) == "picture" or is_radiograph(file) for file in files) else XY


def _describe_patches(rows: Sequence[LabeledRow], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Log the sizes of the patches, and how many pairs of overlapping patches have contradicting tags."""
    log_sizes(shapes.values())
    by_source: dict[str, list[LabeledRow]] = {}
    for row in rows:
        if row.source is not None and row.origin is not None and len(shapes[row.image_id]) == 2:
            by_source.setdefault(row.source, []).append(row)
    pairs = []
    for group in by_source.values():
        origins = [row.origin for row in group if row.origin is not None]
        boxes = [(shapes[row.image_id][0], shapes[row.image_id][1]) for row in group]
        found = contradicting_pairs(origins, boxes, [row.label for row in group])
        pairs += [(group[i], group[j]) for i, j in found]
    if pairs:
        _logger.warning(
            "%d pairs of overlapping patches have no class in common, first %s and %s (%s): one of the two tags is "
            "wrong, so look at them again.",
            len(pairs),
            pairs[0][0].id,
            pairs[0][1].id,
            pairs[0][1].where,
        )


def prepare_images(
    table: LabelTable,
    images: str | os.PathLike[str],
    masks: Mapping[str, Path],
    out: Path,
    *,
    modalities: Sequence[str] | None,
    fractions: Sequence[float] = DRAWN_SHARES,
    seed: int = 0,
    leave_out_localizers: bool = False,
    faults: Faults | None = None,
) -> Path:
    """Read, check and write the images and masks of all cases of a table, and last the datalist.

    Gray images get intensity statistics per subject, over all its images.  Color images get none.  Without background,
    color images get the statistics of their tissue, per source image, over all patches cut from it.

    Args:
        table: the cases; each is an image or a slice of a volume.
        images: the folder of images.
        masks: id of the image -> mask, as :func:`~monai_wsss.data.find_files.find_masks` gives it; may be empty.
        out: the output folder, made by :func:`~monai_wsss.data.prepared_folder.check_output`.
        modalities: see :func:`prepare_folder`.
        fractions: see :func:`prepare_folder`.
        seed: see :func:`prepare_folder`.
        leave_out_localizers: see :func:`prepare_folder`.
        faults: what was found wrong before, such as in the table; it is told together with what is wrong with images.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: see :func:`prepare_folder`.
    """
    collected = Faults() if faults is None else faults
    found = find_images(Path(images), table, collected)
    if not any(found.values()):
        collected.check()
    names = common_modalities(found, table.rows, modalities, collected)
    color = modalities is None and any(is_color_picture(path) for files in found.values() for path in files.values())
    reading = {"on_white": table.scored_class is not None, "leave_out_localizers": leave_out_localizers}
    cut = SliceCut(table.slice_numbers, table.slicing_axis)
    done = _Written()
    first: ImageCase | None = None
    for rows in tqdm(table.by_subject().values(), desc="subjects", disable=None):
        values: dict[str, list[np.ndarray]] = {}
        for image_id, of_image in _by_image(rows).items():
            if not set(names) <= set(found[image_id]):
                continue
            with collected.gather():
                files = {name: found[image_id][name] for name in names}
                case = read_case(files, channel_names=modalities, color=color, **reading)
                first = first or case
                check_like_first(of_image[0], case, first)
                items, volume, axes = _write_image(out, of_image, case, masks.get(image_id), table.classes, cut)
                done.add(of_image, items, volume, axes)
                key = _statistics_key(of_image[0], case, table)
                if key is not None and not collected.sentences:
                    values.setdefault(key, []).append(volume.astype(np.uint8) if case.is_color else volume)
        for key, arrays in values.items():
            measure = tissue_statistics if first is not None and first.is_color else foreground_statistics
            done.statistics[key] = statistics_entry(*measure(arrays))
    collected.check()
    warn_of_contradictions(done.contradictions)
    warn_of_kinds(found[image_id][name] for image_id in found for name in names)
    if table.scored_class is not None:
        _describe_patches(table.rows, done.shapes)
    channels = first.names if first else []
    order = _order(table.rows[0], found[table.rows[0].image_id].values())
    return write_prepared(
        out, table, done.items, channels, done.statistics, order=order, fractions=fractions, seed=seed, cut=done.cut
    )


@dataclass
class _Written:
    """What was written, and what was seen on the way."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cut: set[str | None] = field(default_factory=set)

    def add(
        self,
        rows: Sequence[LabeledRow],
        items: Sequence[tuple[dict[str, Any], bool]],
        volume: np.ndarray,
        axes: str | None,
    ) -> None:
        """Keep the items of an image, whose values are ``volume`` (C, *S), and whose axes run toward ``axes``."""
        self.items |= {row.id: item for row, (item, _) in zip(rows, items, strict=True)}
        self.contradictions += [row.id for row, (_, agrees) in zip(rows, items, strict=True) if not agrees]
        self.shapes[rows[0].image_id] = volume.shape[1:]
        if rows[0].volume is not None:
            self.cut.add(axes)


def prepare_folder(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    modalities: Sequence[str] | None = None,
    background: bool = True,
    scored_class: str | None = None,
    as_slices: bool = False,
    leave_out_localizers: bool = False,
    fractions: Sequence[float] = DRAWN_SHARES,
    seed: int = 0,
    **columns: Unpack[LabelColumns],
) -> Path:
    """Turn a folder of images and a table of image-level labels into a prepared folder.

    With ``as_slices`` the table has one row per slice to be taken.  The row holds the id of the volume, the number of
    the slice, and its labels.  All volumes are cut along one anatomical axis, however files store them: slices are
    axial unless ``slicing_axis`` says otherwise.  :mod:`monai_wsss.data.slice_cutting` says how they are numbered.
    Labels never come from a mask.  Slices become PNG files of 16 bits, scaled by percentiles of the whole volume
    (:func:`~monai_wsss.data.writing.scale_to_16_bit`).  The statistics are those of the subject's whole volumes as
    written.

    Networks get pictures (PNG, JPEG, TIFF, BMP) and X-rays as (C, rows, columns).  Slices keep the order [x, y] of
    their volume.  A picture or mask that an EXIF entry turns is read and written upright, as viewers show it.

    Without ``background`` every pixel belongs to one of the classes, as in patches of stained tissue tagged "gland" and
    "other".  Every row has at least one class, and masks hold 1..K, with 0 for pixels that nobody annotated.  The
    columns ``source``, ``x`` and ``y`` may say from which image a patch was cut, and where.  Then overlapping patches
    whose tags contradict each other are reported, and the color statistics of the tissue are pooled over all patches of
    a source image.  Transparent pixels become white.

    Args:
        images: PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM, named by the ids of the table.
        labels: a CSV file with one row per case.
        out: the folder to write: ``images/``, ``masks/`` and, last, ``datalist.json``.
        masks: a folder of masks, named by the ids; for evaluation only.
        modalities: the modalities to use where a case has several files, or the names of the channels where a case is
            one file with several channels.
        background: whether pixels may belong to none of the classes.
        scored_class: without background, the class that foreground metrics score; None takes the first.
        as_slices: whether the rows are slices of volumes.
        leave_out_localizers: whether images of a DICOM series that are localizers, or of another orientation or size
            than most, are left out, and said; otherwise they are an error.
        fractions: shares of the subjects for training, validation and test, where the split is drawn.
        seed: seed of the draw.
        columns: names of columns, see :class:`LabelColumns` and
            :func:`~monai_wsss.data.label_table.read_label_table`.  Without a split column the split is drawn, by
            subject and stratified by the labels.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: files or rows are wrong; one sentence for each says what, and the remedy.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> for name in ("a", "b"):
        ...     Image.fromarray(np.eye(8, dtype=np.uint8)).save(root / "images" / f"{name}.png")
        >>> _ = (root / "labels.csv").write_text("id,label,split\\na,1,train\\nb,0,train\\n")
        >>> prepare_folder(root / "images", root / "labels.csv", root / "out").name
        'datalist.json'
    """
    slices = columns.pop("slice_column", None) or "slice"
    rest: dict[str, Any] = dict(columns)
    faults = Faults()
    table = read_label_table(
        labels,
        slice_column=slices if as_slices else None,
        background=background,
        scored_class=scored_class,
        faults=faults,
        **rest,
    )
    if masks is not None and Path(masks).resolve() == Path(images).resolve():
        raise DataError(f"The masks and the images are in one folder, {masks}: give the masks a folder of their own.")
    folder = check_output(out, images, masks, Path(labels).parent)
    found = {} if masks is None else find_masks(masks, table.rows, faults)
    return prepare_images(
        table,
        images,
        found,
        folder,
        modalities=modalities,
        fractions=fractions,
        seed=seed,
        leave_out_localizers=leave_out_localizers,
        faults=faults,
    )
