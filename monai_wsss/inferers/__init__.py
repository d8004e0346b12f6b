# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""How a network meets a whole image, volume or slide: score maps out, and what is written of them to disk."""

from monai_wsss._doors import open_doors
from monai_wsss._spread import over_ray
from monai_wsss.inferers.conversion import AddConversiond, ConversionInferer
from monai_wsss.inferers.gradient_cam import GradientCAMInferer
from monai_wsss.inferers.multi_scale import multi_scale_branches
from monai_wsss.inferers.multi_view import multi_view_maps
from monai_wsss.inferers.pseudo_masks import PseudoMaskWriter
from monai_wsss.inferers.pseudo_quality import score_pseudo_masks
from monai_wsss.inferers.seeds import AboveHealthyLevel, MinMax, MultiScaleSeeds
from monai_wsss.inferers.slide_reading import SlideReading
from monai_wsss.inferers.slide_stain import SlideNormalizer
from monai_wsss.inferers.slide_tiles import TileLayout
from monai_wsss.inferers.volume import VolumeInferer
from monai_wsss.inferers.whole_slide import SlideResult, segment_slide

__all__ = [
    "AboveHealthyLevel",
    "AddConversiond",
    "ConversionInferer",
    "GradientCAMInferer",
    "MinMax",
    "MultiScaleSeeds",
    "PseudoMaskWriter",
    "SlideNormalizer",
    "SlideReading",
    "SlideResult",
    "TileLayout",
    "VolumeInferer",
    "multi_scale_branches",
    "multi_view_maps",
    "over_ray",
    "score_pseudo_masks",
    "segment_slide",
]

open_doors(globals())
