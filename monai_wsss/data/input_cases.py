# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Cases in whatever somebody hands over, without a table: a file, a folder, DICOM of many series, a slide.

Files of one case are named as ``monai-wsss prepare folder`` names them: ``<id>_T1.nii.gz``, ``<id>_FLAIR.nii.gz``, or a
folder ``<id>/`` with one file or DICOM series per sequence.  Cases from DICOM are named by a number and a digest of the
UID of their series, since names of files and folders may be those of patients.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._image_formats import image_format, image_stem, is_hidden, is_unread_image, remedy_for
from monai_wsss.data.case_files import UNNAMED
from monai_wsss.data.dicom_series import DicomSeries, find_series
from monai_wsss.data.find_files import MASK_WORD, is_prepared
from monai_wsss.data.modalities import SEQUENCES, canonical_modality

__all__ = ["FoundInputs", "InputCase", "find_inputs"]

_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif")
_DIGITS = 10  # of a digest in a name


@dataclass(frozen=True)
class InputCase:
    """What is segmented at once.

    Attributes:
        name: of its results.
        files: sequence -> its files, several for a DICOM series; a file without a sequence in its name has ``UNNAMED``.
        kind: "image", "dicom" or "slide".
        subject: the folder or pattern that puts images of one subject together; None for a case of its own.
    """

    name: str
    files: Mapping[str, tuple[Path, ...]]
    kind: str = "image"
    subject: str | None = None

    @property
    def all_files(self) -> list[Path]:
        """Give all files of the case."""
        return [file for files in self.files.values() for file in files]


@dataclass
class FoundInputs:
    """The cases, what was wrong, and what was left out.

    Attributes:
        cases: in the order of their names.
        faults: name of a case, a sentence.
        notes: sentences about what was left out.
        damaged: name of a fault, the DICOM file that it is about, which the fault itself does not name.
    """

    cases: list[InputCase] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[tuple[str, Path]] = field(default_factory=list)


def find_inputs(
    source: str | os.PathLike[str],
    wanted: Sequence[str],
    *,
    leave_out: Path | None = None,
    slides: bool = False,
    subject_pattern: str | None = None,
) -> FoundInputs:
    """Find the cases in a file or folder.

    Args:
        source: a file, or a folder that is searched with all folders below it.
        wanted: the channels that the weights take, such as T1, T1c, FLAIR, or red, green, blue.
        leave_out: a folder that is not searched: that of the results.
        slides: whether whole slides are told from pictures.
        subject_pattern: a regular expression with one group that takes the subject from the name of a case.

    Returns:
        The cases, with faults of single files beside them.

    Raises:
        DataError: there is no such file or folder, it holds no image, or the pattern is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("anna_T1.nii.gz", "anna_flair.nii.gz", "anna_seg.nii.gz"):
        ...     (folder / name).touch()
        >>> (case,) = find_inputs(folder, ["T1", "FLAIR"]).cases
        >>> case.name, sorted(case.files)
        ('anna', ['FLAIR', 'T1'])
    """
    root, pattern = Path(source), _compiled(subject_pattern)
    if not root.exists():
        raise DataError(f"The input {root} does not exist: check the path.")
    if root.is_dir() and is_prepared(root) and (root / "images").is_dir():
        root = root / "images"
    found, plain, dicom, others = FoundInputs(), [], [], []
    for file in _files(root, leave_out):
        kind = image_format(file)
        if slides and _is_slide(file):
            found.cases.append(InputCase(file.stem, {UNNAMED: (file,)}, "slide"))
        elif kind == "dicom":
            dicom.append(file)
        elif kind:
            plain.append(file)
        elif is_unread_image(file):
            found.faults.append((file.stem, f"{file.name} is of a kind that is not read: {remedy_for(file)}."))
        elif not file.suffix or file.suffix[1:].isdigit():
            others.append(file)
    _add_files(found, plain, wanted)
    _name_apart(found, root)
    _add_dicom(found, dicom, wanted)
    strangers = sum(file.parent in {other.parent for other in dicom} for file in others)
    if strangers:
        found.notes.append(f"{_counted(strangers, 'file')} beside DICOM files without DICOM content, left out.")
    cases = (replace(case, subject=_subject(case, root, pattern)) for case in found.cases)
    found.cases = sorted(cases, key=lambda case: case.name.casefold())
    if not found.cases and not found.faults:
        raise DataError(f"{root} holds no image that is read (PNG, JPEG, TIFF, BMP, NIfTI, MetaImage, DICOM).")
    return found


