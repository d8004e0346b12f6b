# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Networks: tensors in, tensors out. Nothing here knows a loss, a dataset or a device."""

from monai_wsss.networks.activation import POOLINGS, ActivationNetwork
from monai_wsss.networks.aspp_resnet import ASPPResNet, AtrousSpatialPyramid
from monai_wsss.networks.cam_adapter import CAMAdapter, dense_features
from monai_wsss.networks.cam_encoder import CAMEncoder
from monai_wsss.networks.cam_unet import CAMUNet
from monai_wsss.networks.map_ensemble import MapEnsemble
from monai_wsss.networks.modality_networks import ModalityNetworks, networks_by_modality

__all__ = [
    "POOLINGS",
    "ASPPResNet",
    "ActivationNetwork",
    "AtrousSpatialPyramid",
    "CAMAdapter",
    "CAMEncoder",
    "CAMUNet",
    "MapEnsemble",
    "ModalityNetworks",
    "dense_features",
    "networks_by_modality",
]
