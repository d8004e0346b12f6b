# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # From a folder of images and a table of labels to masks and a report
#
# You have images, and for each image you know whether the finding is there. You have no outlines. This tutorial goes
# from there to masks of unseen subjects and a report that says how good they are, in a few minutes on a CPU. It makes
# its own brain phantoms; put your folder and your CSV in their place.
#
# Research use only, not for diagnosis.

# %%
import csv
import logging
import shutil
import tempfile
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandRotate90d
from monai.utils import set_determinism

from monai_wsss.data import EpochCacheDataset, load_datalist, make_phantoms, prepare_folder
from monai_wsss.engines import SegmentationScores, TrainingLog, WSSSTrainer, one_cycle
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMEncoder
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import RunFolder
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, SaveImageMaskd

logging.basicConfig(level=logging.WARNING)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
modalities = ("T1", "T1c", "FLAIR")

# %% [markdown]
# ## 1. What you have
#
# `images/` holds one file per sequence of a slice, `<id>_<sequence>.png`. `labels.csv` has one row per slice: its id,
# its subject, and 1 or 0. Phantoms come with masks, which are used to measure and never to train. Without masks
# everything here runs too, except for the Dice.

# %%
phantoms = Path(make_phantoms(work / "phantoms", modalities=modalities, subjects=(16, 6, 0)))
images, masks, table = work / "images", work / "masks", work / "labels.csv"
images.mkdir()
masks.mkdir()
with open(table, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "subject", "tumor", "split"])
    for split in ("training", "validation"):
        for item in load_datalist(phantoms / "datalist.json", split, masks=True):
            for source, name in zip(item["image"], modalities, strict=True):
                shutil.copyfile(source, images / f"{item['id']}_{name}.png")
            if "mask" in item:
                shutil.copyfile(item["mask"], masks / f"{item['id']}.png")
            writer.writerow([item["id"], item["subject"], int(item["label"][0]), split])

# %% [markdown]
# ## 2. Prepare
#
# One call checks every file (shapes, NaN, labels other than 0 and 1, a subject in two splits …), copies all files into
# a self-contained folder and writes its `datalist.json`. On the command line:
#
# ```
# monai-wsss prepare folder --images images --labels labels.csv --masks masks \
#     --subject-column subject --label-columns tumor --split-column split --out prepared
# ```

# %%
datalist = prepare_folder(
    images,
    table,
    work / "prepared",
    masks=masks,
    subject_column="subject",
    label_columns=("tumor",),
    split_column="split",
)
training = load_datalist(datalist, "training", modalities=modalities)
positives = sum(int(item["label"][0]) for item in training)
print(f"{len(training)} training slices, {positives} with a tumor")
assert all("mask" not in item for item in training)

# %% [markdown]
# ## 3. Train on the labels
#
# The network is an encoder at a quarter of the resolution with a 1x1 head. Its output is a map of tumor evidence, and
# the largest value of the map answers "is there a tumor?". Only that answer is trained.

# %%
set_determinism(0)
reading = [LoadImageOrderedd("image"), NormalizeSubjectd("image")]
augmentation = Compose([RandRotate90d("image", prob=0.75), RandFlipd("image", prob=0.5, spatial_axis=0)])
dataset = EpochCacheDataset(training, Compose(reading), augmentation, seed=0, progress=False)
sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)

epochs = 12
network = CAMEncoder(spatial_dims=2, in_channels=len(modalities), num_classes=1, pooling="max")
method = ClassActivationMapping(network)
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.01)
schedule = one_cycle(optimizer, 1e-3, epochs, loader)
trainer = WSSSTrainer(
    method,
    optimizer,
    loader,
    epochs,
    train_handlers=[
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        TrainingLog(work / "training"),
    ],
    model_path=work / "training" / "model.pt",
)
trainer.run()
print(f"healthy level of the map, measured on slices without tumor: {network.negative_reference.item():.2f}")

# %% [markdown]
# ## 4. Masks and a report for subjects that were not trained on
#
# In slices in which the network sees a tumor at all, a pixel belongs to the tumor if the map lies more than half-way
# from the healthy level to the slice's peak. No mask is needed to choose that cut.

# %%
validation = load_datalist(datalist, "validation", masks=True, modalities=modalities)
keys = ["image", "mask"]
read = Compose([LoadImageOrderedd(keys, allow_missing_keys=True), NormalizeSubjectd("image")])
scores = SegmentationScores(datalist)
results = work / "results"
evaluator = SupervisedEvaluator(
    device=torch.device("cpu"),
    val_data_loader=DataLoader(Dataset(validation, read), batch_size=1),
    network=network,
    inferer=VolumeInferer(spatial_dims=2, views="dihedral"),
    postprocessing=Compose([ToMaskd("pred", network), SaveImageMaskd("pred", results)]),
    key_val_metric={"val_dice_subject": scores},
    val_handlers=[
        CheckpointLoader(work / "training" / "model.pt", {"model": network}),
        RunFolder(
            results,
            datalist,
            scores,
            weights=work / "training" / "model.pt",
            seed=0,
            settings={"tutorial": "01", "modalities": modalities, "epochs": epochs},
            training_dir=work / "training",
        ),
    ],
)
evaluator.run()
dice = scores.summary["dice_subject"]
print(f"Dice per subject {dice['mean']:.2f}, 95 % interval {dice['ci95'][0]:.2f} to {dice['ci95'][1]:.2f}")
print(f"Masks:  {results / 'masks'}")
print(f"Report: {results / 'report.html'}")

# %% [markdown]
# ## Where to go from here
#
# - The same as a bundle: `bundles/brain_mri_cam_segmentation`, with `--dataset_dir` for your prepared folder.
# - More seeds: `monai_wsss.networks.MapEnsemble` averages several maps and varies less than one.
# - Your own network: `monai_wsss.networks.CAMAdapter` gives any MONAI network such a head.
