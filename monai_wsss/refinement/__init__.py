# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""From maps to masks: thresholds, presence gates, pseudo-label refinement."""

from monai_wsss._doors import open_doors
from monai_wsss.refinement.affinity_walk import affinity_labels, propagate_by_affinity, softmax_with_background
from monai_wsss.refinement.assigned_labels import (
    class_assignment,
    perplexity,
    segmentation_assignment,
    two_threshold_label,
)
from monai_wsss.refinement.class_labels import BackgroundAware, ConstantScores, LearnedAffinity
from monai_wsss.refinement.class_map_refinement import ClassMapRefinement
from monai_wsss.refinement.confident_labels import confident_label, confident_segmentation_label
from monai_wsss.refinement.dense_crf import DenseCRF, dense_crf_refinement
from monai_wsss.refinement.dynamic_threshold import DynamicThreshold
from monai_wsss.refinement.ensemble import EnsembleDecision, decide_ensemble, rule_probabilities
from monai_wsss.refinement.gaussian_mixture import (
    AssignedThresholds,
    MixtureFit,
    assigned_thresholds,
    mixture_threshold,
)
from monai_wsss.refinement.labeled_images import LabeledImages
from monai_wsss.refinement.mask_rule import MaskDecision, MaskRule
from monai_wsss.refinement.mask_transform import ToMaskd
from monai_wsss.refinement.masks import score_maps, to_mask
from monai_wsss.refinement.pixel_adaptive import (
    PixelAdaptiveRefinement,
    pixel_adaptive_refinement,
    pixel_adaptive_weights,
)
from monai_wsss.refinement.pooled_rule import mixture_rule, otsu_rule, pooled_mixture
from monai_wsss.refinement.pseudo_label import (
    background_aware_scores,
    propagated_seed_label,
    refined_seed_label,
    seed_label,
)
from monai_wsss.refinement.region import decide_within
from monai_wsss.refinement.score_cut import cut_score_maps
from monai_wsss.refinement.slice_masks import ToMaskBySliced
from monai_wsss.refinement.swapped_labels import (
    ClassLabels,
    NoiseLabels,
    SegmentationLabels,
    ThresholdLabels,
    TwoThresholdLabels,
)
from monai_wsss.refinement.threshold import (
    NegativeResponses,
    median_reference,
    negative_quantile,
    otsu_threshold,
    percentile_threshold,
)
from monai_wsss.refinement.told_rule import ToldRule, tell_rule, told_rule

__all__ = [
    "AssignedThresholds",
    "BackgroundAware",
    "ClassLabels",
    "ClassMapRefinement",
    "ConstantScores",
    "DenseCRF",
    "DynamicThreshold",
    "EnsembleDecision",
    "LabeledImages",
    "LearnedAffinity",
    "MaskDecision",
    "MaskRule",
    "MixtureFit",
    "NegativeResponses",
    "NoiseLabels",
    "PixelAdaptiveRefinement",
    "SegmentationLabels",
    "ThresholdLabels",
    "ToMaskBySliced",
    "ToMaskd",
    "ToldRule",
    "TwoThresholdLabels",
    "affinity_labels",
    "assigned_thresholds",
    "background_aware_scores",
    "class_assignment",
    "confident_label",
    "confident_segmentation_label",
    "cut_score_maps",
    "decide_ensemble",
    "decide_within",
    "dense_crf_refinement",
    "median_reference",
    "mixture_rule",
    "mixture_threshold",
    "negative_quantile",
    "otsu_rule",
    "otsu_threshold",
    "percentile_threshold",
    "perplexity",
    "pixel_adaptive_refinement",
    "pixel_adaptive_weights",
    "pooled_mixture",
    "propagate_by_affinity",
    "propagated_seed_label",
    "refined_seed_label",
    "rule_probabilities",
    "score_maps",
    "seed_label",
    "segmentation_assignment",
    "softmax_with_background",
    "tell_rule",
    "to_mask",
    "told_rule",
    "two_threshold_label",
]

open_doors(globals())
