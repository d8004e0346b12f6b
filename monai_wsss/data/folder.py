# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare folder``: a folder of images and a table of labels become one self-contained folder with a datalist.

Images are found by the ids of the table: ``<id>.<suffix>``, ``<id>_<modality>.<suffix>``, or a folder ``<id>/`` with a
DICOM series or with one file a modality.  Every image must have a row, and every row its images.  Where the rows are
slices of volumes, the slices are cut out and become the images.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._files import make_directory
from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss.data.case_files import UNNAMED, ImageCase, is_color_picture, read_case, write_case, write_slices
from monai_wsss.data.datalist import canonical_modality, sort_modalities
from monai_wsss.data.label_table import LabeledRow, LabelTable, read_label_table, write_prepared
from monai_wsss.data.patches import contradicting_pairs
from monai_wsss.data.reading import image_format, image_stem

__all__ = [
    "check_output",
    "find_images",
    "find_masks",
    "log_sizes",
    "prepare_folder",
    "prepare_images",
    "warn_of_contradictions",
]

_MASK_WORD = re.compile(r"(seg|mask|label|annotation)[a-z0-9_-]*", re.IGNORECASE)
_SEQUENCES = ("T1", "T1c", "T2", "FLAIR")

_logger = logging.getLogger(__name__)


def check_output(out: str | os.PathLike[str], *sources: str | os.PathLike[str] | None) -> Path:
    """Make the output folder; it must be neither prepared already nor one of the source folders.

    Raises:
        DataError: it is, or it cannot be made.
    """
    folder = Path(out)
    if (folder / "datalist.json").exists():
        raise DataError(f"{folder} holds a datalist.json already: choose another output folder, or delete this one.")
    if any(folder.resolve() == Path(source).resolve() for source in sources if source is not None):
        raise DataError(f"The output folder {folder} is the source folder: choose another output folder.")
    return make_directory(folder)


def _entries(folder: Path, kind: str) -> list[Path]:
    """What lies in a folder, sorted, without hidden files."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot open the {kind} folder {folder} ({error.strerror}): check the path.") from error
    if not entries:
        raise DataError(f"The {kind} folder {folder} is empty: check the path.")
    return entries


def _match(stem: str, ids: Collection[str]) -> tuple[str, str] | None:
    """(id, rest) of a stem that is ``<id>`` or ``<id>_<rest>``; the longest id wins."""
    if stem in ids:
        return stem, UNNAMED
    for end in range(len(stem) - 1, 0, -1):
        if stem[end] == "_" and stem[:end] in ids:
            return stem[:end], stem[end + 1 :]
    return None


def _files_in_case(folder: Path) -> list[tuple[str, Path]]:
    """(modality, file) of what a case's own folder holds; a DICOM series is one file, the folder itself."""
    files = [path for path in _entries(folder, "case") if image_format(path)]
    slices = [path for path in files if path.is_file() and image_format(path) == "dicom"]
    if slices and not all(canonical_modality(image_stem(path)) in _SEQUENCES for path in slices):
        return [(UNNAMED, folder)]
    return [((_match(image_stem(path), [folder.name]) or ("", image_stem(path)))[1], path) for path in files]


def _add_file(files: dict[str, Path], modality: str, path: Path) -> None:
    """Note the file of a modality, once."""
    if _MASK_WORD.fullmatch(modality):
        raise DataError(f"{path} looks like a mask among the images: move it to a folder of its own, given as masks.")
    if modality in files or (files and UNNAMED in (*files, modality)):
        other = files.get(modality) or next(iter(files.values()))
        raise DataError(f"{other} and {path} are the same modality of the same case: keep one of them.")
    files[modality] = path


def _suffix_hint(name: str, table: LabelTable) -> str:
    """What to say if the table names files, with their suffixes, where it should have ids."""
    if not any(row.image_id == name and image_stem(name) != name for row in table.rows):
        return ""
    return f' (write the id without the suffix of the file, "{image_stem(name)}")'


def find_images(folder: Path, table: LabelTable) -> dict[str, dict[str, Path]]:
    """Images by the ids of the rows, complete in both directions.

    Returns:
        id of the image -> modality -> file; a file named by its id alone has the modality ``UNNAMED``.

    Raises:
        DataError: an image without row, a row without image, two images of one modality, or a mask among the images.
    """
    found: dict[str, dict[str, Path]] = {row.image_id: {} for row in table.rows}
    for entry in _entries(folder, "image"):
        if entry.is_dir() and entry.name in found:
            matches = [(entry.name, *pair) for pair in _files_in_case(entry)]
        elif image_format(entry) or (entry.is_dir() and any(map(image_format, entry.iterdir()))):
            matched = _match(image_stem(entry), found)
            if matched is None:
                raise DataError(
                    f"The image {entry} has no row in {table.path}{_suffix_hint(entry.name, table)}: add its row, or "
                    "move the image away."
                )
            matches = [(*matched, entry)]
        else:
            continue
        for name, modality, path in matches:
            _add_file(found[name], canonical_modality(modality), path)
    for row in table.rows:
        if not found[row.image_id]:
            raise DataError(
                f'{row.where}: {folder} has no image for the id "{row.image_id}"{_suffix_hint(row.image_id, table)}: '
                "add it under this name, or delete the row."
            )
    return found


