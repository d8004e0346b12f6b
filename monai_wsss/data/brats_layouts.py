# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The folder layouts of the BraTS years, brought to one list of cases; no image is opened here.

A case is a folder whose files are named by their sequences; in 2013 and 2015 each file lies in a subfolder with such a
name.  The layouts differ in where the name of the sequence stands and how it is spelled:

======================  ============================================================================
BraTS 2013, 2015        ``HGG/<case>/VSD.Brain.XX.O.MR_Flair.123/*.mha``, truth ``VSD.Brain_3more.XX.O.OT.126``
BraTS 2017 to 2020      ``HGG/<case>/<case>_{flair,t1,t1ce,t2,seg}.nii.gz``, later without ``HGG`` and ``LGG``
BraTS 2021              ``BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz``
BraTS 2023              ``BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz``
plain                   ``<case>/{t1,t1c,t2,flair,seg}.nii.gz``
Decathlon Task01        ``imagesTr/BRATS_001.nii.gz`` with four channels, ``labelsTr/BRATS_001.nii.gz``
======================  ============================================================================
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from monai_wsss._checks import DataError
from monai_wsss.data.find_files import is_prepared, visible_entries
from monai_wsss.data.modalities import SEQUENCES, canonical_modality, sort_modalities
from monai_wsss.data.reading import image_format

__all__ = ["BratsCase", "find_brats_cases"]

_TRUTH = "truth"
_TRUTH_WORD = re.compile(r"(?:^|[_.-])(?:seg[a-z0-9_-]*|OT)$", re.IGNORECASE)
_LAST_WORD = re.compile(r"[A-Za-z0-9]+$")
_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.mha|\.mhd)?(\.\d+)?$", re.IGNORECASE)
_DEEPEST = 4  # most folders from the root to a case: BRATS2015_Training/HGG/<case>, and one to spare

# Names whose last number is a scan of the same patient; every other case is a subject of its own.
_TIMEPOINT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+|(brats_(?:2013|tcia)_pat\d+)_\d+")
_GRADES = {"HGG": "HGG", "HG": "HGG", "LGG": "LGG", "LG": "LGG"}  # folder: of 2013, of 2015 and later
_DECATHLON_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BratsCase:
    """The files of a case, which is one study of a subject.

    Attributes:
        name: unique among the cases found together.
        folder: where it lies.
        images: sequence -> (file, channel in it).
        truth: the file of the segmentation, None where there is none.
        channels: the number of channels of each image file.
    """

    name: str
    folder: Path
    images: dict[str, tuple[Path, int]]
    truth: Path | None
    channels: int = 1

    @property
    def subject(self) -> str:
        """Subject of the case: the name without the number of the scan, where the name has one.

        Example:
            >>> BratsCase("BraTS-GLI-00005-101", Path(), {}, None).subject
            'BraTS-GLI-00005'
            >>> BratsCase("brats_tcia_pat123_0083", Path(), {}, None).subject
            'brats_tcia_pat123'
            >>> BratsCase("Brats18_2013_10_1", Path(), {}, None).subject
            'Brats18_2013_10_1'
        """
        match = _TIMEPOINT.fullmatch(self.name)
        return (match[1] or match[2]) if match else self.name

    @property
    def grade(self) -> str | None:
        """Grade of the tumor, "HGG" or "LGG", by the nearest folder of that name above the case; None without one.

        Example:
            >>> BratsCase("Brats18_2013_10_1", Path("training/HGG/Brats18_2013_10_1"), {}, None).grade
            'HGG'
        """
        names = (part.upper() for part in reversed(self.folder.resolve().parts[:-1]))
        return next((_GRADES[name] for name in names if name in _GRADES), None)


def _role(entry: Path) -> str | None:
    """Give the sequence with which the name of a file or folder ends, or "truth"; None for any other name."""
    stem = entry.name
    while (shorter := _SUFFIX.sub("", stem)) != stem:
        stem = shorter
    if _TRUTH_WORD.search(stem):
        return _TRUTH
    word = _LAST_WORD.search(stem)
    sequence = canonical_modality(word[0]) if word else None
    return sequence if sequence in SEQUENCES else None


def _volume_in(entry: Path) -> Path | None:
    """Give the file itself, or the only volume in a folder."""
    files = [entry] if entry.is_file() else visible_entries(entry)
    volumes = [file for file in files if file.is_file() and image_format(file) in ("nifti", "metaimage")]
    return volumes[0] if len(volumes) == 1 else None


def _case_in(folder: Path) -> BratsCase | None:
    """Give the case whose files lie directly in a folder, if there is one."""
    files: dict[str, Path] = {}
    for entry in visible_entries(folder):
        role = _role(entry)
        volume = _volume_in(entry) if role else None
        if role is None or volume is None:
            continue
        if role in files:
            raise DataError(
                f"{files[role]} and {volume} are both {role} in {folder}: keep one, with one folder per case."
            )
        files[role] = volume
    truth = files.pop(_TRUTH, None)
    if not files:
        return None
    images = {name: (files[name], 0) for name in sort_modalities(list(files))}
    return BratsCase(folder.resolve().name, folder, images, truth)


def _decathlon_channels(folder: Path) -> list[str]:
    """Give the sequences of the channels in the order of the file: from dataset.json, else as Task01 was published."""
    path = folder / "dataset.json"
    names = list(_DECATHLON_CHANNELS)
    if path.exists():
        try:
            modality = json.loads(path.read_text(encoding="utf-8"))["modality"]
            names = [modality[str(channel)] for channel in range(len(modality))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path} does not name the channels under "modality": restore the file, or delete it to use the order '
                f"{', '.join(_DECATHLON_CHANNELS)}."
            ) from error
    sequences = [canonical_modality(name) for name in names]
    if len(set(sequences)) != len(sequences) or not set(sequences) <= set(SEQUENCES):
        raise DataError(
            f'{path} names the channels {", ".join(names)} under "modality": each must be another one of '
            f"{', '.join(SEQUENCES)}."
        )
    return sequences


def _decathlon_cases(folder: Path) -> Iterator[BratsCase]:
    sequences = _decathlon_channels(folder)
    for file in visible_entries(folder / "imagesTr"):
        if image_format(file) != "nifti":
            continue
        truth = folder / "labelsTr" / file.name
        images = {name: (file, sequences.index(name)) for name in sort_modalities(sequences)}
        name = _SUFFIX.sub("", file.name)
        yield BratsCase(name, file.parent, images, truth if truth.exists() else None, len(sequences))
    if (folder / "imagesTs").is_dir():
        _logger.warning("%s is left out: its images have no labels.", folder / "imagesTs")


def _walk(folder: Path, depth: int = 0) -> Iterator[BratsCase]:
    """Find the cases in and below a folder."""
    if (folder / "imagesTr").is_dir():
        yield from _decathlon_cases(folder)
        return
    case = _case_in(folder)
    if case is not None:
        yield case
    elif depth < _DEEPEST:
        for child in visible_entries(folder):
            if child.is_dir() and not is_prepared(child):
                yield from _walk(child, depth + 1)


def find_brats_cases(root: str | os.PathLike[str]) -> list[BratsCase]:
    """Find all cases below a folder, in any of the layouts, sorted by name.

    Where two folders hold cases of the same name (``HG/0001`` and ``LG/0001``), the name of the folder is put in front.

    Args:
        root: the folder of the cases, or one up to four levels above.

    Raises:
        DataError: the folder cannot be opened, holds no case, or holds a case twice.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "BraTS-GLI-00002-000").mkdir()
        >>> for word in ("t1n", "t2f", "seg"):
        ...     (root / "BraTS-GLI-00002-000" / f"BraTS-GLI-00002-000-{word}.nii.gz").touch()
        >>> [(case.name, case.subject, list(case.images)) for case in find_brats_cases(root)]
        [('BraTS-GLI-00002-000', 'BraTS-GLI-00002', ['T1', 'FLAIR'])]
    """
    cases = list(_walk(Path(root)))
    if not cases:
        raise DataError(
            f"No case found in {root}: give a BraTS folder, or one folder per case with files that are named by their "
            "sequences (t1, t1c, t2, flair, seg)."
        )
    counts = Counter(case.name for case in cases)
    cases = [replace(c, name=f"{c.folder.resolve().parent.name}_{c.name}") if counts[c.name] > 1 else c for c in cases]
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            places = [str(case.folder) for case in cases if case.name == name]
            raise DataError(f"The case {name} is there {count} times ({', '.join(places)}): keep one of them.")
    return sorted(cases, key=lambda case: case.name)
