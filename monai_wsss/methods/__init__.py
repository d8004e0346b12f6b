# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Methods, one paper per file: each composes networks, cams, refinement and losses into named training losses."""

from monai_wsss._doors import open_doors
from monai_wsss.methods.afa import AFA
from monai_wsss.methods.base import WSSSMethod
from monai_wsss.methods.bmp import BMP
from monai_wsss.methods.cam import ClassActivationMapping
from monai_wsss.methods.cmer import CMER
from monai_wsss.methods.coingan import CoinGAN
from monai_wsss.methods.cosa import CoSA
from monai_wsss.methods.full_supervision import FullSupervision, SegmentationNetwork
from monai_wsss.methods.gland import GlandClassification
from monai_wsss.methods.pseudo_supervision import PseudoMaskSupervision

__all__ = [
    "AFA",
    "BMP",
    "CMER",
    "ClassActivationMapping",
    "CoSA",
    "CoinGAN",
    "FullSupervision",
    "GlandClassification",
    "PseudoMaskSupervision",
    "SegmentationNetwork",
    "WSSSMethod",
]

open_doors(globals())
