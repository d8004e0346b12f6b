# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""The dictionary transforms that MONAI lacks. Nothing here reads a label file or trains."""

from monai_wsss.transforms.in_plane import ResizeInPlaned, resize_in_plane
from monai_wsss.transforms.normalize_subject import NormalizeSubjectd
from monai_wsss.transforms.save_mask import SaveMaskd, has_geometry, write_mask

__all__ = [
    "NormalizeSubjectd",
    "ResizeInPlaned",
    "SaveMaskd",
    "has_geometry",
    "resize_in_plane",
    "write_mask",
]
