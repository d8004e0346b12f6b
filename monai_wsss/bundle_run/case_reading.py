# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A case to the image that a network takes, and sentences on where it departs from what the weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics
from monai_wsss._pictures import PIXELS, ROWS_COLUMNS, XY
from monai_wsss.data.case_files import UNNAMED, name_channels
from monai_wsss.data.input_cases import InputCase
from monai_wsss.data.modalities import COLORS, SEQUENCES, canonical_modality
from monai_wsss.data.reading import affine_of, check_alike, image_format, is_radiograph, read_image
from monai_wsss.refinement.slice_axis import slice_axis_of

__all__ = ["CaseReader", "ReadCase"]

_LUMINANCE = (0.299, 0.587, 0.114)
_LIKE = 1.05  # sizes that differ by less are alike
_STRETCHED = 1.2  # proportions and sizes of pixels that differ by less do no harm


@dataclass
class ReadCase:
    """A case in memory.

    Attributes:
        item: for the bundle's transforms: ``id``, ``image`` (C, *S), ``order``, perhaps ``intensity_mean`` and
            ``intensity_std``.
        present: the channels, in the order of the weights.
        replaced: sequences that the case lacks, and the ones in their place.
        notes: sentences on where the case departs from the training.
    """

    item: dict[str, Any]
    present: tuple[str, ...]
    replaced: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class CaseReader:
    """Read cases for one bundle.

    Attributes:
        wanted: channels that the weights take.
        channel_names: names of the channels of files with several; None: they are those that the weights take.
        stand_ins: by sequence, the one that may stand in for it.
        some: whether a part of the sequences is enough.
        background: whether the classes have a background; if not, transparent pixels are white.
        grid: in-plane size that the network works on, None for the images' own.
        longest_side: length of the longer side of the images of the training in pixels, where that matters.
        micrometers: side of a pixel of the images of the training, where that matters.
        slicing: the anatomical axis along which volumes are cut, see
            :func:`~monai_wsss.refinement.slice_axis.slicing_axis_of`.
        pooled: whether gray 2D images of one subject are normalized together.
        cases: all cases, to pool them.
    """

    wanted: Sequence[str]
    channel_names: Sequence[str] | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    some: bool = False
    background: bool = True
    grid: Sequence[int] | None = None
    longest_side: int | None = None
    micrometers: float | None = None
    slicing: int = 0
    pooled: bool = False
    cases: Sequence[InputCase] = ()
    _statistics: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __call__(self, case: InputCase) -> ReadCase:
        """Read a case.

        Raises:
            DataError: a file cannot be read, files do not lie on one grid, or sequences are missing.
        """
        read = self._channels(case)
        image = read.item["image"]
        if self.pooled and image.ndim == 3 and not _is_color(self.wanted):
            mean, std = self._normal(case, image)
            read.item |= {"intensity_mean": mean.astype(np.float32), "intensity_std": std.astype(np.float32)}
            if case.subject is None:
                read.notes.append("normalized by itself: images of one subject in a folder are normalized together")
        read.notes += self._departures(image)
        return read

    def _channels(self, case: InputCase) -> ReadCase:
        """Read the files of a case and give its image in the channels of the weights."""
        needed = [name for name in case.files if name in (UNNAMED, *self.wanted, *self._stand_ins.values())]
        if not needed:
            self._chosen(case.files)  # says what is missing
        images = {name: _read(case.files[name], on_white=not self.background) for name in needed}
        check_alike({name or case.name: image for name, image in images.items()})
        first = next(iter(images.values()))
        notes: list[str] = []
        if list(images) == [UNNAMED]:
            channels, notes = self._unnamed(first, case)
        else:
            several = [name for name, image in images.items() if image.shape[0] != 1]
            if several:
                raise DataError(f"{several[0]} has {images[several[0]].shape[0]} channels: save each sequence as one.")
            channels = dict(images)
        present, replaced = self._chosen(channels)
        notes += [f"{name} is missing: {other} was given in its place" for name, other in replaced.items()]
        lacking = [name for name in self.wanted if name not in present]
        if lacking:
            verb = "is" if len(lacking) == 1 else "are"
            notes.append(f"{', '.join(lacking)} {verb} missing: segmented with {', '.join(present)}")
        values = torch.cat([channels[replaced.get(name, name)] for name in present])
        image = MetaTensor(values.as_tensor() if isinstance(values, MetaTensor) else values, meta=dict(first.meta))
        image.meta.pop("image_numbers", None)  # of one sequence
        picture = case.kind == "image" and image_format(case.all_files[0]) == "picture"
        image.meta["filename_or_obj"] = "image.png" if picture else "image.nii.gz"  # its kind, and no name of a patient
        flat = picture or (case.kind == "dicom" and is_radiograph(case.all_files[0]))
        item = {"id": case.name, "image": image, "order": ROWS_COLUMNS if flat else XY}
        if image.meta.get("unit") == PIXELS:
            item["unit"] = PIXELS
        return ReadCase(item, tuple(present), replaced, notes)

    def _unnamed(self, image: MetaTensor, case: InputCase) -> tuple[dict[str, MetaTensor], list[str]]:
        """Name the channels of a single file, and say what was done to colors."""
        count, one = image.shape[0], len(self.wanted) == 1
        if _is_color(self.wanted):
            if image.ndim != 3:
                raise DataError("The case is a volume, and these weights take color pictures: give pictures.")
            if count == 1:
                return dict.fromkeys(COLORS, image), ["a gray image, given as color"]
        color = count == 3 and image.ndim == 3 and self.channel_names is None
        if one and color:
            same = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
            weights = torch.tensor(_LUMINANCE).reshape(3, 1, 1)
            gray = image[:1] if same else (image * weights).sum(0, keepdim=True)
            return {self.wanted[0]: gray}, [] if same else ["a color image, converted to gray"]
        if color and not _is_color(self.wanted):
            raise DataError(f"The case is a color picture, and these weights take {', '.join(self.wanted)}.")
        names = list(self.wanted) if count == len(self.wanted) and self.channel_names is None else None
        if names is None:
            if self.channel_names is None:
                raise DataError(
                    f"The case has {count} channel{'s' * (count > 1)} without names, and these weights take "
                    f"{', '.join(self.wanted)}: name files as <id>_{self.wanted[0]}, or the channels by --modalities."
                )
            names = name_channels(count, list(self.channel_names), "The case")
        assumed = (
            []
            if one or _is_color(self.wanted) or self.channel_names
            else [f"taken as {', '.join(names)}, in this order"]
        )
        return {name: image[place : place + 1] for place, name in enumerate(names)}, assumed

    def _chosen(self, channels: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        """Give the channels that are there or have a stand-in, in the order of the weights."""
        stand_ins = self._stand_ins.items()
        replaced = {name: other for name, other in stand_ins if name not in channels and other in channels}
        replaced = {name: other for name, other in replaced.items() if name in self.wanted}
        present = [name for name in self.wanted if name in channels or name in replaced]
        missing = [name for name in self.wanted if name not in present]
        if missing and not (self.some and present):
            there = ", ".join(name or "one without a name" for name in channels)
            example = next((name for name in channels if name in SEQUENCES), "FLAIR")
            option = ",".join(f"{name}={example}" for name in missing)
            raise DataError(
                f"{', '.join(missing)} of the case {'is' if len(missing) == 1 else 'are'} missing (there is {there}): "
                f"add {'it' if len(missing) == 1 else 'them'}, or let another stand in by --replace-missing {option}."
            )
        return present, replaced

    @property
    def _stand_ins(self) -> dict[str, str]:
        return {canonical_modality(name): canonical_modality(other) for name, other in self.stand_ins.items()}

    def _normal(self, case: InputCase, image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        """Measure mean and standard deviation of a gray 2D image, or of all of its subject."""
        if case.subject is None:
            return foreground_statistics(image.as_tensor().numpy())
        if case.subject not in self._statistics:
            arrays = []
            for other in self.cases:
                if other.subject == case.subject:
                    try:
                        arrays.append(self._channels(other).item["image"].as_tensor().numpy())
                    except DataError:  # said when its turn comes
                        continue
            self._statistics[case.subject] = foreground_statistics(arrays)
        return self._statistics[case.subject]

    def _departures(self, image: MetaTensor) -> list[str]:
        """Say where the size of an image, or of its pixels, is not that of the training."""
        found, axes = [], list(range(1, image.ndim))
        if image.ndim == 4:
            axes.pop(slice_axis_of(image, self.slicing))
        sides = tuple(image.shape[axis] for axis in axes)
        known = image.meta.get("unit") != PIXELS
        millimeters = np.linalg.norm(affine_of(image)[:3, : image.ndim - 1], axis=0) if known else np.ones(3)
        lengths = [side * float(millimeters[axis - 1]) for side, axis in zip(sides, axes, strict=True)]
        if self.grid is not None and len(sides) == 2:
            if any(side > _LIKE * own for side, own in zip(sides, self.grid, strict=True)):
                size = " x ".join(map(str, self.grid))
                found.append(f"{sides[0]} x {sides[1]} pixels, brought to {size} for the network")
            stretch = lengths[0] / lengths[1] * self.grid[1] / self.grid[0]
            if not 1 / _STRETCHED < stretch < _STRETCHED:
                unit = "mm" if known else "pixels"
                found.append(
                    f"a field of view of {lengths[0]:.3g} x {lengths[1]:.3g} {unit} looks stretched to the network: "
                    "pad the images to the proportions of those of the training"
                )
        if self.micrometers is not None:
            found += self._pixel_size(1000 * lengths[0] / sides[0] if known else None)
        if self.longest_side is not None and not 1 / _LIKE < max(sides) / self.longest_side < _LIKE:
            found.append(
                f"the longer side is {max(sides)} pixels, that of the images of the training {self.longest_side}: "
                "findings look larger or smaller than those that the weights know, so scale the images first"
            )
        return found

    def _pixel_size(self, micrometers: float | None) -> list[str]:
        """Say where pixels are larger or smaller than those of the training, or where nobody knows it."""
        if micrometers is None:
            return [
                f"the size of a pixel is not known: the weights know images of {self.micrometers:g} micrometers per "
                "pixel"
            ]
        if 1 / _STRETCHED < micrometers / float(self.micrometers or 1) < _STRETCHED:
            return []
        return [
            f"{micrometers:.3g} micrometers per pixel, those of the training {self.micrometers:g}: scale the images "
            "first"
        ]


def _is_color(names: Sequence[str]) -> bool:
    return tuple(names) == COLORS


def _read(files: Sequence[Path], *, on_white: bool) -> MetaTensor:
    """Read a file, or the series of some files."""
    if len(files) > 1:
        return read_image(files[0].parent, series=files)
    return read_image(files[0], on_white=on_white)


def size_of(image: MetaTensor) -> str:
    """Write the size and spacing of an image (C, *S)."""
    shape = " x ".join(map(str, image.shape[1:]))
    if image.meta.get("unit") == PIXELS:
        return f"{shape} px, spacing unknown"
    sides = np.linalg.norm(affine_of(image)[:3, : image.ndim - 1], axis=0)
    return f"{shape} of {' x '.join(f'{side:.3g}' for side in sides)} mm"
