# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A whole slide by a bundle's own ``slide.json``: the pyramidal mask, its outlines, its overlay and its areas."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wsss._files import make_directory
from monai_wsss.bundle_run.runner import inference_parser
from monai_wsss.bundle_run.shipped import ShippedBundle
from monai_wsss.data.input_cases import InputCase
from monai_wsss.inferers.slide_outlines import write_outlines
from monai_wsss.reports.overlay import add_legend

__all__ = ["segment_slide_case"]

_BESIDE = 1024  # pixels of the longer side of the slide beside its overlay


def segment_slide_case(
    case: InputCase,
    bundle: ShippedBundle,
    settings: Mapping[str, Any],
    header: Mapping[str, Any],
    folders: Mapping[str, Path],
) -> tuple[dict[str, Any], bytes, list[str], str]:
    """Segment a slide.

    Args:
        case: the slide.
        bundle: has ``configs/slide.json``.
        settings: see :func:`~monai_wsss.bundle_run.runner.inference_parser`.
        header: see there.
        folders: "results" of this slide, "out" of all, and "work".

    Returns:
        The row of the table, the overlay as PNG, notes, and the size in words.

    Raises:
        DataError: the slide cannot be read or has no resolution, or results cannot be written.
    """
    own = make_directory(folders["results"])
    parser = inference_parser(
        bundle,
        ["inference", "slide"],
        {**settings, "slide": str(case.all_files[0]), "output_dir": str(own)},
        header,
        folders["work"],
    )
    (result,) = parser.get_parsed_content("run")
    classes: Sequence[str] = header["classes"]
    reading = parser.get_parsed_content("reading")
    with reading.open(case.all_files[0]) as source:
        size, mpp, image = source.sizes[0], source.mpp, source.thumbnail(_BESIDE)
    outlines = own / "outlines.geojson"
    write_outlines(result.mask, outlines, classes, size=size, mpp=mpp)
    areas = [*result.class_mm2, *[0.0] * len(classes)]
    row = {
        "id": case.name,
        "mask": result.mask.relative_to(folders["out"]).as_posix(),
        "outlines": outlines.relative_to(folders["out"]).as_posix(),
        **{f"{name}_mm2": round(area, 6) for name, area in zip(classes, areas, strict=False)},
        **{f"{name}_present": int(area > 0) for name, area in zip(classes, areas, strict=False)},
    }
    overlay = add_legend(io.BytesIO(result.overlay.read_bytes()), classes, image=image)
    shown = f"{size[0]} x {size[1]} px of {mpp[0]:.3g} micrometers"
    return row, overlay, [result.note] if result.note else [], shown
