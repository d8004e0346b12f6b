# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Phantoms on disk: generated subjects in the layout that ``prepare`` gives to real ones; nothing is downloaded.

The content of a file depends only on its name (with kind, seed, split and number) and the version of the generator, and
each file is written whole or not at all.  So processes may race and a killed run may be repeated: no folder ever mixes
two sets.  ``datalist.json`` comes last; its entry ``"phantom"`` holds the arguments for which the folder was made.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import atomic_path, make_directory
from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss._orientation import axes_of, slicing_entry
from monai_wsss._pictures import ROWS_COLUMNS, XY
from monai_wsss.data.crops import TileRule
from monai_wsss.data.datalist import modality_entry, slice_entry, statistics_entry, write_datalist
from monai_wsss.data.datalist_checks import SPLIT_OF_LIST
from monai_wsss.data.gland_folder import GlandImage, PatchRule, add_gland_image, empty_gland_list
from monai_wsss.data.label_table import WHOLE, LabeledRow
from monai_wsss.data.modalities import COLORS, sort_modalities
from monai_wsss.data.phantom_brain import BRAIN_AFFINE, CONTRAST, BrainStudy, draw_brain
from monai_wsss.data.phantom_chest import draw_chest
from monai_wsss.data.phantom_gland import draw_gland, draw_laboratory
from monai_wsss.data.phantom_scene import CLASSES, CONTEXT, draw_scene
from monai_wsss.data.phantom_skin import draw_skin
from monai_wsss.data.photographs import PHOTOGRAPH_STATISTICS
from monai_wsss.data.splits import SPLITS
from monai_wsss.data.tile_folder import TileSource, TileWriter, tile_header
from monai_wsss.data.writing import write_nifti, write_picture

__all__ = ["PHANTOM_KINDS", "make_phantoms"]

GENERATOR_VERSION = 3
"""Version of the drawings, raised with every change: folders of another version are drawn anew."""

_LEAST_ORGAN = 0.02  # share of a slice that the organ must cover for the slice to be written

_GLAND_RULE = PatchRule(patch=112, stride=56, white=0.8)
"""Training patches as for GlaS (Feng et al., AAAI 2025)."""

_SKIN_RULE = TileRule(64, 32)
"""Training tiles as for real dermoscopy of 256 pixels; some have a margin without any lesion."""

_GLAND_LAYOUTS = ("many", "few", "none", "few", "many")
"""Layouts of the sections of a split, in turn."""

_FOLDERS = ("images", "masks", "regions", "raw")
"""Folders below a phantom folder."""

_SECTIONS = 2  # per subject with glands

_logger = logging.getLogger(__name__)


def _read_previous(folder: Path) -> dict[str, Any]:
    """Read the phantom datalist that the folder holds already, or give an empty one."""
    path = folder / "datalist.json"
    if not path.exists():
        return {}
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        previous = None
    if not isinstance(previous, dict) or "phantom" not in previous:
        raise DataError(f"{path} is no datalist of phantoms, so nothing was overwritten: choose another folder.")
    _check_inside(folder, path, previous)
    return previous


def _check_inside(folder: Path, path: Path, previous: dict[str, Any]) -> None:
    """Refuse a datalist that names files which phantoms never write: they would be removed with the others."""
    try:
        files = _files_of(previous)
        inside = folder.resolve()
        foreign = sorted(
            file for file in files if file.split("/")[0] not in _FOLDERS or not _is_inside(folder / file, inside)
        )
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no datalist of phantoms ({error!r}): choose another folder.") from error
    if foreign:
        raise DataError(
            f"{path} names {foreign[0]}, which is no file of phantoms in {folder}, so nothing was removed or "
            "overwritten: choose another folder."
        )


def _is_inside(file: Path, folder: Path) -> bool:
    """Tell whether a file, wherever links lead, lies below the folder and is no folder itself."""
    return file.resolve().is_relative_to(folder) and not file.is_dir()


