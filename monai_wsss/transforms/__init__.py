# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Transforms that MONAI lacks: of items, and of batches inside autograd. None reads a label file or trains."""

from monai_wsss._doors import open_doors
from monai_wsss._moved import old_names
from monai_wsss.transforms.blur import RandBlurd
from monai_wsss.transforms.color_operations import COLOR_OPERATIONS, RandColorOperationd, change_color
from monai_wsss.transforms.in_plane import ResizeInPlaned, resize_in_plane
from monai_wsss.transforms.load_ordered import LoadImageOrderedd
from monai_wsss.transforms.normalize_subject import NormalizeSubjectd
from monai_wsss.transforms.paired_spatial import (
    SPATIAL_KINDS,
    FlipStep,
    PairedSpatialTransform,
    QuarterTurnStep,
    ResizeStep,
    ShiftStep,
    SpatialRecord,
)
from monai_wsss.transforms.photometric import RandPhotometricDistortiond
from monai_wsss.transforms.published import gland_augmentation, imagenet_normalization, strong_and_weak_views
from monai_wsss.transforms.save_map import SaveImageMapd
from monai_wsss.transforms.save_mask import SaveImageMaskd, has_geometry, write_mask
from monai_wsss.transforms.scale_crop import RandScalePadCropd
from monai_wsss.transforms.stain import NormalizeStaind, RandStainJitterd

__all__ = [
    "COLOR_OPERATIONS",
    "SPATIAL_KINDS",
    "FlipStep",
    "LoadImageOrderedd",
    "NormalizeStaind",
    "NormalizeSubjectd",
    "PairedSpatialTransform",
    "QuarterTurnStep",
    "RandBlurd",
    "RandColorOperationd",
    "RandPhotometricDistortiond",
    "RandScalePadCropd",
    "RandStainJitterd",
    "ResizeInPlaned",
    "ResizeStep",
    "SaveImageMapd",
    "SaveImageMaskd",
    "ShiftStep",
    "SpatialRecord",
    "change_color",
    "gland_augmentation",
    "has_geometry",
    "imagenet_normalization",
    "resize_in_plane",
    "strong_and_weak_views",
    "write_mask",
]

__getattr__ = old_names(
    __name__,
    {
        "LoadOrderedd": "monai_wsss.transforms.LoadImageOrderedd",
        "SaveMapd": "monai_wsss.transforms.SaveImageMapd",
        "SaveMaskd": "monai_wsss.transforms.SaveImageMaskd",
    },
)
open_doors(globals())