def _files(root: Path, leave_out: Path | None) -> Iterator[Path]:
    """Give all files that are not hidden, sorted, without a folder that is left out."""
    if root.is_file():
        yield root
        return
    for folder, below, names in os.walk(root):
        here = Path(folder)
        kept = [name for name in below if not name.startswith(".") and (here / name).resolve() != leave_out]
        below[:] = sorted(kept)
        yield from (here / name for name in sorted(names) if not is_hidden(here / name) and name != "DICOMDIR")


def _is_slide(file: Path) -> bool:
    """Tell whether a file is a whole slide: by its suffix, or a TIFF that holds itself at several resolutions."""
    name = file.name.lower()
    if name.endswith(_SLIDES):
        return True
    if not name.endswith((".tif", ".tiff")):
        return False
    try:
        with Image.open(file) as picture:
            first = picture.size
            if getattr(picture, "n_frames", 1) == 1:
                return 322 in picture.tag_v2 and max(first) > 4096  # type: ignore[attr-defined]  # stored in tiles
            picture.seek(1)
            return picture.size[0] < first[0] and picture.size[1] < first[1]
    except Image.DecompressionBombError:
        return True
    except Exception:  # broken, which its reader says
        return False


def _split(stem: str, sequences: bool) -> tuple[str, str]:
    """Split a stem into id and sequence, or id and the word of a mask; the sequence is UNNAMED where there is none."""
    for end in range(1, len(stem)):
        rest = stem[end + 1 :]
        if stem[end] in "_-. " and rest:
            if sequences and canonical_modality(rest) in SEQUENCES:
                return stem[:end], canonical_modality(rest)
            if MASK_WORD.fullmatch(rest):
                return stem[:end], rest
    return stem, UNNAMED


def _add_files(found: FoundInputs, files: Sequence[Path], wanted: Sequence[str]) -> None:
    """Put files that are no DICOM together to cases, by their names."""
    sequences = any(name in SEQUENCES for name in wanted)
    cases: dict[tuple[Path, str, str], dict[str, Path]] = {}
    masks = []
    for file in files:
        name, sequence = _split(image_stem(file), sequences)
        folder = file.parent
        if sequences and sequence == UNNAMED and canonical_modality(name) in SEQUENCES:
            name, sequence = folder.resolve().name, canonical_modality(name)
        if sequence != UNNAMED and (not sequences or sequence not in SEQUENCES):
            masks.append(file)
            continue
        own = cases.setdefault((folder, name, ""), {})
        if sequence in own and sequence == UNNAMED:
            cases[folder, name, file.name] = {UNNAMED: file}  # x.png beside x.jpg
        elif sequence in own:
            both = f"{own[sequence].name} and {file.name}"
            found.faults.append((name, f"{both} are both {sequence} of one case: keep one. The first was taken."))
        else:
            own[sequence] = file
    for (_, name, _), own in cases.items():
        if UNNAMED in own and len(own) > 1:
            stranger = own[UNNAMED].name
            remedy = f"add its sequence to its name, as in {name}_{wanted[0]}, or take it away"
            found.faults.append((name, f"{stranger} stands beside files of sequences: {remedy}."))
        else:
            found.cases.append(InputCase(name, {sequence: (file,) for sequence, file in own.items()}))
    if masks:
        several = f"{len(masks)} files look like masks by their names"
        what = "1 file looks like a mask by its name" if len(masks) == 1 else several
        found.notes.append(f"{what} (…_seg, …_mask): left out.")


