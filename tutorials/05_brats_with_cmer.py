# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # Studies of several MR sequences: BraTS with CMER
#
# BraTS has four sequences per study, T1, T1c, T2 and FLAIR. CMER (Patel & Dolz, arXiv:2104.02488) trains one classifier
# per sequence on slice labels. The class maps of all are held equal under turns and mirror images, each to itself and
# to one another: what a tumor shows in FLAIR, the network of T2 is taught to see as well. Afterward each network works
# alone, so a study that lacks a sequence is segmented, too.
#
# This tutorial trains on phantoms like BraTS with two of the sequences, in about two minutes on a CPU. With the real
# data, one command makes the same folder, slices to train on and whole studies to test:
#
# ```
# monai-wsss prepare brats --root BraTS2021 --modalities T2,FLAIR --as-slices --out prepared
# ```
#
# BraTS has outlines and no slice labels, so the labels are made from the outlines: simulated supervision. Where one
# sequence is far better than the others, as FLAIR is here, CMER serves the studies that lack it. Numbers
# are in [Which method](../docs/which_method.md).
#
# Research use only, not for diagnosis.

# %%
import logging
import tempfile
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandRotate90d
from monai.utils import set_determinism

from monai_wsss.data import load_datalist, load_header, make_phantoms
from monai_wsss.engines import SegmentationScores, TrainingLog, WSSSTrainer, one_cycle, with_weights
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import CMER
from monai_wsss.refinement import ToMaskBySliced
from monai_wsss.reports import RunFolder, RunRecord
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, SaveImageMaskd

logging.basicConfig(level=logging.WARNING)
set_determinism(0)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
modalities = ("T2", "FLAIR")
prepared = Path(make_phantoms(work / "phantoms", modalities=modalities, subjects=(16, 0, 4)))
datalist = prepared / "datalist.json"

# %% [markdown]
# ## 1. Train on slice labels
#
# The method logs each term by itself: the classification of each sequence, the equivariance, and what goes between the
# sequences. Every term can be left out, e.g. `cross_modal=False`, as the paper's ablation does.

# %%
read = Compose([LoadImageOrderedd("image"), NormalizeSubjectd("image")])
turns = Compose([RandRotate90d("image", prob=0.75), RandFlipd("image", prob=0.5, spatial_axis=0)])
slices = [read(item) for item in load_datalist(datalist, "training", modalities=modalities)]
loader = DataLoader(Dataset(slices, turns), batch_size=16, shuffle=True)

epochs = 14
network = CMER.network_from_preset(modalities=modalities, width=16)
method = CMER.from_preset(network=network)
optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.01)
schedule = LrScheduleHandler(one_cycle(optimizer, 3e-3, epochs, loader), print_lr=False, epoch_level=False)
training_dir = work / "training"
record = RunRecord(training_dir, datalist, seed=0, settings={"tutorial": "05"})  # also that no mask was read
handlers = [schedule, TrainingLog(training_dir), record]
weights = training_dir / "model.pt"
trainer = WSSSTrainer(
    method,
    optimizer,
    loader,
    epochs,
    train_handlers=handlers,
    model_path=weights,
    reading=load_header(datalist),
)
trainer.run()
lines = (training_dir / "training_log.csv").read_text().splitlines()
print(lines[0], lines[-1], sep="\n")
print("fused:", [name for name, reliable in zip(modalities, network.reliable.tolist(), strict=True) if reliable])

# %% [markdown]
# ## 2. Whole studies, with all sequences and with one
#
# The test studies are NIfTI volumes. `VolumeInferer` walks through their slices and puts the maps together again. It
# averages the maps of eight views, turned and mirrored. `ToMaskBySliced` decides each slice by itself, since labels of
# slices trained it. `present` names the sequences at hand; the weights are the same. When this was written, Dice was
# 0.45 with T2 alone and 0.55 with both.
#
# A network that training found unreliable warns when it has to work alone.

# %%
for present in (("T2",), modalities):
    name = "+".join(present)
    studies = load_datalist(datalist, "test", masks=True, modalities=present)
    keys = ["image", "mask"]
    read = Compose([LoadImageOrderedd(keys, allow_missing_keys=True), NormalizeSubjectd("image")])
    deployed = CMER.network_from_preset(modalities=modalities, width=16, present=present)
    scores, results = SegmentationScores(datalist), work / name
    settings = {"tutorial": "05"}
    words = {"weights": weights, "training_dir": training_dir, "modalities": present}
    record = RunFolder(results, datalist, scores, **words, seed=0, settings=settings)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(studies, read), batch_size=1),
        network=with_weights(deployed, weights),
        inferer=VolumeInferer(spatial_dims=2, views="dihedral"),
        postprocessing=Compose([ToMaskBySliced("pred", deployed), SaveImageMaskd("pred", results)]),
        key_val_metric={"val_dice_subject": scores},
        val_handlers=[record],
    ).run()
    print(f"Dice per subject, {name}: {scores.summary['dice_subject']['mean']:.2f}")
print(f"Report: {results / 'report.html'}")
