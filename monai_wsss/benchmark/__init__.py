# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Methods x datasets x seeds: recipes, the rows that they give, and the tables of the papers. No paper's formulas."""

from monai_wsss._doors import open_doors
from monai_wsss._moved import old_names
from monai_wsss.benchmark.blanked_images import (
    BlankedScores,
    PresenceCurves,
    blanked_scores,
    equivariance_residual,
    presence_curves,
)
from monai_wsss.benchmark.bmp_classes import make_bmp_classes
from monai_wsss.benchmark.bmp_table import make_bmp_table
from monai_wsss.benchmark.cam_table import make_cam_table
from monai_wsss.benchmark.choice_table import make_choice_table
from monai_wsss.benchmark.cmer_paper import (
    CmerPaper,
    make_cmer_backbone,
    make_cmer_comparison,
    make_cmer_errors,
    make_cmer_losses,
)
from monai_wsss.benchmark.cmer_paper_figures import make_cmer_thresholds, make_cmer_transforms
from monai_wsss.benchmark.cmer_table import make_cmer_full_resolution, make_cmer_table
from monai_wsss.benchmark.coingan_figures import make_coingan_figures
from monai_wsss.benchmark.coingan_table import make_coingan_table
from monai_wsss.benchmark.cosa_figures import make_cosa_figures
from monai_wsss.benchmark.cosa_table import make_cosa_table
from monai_wsss.benchmark.decision_table import make_decision_table
from monai_wsss.benchmark.encoder_table import make_encoder_table, make_lever_table
from monai_wsss.benchmark.formatting import Column, format_rows
from monai_wsss.benchmark.gland_table import (
    make_gland_adaptation,
    make_gland_attention,
    make_gland_comparison,
    make_gland_pyramid,
    make_gland_table,
)
from monai_wsss.benchmark.leaderboard import Outcome
from monai_wsss.benchmark.method_benchmark import MethodBenchmark
from monai_wsss.benchmark.method_comparison import make_method_benchmark
from monai_wsss.benchmark.patches import Patches
from monai_wsss.benchmark.prepared import Slices
from monai_wsss.benchmark.published_numbers import PublishedRow, PublishedTable, published_tables
from monai_wsss.benchmark.recipes import AdamWOneCycle, Recipe
from monai_wsss.benchmark.rows import Measured, Row
from monai_wsss.benchmark.table import BenchmarkTable, Entry, Trained
from monai_wsss.benchmark.tiles import Tiles

__all__ = [
    "AdamWOneCycle",
    "BenchmarkTable",
    "BlankedScores",
    "CmerPaper",
    "Column",
    "Entry",
    "Measured",
    "MethodBenchmark",
    "Outcome",
    "Patches",
    "PresenceCurves",
    "PublishedRow",
    "PublishedTable",
    "Recipe",
    "Row",
    "Slices",
    "Tiles",
    "Trained",
    "blanked_scores",
    "equivariance_residual",
    "format_rows",
    "make_bmp_classes",
    "make_bmp_table",
    "make_cam_table",
    "make_choice_table",
    "make_cmer_backbone",
    "make_cmer_comparison",
    "make_cmer_errors",
    "make_cmer_full_resolution",
    "make_cmer_losses",
    "make_cmer_table",
    "make_cmer_thresholds",
    "make_cmer_transforms",
    "make_coingan_figures",
    "make_coingan_table",
    "make_cosa_figures",
    "make_cosa_table",
    "make_decision_table",
    "make_encoder_table",
    "make_gland_adaptation",
    "make_gland_attention",
    "make_gland_comparison",
    "make_gland_pyramid",
    "make_gland_table",
    "make_lever_table",
    "make_method_benchmark",
    "presence_curves",
    "published_tables",
]

__getattr__ = old_names(__name__, {name: f"monai_wsss.bundle_scan.{name}" for name in ("check_bundle", "scan_bundle")})
open_doors(globals())
