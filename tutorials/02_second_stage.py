# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # A second stage: any MONAI segmenter, trained on another network's pseudo-masks
#
# A network that was trained on image-level labels, the teacher, gives one map per image. The labels of the training
# images are known, so their maps can become pseudo-masks: empty where the label says "no tumor", else the region around
# the map's peak. A segmenter, the student, learns these masks. It needs no cut of a map and no rule that decides
# whether there is a tumor at all. It may be better than its teacher, or not: this tutorial measures both on subjects
# that neither has seen. Training reads no mask.
#
# It runs on phantoms, in a few minutes on a CPU. For your own data give a folder that `monai-wsss prepare` wrote:
# `python tutorials/02_second_stage.py my/prepared`. It must hold slices of T1, T1c and FLAIR, which the teacher was
# trained on, and masks of its validation split, to measure.
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
from monai.transforms import Compose, RandFlipd, RandRotate90d, Resized
from monai.utils import set_determinism

from monai_wsss.data import EpochCacheDataset, attach_pseudo_masks, load_datalist, make_phantoms
from monai_wsss.engines import SegmentationScores, TrainingLog, WSSSTrainer, one_cycle, with_weights
from monai_wsss.inferers import PseudoMaskWriter, VolumeInferer
from monai_wsss.methods import ClassActivationMapping, PseudoMaskSupervision, SegmentationNetwork
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import RunFolder, RunRecord
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, ResizeInPlaned, SaveImageMaskd

logging.basicConfig(level=logging.WARNING)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
prepared = Path(sys.argv[1] if len(sys.argv) > 1 else make_phantoms(work / "phantoms", subjects=(12, 4, 0)))
datalist, modalities = prepared / "datalist.json", ("T1", "T1c", "FLAIR")
bundle = Path(__file__).parents[1] / "bundles" / "brain_mri_cam_segmentation"

# %% [markdown]
# ## 1. The teacher, and its pseudo-masks of the training images
#
# The teacher is the shipped network of the bundle `brain_mri_cam_segmentation`: the mean of three small encoders, which
# were trained on slices of 64 x 64 pixels. Slices of other sizes are resized to this grid, and their maps back.
#
# The writer saves one pseudo-mask per training image. If it is killed, the next run continues where it stopped.

# %%
set_determinism(0)
grid = (64, 64)
teacher = ClassActivationMapping.network_from_preset(in_channels=len(modalities))
weights = bundle / "models" / "model.pt"
training = load_datalist(datalist, "training", modalities=modalities)
reading = [LoadImageOrderedd("image"), NormalizeSubjectd("image")]
views = VolumeInferer(spatial_dims=2, grid=grid, views="dihedral")
PseudoMaskWriter(teacher, weights, training, Compose(reading), views, work / "pseudo_masks").run()

# %% [markdown]
# ## 2. The student
#
# Any MONAI segmenter will do; here it is a small U-Net. It sees images and pseudo-masks on the teacher's grid.
# `plf="none"` is plain cross-entropy. `plf="paper"` is the loss of the gland paper (Feng et al. 2025): a pixel counts
# less if the student disagrees with its pseudo-label, since such labels are often wrong.

# %%
keys = ["image", "pseudo_mask"]
items = attach_pseudo_masks(training, work / "pseudo_masks")
augmentation = Compose([RandRotate90d(keys, prob=0.75), RandFlipd(keys, prob=0.5, spatial_axis=0)])
resizing = [ResizeInPlaned("image", grid), Resized("pseudo_mask", grid, mode="nearest")]
read = Compose([LoadImageOrderedd(keys), NormalizeSubjectd("image"), *resizing])
dataset = EpochCacheDataset(items, read, augmentation, seed=0, progress=False)
sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)

epochs = 8
student = SegmentationNetwork(BasicUNet(2, len(modalities), 2, features=(16, 32, 64, 128, 128, 16), norm="batch"))
method = PseudoMaskSupervision.build(student, plf="none")
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.01)
schedule = one_cycle(optimizer, 1e-3, epochs, loader)
training_dir = work / "training"
handlers = [
    LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
    TrainingLog(training_dir),
    RunRecord(training_dir, datalist, seed=0, settings={"tutorial": "02"}),  # also records that no mask was read
]
WSSSTrainer(method, optimizer, loader, epochs, train_handlers=handlers, model_path=training_dir / "model.pt").run()

# %% [markdown]
# ## 3. Both on subjects that were not trained on
#
# Both are evaluated in the same way. `ToMaskd` asks the network how its output becomes a mask: the teacher's maps are
# cut and gated; among the student's logits the larger one wins.
#
# On the phantoms the student is still worse after these 8 short epochs: Dice 0.46 against the teacher's 0.75 when this
# was written. Only a measurement tells what it gives on your data.

# %%
validation = load_datalist(datalist, "validation", masks=True, modalities=modalities)
keys = ["image", "mask"]
read = Compose([LoadImageOrderedd(keys, allow_missing_keys=True), NormalizeSubjectd("image")])
dice = {}
for name, network, path in (("teacher", teacher, weights), ("student", student, training_dir / "model.pt")):
    scores = SegmentationScores(datalist)
    folder = work / name
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(validation, read), batch_size=1),
        network=with_weights(network, path),
        inferer=VolumeInferer(spatial_dims=2, grid=grid, views="dihedral"),
        postprocessing=Compose([ToMaskd("pred", network), SaveImageMaskd("pred", folder)]),
        key_val_metric={"val_dice_subject": scores},
        val_handlers=[
            RunFolder(folder, datalist, scores, weights=path, seed=0, settings={"tutorial": "02", "network": name})
        ],
    ).run()
    dice[name] = scores.summary["dice_subject"]

for name in ("student", "teacher"):
    low, high = dice[name]["ci95"]
    print(f"{name}: Dice per subject {dice[name]['mean']:.2f}, 95 % interval {low:.2f} to {high:.2f}")
print(f"Masks:  {work / 'student' / 'masks'}")
print(f"Report: {work / 'student' / 'report.html'}")
