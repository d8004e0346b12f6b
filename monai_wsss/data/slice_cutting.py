# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Volumes cut into slices: along one anatomical axis however files store them, by the numbers that a table gives.

==========  =======================================================================================================
numbers     of a slice
==========  =======================================================================================================
"index"     from 0 on in the order of the volume: in a DICOM series by position along its normal (toward the head in
            an ordinary axial series), in other files along the array axis that runs along the slicing axis
"instance"  the InstanceNumber of the image in its DICOM series; in an enhanced file the number of the frame
"position"  millimeters along the slicing axis, as in ImagePositionPatient: toward the left, the back or the head
==========  =======================================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from monai_wsss._checks import DataError
from monai_wsss._orientation import SLICING_AXES, axes_of
from monai_wsss._pictures import MILLIMETERS, PIXELS
from monai_wsss.data.case_files import ImageCase, read_mask, write_slice
from monai_wsss.data.datalist import slice_entry
from monai_wsss.data.label_table import LabeledRow
from monai_wsss.data.reading import affine_of
from monai_wsss.data.writing import scale_to_16_bit

__all__ = ["SliceCut", "write_slices"]

_logger = logging.getLogger(__name__)


_TURNED = {"RL": "PIL", "AP": "LIP", "SI": "LPS"}
"""Toward which sides the axes of a volume run after a turn: as slices are looked at, and numbered as in DICOM."""
_OBLIQUE_DEGREES = 35
"""From which tilt on slices are told to be oblique; at 45 degrees no axis of the body is nearer than another."""


@dataclass
class SliceCut:
    """How the volumes of a table are cut: all along one anatomical axis, the nearest array axis where they are oblique.

    A volume whose last array axis runs along it is cut as it is stored.  Others are turned to lie as the first that is
    cut so.  Axial slices (SI) are the default.  A DICOM series of other images has to name its axis, since a table of
    its images means these.

    Attributes:
        numbers: "index", "instance" or "position".
        axis: "RL", "AP" or "SI"; None for "SI" where no DICOM series has images across another axis.
        axes: toward which sides the axes of the first volume run as it is cut, e.g. "LPS"; None before.
    """

    numbers: str = "index"
    axis: str | None = None
    axes: str | None = None
    _told: set[str] = field(default_factory=set)

    @property
    def along(self) -> str:
        """Give the axis along which volumes are cut."""
        return self.axis or "SI"

    def turn_of(self, image: MetaTensor, name: str) -> np.ndarray | None:
        """Give nibabel's orientation transform (3, 2) that brings a volume to lie as it is cut; None for none.

        Raises:
            DataError: the images of a DICOM series are not axial, and no axis is named.
        """
        own = axes_of(affine_of(image))
        if own is None:
            return None
        self._tell_if_oblique(affine_of(image), own, name)
        if own[2] in self.along:
            self.axes = self.axes or own
            return None
        stored = next(axis for axis in SLICING_AXES if own[2] in axis)
        if self.axis is None and image.meta.get("image_numbers") is not None:
            raise DataError(
                f'The images of DICOM series "{name}" lie across {stored}, so they are not axial: give --slicing-axis '
                f"{stored} if the table means these images, or SI to cut axial slices through them."
            )
        self.axes = self.axes or _TURNED[self.along]
        self._tell_once(
            "turned",
            f'Volume "{name}" is stored along other axes ({own}): it is cut along {self.along} all the same, and '
            f"turned to {self.axes}, so its slices are numbered from 0 on toward {self.axes[2]}; --slicing-axis names "
            "another axis.",
        )
        return np.asarray(ornt_transform(io_orientation(affine_of(image)), axcodes2ornt(self.axes)))

    def _tell_if_oblique(self, affine: np.ndarray, own: str, name: str) -> None:
        """Log once that slices are tilted so far that another axis of the body is nearly as near."""
        axis = next(index for index, side in enumerate(own) if side in self.along)
        normal = np.cross(*np.delete(affine[:3, :3], axis, axis=1).T)
        cosine = abs(normal[SLICING_AXES.index(self.along)]) / np.linalg.norm(normal)
        degrees = float(np.degrees(np.arccos(min(cosine, 1.0))))
        if degrees > _OBLIQUE_DEGREES:
            self._tell_once(
                "oblique",
                f'Volume "{name}" lies oblique: its slices, cut along the array axis that is nearest to {self.along}, '
                f"are tilted by {degrees:.0f} degrees; --slicing-axis names another axis.",
            )

    def places(self, images: Sequence[MetaTensor], name: str, turned: bool) -> dict[float, int]:
        """Give the index of every slice by its number.

        Args:
            images: the channels of the volume, (1, X, Y, Z) each, cut along their last axis.
            name: of the volume, for messages.
            turned: whether the volume was turned.

        Raises:
            DataError: the files say no such numbers.
        """
        image, count = images[0], images[0].shape[-1]
        by_image = _numbers_by_image(images)
        if self.numbers == "instance":
            if turned or by_image is None:
                raise DataError(
                    f'Volume "{name}" has no images with numbers along {self.along}: only DICOM series that are cut as '
                    "they were taken have; give --slice-numbers index or position."
                )
            if None in by_image or len(set(by_image)) < count:
                raise DataError(
                    f'Images of "{name}" have no InstanceNumber, share one, or differ in it by modality: give '
                    "--slice-numbers index."
                )
            return {float(number): index for index, number in enumerate(by_image) if number is not None}
        if self.numbers == "index":
            known = [number for number in by_image or () if number is not None]
            if not turned and len(known) > 1 and known[0] > known[-1]:
                self._tell_once(
                    "reversed",
                    f'Slices of DICOM series are numbered from 0 on by position, in "{name}" toward '
                    f"{(axes_of(affine_of(image)) or '?')[2]}, but its InstanceNumber runs the other way: give "
                    "--slice-numbers instance if the numbers of the table are these.",
                )
            return {float(index): index for index in range(count)}
        if image.meta.get("unit", MILLIMETERS) != MILLIMETERS or axes_of(affine_of(image)) is None:
            raise DataError(
                f'No file says where the slices of "{name}" lie in millimeters: give --slice-numbers index.'
            )
        affine, along = affine_of(image), SLICING_AXES.index(self.along)
        sign = 1 if self.along == "SI" else -1  # DICOM counts toward the left and the back
        return {float(sign * (affine[along, 3] + index * affine[along, 2])): index for index in range(count)}

    def _tell_once(self, key: str, sentence: str) -> None:
        if key not in self._told:
            self._told.add(key)
            _logger.warning("%s", sentence)


