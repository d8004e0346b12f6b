# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Networks: tensors in, tensors out. Nothing here knows a loss, a dataset or a device."""

from monai_wsss._doors import open_doors
from monai_wsss.networks.activation import POOLINGS, ActivationNetwork
from monai_wsss.networks.all_mlp_decoder import AllMLPDecoder
from monai_wsss.networks.aspp_resnet import ASPPResNet, AtrousSpatialPyramid
from monai_wsss.networks.atrous_segmenter import AtrousSegmenter, deeplab_segmenter, resnet38_segmenter
from monai_wsss.networks.attention_affinity import AttentionAffinity
from monai_wsss.networks.attention_pyramid import AttentionPyramid
from monai_wsss.networks.average_buffer import AverageBuffer
from monai_wsss.networks.cam_adapter import CAMAdapter, dense_features
from monai_wsss.networks.cam_encoder import CAMEncoder
from monai_wsss.networks.cam_unet import CAMUNet
from monai_wsss.networks.class_head import ClassHead
from monai_wsss.networks.commonality_specificity import CommonalitySpecificityAttention
from monai_wsss.networks.consistency_attention import ConsistencyCorrelationAttention
from monai_wsss.networks.contrastive_conv import ContrastiveConvolution
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.criss_cross import CrissCrossAttention
from monai_wsss.networks.cycle_generator import CycleGenerator
from monai_wsss.networks.dilated_resnet import DilatedResNet
from monai_wsss.networks.efficientnet_lite import EfficientNetLite
from monai_wsss.networks.feature_fusion import EncoderLevel, FusedFeatures, FusedSegmenter, fused_cam_network
from monai_wsss.networks.frozen_encoder import FrozenEncoder
from monai_wsss.networks.gland_classifier import GlandClassifier, fused_gland_classifier, resnet38_classifier
from monai_wsss.networks.large_fov import LargeFOV
from monai_wsss.networks.map_ensemble import MapEnsemble
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.mix_transformer_weights import load_mix_transformer
from monai_wsss.networks.modality_networks import ModalityNetworks, networks_by_modality
from monai_wsss.networks.object_prior import ObjectPrior
from monai_wsss.networks.padded_segmenter import PaddedSegmenter, swin_segmenter
from monai_wsss.networks.position_attention import PositionAttention
from monai_wsss.networks.pretrained import WeightReport, load_pretrained
from monai_wsss.networks.psp import PSPHead, PyramidSceneParsing
from monai_wsss.networks.published_weights import load_encoder_weights
from monai_wsss.networks.pyramid_fusion import PyramidFusionPooling, SignPreservingFusion
from monai_wsss.networks.reading_record import (
    add_reading_record,
    reading_order,
    record_reading,
    recorded_reading,
)
from monai_wsss.networks.resnest import ResNeSt, SplitAttentionConv
from monai_wsss.networks.resnet38 import ResNet38
from monai_wsss.networks.two_branch import BranchOutputs, TwoBranchNetwork
from monai_wsss.networks.two_maps import TwoFusedMaps
from monai_wsss.networks.vit import VisionTransformer
from monai_wsss.networks.vit_weights import load_vision_transformer

__all__ = [
    "POOLINGS",
    "ASPPResNet",
    "ActivationNetwork",
    "AllMLPDecoder",
    "AtrousSegmenter",
    "AtrousSpatialPyramid",
    "AttentionAffinity",
    "AttentionPyramid",
    "AverageBuffer",
    "BranchOutputs",
    "CAMAdapter",
    "CAMEncoder",
    "CAMUNet",
    "ClassHead",
    "CommonalitySpecificityAttention",
    "ConsistencyCorrelationAttention",
    "ContrastiveConvolution",
    "ConvPyramid",
    "CrissCrossAttention",
    "CycleGenerator",
    "DilatedResNet",
    "EfficientNetLite",
    "EncoderLevel",
    "FrozenEncoder",
    "FusedFeatures",
    "FusedSegmenter",
    "GlandClassifier",
    "LargeFOV",
    "MapEnsemble",
    "MixTransformer",
    "ModalityNetworks",
    "ObjectPrior",
    "PSPHead",
    "PaddedSegmenter",
    "PositionAttention",
    "PyramidFusionPooling",
    "PyramidSceneParsing",
    "ResNeSt",
    "ResNet38",
    "SignPreservingFusion",
    "SplitAttentionConv",
    "TwoBranchNetwork",
    "TwoFusedMaps",
    "VisionTransformer",
    "WeightReport",
    "add_reading_record",
    "deeplab_segmenter",
    "dense_features",
    "fused_cam_network",
    "fused_gland_classifier",
    "load_encoder_weights",
    "load_mix_transformer",
    "load_pretrained",
    "load_vision_transformer",
    "networks_by_modality",
    "reading_order",
    "record_reading",
    "recorded_reading",
    "resnet38_classifier",
    "resnet38_segmenter",
    "swin_segmenter",
]

open_doors(globals())
