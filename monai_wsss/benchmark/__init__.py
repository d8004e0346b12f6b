# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Methods x datasets x seeds: one JSON per run, tables like the papers'."""

from monai_wsss.benchmark.bmp_table import BmpTable
from monai_wsss.benchmark.cam_table import CamTable
from monai_wsss.benchmark.cmer_table import (
    CmerErrors,
    CmerFullResolution,
    CmerTable,
    CmerThresholds,
    CmerTransforms,
)
from monai_wsss.benchmark.gland_table import GlandAdaptation, GlandTable
from monai_wsss.benchmark.recipe_table import RecipeTable, format_table
from monai_wsss.benchmark.recipes import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "BmpTable",
    "CamTable",
    "CmerErrors",
    "CmerFullResolution",
    "CmerTable",
    "CmerThresholds",
    "CmerTransforms",
    "GlandAdaptation",
    "GlandTable",
    "Recipe",
    "RecipeTable",
    "format_table",
]
