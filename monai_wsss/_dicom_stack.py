# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Frames of a DICOM series to a volume: ordered by position along their normal, on one even grid, or one sentence.

The grid runs from the first slice to the last.  It is sheared where the slices are shifted evenly to a side, as with a
tilted gantry.  Positions rule over every other tag, among them the numbers of the images and ``SpacingBetweenSlices``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_wsss._checks import DataError
from monai_wsss._dicom_frames import ALIKE_IN_STACK, Frame

__all__ = ["affine_of_slice", "common_frames", "stacked"]

_SAME_DIRECTION = 1e-3
"""Largest difference between direction cosines of slices that count as parallel."""
_OFF_GRID, _OFF_GRID_MM = 0.1, 0.1
"""How far a slice may lie from its place on an even grid: a share of the step, and millimeters; the less counts."""
_SAME_PLACE, _SAME_PLACE_MM = 0.1, 0.2
"""Up to which distance slices count as lying at one place: a share of the largest step, and millimeters."""
_STATED_STEP = 0.02
"""Share of the step by which ``SpacingBetweenSlices`` may differ without a word."""
_STRAIGHT_DEGREES = 0.06
"""Up to which tilt axes count as perpendicular."""
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_logger = logging.getLogger(__name__)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _kind(frame: Frame, leaders: list[Frame]) -> int:
    """Give the number of the first frame with the same direction and size, and make it one if there is none."""
    for number, leader in enumerate(leaders):
        if frame.size == leader.size and _alike(frame.directions, leader.directions):
            return number
    leaders.append(frame)
    return len(leaders) - 1


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return float(np.abs(one - other).max()) <= _SAME_DIRECTION


def common_frames(frames: Sequence[Frame], where: Path, leave_out_localizers: bool) -> list[Frame]:
    """Give the frames of the commonest orientation and size; refuse the others, or leave them out, and say so.

    Args:
        frames: all frames of a series.
        where: the series, for messages.
        leave_out_localizers: whether frames of another orientation or size may be left out.

    Raises:
        DataError: there are such frames, and they are not to be left out.
    """
    leaders: list[Frame] = []
    kinds = [_kind(frame, leaders) for frame in frames]
    commonest, count = Counter(kinds).most_common(1)[0]
    others = [frame for frame, kind in zip(frames, kinds, strict=True) if kind != commonest]
    if not others:
        return list(frames)
    turned = any(not _alike(other.directions, leaders[commonest].directions) for other in others)
    found = (
        f"{len(others)} image{'s' * (len(others) > 1)} of another {'orientation' if turned else 'size'} than the other "
        f"{len(frames) - len(others)} ({_listed([other.name for other in others])})"
    )
    if leave_out_localizers and count in [one for kind, one in Counter(kinds).items() if kind != commonest]:
        raise DataError(
            f"The DICOM series {where} holds {found}, so nobody knows which are the localizers: move them away."
        )
    if not leave_out_localizers:
        raise DataError(
            f"The DICOM series {where} holds {found}, perhaps localizers: move them away, or leave them out with "
            "--leave-out-localizers."
        )
    _logger.warning("The DICOM series %s holds %s: they are left out, as asked.", where, found)
    return [frame for frame, kind in zip(frames, kinds, strict=True) if kind == commonest]


def affine_of_slice(frame: Frame, step: np.ndarray | None = None) -> np.ndarray:
    """Give the affine (4, 4) from indices [x, y, z] to RAS millimeters, or pixels where their size is unknown.

    Args:
        frame: the first slice.  Without position it lies at the origin, without directions it is axial.
        step: from one slice to the next, (3) in DICOM's LPS; None takes the stated step or thickness along the normal.
    """
    directions = np.eye(3)[:2] if frame.directions is None else frame.directions
    sides = frame.spacing or (1.0, 1.0)
    if step is None:
        step = np.cross(*directions) * (frame.step or frame.thickness or 1.0)
    if frame.spacing is None:
        step = step / np.linalg.norm(step)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = directions[0] * sides[1], directions[1] * sides[0], step
    if frame.position is not None:
        affine[:3, 3] = frame.position
    return _TO_RAS @ affine + 0.0  # no negative zeros