def find_masks(folder: str | os.PathLike[str], rows: Sequence[LabeledRow]) -> dict[str, Path]:
    """Masks by the ids of the rows: ``<id>.<suffix>``, ``<id>_mask.<suffix>``, ``<id>_seg.<suffix>``.

    Rows without mask and masks without row are left out.

    Raises:
        DataError: the folder is missing or empty, no mask is found, or a case has two.
    """
    ids = {row.image_id for row in rows}
    masks: dict[str, Path] = {}
    for entry in _entries(Path(folder), "mask"):
        matched = _match(image_stem(entry), ids) if image_format(entry) else None
        if matched is None or not (matched[1] == UNNAMED or _MASK_WORD.fullmatch(matched[1])):
            continue
        if matched[0] in masks:
            raise DataError(f"{masks[matched[0]]} and {entry} are masks of the same case: keep one of them.")
        masks[matched[0]] = entry
    if not masks:
        raise DataError(f"No file in {folder} is named by an id of the label table: name the masks as the images.")
    return masks


def _common_modalities(
    found: Mapping[str, Mapping[str, Path]], rows: Sequence[LabeledRow], wanted: Sequence[str] | None
) -> list[str]:
    """The modalities that every case has a file for, in canonical order; ``wanted`` chooses among named ones."""
    common = Counter(frozenset(files) for files in found.values()).most_common(1)[0][0]
    choose = wanted is not None and common != {UNNAMED}
    if choose:
        common = frozenset(map(canonical_modality, wanted or ()))
    for row in rows:
        files = found[row.image_id]
        missing, extra = common - set(files), set(files) - common
        if extra and (not choose or UNNAMED in extra):
            names = ", ".join(str(files[name]) for name in sorted(extra))
            raise DataError(
                f'{row.where}: case "{row.id}" has an image that other cases do not have ({names}): move it away, '
                "or name the modalities to be used."
            )
        if missing:
            raise DataError(
                f'{row.where}: case "{row.id}" lacks the modality {", ".join(sorted(missing))}: add its file, '
                "leave the case out, or name the modalities to be used."
            )
    return sort_modalities([name for name in found[rows[0].image_id] if name in common])


def _check_like_first(row: LabeledRow, case: ImageCase, first: ImageCase) -> None:
    """All cases have the same channels and are all 2D or all 3D."""
    described = [f"{one.images[0].ndim - 1}D with {', '.join(one.names)}" for one in (case, first)]
    if described[0] != described[1]:
        raise DataError(
            f'{row.where}: the image of case "{row.id}" is {described[0]}, that of the first case {described[1]}: '
            "prepare images of one kind at a time."
        )


def _write_image(
    out: Path, rows: Sequence[LabeledRow], case: ImageCase, mask: Path | None, classes: Sequence[str]
) -> tuple[list[tuple[dict[str, Any], bool]], np.ndarray]:
    """Write an image whole, or its slices; returns what each row got, and the values (C, *S) for the statistics."""
    if rows[0].volume is not None:
        return write_slices(out, rows, case, mask, classes)
    return [write_case(out, rows[0], case, mask, classes)], case.volume


def _by_image(rows: Sequence[LabeledRow]) -> dict[str, list[LabeledRow]]:
    """The rows of each image, in the order of the table: its slices, or the image itself."""
    images: dict[str, list[LabeledRow]] = {}
    for row in rows:
        images.setdefault(row.image_id, []).append(row)
    return images


def _statistics_key(row: LabeledRow, case: ImageCase, table: LabelTable) -> str | None:
    """Under which key the intensity statistics of a case are pooled; None where it has none."""
    if not case.is_color:
        return row.subject
    return row.picture if table.scored_class is not None else None


def log_sizes(shapes: Iterable[tuple[int, ...]]) -> None:
    """Log that the images have several sizes, if they have, and what training has to do about it."""
    sizes = sorted(set(shapes))
    if len(sizes) > 1:
        smallest, largest = (" x ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        _logger.info(
            "The images have %d sizes, from %s to %s: they are kept, but a batch needs one size, so training has to "
            "resize or crop them.",
            len(sizes),
            smallest,
            largest,
        )


