# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""How a network meets a whole image, volume or slide: score maps out, no thresholds."""

from monai_wsss.inferers.gradient_cam import GradientCAMInferer
from monai_wsss.inferers.multi_view import multi_view_maps
from monai_wsss.inferers.volume import VolumeInferer

__all__ = [
    "GradientCAMInferer",
    "VolumeInferer",
    "multi_view_maps",
]
