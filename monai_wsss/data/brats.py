# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare brats``: brain tumor MRI with segmentations becomes image-level labels, as whole volumes or axial slices.

The segmentation gives the label (is there tumor?) and, for evaluation only, the mask of the whole tumor.  Volumes keep
their values and geometry.  Slices are chosen by one stated rule and scaled by percentiles of the brain in the volume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._intensity import foreground_statistics
from monai_wsss._nifti import unit_code
from monai_wsss._orientation import axes_of
from monai_wsss._pictures import XY
from monai_wsss.data.brats_layouts import BratsCase, find_brats_cases
from monai_wsss.data.datalist import slice_entry, statistics_entry
from monai_wsss.data.label_table import LabeledRow, LabelTable
from monai_wsss.data.modalities import SEQUENCES, sort_modalities
from monai_wsss.data.prepared_folder import Faults, check_output, warn_of_other_numbers, write_prepared
from monai_wsss.data.reading import affine_of, check_alike, read_image, read_labels
from monai_wsss.data.splits import split_by_subject
from monai_wsss.data.writing import copy_file, is_bare_nifti, scale_to_16_bit, write_nifti, write_picture

__all__ = ["CMER_SUBJECTS", "prepare_brats", "splits_by_grade"]

_PAPER = (0.8, 0.1, 0.1)
"""Shares of the split of CoinGAN's tables."""

_PAPER_BRAIN = 0.1
"""Least share of brain on slices for CoinGAN's tables."""

CMER_SUBJECTS = {"training": 271, "validation": 32, "test": 32}
"""Subjects of the split of CMER (Sec. IV-A), of BraTS 2019."""

_logger = logging.getLogger(__name__)

Piece = tuple[LabeledRow, dict[str, Any]]
_Place = tuple[np.ndarray, Mapping[Any, Any]]
"""Affine (4, 4) and metadata of a sequence."""


