# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Whole bundles put to work: what the commands ``predict``, ``train`` and ``bundles`` do.  No mechanism of its own."""

from monai_wsss._doors import open_doors
from monai_wsss.bundle_run.method_choice import TRAINING_METHODS, choose_method
from monai_wsss.bundle_run.prediction import Prediction, predict_masks
from monai_wsss.bundle_run.shipped import (
    ShippedBundle,
    check_shipped,
    copy_shipped,
    find_bundle,
    list_bundles,
    manage_bundles,
)
from monai_wsss.bundle_run.training import Training, TrainingInterrupted, train_bundle
from monai_wsss.bundle_run.verdict import Verdict

__all__ = [
    "TRAINING_METHODS",
    "Prediction",
    "ShippedBundle",
    "Training",
    "TrainingInterrupted",
    "Verdict",
    "check_shipped",
    "choose_method",
    "copy_shipped",
    "find_bundle",
    "list_bundles",
    "manage_bundles",
    "predict_masks",
    "train_bundle",
]

open_doors(globals())
