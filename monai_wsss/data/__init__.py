# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Adapters from folders to a datalist, the datalist's reader, phantoms and the training dataset. No networks."""

from monai_wsss._doors import open_doors
from monai_wsss.data.brats import prepare_brats
from monai_wsss.data.cases import prepare_cases
from monai_wsss.data.coco import prepare_coco
from monai_wsss.data.datalist import check_trainable, load_datalist, load_header, write_datalist
from monai_wsss.data.dataset import EpochCacheDataset
from monai_wsss.data.ebhi import prepare_ebhi
from monai_wsss.data.folder import prepare_folder
from monai_wsss.data.glas import prepare_glas
from monai_wsss.data.isic import prepare_isic
from monai_wsss.data.isic_background import prepare_isic_background
from monai_wsss.data.label_noise import LabelNoise
from monai_wsss.data.mela import lesion_boxes, prepare_mela
from monai_wsss.data.modalities import sort_modalities
from monai_wsss.data.monuseg import prepare_monuseg
from monai_wsss.data.phantoms import make_phantoms
from monai_wsss.data.prog import prepare_prog
from monai_wsss.data.pseudo_masks import attach_pseudo_masks, check_pseudo_masks, pseudo_mask_path
from monai_wsss.data.qata import prepare_qata
from monai_wsss.data.reading import read_image
from monai_wsss.data.sampler import LabelBalancedSampler
from monai_wsss.data.share import draw_share
from monai_wsss.data.splits import split_by_subject, take_validation
from monai_wsss.data.unpaired_sampler import UnpairedSampler
from monai_wsss.data.validation_sampler import ValidationSampler
from monai_wsss.data.variant_cache import VariantCacheDataset
from monai_wsss.data.voc import VOC_CLASSES, prepare_voc

__all__ = [
    "VOC_CLASSES",
    "EpochCacheDataset",
    "LabelBalancedSampler",
    "LabelNoise",
    "UnpairedSampler",
    "ValidationSampler",
    "VariantCacheDataset",
    "attach_pseudo_masks",
    "check_pseudo_masks",
    "check_trainable",
    "draw_share",
    "lesion_boxes",
    "load_datalist",
    "load_header",
    "make_phantoms",
    "prepare_brats",
    "prepare_cases",
    "prepare_coco",
    "prepare_ebhi",
    "prepare_folder",
    "prepare_glas",
    "prepare_isic",
    "prepare_isic_background",
    "prepare_mela",
    "prepare_monuseg",
    "prepare_prog",
    "prepare_qata",
    "prepare_voc",
    "pseudo_mask_path",
    "read_image",
    "sort_modalities",
    "split_by_subject",
    "take_validation",
    "write_datalist",
]

open_doors(globals())
