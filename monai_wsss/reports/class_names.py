# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Names and colors of the labels of masks, in files that viewers read beside a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_wsss._files import atomic_path
from monai_wsss._labels import CLASS_COLORS
from monai_wsss.reports.prediction_rows import write_predictions

__all__ = ["write_class_names"]


def write_class_names(folder: Path, classes: Sequence[str]) -> None:
    """Write ``classes.ctbl``, a color table of 3D Slicer, and ``classes.csv``, the same as a table.

    Slicer takes the first as the color table of a segmentation, where an underscore stands for a space.  The second has
    a row per label, as the ``features`` of a labels layer of napari want it.

    Args:
        folder: in which they are written.
        classes: names of the labels 1..K.

    Raises:
        DataError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_class_names(folder, ["other tissue"])
        >>> (folder / "classes.ctbl").read_text().splitlines()[-1]
        '1 other_tissue 255 159 28 255'
    """
    rows = [(0, "background", (0, 0, 0), 0)]
    for number, name in enumerate(classes, start=1):
        rows.append((number, str(name), CLASS_COLORS[(number - 1) % len(CLASS_COLORS)], 255))
    lines = ["# Color table file classes.ctbl", f"# {len(rows)} values"]
    lines += [
        f"{number} {'_'.join(name.split())} {' '.join(map(str, color))} {alpha}" for number, name, color, alpha in rows
    ]
    with atomic_path(folder / "classes.ctbl") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_predictions(
        folder / "classes.csv",
        [
            {"LabelValue": number, "Name": name, "Color_R": red, "Color_G": green, "Color_B": blue, "Color_A": alpha}
            for number, name, (red, green, blue), alpha in rows
        ],
    )
