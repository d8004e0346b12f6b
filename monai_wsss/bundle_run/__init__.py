# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Whole bundles put to work: what the commands ``predict``, ``train`` and ``bundles`` do.  No mechanism of its own."""

from monai_wsss.bundle_run.prediction import Prediction, predict_masks
from monai_wsss.bundle_run.shipped import (
    ShippedBundle,
    check_shipped,
    copy_shipped,
    find_bundle,
    list_bundles,
    manage_bundles,
)

__all__ = [
    "Prediction",
    "ShippedBundle",
    "check_shipped",
    "copy_shipped",
    "find_bundle",
    "list_bundles",
    "manage_bundles",
    "predict_masks",
]
