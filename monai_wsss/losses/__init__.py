# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Losses, one per file: a pure function and its Module."""

from monai_wsss._doors import open_doors
from monai_wsss.losses.adversarial import (
    LeastSquaresAdversarialLoss,
    MinimaxAdversarialLoss,
    NonSaturatingAdversarialLoss,
    least_squares_adversarial_loss,
    minimax_adversarial_loss,
    non_saturating_adversarial_loss,
)
from monai_wsss.losses.affinity import AffinityLoss, affinity_loss
from monai_wsss.losses.balanced_cross_entropy import BalancedCrossEntropyLoss, balanced_cross_entropy_loss
from monai_wsss.losses.confident_pseudo_label import (
    ClassToSegmentationLoss,
    SegmentationToClassLoss,
    class_to_segmentation_loss,
    segmentation_to_class_loss,
)
from monai_wsss.losses.contrastive_separation import ContrastiveSeparationLoss, contrastive_separation_loss
from monai_wsss.losses.cross_modal_equivariance import (
    CrossModalEquivarianceLoss,
    cross_modal_equivariance_loss,
    unit_norm_maps,
)
from monai_wsss.losses.dense_energy import DenseEnergyLoss, dense_energy_loss
from monai_wsss.losses.equivariance import EquivarianceLoss, equivariance_loss
from monai_wsss.losses.mutual_distillation import MutualDistillationLoss, mutual_distillation_loss
from monai_wsss.losses.peers import peer_weights
from monai_wsss.losses.purified_label import PurifiedLabelLoss, purified_label_loss
from monai_wsss.losses.reliability_weighted import ReliabilityWeightedLoss, reliability_weighted_loss
from monai_wsss.losses.segmentation_to_cam import SegmentationToCamLoss, segmentation_to_cam_loss

__all__ = [
    "AffinityLoss",
    "BalancedCrossEntropyLoss",
    "ClassToSegmentationLoss",
    "ContrastiveSeparationLoss",
    "CrossModalEquivarianceLoss",
    "DenseEnergyLoss",
    "EquivarianceLoss",
    "LeastSquaresAdversarialLoss",
    "MinimaxAdversarialLoss",
    "MutualDistillationLoss",
    "NonSaturatingAdversarialLoss",
    "PurifiedLabelLoss",
    "ReliabilityWeightedLoss",
    "SegmentationToCamLoss",
    "SegmentationToClassLoss",
    "affinity_loss",
    "balanced_cross_entropy_loss",
    "class_to_segmentation_loss",
    "contrastive_separation_loss",
    "cross_modal_equivariance_loss",
    "dense_energy_loss",
    "equivariance_loss",
    "least_squares_adversarial_loss",
    "minimax_adversarial_loss",
    "mutual_distillation_loss",
    "non_saturating_adversarial_loss",
    "peer_weights",
    "purified_label_loss",
    "reliability_weighted_loss",
    "segmentation_to_cam_loss",
    "segmentation_to_class_loss",
    "unit_norm_maps",
]

open_doors(globals())
