# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # A second stage: any MONAI segmenter, trained on another network's pseudo-masks
#
# A network that was trained on image-level labels gives a map for each image. With the labels of the training images
# at hand its maps become pseudo-masks: nothing where the label says "no tumor", the map's peak where it says "tumor". A
# segmenter that learns these masks needs no gate and no threshold, and may be better than its teacher, or not: this
# tutorial measures both on subjects that neither has seen.
#
# It runs on phantoms; for your own data give a prepared folder: `python tutorials/02_second_stage.py my/prepared`.
#
# Research use only, not for diagnosis.

# %%
import logging
import sys
import tempfile
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from monai.networks.nets import BasicUNet
from monai.transforms import Compose, LoadImaged, RandFlipd, RandRotate90d
from monai.utils import set_determinism

from monai_wsss.data import EpochCacheDataset, attach_pseudo_masks, load_datalist, make_phantoms
from monai_wsss.engines import SegmentationScores, WSSSTrainer, one_cycle, with_weights
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer
from monai_wsss.methods import PseudoMaskSupervision, SegmentationNetwork
from monai_wsss.networks import CAMEncoder, MapEnsemble
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import RunFolder
from monai_wsss.transforms import NormalizeSubjectd, SaveMaskd

logging.basicConfig(level=logging.WARNING)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
prepared = Path(sys.argv[1] if len(sys.argv) > 1 else make_phantoms(work / "phantoms", subjects=(12, 4, 0)))
datalist, modalities = prepared / "datalist.json", ("T1", "T1c", "FLAIR")
bundle = Path(__file__).parents[1] / "bundles" / "brain_mri_cam_segmentation"

# %% [markdown]
# ## 1. The teacher, and its pseudo-masks of the training images
#
# The teacher is the shipped network of the bundle `brain_mri_cam_segmentation`. The writer can be killed: it goes on
# where it stopped.

# %%
set_determinism(0)
teacher = MapEnsemble([CAMEncoder(2, len(modalities), stride=4, pooling="max") for _ in range(3)])
weights = bundle / "models" / "model.pt"
training = load_datalist(datalist, "training", modalities=modalities)
reading = [LoadImaged("image", ensure_channel_first=True), NormalizeSubjectd("image")]
views = VolumeInferer(spatial_dims=2, grid=(64, 64), views="dihedral")
PseudoMaskWriter(teacher, weights, training, Compose(reading), views, work / "pseudo_masks").run()

# %% [markdown]
# ## 2. The student
#
# `plf="paper"` would let pixels count less whose label the student finds hard to believe.

# %%
keys = ["image", "pseudo_mask"]
items = attach_pseudo_masks(training, work / "pseudo_masks")
augmentation = Compose([RandRotate90d(keys, prob=0.75), RandFlipd(keys, prob=0.5, spatial_axis=0)])
read = Compose([LoadImaged(keys, ensure_channel_first=True), NormalizeSubjectd("image")])
dataset = EpochCacheDataset(items, read, augmentation, seed=0, progress=False)
sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)

epochs = 8
student = SegmentationNetwork(BasicUNet(2, len(modalities), 2, features=(16, 32, 64, 128, 128, 16), norm="batch"))
method = PseudoMaskSupervision(student, plf="none")
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.01)
schedule = one_cycle(optimizer, 1e-3, epochs, loader)
handlers = [LrScheduleHandler(schedule, print_lr=False, epoch_level=False)]
WSSSTrainer(method, optimizer, loader, epochs, train_handlers=handlers, model_path=work / "model.pt").run()

# %% [markdown]
# ## 3. Both, on subjects that were not trained on

# %%
validation = load_datalist(datalist, "validation", masks=True, modalities=modalities)
keys = ["image", "mask"]
read = Compose([LoadImaged(keys, ensure_channel_first=True, allow_missing_keys=True), NormalizeSubjectd("image")])
dice = {}
for name, network, path in (("teacher", teacher, weights), ("student", student, work / "model.pt")):
    scores = SegmentationScores(datalist)
    folder = work / name
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(validation, read), batch_size=1),
        network=with_weights(network, path),
        inferer=VolumeInferer(spatial_dims=2, grid=(64, 64), views="dihedral"),
        postprocessing=Compose([ToMaskd("pred", network), SaveMaskd("pred", folder)]),
        key_val_metric={"val_dice_subject": scores},
        val_handlers=[
            RunFolder(folder, datalist, scores, weights=path, seed=0, settings={"tutorial": "02", "network": name})
        ],
    ).run()
    dice[name] = scores.summary["dice_subject"]

print(f"Teacher: Dice {dice['teacher']['mean']:.3f}, student: Dice {dice['student']['mean']:.3f}")
low, high = dice["student"]["ci95"]
print(f"Dice per subject {dice['student']['mean']:.2f}, 95 % interval {low:.2f} to {high:.2f}")
print(f"Report: {work / 'student' / 'report.html'}")