def _describe_patches(rows: Sequence[LabeledRow], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Log what patches may differ in without being wrong: their sizes, and the tags of those that overlap."""
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
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Path:
    """Read, check and write the images and masks of all cases of a table, and last the datalist.

    The intensity statistics of each subject are recorded over all its images; color pictures have none, or, without
    background, those of the tissue of each picture, over all patches cut from it.

    Args:
        table: the cases, images or slices of volumes.
        images: the folder of images.
        masks: id of the image -> mask, as :func:`find_masks` gives it; may be empty.
        out: the output folder, made by :func:`check_output`.
        modalities: see :func:`prepare_folder`.
        fractions: see :func:`prepare_folder`.
        seed: see :func:`prepare_folder`.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: see :func:`prepare_folder`.
    """
    found = find_images(Path(images), table)
    names = _common_modalities(found, table.rows, modalities)
    color = modalities is None and any(is_color_picture(path) for files in found.values() for path in files.values())
    written: dict[str, dict[str, Any]] = {}
    statistics: dict[str, dict[str, list[float]]] = {}
    contradictions: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    first: ImageCase | None = None
    for rows in tqdm(table.by_subject().values(), desc="subjects", disable=None):
        values: dict[str, list[np.ndarray]] = {}
        for image_id, of_image in _by_image(rows).items():
            files = {name: found[image_id][name] for name in names}
            case = read_case(files, channel_names=modalities, color=color, on_white=table.scored_class is not None)
            first = first or case
            _check_like_first(of_image[0], case, first)
            items, volume = _write_image(out, of_image, case, masks.get(image_id), table.classes)
            written |= {row.id: item for row, (item, _) in zip(of_image, items, strict=True)}
            contradictions += [row.id for row, (_, agrees) in zip(of_image, items, strict=True) if not agrees]
            shapes[image_id] = volume.shape[1:]
            key = _statistics_key(of_image[0], case, table)
            if key is not None:
                values.setdefault(key, []).append(volume.astype(np.uint8) if case.is_color else volume)
        for key, arrays in values.items():
            mean, std = tissue_statistics(arrays) if case.is_color else foreground_statistics(arrays)
            statistics[key] = {"mean": mean.tolist(), "std": std.tolist()}
    warn_of_contradictions(contradictions)
    if table.scored_class is not None:
        _describe_patches(table.rows, shapes)
    channels = first.names if first else []
    return write_prepared(out, table, written, channels, statistics, fractions=fractions, seed=seed)


def warn_of_contradictions(ids: Sequence[str]) -> None:
    """Log the number of cases whose mask shows other classes than their label says."""
    if ids:
        _logger.warning("%d masks show other classes than their labels say, first that of %s.", len(ids), ids[0])


def prepare_folder(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    id_column: str = "id",
    subject_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    split_column: str | None = None,
    modalities: Sequence[str] | None = None,
    background: bool = True,
    scored_class: str | None = None,
    as_slices: bool = False,
    slice_column: str = "slice",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Path:
    """Turn a folder of images and a table of image-level labels into a prepared folder.

    With ``as_slices`` the table has a row for each slice to be taken: the id of its volume, the number of the slice
    along the volume's last array axis (the axial one where files are stored as scanned), and its labels, which never
    come from a mask.  Slices become PNG files of 16 bits, scaled by percentiles of the whole volume
    (:func:`~monai_wsss.data.writing.scale_to_16_bit`), with the statistics of the subject's whole volumes as written.

    Without ``background`` every pixel belongs to one of the classes, as in patches of stained tissue tagged "gland" and
    "other"; every row has at least one, and masks hold 1..K, with 0 for pixels that nobody annotated.  The table may
    say in the columns ``source``, ``x`` and ``y`` which picture a patch was cut from, and where: then overlapping
    patches whose tags contradict each other are reported, and the color statistics of the tissue are those of all
    patches of a picture.  Transparent pixels become white.

    Args:
        images: PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM, named by the ids of the table.
        labels: a CSV file with a row for each case.
        out: the folder to write: ``images/``, ``masks/`` and, last, ``datalist.json``.
        masks: a folder of masks, named by the ids; for evaluation only.
        id_column: see :func:`~monai_wsss.data.label_table.read_label_table`, as the next three.
        subject_column: the column that says whose case it is.
        label_columns: the columns with 0/1 labels, one for each class.
        split_column: the column with train, val or test; without one the split is drawn, by subject and stratified by
            the labels.
        modalities: which modalities to use where a case has several files, or the names of the channels where it is
            one file with several.
        background: whether pixels may belong to none of the classes.
        scored_class: without background, the class that foreground metrics score; None takes the first.
        as_slices: whether the rows are slices of volumes.
        slice_column: the column with the number of the slice, from 0 on; read with ``as_slices`` alone.
        fractions: shares of training, validation and test for the draw.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: what is wrong with a file or row, in one sentence with the remedy.

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
    table = read_label_table(
        labels,
        id_column=id_column,
        subject_column=subject_column,
        label_columns=label_columns,
        split_column=split_column,
        slice_column=slice_column if as_slices else None,
        background=background,
        scored_class=scored_class,
    )
    folder = check_output(out, images, masks, Path(labels).parent)
    found = {} if masks is None else find_masks(masks, table.rows)
    return prepare_images(table, images, found, folder, modalities=modalities, fractions=fractions, seed=seed)