def _generate(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write all subjects; return the datalist."""
    datalist = PHANTOM_KINDS[marker["kind"]](folder, marker)
    return {"name": f"{marker['kind']}_phantoms", "phantom": marker, **datalist}


def _generate_brain(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write brain studies; return the datalist."""
    modalities, seed = marker["modalities"], marker["seed"]
    datalist: dict[str, Any] = {
        "modality": modality_entry(modalities),
        "classes": ["tumor"],
        "background": True,
        "order": XY,
        "statistics": {},
    }
    if marker["spatial_dims"] == 2:
        datalist |= slicing_entry([axes_of(BRAIN_AFFINE)])
    for stream, (split, count) in enumerate(zip(SPLITS, marker["subjects"], strict=True)):
        as_slices = marker["spatial_dims"] == 2 and split != "test"
        datalist[split] = []
        for number in range(count):
            rng = np.random.default_rng([seed, stream, number])
            study = draw_brain(rng, modalities=tuple(modalities), diseased=_is_diseased(split, number))
            subject = f"brain{seed}-{split}-{number:03d}"
            write = _write_slices if as_slices else _write_study
            datalist[split] += write(folder, subject, study)
            volume = np.stack([study.volumes[name] for name in modalities])
            datalist["statistics"][subject] = statistics_entry(*foreground_statistics(volume))
    return datalist


def _generate_gland(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write sections with glands: patches for training, whole sections for validation and test."""
    datalist = empty_gland_list(_GLAND_RULE, "patients")
    for stream, (split, count) in enumerate(zip(SPLITS, marker["subjects"], strict=True)):
        for number in range(count):
            rng = np.random.default_rng([marker["seed"], stream, number])
            subject, laboratory = f"gland{marker['seed']}-{split}-{number:03d}", draw_laboratory(rng)
            for place in range(_SECTIONS):
                layout = _GLAND_LAYOUTS[(_SECTIONS * number + place) % len(_GLAND_LAYOUTS)]
                section = draw_gland(rng, laboratory=laboratory, layout=layout)
                name = f"{subject}-{place}"
                case = GlandImage(name, subject, split, Path(f"{name}.png"), Path(f"{name}.png"))
                add_gland_image(datalist, folder, case, section.image, section.mask, _GLAND_RULE)
    return datalist


def _generate_skin(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write images of skin, whole and as tiles, and under ``raw/`` as ``prepare cases`` takes them."""
    writer = TileWriter(folder, _SKIN_RULE, from_masks=True)
    statistics, raw = {}, ["raw/labels.csv"]
    lines = ["id,case,label,split"]
    for stream, (split, count) in enumerate(zip(SPLITS, marker["subjects"], strict=True)):
        for number in range(count):
            drawn = draw_skin(np.random.default_rng([marker["seed"], stream, number]))
            name = f"skin{marker['seed']}-{split}-{number:03d}"
            row = LabeledRow("", name, name, [1], split, {})
            source = TileSource(row, COLORS, True, drawn.image, drawn.mask)
            writer.add(source, source)
            statistics[name] = statistics_entry(*tissue_statistics(drawn.image))
            lines.append(f"{name},{name},1,{split}")
            raw += [f"raw/images/{name}.png", f"raw/masks/{name}.png"]
            write_picture(folder / raw[-2], drawn.image)
            write_picture(folder / raw[-1], 255 * drawn.mask)
    with atomic_path(make_directory(folder / "raw") / "labels.csv") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "modality": modality_entry(COLORS),
        "classes": [WHOLE],
        "background": True,
        **tile_header(_SKIN_RULE, labels_from_masks=True),
        "raw": raw,
        "statistics": statistics,
        **writer.lists,
    }


def _generate_scene(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write scenes; all combinations of the classes take turns."""
    datalist: dict[str, Any] = {
        "modality": modality_entry(COLORS),
        "classes": list(CLASSES),
        "background": True,
        "context": CONTEXT,
        "order": ROWS_COLUMNS,
        "statistics": PHOTOGRAPH_STATISTICS,
    }
    for stream, (split, count) in enumerate(zip(SPLITS, marker["subjects"], strict=True)):
        datalist[split] = []
        for number in range(count):
            bird, train, kite = (number >> place & 1 for place in range(3))
            drawn = draw_scene(np.random.default_rng([marker["seed"], stream, number]), label=(bird, train, kite))
            name = f"scene{marker['seed']}-{split}-{number:03d}"
            item = {"id": name, "subject": name, "image": f"images/{name}.png", "mask": f"masks/{name}.png"}
            write_picture(folder / item["image"], drawn.image)
            write_picture(folder / item["mask"], drawn.mask)
            datalist[split].append(
                {**item, "label": [bird, train, kite], "statistics": next(iter(PHOTOGRAPH_STATISTICS))}
            )
    return datalist


def _generate_chest(folder: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Draw and write chest X-rays; return the datalist."""
    datalist: dict[str, Any] = {
        "modality": modality_entry(["image"]),
        "classes": ["opacity"],
        "background": True,
        "order": ROWS_COLUMNS,
        "statistics": {},
    }
    for stream, (split, count) in enumerate(zip(SPLITS, marker["subjects"], strict=True)):
        datalist[split] = []
        for number in range(count):
            diseased = _is_diseased(split, number)
            drawn = draw_chest(np.random.default_rng([marker["seed"], stream, number]), diseased=diseased)
            name = f"chest{marker['seed']}-{split}-{number:03d}"
            item = {"id": name, "subject": name, "image": f"images/{name}.png", "mask": f"masks/{name}.png"}
            write_picture(folder / item["image"], drawn.image)
            write_picture(folder / item["mask"], drawn.mask)
            datalist[split].append({**item, "label": [int(diseased)]})
            datalist["statistics"][name] = statistics_entry(*foreground_statistics(drawn.image))
    return datalist


def _is_diseased(split: str, number: int) -> bool:
    return number % 4 != 2 if split == "test" else number % 2 == 0


def _write_slices(folder: Path, subject: str, study: BrainStudy) -> list[dict[str, Any]]:
    """Write one PNG per modality and one of the mask, per slice with enough of the organ; return the items."""
    cases = []
    for z in np.flatnonzero(study.organ.mean(axis=(0, 1)) >= _LEAST_ORGAN):
        images = {f"images/{subject}/{z:02d}_{name}.png": volume for name, volume in study.volumes.items()}
        mask = f"masks/{subject}/{z:02d}.png"
        for path, volume in {**images, mask: study.mask}.items():
            write_picture(folder / path, volume[None, :, :, z])
        label = [int(study.mask[:, :, z].any())]
        case = {"id": f"{subject}_{z:02d}", "image": list(images), "label": label, "subject": subject, "mask": mask}
        cases.append({**case, **slice_entry(subject, int(z), study.affine)})
    return cases


def _write_study(folder: Path, subject: str, study: BrainStudy) -> list[dict[str, Any]]:
    """Write one NIfTI per modality and one of the mask; return the item in a list."""
    images = {f"images/{subject}/{name}.nii.gz": volume for name, volume in study.volumes.items()}
    mask = f"masks/{subject}/mask.nii.gz"
    for path, volume in {**images, mask: study.mask}.items():
        write_nifti(folder / path, volume, study.affine)
    label = [int(study.mask.any())]
    return [{"id": subject, "image": list(images), "label": label, "subject": subject, "mask": mask}]


def _files_of(datalist: dict[str, Any]) -> set[str]:
    cases = [case for name in SPLIT_OF_LIST for case in datalist.get(name, [])]
    images = {path for case in cases for path in ([case["image"]] if isinstance(case["image"], str) else case["image"])}
    return images | {case["mask"] for case in cases if "mask" in case} | set(datalist.get("raw", []))


def _remove_stale(folder: Path, previous: dict[str, Any], current: dict[str, Any]) -> None:
    """Remove the files of the replaced phantoms, and only files in the folder that the old list named."""
    stale = _files_of(previous) - _files_of(current)
    for path in stale:
        (folder / path).unlink(missing_ok=True)
    for parent in {(folder / path).parent for path in stale}:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _brain_marker(modalities: Sequence[str] | None, spatial_dims: int) -> dict[str, Any]:
    """Check the arguments that only brains have."""
    chosen = sort_modalities(("T1", "T1c", "FLAIR") if modalities is None else modalities)
    if not chosen:
        raise ValueError(f"Expected `modalities` to name at least one of {', '.join(CONTRAST)}, got none.")
    for name in chosen:
        check_choice("modalities", name, tuple(CONTRAST))
    if spatial_dims not in (2, 3):
        raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
    return {"modalities": chosen, "spatial_dims": spatial_dims}


def _refuse_brain_arguments(kind: str, modalities: Sequence[str] | None, spatial_dims: int) -> None:
    """Refuse the arguments that only brains have."""
    images = "X-rays" if kind == "chest" else "color images"
    if modalities is not None:
        raise ValueError(f"Expected no `modalities` for {images}, got {', '.join(modalities)}.")
    if spatial_dims != 2:
        raise ValueError(f"Expected `spatial_dims` to be 2 for {images}, got {spatial_dims}.")


PHANTOM_KINDS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "brain": _generate_brain,
    "chest": _generate_chest,
    "gland": _generate_gland,
    "scene": _generate_scene,
    "skin": _generate_skin,
}
"""Kind → function ``(folder, marker) -> datalist`` that draws and writes all subjects."""

_SUBJECTS = {"brain": (24, 8, 4), "chest": (48, 16, 16), "gland": (6, 3, 3), "scene": (48, 16, 16), "skin": (16, 6, 6)}


def make_phantoms(
    directory: str | os.PathLike[str],
    *,
    kind: str = "brain",
    modalities: Sequence[str] | None = None,
    spatial_dims: int = 2,
    subjects: Sequence[int] | None = None,
    seed: int = 0,
) -> str:
    """Generate phantom subjects with exact masks and a ``datalist.json``, unless all their files are there already.

    "brain": in 2D, training and validation are axial slices (all that hold brain) as 8-bit PNG files, each with a label
    of its own.  Test is whole studies as NIfTI, so that a 2D network is tested on studies.  In 3D all splits are
    studies.  Every other training and validation subject is healthy, and every fourth test subject (the third, the
    seventh, …).  The statistics of a subject are those of its whole volume.

    "chest": X-rays of 96 pixels, one per subject, in gray.  Every other subject has opacities in the lungs; of the test
    subjects three of four.

    "gland": color images of stained sections, two per subject; each subject has stains of its own.  Training is patches
    of 112 pixels, labeled [gland, other] as ``prepare glas`` labels them.  Validation and test are whole sections, some
    of them without glands.  The statistics are those of the tissue of the whole section.

    "scene": color images of 96 pixels with birds, trains and kites, one per subject.  A bird always sits on a branch
    and a train always stands on rails, which have no label.  The datalist says so under ``"context"``, and the
    evaluation measures these classes apart (``context_miou_pooled``).

    "skin": dermoscopy in colors, one image per subject, each with one lesion.  Training is tiles of 64 pixels, with and
    without lesion, as ``prepare cases --tiles 64 --labels-from-masks`` cuts them from the folder ``raw``, which holds
    the images as a real set.  Validation and test are whole images, beside their tiles.

    The same arguments give the same bytes.

    Args:
        directory: the folder to write, created if needed.  A phantom folder for other arguments is replaced.
        kind: "brain", "chest", "gland", "scene" or "skin".
        modalities: any of T1, T1c, T2, FLAIR; None is T1, T1c, FLAIR.  Only for "brain".
        spatial_dims: 2, or for "brain" 3.
        subjects: numbers of subjects for training, validation and test; None is 24, 8, 4 for "brain", 48, 16,
            16 for "chest" and "scene", 6, 3, 3 for "gland" and 16, 6, 6 for "skin".
        seed: seed of all chance; another seed gives other subjects.

    Returns:
        ``directory`` as a string: the folder that holds ``datalist.json``.

    Raises:
        ValueError: the kind or a modality is unknown, another kind than "brain" is asked for with modalities or in
            three dimensions, or ``subjects`` is not three numbers of at least 0.
        DataError: the folder holds a datalist that is not of phantoms or names files elsewhere, or cannot be written.

    Example:
        >>> import tempfile
        >>> folder = make_phantoms(tempfile.mkdtemp(), modalities=["FLAIR"], subjects=(1, 0, 1))
        >>> sorted(path.name for path in Path(folder).iterdir())
        ['datalist.json', 'images', 'masks']
    """
    check_choice("kind", kind, tuple(PHANTOM_KINDS))
    subjects = _SUBJECTS[kind] if subjects is None else subjects
    if len(subjects) != len(SPLITS) or any(int(number) != number or number < 0 for number in subjects):
        raise ValueError(f"Expected `subjects` to be three numbers for {', '.join(SPLITS)}, got {tuple(subjects)}.")
    if kind != "brain":
        _refuse_brain_arguments(kind, modalities, spatial_dims)
    marker = {
        "version": GENERATOR_VERSION,
        "kind": kind,
        **(_brain_marker(modalities, spatial_dims) if kind == "brain" else {}),
        "subjects": [int(number) for number in subjects],
        "seed": seed,
    }
    folder = Path(directory)
    previous = _read_previous(folder)
    if previous.get("phantom") != marker or not all((folder / path).exists() for path in _files_of(previous)):
        datalist = _generate(make_directory(folder), marker)
        write_datalist(folder, datalist)
        _remove_stale(folder, previous, datalist)
        _logger.info("%d %s phantoms written to %s", sum(subjects), kind, folder)
    return str(directory)
