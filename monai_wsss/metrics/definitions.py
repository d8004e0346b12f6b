# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One sentence per number of ``metrics.json``: the words that reports and documentation show."""

from __future__ import annotations

__all__ = ["METRIC_DEFINITIONS", "metric_definition"]

METRIC_DEFINITIONS = {
    "dice_subject": "Dice of the foreground: pixels pooled over all images of a subject, then the mean over the "
    "subjects with a finding in the reference.",
    "dice_pooled": "Dice of the foreground: pixels of the whole set pooled, images without a finding included; "
    "undefined where no reference holds a finding.",
    "iou_pooled": "Intersection over union of the foreground, pixels of the whole set pooled; of several classes "
    "also of the background.",
    "miou_pooled": "Mean over the classes, the background among them if there is one, of the pooled intersection over "
    "union; a class that no reference holds does not enter.",
    "context_miou_pooled": "C-mIoU: mean of the pooled intersection over union over the classes that something "
    "unlabeled always accompanies, as the datalist says; a class that no reference holds does not enter.",
    "dice_macro_pooled": "Mean over the classes, the background among them if there is one, of the pooled Dice "
    "(class-averaged F1). With a background an empty mask reaches nearly 0.5 by it.",
    "f1": "F1 of the foreground pixels, pooled: the same number as dice_pooled under its other name.",
    "f1_from_miou": "2 mIoU / (1 + mIoU), as some papers derive F1 from miou_pooled.",
    "asd": "Mean distance from the surface of the mask to that of the reference.",
    "assd": "Average symmetric surface distance: both directions pooled, then averaged.",
    "assd_directed": "Average symmetric surface distance: mean of the two directed means (medpy's convention).",
    "hd95": "The larger of the two directed 95th percentiles of the surface distances.",
    "accuracy": "Share of all pixels that are labeled correctly, pooled.",
    "sensitivity": "Share of the reference's foreground pixels that were found, pooled.",
    "specificity": "Share of the reference's background pixels that were left alone, pooled.",
    "healthy_clean": "Share of the healthy images whose mask is empty.",
    "presence_auroc": "Area under the ROC curve of the image-level score.",
    "pixel_auroc": "Area under the ROC curve of the map within images with a finding, mean over subjects.",
    "r_under": "Under-segmentation: false negatives / true positives, totals; 0 is best.",
    "r_over": "Over-segmentation: false positives / true positives, totals; 0 is best.",
    "error_auroc_entropy": "Probability that a wrong pixel of an image has a higher predictive entropy than a right "
    "one; mean over subjects, without the images in which all pixels are right, or all wrong.",
    "error_auroc_entropy_pooled": "The same over the pixels of all images together.",
    "error_auroc_disagreement": "Probability that members of an ensemble disagree more on a wrong pixel of an image "
    "than on a right one; mean over subjects, without the images in which all pixels are right, or all wrong.",
    "error_auroc_disagreement_pooled": "The same over the pixels of all images together.",
    "oracle_dice_subject": "dice_subject at the one threshold of the map that is best for it: chosen on reference "
    "masks, for analysis only.",
}
"""One sentence per metric, by its name without unit and class."""

_VOLUME = "volume_"
_VOLUME_SENTENCE = "Of volumes, whose slices were restacked after each had its mask: "
_PAPER = "paper_"
_PAPER_SENTENCE = "In the evaluation of CoinGAN's tables (positive images alone, on the resized grid): "


def metric_definition(name: str) -> str:
    """Give the definition of a metric of ``metrics.json``, whatever its unit or class; empty for an unknown name.

    Example:
        >>> metric_definition("hd95_mm/edema")
        'The larger of the two directed 95th percentiles of the surface distances.'
    """
    base = name.split("/", 1)[0].removesuffix("_mm").removesuffix("_px")
    if base.startswith(_VOLUME):
        of_slices = METRIC_DEFINITIONS.get(base.removeprefix(_VOLUME), "")
        return _VOLUME_SENTENCE + of_slices if of_slices else ""
    known = METRIC_DEFINITIONS.get(base.removeprefix(_PAPER), "")
    return _PAPER_SENTENCE + known if known and base.startswith(_PAPER) else known
