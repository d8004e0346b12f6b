# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Numbers that compare masks with references, which no training may call, and some that need labels of images alone."""

from monai_wsss._doors import open_doors
from monai_wsss.metrics.aggregate import CaseTable
from monai_wsss.metrics.cam_quality import (
    SWEEP_THRESHOLDS,
    oracle_threshold,
    pixel_auroc,
    presence_auroc,
    sweep_counts,
    sweep_dice,
)
from monai_wsss.metrics.comparison import WelchTest, welch_t_test
from monai_wsss.metrics.definitions import METRIC_DEFINITIONS, metric_definition
from monai_wsss.metrics.intensity import intensity_pmf, pmf_distance
from monai_wsss.metrics.paper_protocol import PAPER_GRID, counts_from_rates, prevalence_from_rates
from monai_wsss.metrics.restacked import SlicePlace
from monai_wsss.metrics.segmentation import (
    EMPTY_RULE,
    PixelCounts,
    accuracy,
    class_miou_pooled,
    count_pixels,
    dice_macro_pooled,
    dice_score,
    f1_from_miou,
    f1_score,
    iou_score,
    miou_pooled,
    r_over,
    r_under,
    sensitivity,
    specificity,
)
from monai_wsss.metrics.surface import SurfaceDistances, surface_distances
from monai_wsss.metrics.uncertainty import ErrorRanking, error_auroc
from monai_wsss.metrics.without_masks import (
    BlankedPresence,
    area_under_presence,
    blanked_presence,
    left_clean,
    map_distance,
    mask_agreement,
    mask_metrics,
    rank_correlation,
)

__all__ = [
    "EMPTY_RULE",
    "METRIC_DEFINITIONS",
    "PAPER_GRID",
    "SWEEP_THRESHOLDS",
    "BlankedPresence",
    "CaseTable",
    "ErrorRanking",
    "PixelCounts",
    "SlicePlace",
    "SurfaceDistances",
    "WelchTest",
    "accuracy",
    "area_under_presence",
    "blanked_presence",
    "class_miou_pooled",
    "count_pixels",
    "counts_from_rates",
    "dice_macro_pooled",
    "dice_score",
    "error_auroc",
    "f1_from_miou",
    "f1_score",
    "intensity_pmf",
    "iou_score",
    "left_clean",
    "map_distance",
    "mask_agreement",
    "mask_metrics",
    "metric_definition",
    "miou_pooled",
    "oracle_threshold",
    "pixel_auroc",
    "pmf_distance",
    "presence_auroc",
    "prevalence_from_rates",
    "r_over",
    "r_under",
    "rank_correlation",
    "sensitivity",
    "specificity",
    "surface_distances",
    "sweep_counts",
    "sweep_dice",
    "welch_t_test",
]

open_doors(globals())