def stacked(frames: Sequence[Frame], where: Path) -> tuple[list[Frame], np.ndarray]:
    """Order two or more frames to a volume.

    Args:
        frames: of one orientation and size, see :func:`common_frames`.
        where: the series, for messages.

    Returns:
        The frames in the order of their positions along the normal, and the affine (4, 4) to RAS millimeters.

    Raises:
        DataError: frames lack positions, lie at one position, or lie on no even grid, or their pixels differ in size.
    """
    for frame in frames:
        if frame.position is None or frame.directions is None:
            lacking = "ImagePositionPatient" if frame.position is None else "ImageOrientationPatient"
            raise DataError(
                f"The DICOM series {where} has no valid {lacking} in {frame.name}, so nobody knows where its "
                f"{len(frames)} images lie (a film?): give single images, or export it with positions."
            )
    sizes = {frame.spacing and tuple(round(side, 4) for side in frame.spacing) for frame in frames}
    if len(sizes) > 1:
        found = " and ".join("unknown" if size is None else f"{size[0]:g} x {size[1]:g} mm" for size in list(sizes)[:2])
        raise DataError(
            f"The DICOM series {where} has pixels of several sizes ({found}): keep images of one size in a folder."
        )
    normal = np.cross(*(frames[0].directions if frames[0].directions is not None else np.eye(3)[:2]))
    order = sorted(range(len(frames)), key=lambda index: float(normal @ _place(frames[index])))
    ordered = [frames[index] for index in order]
    heights = np.asarray([float(normal @ _place(frame)) for frame in ordered])
    _check_single(ordered, heights, where)
    _check_even(ordered, heights, where)
    step = (_place(ordered[-1]) - _place(ordered[0])) / (len(ordered) - 1)
    _tell_of_kinds(ordered, where)
    _tell_of_stated_step(ordered[0], step, normal, where)
    _tell_of_tilt(step, normal, where)
    return ordered, affine_of_slice(ordered[0], step)


def _place(frame: Frame) -> np.ndarray:
    return np.zeros(3) if frame.position is None else frame.position


def _check_single(ordered: Sequence[Frame], heights: np.ndarray, where: Path) -> None:
    """Refuse several images at one position, and say in which tag they differ."""
    gaps = np.diff(heights)
    near = gaps <= min(_SAME_PLACE * float(gaps.max()), _SAME_PLACE_MM)
    if not near.any():
        return
    groups = [[ordered[0]]]
    for frame, close in zip(ordered[1:], near, strict=True):
        if close:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    several = [group for group in groups if len(group) > 1]
    most = max(map(len, several))
    places = f"each of its {len(groups)} positions" if {len(group) for group in groups} == {most} else "one position"
    raise DataError(
        f"The DICOM series {where} holds {most} images at {places} (first {_listed([f.name for f in several[0]])}), "
        f"{_difference(several)}: keep one of them per position in a folder."
    )


def _difference(groups: Sequence[Sequence[Frame]]) -> str:
    """Say in which tag the images at one position differ, a tag that is another one in each of them if possible."""
    differing = []
    for tag in dict.fromkeys(tag for group in groups for frame in group for tag in frame.telling):
        counts = [len({frame.telling.get(tag) for frame in group}) for group in groups]
        if min(counts) > 1:
            apart = all(count == len(group) for count, group in zip(counts, groups, strict=True))
            differing.append((not apart, tag))
    if differing:
        tag = min(differing, key=lambda pair: pair[0])[1]
        values = list(dict.fromkeys(frame.telling.get(tag, "none") for frame in groups[0]))
        return f"which differ in their {tag}: {', '.join(values[:4])}{', …' * (len(values) > 4)}"
    across = max(
        float(np.linalg.norm(_place(one) - _place(other))) for group in groups for one in group for other in group
    )
    if across > 1:
        return f"which lie side by side, up to {across:.3g} mm apart"
    return "which differ in no tag that tells echoes, times or b-values apart, perhaps copies"


