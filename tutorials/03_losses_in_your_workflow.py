# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # Three losses in a workflow of your own
#
# You have a MONAI workflow and want a single part of this package, not its trainer. This tutorial puts three losses
# into MONAI's stock `SupervisedTrainer`:
#
# | loss | paper | what it wants |
# |---|---|---|
# | `EquivarianceLoss` | SEAM, CMER | the class map of a turned image is the turned class map |
# | `PurifiedLabelLoss` (PLF) | Feng et al. 2025 (glands) | pixels whose pseudo-label does not fit count less |
# | `AffinityLoss` | AFA | near places of one class look alike to the network, those of two classes do not |
#
# The first trains a classifier on image-level labels. The other two train a segmenter on pseudo-masks from its maps.
# All runs in about a minute on a CPU, on phantoms of dermoscopy whose tiles are tagged "lesion" or "no lesion". Masks
# are read at the end, to measure.
#
# Research use only, not for diagnosis.

# %%
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet
from monai.transforms import Compose
from monai.utils import set_determinism
from torch import nn

from monai_wsss.cams import normalize_maps
from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.losses import AffinityLoss, EquivarianceLoss, PurifiedLabelLoss
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMAdapter
from monai_wsss.reports import render_comparison
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, PairedSpatialTransform

logging.basicConfig(level=logging.WARNING)
set_determinism(0)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
folder = Path(make_phantoms(work / "phantoms", kind="skin", subjects=(10, 4, 0)))
keys = ["image", "mask"]
load = LoadImageOrderedd(keys, allow_missing_keys=True)
standardize = NormalizeSubjectd("image")
read = Compose([load, standardize])
training = [read(item) for item in load_datalist(folder / "datalist.json", "training")]
validation = [load(item) for item in load_datalist(folder / "datalist.json", "validation", masks=True)]
assert all("mask" not in item for item in training)


def train(network, loss, items, epochs, learning_rate):
    """Train with MONAI's own trainer: it knows nothing of this package."""
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(items), batch_size=16, shuffle=True),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=learning_rate),
        loss_function=loss,
    )
    trainer.logger.setLevel(logging.WARNING)
    trainer.run()


# %% [markdown]
# ## 1. Equivariance
#
# A loss that compares two views needs a network that gives both. `TwoViews` draws a turn or a mirror image for each
# batch, and gives the raw maps of the image and both sides of the equation: the moved maps, and the maps of the moved
# image. `PairedSpatialTransform` moves images and maps alike. The loss function is an ordinary one of what the network
# gives and of the label.

# %%
unet = UNet(2, in_channels=3, out_channels=16, channels=(16, 32, 64), strides=(2, 2), norm="batch")
cam = CAMAdapter(unet, feature_channels=16, num_classes=1, pooling="topk")


class TwoViews(nn.Module):
    """Give the raw maps, and maps in [0, 1] of both views."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.transform = PairedSpatialTransform(("flip", "rotate"))

    def forward(self, image):
        move = self.transform.draw(image.shape)
        maps, moved = self.network(image), self.network(move(image))
        return maps, move(normalize_maps(maps, "minmax")), normalize_maps(moved, "minmax")


equivariance = EquivarianceLoss()


def classify(views, label):
    maps, warped_maps, maps_of_warped = views
    classification = F.binary_cross_entropy_with_logits(cam.pool(maps), label.float())
    return classification + 1.0 * equivariance(warped_maps, maps_of_warped, label)


train(TwoViews(cam), classify, training, epochs=10, learning_rate=3e-3)

# %% [markdown]
# ## 2. Pseudo-masks
#
# The healthy level is the median response of training tiles without a lesion. A pixel belongs to the lesion where the
# map is more than half-way from there to the image's peak. `gate="given"` leaves tiles empty whose label says so.

# %%
loader = DataLoader(Dataset(training), batch_size=32)
ClassActivationMapping(cam).finalize(loader)
rule = replace(cam.mask_rule(), gate="given")
cam.eval()
pseudo = []
with torch.no_grad():
    for item in training:
        image, label = item["image"][None], torch.as_tensor(item["label"])[None]
        pseudo.append({"image": item["image"], "label": rule(cam(image), label).mask[0]})

# %% [markdown]
# ## 3. Purified labels and affinities
#
# `PurifiedLabelLoss` stands where cross-entropy would: logits and pseudo-mask in, a number out. `AffinityLoss` needs
# affinities, a number in (0, 1) for each pair of places. Here they come from the features of a U-Net at an eighth of
# the resolution; the network of AFA takes them from its attention.

# %%


class UNetWithAffinity(nn.Module):
    """Give logits of a U-Net, and affinities of all pairs of places at an eighth of the resolution."""

    def __init__(self):
        super().__init__()
        self.unet = UNet(2, in_channels=3, out_channels=16, channels=(16, 32, 64), strides=(2, 2), norm="batch")
        self.head = nn.Conv2d(16, 2, 1)
        self.embed = nn.Conv2d(16, 16, 1)

    def forward(self, image):
        features = self.unet(image)
        places = F.normalize(self.embed(F.avg_pool2d(features, 8)).flatten(2), dim=1)
        likeness = torch.einsum("bci,bcj->bij", places, places)
        return self.head(features), torch.sigmoid(5 * likeness)


purified, affinity = PurifiedLabelLoss(variant="oeem"), AffinityLoss(radius=2)


def segment(outputs, label):
    logits, affinities = outputs
    coarse = F.max_pool2d(label.float(), 8)[:, 0].long()  # a place is of the class that it holds anywhere
    return purified(logits, label) + 0.1 * affinity(affinities, coarse)


student = UNetWithAffinity()
train(student, segment, pseudo, epochs=6, learning_rate=3e-3)

# %% [markdown]
# ## 4. Measured on whole images that were not trained on
#
# The segmenter needs neither a cut nor a gate.

# %%
student.eval()
dice = {"maps": [], "segmenter": []}
with torch.no_grad():
    for item in validation:
        image, truth = standardize(item)["image"][None], item["mask"][0] > 0
        masks = {"maps": cam.mask_rule()(cam(image)).mask[0, 0], "segmenter": student(image)[0].argmax(1)[0]}
        for name, mask in masks.items():
            dice[name].append(float(2 * (mask.bool() & truth).sum() / (mask.bool().sum() + truth.sum())))
for name in ("segmenter", "maps"):
    print(f"Dice per image, {name}: {sum(dice[name]) / len(dice[name]):.2f}")
picture = work / "masks.png"
picture.write_bytes(render_comparison(item["image"], masks, truth, channel_names=["red", "green", "blue"]))
print(f"Picture: {picture}")