def _name_apart(found: FoundInputs, root: Path) -> None:
    """Add folders to the names of cases that would otherwise share one."""
    counts = Counter(case.name.casefold() for case in found.cases)
    taken = {name for name, count in counts.items() if count == 1}
    for place, case in enumerate(found.cases):
        if counts[case.name.casefold()] == 1:
            continue
        file = case.all_files[0]
        above = file.parent.relative_to(root).as_posix() if root.is_dir() else "."
        whole = case.name if above == "." else f"{above}/{case.name}"
        longer = whole + file.name[len(image_stem(file)) :].replace(".", "_")
        names = (whole, longer, *(f"{longer}_{number}" for number in range(2, len(found.cases) + 2)))
        name = next(one for one in names if one.casefold() not in taken)
        taken.add(name.casefold())
        found.cases[place] = replace(case, name=name)


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _digest(series: Sequence[DicomSeries]) -> str:
    return hashlib.sha256(" ".join(one.uid for one in series).encode()).hexdigest()[:_DIGITS]


def _add_dicom(found: FoundInputs, files: Sequence[Path], wanted: Sequence[str]) -> None:
    """Put DICOM series together to cases: one each, or one per study where several sequences are wanted."""
    series, broken, others = find_series(files)
    groups: dict[str, list[DicomSeries]] = {}
    together = len(wanted) > 1 and any(name in SEQUENCES for name in wanted)
    for one in series:
        groups.setdefault(one.study if together else one.uid, []).append(one)
    for number, group in enumerate(groups.values(), start=1):
        name = f"case{number:03d}_{_digest(group)}"
        found_as, fault, left_out = _by_sequence(group, wanted) if together else ({UNNAMED: group[0]}, "", 0)
        wrong = group[0].sequence
        if len(wanted) == 1 and wanted[0] in SEQUENCES and wrong not in (None, wanted[0]):
            fault = f"The series is {wrong}, and these weights take {wanted[0]}: give the series of that sequence."
        if left_out:
            found.notes.append(f"{name}: {left_out} series of no known sequence left out.")
        if fault:
            found.faults.append((name, fault))
        else:
            found.cases.append(InputCase(name, {key: tuple(own.files) for key, own in found_as.items()}, "dicom"))
    for number, file in enumerate(broken, start=1):
        found.damaged.append((f"file{number:03d}", file))
        sentence = "A DICOM file is damaged: export it again. --list-sources says which one it is, in sources.csv."
        found.faults.append((f"file{number:03d}", sentence))
    if others:
        found.notes.append(f"{_counted(others, 'DICOM file')} without an image to segment, left out.")


def _by_sequence(group: Sequence[DicomSeries], wanted: Sequence[str]) -> tuple[dict[str, DicomSeries], str, int]:
    """Give the series of a study by their sequence, a sentence on what is wrong, and how many are of none."""
    if len(group) == 1:
        return {group[0].sequence or UNNAMED: group[0]}, "", 0
    known = [one for one in group if one.sequence]
    counts = Counter(one.sequence for one in known)
    fault = ""
    twice = [sequence for sequence in wanted if counts[sequence] > 1]
    if twice:
        fault = f"{counts[twice[0]]} series of the study look like {twice[0]}: keep one."
    if not known:
        folders = ", ".join(wanted)
        fault = (
            f"None of the {len(group)} series of the study says which sequence it is: put each into a folder of its "
            f"own, named {folders}."
        )
    single = {str(one.sequence): one for one in known if counts[one.sequence] == 1}
    return single, fault, len(group) - len(known)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    """Compile a pattern that has a group."""
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error:
        groups = 0
    else:
        groups = 1 if compiled is None else compiled.groups
    if not groups:
        raise DataError(
            f"Expected `subject_pattern` to be a regular expression with one group, got {pattern!r}: for p01_s12 write "
            "'^(p[0-9]+)'."
        )
    return compiled


def _subject(case: InputCase, root: Path, pattern: re.Pattern[str] | None) -> str | None:
    """Give what says that images are of one subject: the group of the pattern, or the folder below the input."""
    if case.kind != "image":
        return None
    if pattern is not None:
        match = pattern.search(case.name)
        return match[1] if match else None
    folder = case.all_files[0].parent
    return None if root.is_file() or folder == root else folder.relative_to(root).as_posix()
