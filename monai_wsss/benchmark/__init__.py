# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Methods x datasets x seeds: recipes, the rows that they give, and the tables of the papers. No paper's formulas."""

from collections.abc import Callable

from monai_wsss.benchmark.bmp_table import make_bmp_table
from monai_wsss.benchmark.cam_table import make_cam_table
from monai_wsss.benchmark.cmer_table import (
    make_cmer_errors,
    make_cmer_full_resolution,
    make_cmer_table,
    make_cmer_thresholds,
    make_cmer_transforms,
)
from monai_wsss.benchmark.formatting import Column, format_rows
from monai_wsss.benchmark.gland_table import make_gland_adaptation, make_gland_table
from monai_wsss.benchmark.prepared import Patches, Slices
from monai_wsss.benchmark.recipes import AdamWOneCycle, Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained

__all__ = [
    "TABLES",
    "AdamWOneCycle",
    "BenchmarkTable",
    "Column",
    "Entry",
    "Measured",
    "Patches",
    "Recipe",
    "Row",
    "Slices",
    "Trained",
    "format_rows",
]

TABLES: dict[str, Callable[..., BenchmarkTable]] = {
    "bmp": make_bmp_table,
    "cam": make_cam_table,
    "cmer": make_cmer_table,
    "cmer-unet": make_cmer_full_resolution,
    "cmer-errors": make_cmer_errors,
    "cmer-thresholds": make_cmer_thresholds,
    "cmer-transforms": make_cmer_transforms,
    "gland": make_gland_table,
    "gland-adaptation": make_gland_adaptation,
}
"""Makers of the tables by the names of ``monai-wsss benchmark --table``: (datalist, out, **settings) to a table."""