def _check_even(ordered: Sequence[Frame], heights: np.ndarray, where: Path) -> None:
    """Refuse missing slices, uneven steps, and slices that are shifted to a side unevenly."""
    places = np.stack([_place(frame) for frame in ordered])
    wanted = places[0] + np.linspace(0, 1, len(ordered))[:, None] * (places[-1] - places[0])
    off = float(np.linalg.norm(places - wanted, axis=1).max())
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if off <= min(_OFF_GRID * float(gaps.mean()), _OFF_GRID_MM):
        return
    steps = np.round(gaps / step)
    if (steps >= 1).all() and (steps > 1).any() and (np.abs(gaps - steps * step) <= _SAME_PLACE * step).all():
        holes = [
            f"{heights[i]:.6g} and {heights[i + 1]:.6g} mm ({ordered[i].name}, {ordered[i + 1].name})"
            for i in np.flatnonzero(steps > 1).tolist()
        ]
        count = int((steps - 1).sum())
        raise DataError(
            f"The DICOM series {where} lacks {count} slice{'s' * (count > 1)}, between {_listed(holes)}, while the "
            f"others are {step:.4g} mm apart: export the series again, whole."
        )
    if float(np.abs(gaps - gaps.mean()).max()) > min(_OFF_GRID * step, _OFF_GRID_MM):
        i = int(np.abs(gaps - step).argmax())
        raise DataError(
            f"The slices of the DICOM series {where} are not evenly spaced: {gaps.min():.4g} to {gaps.max():.4g} mm, "
            f"first {gaps[i]:.4g} mm between {ordered[i].name} and {ordered[i + 1].name}: resample it to even steps, "
            "or split it."
        )
    raise DataError(
        f"The slices of the DICOM series {where} are shifted sideways, up to {off:.3g} mm from the line from the first "
        "to the last: resample it to a straight grid."
    )


def _tell_of_kinds(frames: Sequence[Frame], where: Path) -> None:
    """Log that the images of a stack differ in what tells echoes, kernels or patients apart."""
    for tag in dict.fromkeys(tag for frame in frames for tag in frame.telling if tag in ALIKE_IN_STACK):
        values = list(dict.fromkeys(frame.telling.get(tag, "none") for frame in frames))
        if len(values) > 1:
            _logger.warning(
                "The images of the DICOM series %s differ in their %s (%s): they are stacked by their positions "
                "alone, so keep one kind in a folder if they do not belong together.",
                where,
                tag,
                _listed(values),
            )


def _tell_of_stated_step(first: Frame, step: np.ndarray, normal: np.ndarray, where: Path) -> None:
    """Log that positions contradict the distance that the file states; a tilt may be measured either way."""
    if first.step is None:
        return
    found = [float(np.linalg.norm(step)), abs(float(normal @ step))]
    if min(abs(first.step - distance) for distance in found) > _STATED_STEP * found[1]:
        _logger.warning(
            "The slices of the DICOM series %s lie %.4g mm apart by their positions, which count, but %.4g mm by "
            "SpacingBetweenSlices.",
            where,
            found[1],
            first.step,
        )


def _tell_of_tilt(step: np.ndarray, normal: np.ndarray, where: Path) -> None:
    """Log that the slices are shifted evenly to a side."""
    angle = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, normal)), step @ normal)))
    if angle > _STRAIGHT_DEGREES:
        _logger.warning(
            "The slices of the DICOM series %s are tilted by %.1f degrees: its affine is sheared, distances are told "
            "in pixels, and programs built on ITK do not read its NIfTI files.",
            where,
            angle,
        )
