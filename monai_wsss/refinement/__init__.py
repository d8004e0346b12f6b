# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""From maps to masks: thresholds, presence gates, pseudo-label refinement."""

from monai_wsss.refinement.mask_transform import ToMaskd
from monai_wsss.refinement.masks import cut_score_maps, score_maps, to_mask
from monai_wsss.refinement.threshold import NegativeResponses, median_reference, negative_quantile, otsu_threshold

__all__ = [
    "NegativeResponses",
    "ToMaskd",
    "cut_score_maps",
    "median_reference",
    "negative_quantile",
    "otsu_threshold",
    "score_maps",
    "to_mask",
]