def _numbers_by_image(images: Sequence[MetaTensor]) -> Sequence[int | None] | None:
    """Give the InstanceNumbers of the slices, which all channels must share; None for other kinds of files."""
    found = [image.meta.get("image_numbers") for image in images]
    if None in found:
        return None
    return found[0] if all(one == found[0] for one in found) else [None] * len(found[0])


def _turned(image: MetaTensor, turn: np.ndarray) -> MetaTensor:
    """Turn a volume (C, X, Y, Z) with its affine."""
    values = np.stack([apply_orientation(channel, turn) for channel in image.as_tensor().numpy()])
    affine = affine_of(image) @ inv_ornt_aff(turn, image.shape[1:])
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=affine, meta={**image.meta})


def _index(row: LabeledRow, places: Mapping[float, int], cut: SliceCut) -> int:
    """Give the index of the slice of a row."""
    number = row.volume[1] if row.volume else 0
    if cut.numbers != "position":
        if number in places:
            return places[number]
        known = sorted(int(one) for one in places)
        kind = "slices" if cut.numbers == "index" else "instances"
        rule = "it counts from 0" if cut.numbers == "index" else "it is the InstanceNumber"
        raise DataError(
            f'{row.where}: the slice is {number}, but volume "{row.image_id}" has the {kind} {known[0]} to '
            f"{known[-1]} along its last axis: correct the number, {rule}."
        )
    heights = np.asarray(list(places))
    nearest = int(np.abs(heights - number).argmin())
    reach = np.abs(np.diff(heights)).mean() / 2 if len(heights) > 1 else 0.5
    if abs(heights[nearest] - number) > reach * (1 + 1e-6):
        raise DataError(
            f'{row.where}: the slice is at {number:g} mm, but volume "{row.image_id}" reaches from {heights.min():g} '
            f"to {heights.max():g} mm along {cut.along}: correct the number, it counts toward L, P or S."
        )
    return places[float(heights[nearest])]


def write_slices(
    out: Path,
    rows: Sequence[LabeledRow],
    case: ImageCase,
    mask: Path | None,
    classes: Sequence[str],
    cut: SliceCut,
) -> tuple[list[tuple[dict[str, Any], bool]], np.ndarray, str | None]:
    """Cut a volume and write the slices of the rows, scaled to 16 bits by the whole volume.

    Args:
        out: the prepared folder.
        rows: the rows of the volume, with ``volume`` set.
        case: the images of the volume.
        mask: the mask of the volume, or None.
        classes: names of the classes, (K).
        cut: along which axis, and how slices are numbered.

    Returns:
        Per row what :func:`~monai_wsss.data.case_files.write_slice` returns, the item with its place in the volume
        (:func:`~monai_wsss.data.datalist.slice_entry`), the scaled volume (C, X, Y, Z) uint16 with its slices along the
        last axis, and toward which sides its axes run.

    Raises:
        DataError: the case is no volume, a slice lies outside of it, two rows mean one slice, the volume cannot be
            scaled, or the mask cannot be read or does not fit.
    """
    first = rows[0]
    if case.images[0].ndim != 4:
        raise DataError(
            f'{first.where}: the image of "{first.image_id}" is 2D, but slices are cut from volumes: prepare 2D '
            "images without `as_slices`."
        )
    shown = None if mask is None else read_mask(mask, case.images[0], classes)
    turn = cut.turn_of(case.images[0], first.image_id)
    if turn is not None:
        case = replace(case, images=[_turned(image, turn) for image in case.images])
        shown = None if shown is None else np.stack([apply_orientation(one, turn) for one in shown])
    try:
        scaled, _ = scale_to_16_bit(case.volume)
    except ValueError as error:
        raise DataError(f'{first.where}: volume "{first.image_id}" cannot be scaled: {error}') from error
    places = cut.places(case.images, first.image_id, turn is not None)
    affine = None if case.unit == PIXELS else affine_of(case.images[0])
    written: list[tuple[dict[str, Any], bool]] = []
    rows_of: dict[int, str] = {}
    for row in rows:
        index = _index(row, places, cut)
        if index in rows_of:
            raise DataError(f"{row.where}: this slice is also in {rows_of[index]}: give each slice one row.")
        rows_of[index] = row.where
        mask_of_slice = None if shown is None else shown[..., index]
        item, agrees = write_slice(out, row, case.names, scaled[..., index], mask_of_slice)
        written.append((item | slice_entry(first.image_id, index, affine), agrees))
    return written, scaled, axes_of(affine_of(case.images[0]))