@dataclass(frozen=True)
class _Rule:
    """Rule that says which volumes or slices are written, and how: arguments of :func:`prepare_brats`."""

    as_slices: bool
    slice_step: int
    min_brain_fraction: float
    min_tumor_pixels: int
    percentiles: tuple[float, float]

    def check(self) -> None:
        """Raise ``ValueError`` if an entry is out of range."""
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"Expected `percentiles` to be two rising numbers from 0 to 100, got {self.percentiles}.")
        for name in ("slice_step", "min_tumor_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.min_brain_fraction <= 1:
            raise ValueError(f"Expected `min_brain_fraction` to be from 0 to 1, got {self.min_brain_fraction}.")

    def label(self, tumor: np.ndarray) -> int | None:
        """Give 1 for enough tumor, 0 for none, and None in between: neither a positive nor a negative image."""
        count = int(np.count_nonzero(tumor))
        return 1 if count >= self.min_tumor_pixels else None if count else 0

    def __str__(self) -> str:
        if not self.as_slices:
            return "volumes"
        return (
            f"axial slices (step {self.slice_step}, brain on at least {self.min_brain_fraction:.1%} of the slice, "
            f"percentiles {self.percentiles[0]:g} and {self.percentiles[1]:g} of the brain scaled to 0 and 65535)"
        )


def _choose_modalities(cases: Sequence[BratsCase], wanted: Sequence[str] | None) -> list[str]:
    """Choose the wanted sequences, which every case must have; by default those that all cases have."""
    if wanted is not None:
        chosen = sort_modalities(wanted)
        for name in chosen:
            check_choice("modalities", name, SEQUENCES)
        if not chosen:
            raise ValueError(f"Expected `modalities` to name at least one of {', '.join(SEQUENCES)}, got none.")
    else:
        chosen = [name for name in SEQUENCES if all(name in case.images for case in cases)]
    faults = Faults()
    for case in cases:
        with faults.gather():
            _check_complete(case, chosen)
    faults.check()
    return chosen


def _check_complete(case: BratsCase, chosen: Sequence[str]) -> None:
    """Check that a case has the chosen sequences and a segmentation."""
    missing = [name for name in chosen if name not in case.images]
    if missing or not chosen:
        raise DataError(
            f"Case {case.name} ({case.folder}) has {', '.join(case.images)}, but not "
            f"{', '.join(missing) or 'any sequence that all other cases have'}: add the file, move the case away, "
            "or name the sequences to be used."
        )
    if case.truth is None:
        raise DataError(
            f"Case {case.name} ({case.folder}) has no segmentation (`seg`) to derive a label from: move it away, "
            "or use `prepare folder`, which takes the labels from a CSV table."
        )


def _read_case(case: BratsCase, modalities: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[_Place]]:
    """Read the sequences (C, X, Y, Z) float32, the whole tumor (X, Y, Z) bool, and the place of each sequence."""
    files = {case.images[name][0] for name in modalities}
    images = {file: read_image(file) for file in sorted(files)}
    for file, image in images.items():
        if image.ndim != 4 or image.shape[0] != case.channels:
            raise DataError(
                f"{file} has {image.ndim - 1} dimensions and {image.shape[0]} channels, but a volume with "
                f"{case.channels} was expected: export it again."
            )
    assert case.truth is not None  # checked for all cases before the first is read
    truth = read_labels(case.truth)
    check_alike({**{str(file): image for file, image in images.items()}, str(case.truth): truth})
    volumes = [images[case.images[name][0]][case.images[name][1]].as_tensor().numpy() for name in modalities]
    of = [images[case.images[name][0]] for name in modalities]
    places: list[_Place] = [(affine_of(image), image.meta) for image in of]
    return np.stack(volumes), truth[0].as_tensor().numpy() > 0, places


def splits_by_grade(cases: Sequence[BratsCase], seed: int) -> dict[str, str]:
    """Draw the split of CMER, stratified by the grade of the tumor: subject -> split.

    Raises:
        DataError: a case does not lie below a folder ``HGG`` or ``LGG``, a line per case, or a subject in both.
    """
    faults, grade_of = Faults(), dict[str, str]()
    for case in cases:
        with faults.gather():
            if case.grade is None or grade_of.setdefault(case.subject, case.grade) != case.grade:
                raise DataError(
                    f"Case {case.name} ({case.folder}) does not lie below one folder HGG or LGG, by which the split of "
                    "CMER is stratified: sort the cases into such folders, or draw the split."
                )
    faults.check()
    subjects = sorted(grade_of)
    grades = [[int(grade_of[subject] == "HGG")] for subject in subjects]
    total = sum(CMER_SUBJECTS.values())
    drawn = split_by_subject(
        subjects, grades, fractions=[number / total for number in CMER_SUBJECTS.values()], seed=seed
    )
    warn_of_other_numbers({split: drawn.count(split) for split in CMER_SUBJECTS}, CMER_SUBJECTS)
    return dict(zip(subjects, drawn, strict=True))


def _row(case: BratsCase, name: str, label: int) -> LabeledRow:
    return LabeledRow(str(case.folder), name, case.subject, [label], None, {})


def _write_volume(
    out: Path,
    case: BratsCase,
    modalities: Sequence[str],
    volume: np.ndarray,
    tumor: np.ndarray,
    places: Sequence[_Place],
) -> dict[str, Any]:
    """Write all sequences in the place of the first, since MONAI demands one affine; return the names of the files.

    A sequence is copied if it is a NIfTI file of its own that has this affine already and no text in its header.
    """
    paths = []
    first, header = places[0]
    for name, values, (affine, meta) in zip(modalities, volume, places, strict=True):
        paths.append(f"images/{case.subject}/{case.name}_{name}.nii.gz")
        source = case.images[name][0]
        as_it_is = case.channels == 1 and source.name.lower().endswith(".nii.gz")
        same = np.array_equal(affine, first) and unit_code(meta) == unit_code(header)
        if as_it_is and same and is_bare_nifti(source):
            copy_file(source, out / paths[-1])
        else:
            write_nifti(out / paths[-1], values, first, header)
    mask = f"masks/{case.subject}/{case.name}.nii.gz"
    write_nifti(out / mask, tumor.astype(np.uint8), first, header)
    return {"image": paths, "mask": mask}


def _check_axial(case: BratsCase, axes: str | None) -> None:
    if axes is None or axes[2] not in "SI":
        raise DataError(
            f"The third axis of case {case.name} ({case.folder}) does not run along the body, its axes are "
            f"{axes or 'unknown'}: reorient its files for axial slices, or prepare whole volumes."
        )


def _write_slices(
    out: Path,
    case: BratsCase,
    modalities: Sequence[str],
    scaled: np.ndarray,
    brain: np.ndarray,
    tumor: np.ndarray,
    rule: _Rule,
    affine: np.ndarray,
) -> Iterator[Piece]:
    """Write the slices that the rule takes; give each with its row and its place in the volume."""
    for z in range(0, scaled.shape[-1], rule.slice_step):
        label = rule.label(tumor[..., z])
        if label is None or brain[..., z].mean() < rule.min_brain_fraction:
            continue
        stem = f"{case.subject}/{case.name}_{z:03d}"
        images = [f"images/{stem}_{name}.png" for name in modalities]
        for path, values in zip(images, scaled[..., z], strict=True):
            write_picture(out / path, values[None])
        write_picture(out / f"masks/{stem}.png", tumor[None, ..., z].astype(np.uint8))
        files = {"image": images, "mask": f"masks/{stem}.png", **slice_entry(case.name, z, affine)}
        yield _row(case, f"{case.name}_{z:03d}", label), files


def _convert(
    out: Path, case: BratsCase, modalities: Sequence[str], rule: _Rule
) -> tuple[list[Piece], np.ndarray, str | None]:
    """Read and write one case; return its rows with their files, the volume (C, X, Y, Z) as written, and its axes."""
    volume, tumor, places = _read_case(case, modalities)
    axes = axes_of(places[0][0])
    if not rule.as_slices:
        label = rule.label(tumor)
        if label is None:
            return [], volume, axes
        files = _write_volume(out, case, modalities, volume, tumor, places)
        return [(_row(case, case.name, label), files)], volume, axes
    _check_axial(case, axes)
    try:
        scaled, brain = scale_to_16_bit(volume, rule.percentiles)
    except ValueError as error:
        raise DataError(f"Case {case.name} ({case.folder}) cannot be scaled: {error}") from error
    return list(_write_slices(out, case, modalities, scaled, brain, tumor, rule, places[0][0])), scaled, axes


def _convert_all(
    out: Path, cases: Sequence[BratsCase], modalities: Sequence[str], rule: _Rule
) -> tuple[list[Piece], dict[str, dict[str, list[float]]], set[str | None]]:
    """Convert all cases, subject by subject.

    Returns:
        All rows with their files, the statistics per subject, and the axes of the volumes that were cut into slices.
    """
    by_subject: dict[str, list[BratsCase]] = {}
    for case in cases:
        by_subject.setdefault(case.subject, []).append(case)
    pieces: list[Piece] = []
    statistics = {}
    cut: set[str | None] = set()
    faults = Faults()
    for subject, scans in tqdm(by_subject.items(), desc="subjects", disable=None):
        volumes = []
        for case in scans:
            with faults.gather():
                new, volume, axes = _convert(out, case, modalities, rule)
                pieces += new
                cut |= {axes} if new and rule.as_slices else set()
                volumes += [volume] if new else []
        if volumes:
            statistics[subject] = statistics_entry(*foreground_statistics(volumes))
    faults.check()
    return pieces, statistics, cut


def prepare_brats(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    as_slices: bool = False,
    slice_step: int = 1,
    min_brain_fraction: float = 0.02,
    min_tumor_pixels: int = 1,
    percentiles: tuple[float, float] = (0.5, 99.5),
    split: str = "drawn",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Path:
    """Turn a BraTS folder of any year, Decathlon Task01, or plain NIfTI cases into a prepared folder.

    The layouts are listed in :mod:`monai_wsss.data.brats_layouts`.  The mask is the whole tumor: segmentation above 0.
    The label is 1 from ``min_tumor_pixels`` mask pixels on and 0 without any.  Images in between are neither positive
    nor negative and are left out.  The split is by subject, not by study
    (:func:`~monai_wsss.data.split_by_subject`).

    Whole volumes become one NIfTI file per sequence, copied where possible, with values kept and the affine of the
    first sequence.  Axial slices are PNG files of 16 bits (:func:`~monai_wsss.data.writing.scale_to_16_bit`), in the
    array order of the volume.  Of the slices z = 0, ``slice_step``, 2 ``slice_step``, … along the third axis those are
    taken whose brain covers at least ``min_brain_fraction`` of the slice.  The statistics of a subject are those of its
    whole volumes, as written.

    Args:
        root: the folder of the cases, or a folder above it.
        out: the folder to write.
        modalities: any of T1, T1c, T2, FLAIR; by default those that all cases have.
        as_slices: whether to write axial slices in place of whole volumes.
        slice_step: step along the third axis; n takes every n-th slice.
        min_brain_fraction: share of a slice that the brain must cover, 0 to 1.
        min_tumor_pixels: least number of mask pixels (voxels for volumes) of a positive image.
        percentiles: the percentiles of the brain, 0 to 100, that become black and white; for slices.
        split: "drawn" draws the split by ``fractions``.  "paper" is that of CoinGAN's tables, 8:1:1, drawn anew; the
            tables are scored on its validation subjects.  Their images are FLAIR slices, here those with brain on at
            least a tenth: ``modalities=("FLAIR",), as_slices=True, min_brain_fraction=0.1``.  "cmer" is that of CMER:
            271, 32 and 32 of 335 subjects of BraTS 2019, other numbers in these shares, stratified by the folders
            ``HGG`` and ``LGG``; which subjects is not published, so that it is drawn anew.
        fractions: shares of the subjects for training, validation and test; for "drawn".
        seed: seed of the split.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: cases lack a sequence or their segmentation, or files are damaged or do not fit each other, a line
            per fault; or no image is left.
        ValueError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> root = Path(tempfile.mkdtemp())
        >>> for word in ("t1", "flair", "seg"):
        ...     write_nifti(root / "anna" / f"{word}.nii.gz", np.arange(64.0).reshape(4, 4, 4), np.eye(4))
        >>> prepare_brats(root, root / "prepared").name
        'datalist.json'
    """
    check_choice("split", split, ("drawn", "paper", "cmer"))
    shares = _PAPER if split == "paper" else fractions
    rule = _Rule(as_slices, slice_step, min_brain_fraction, min_tumor_pixels, percentiles)
    rule.check()
    cases = find_brats_cases(root)
    chosen = _choose_modalities(cases, modalities)
    if split == "paper" and (chosen != ["FLAIR"] or not as_slices or min_brain_fraction < _PAPER_BRAIN):
        _logger.warning(
            "The paper's tables are of FLAIR slices with brain on at least a tenth: --modalities FLAIR --as-slices "
            "--min-brain-fraction 0.1."
        )
    split_of = splits_by_grade(cases, seed) if split == "cmer" else {}
    folder = check_output(out, root)
    pieces, statistics, cut = _convert_all(folder, cases, chosen, rule)
    if not pieces:
        raise DataError(
            f"Nothing of {root} is left: lower `min_brain_fraction` ({min_brain_fraction}) or `min_tumor_pixels` "
            f"({min_tumor_pixels})."
        )
    rows = [replace(row, split=split_of.get(row.subject)) for row, _ in pieces]
    positives = sum(row.label[0] for row in rows)
    _logger.info("%d %s of %s: %d with, %d without tumor", len(rows), rule, root, positives, len(rows) - positives)
    table = LabelTable(Path(root), ["tumor"], rows)
    files = {row.id: item for row, item in pieces}
    kind = "slices" if as_slices else "volumes"
    entries = {
        "split": split,
        "labels": f"of {kind}, from the segmentation: tumor in {min_tumor_pixels} pixels or more",
    }
    entries |= {"scored_split": "validation"} if split == "paper" else {}
    return write_prepared(
        folder, table, files, chosen, statistics, order=XY, fractions=shares, seed=seed, cut=cut, entries=entries
    )
