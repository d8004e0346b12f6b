# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Class activation maps: extraction, pooling, normalization, fusion. Tensors in, tensors out; no paper, no cuts."""

from monai_wsss._doors import open_doors
from monai_wsss.cams.differences import difference_map
from monai_wsss.cams.extract import gradient_activation_maps, head_activation_maps, resize_maps
from monai_wsss.cams.fuse import average_ensemble, fuse_groups
from monai_wsss.cams.normalize import normalize_maps, rescale_maps, subtract_negative_reference, zscore_images
from monai_wsss.cams.pooling import decision_rule, pool_maps

__all__ = [
    "average_ensemble",
    "decision_rule",
    "difference_map",
    "fuse_groups",
    "gradient_activation_maps",
    "head_activation_maps",
    "normalize_maps",
    "pool_maps",
    "rescale_maps",
    "resize_maps",
    "subtract_negative_reference",
    "zscore_images",
]

open_doors(globals())
