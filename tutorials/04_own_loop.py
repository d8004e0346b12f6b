# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # A loop of your own: a MONAI network, CAM, PAR and CRF in 30 lines
#
# Nothing here needs our trainer, our methods' losses or a configuration. A MONAI network gets a head for class maps, a
# plain PyTorch loop trains it on image-level labels, and its maps become masks in three steps:
#
# 1. **CAM**: the class map, from the healthy level (0) to the image's peak (1).
# 2. **PAR** (pixel-adaptive refinement, of AFA and BMP): pixels take over what near pixels of like color say.
# 3. **CRF** (dense conditional random field): the same over long distances, until border and color agree.
#
# The images are phantoms of dermoscopy. The labels are tags of tiles, "lesion" or "no lesion"; with real images a
# reader tags them. All runs in about a minute on a CPU. Masks are read at the end, to measure.
#
# Research use only, not for diagnosis.

# %%
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_wsss.data import load_datalist, make_phantoms
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMAdapter
from monai_wsss.refinement import DenseCRF, PixelAdaptiveRefinement
from monai_wsss.reports import render_comparison
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd

set_determinism(0)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
folder = Path(make_phantoms(work / "phantoms", kind="skin", subjects=(10, 4, 0)))
keys = ["image", "mask"]
load = LoadImageOrderedd(keys, allow_missing_keys=True)
standardize = NormalizeSubjectd("image")
training = [Compose([load, standardize])(item) for item in load_datalist(folder / "datalist.json", "training")]
validation = [load(item) for item in load_datalist(folder / "datalist.json", "validation", masks=True)]
loader = DataLoader(Dataset(training), batch_size=16, shuffle=True)
assert all("mask" not in item for item in training)

# %% [markdown]
# ## The 30 lines
#
# `CAMAdapter` puts a 1x1 head on any network that gives dense features. Its output is the raw class map; `pool` makes
# the image-level logit of it. `finalize` measures the healthy level on the tiles without a lesion. The rule knows
# this level, and gives the map from there to the peak: at 0.5 it is cut.

# %%
unet = UNet(2, in_channels=3, out_channels=16, channels=(16, 32, 64), strides=(2, 2), norm="batch")
network = CAMAdapter(unet, feature_channels=16, num_classes=1, pooling="topk")
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
for epoch in range(10):
    total = 0.0
    for batch in loader:
        logits = network.pool(network(batch["image"]))
        loss = F.binary_cross_entropy_with_logits(logits, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")
ClassActivationMapping(network).finalize(loader)

network.eval()
rule = network.mask_rule()
par = PixelAdaptiveRefinement(iterations=10)
crf = DenseCRF(position_std=3, bilateral_position_std=30, bilateral_intensity_std=10, intensity_range=255)


@torch.no_grad()
def segment(item):
    photograph = item["image"][None]
    score = rule(network(standardize(item)["image"][None])).cam
    maps = torch.cat([1 - score, score], 1)  # background, lesion
    refined = par(photograph, maps).clamp(0, 1)
    return {"CAM": maps.argmax(1)[0], "PAR": refined.argmax(1)[0], "CRF": crf(photograph, refined).argmax(1)[0]}


# %% [markdown]
# ## What each step gives, on images that were not trained on

# %%
dice = {"CRF": [], "PAR": [], "CAM": []}
for item in validation:
    masks, truth = segment(item), item["mask"][0] > 0
    for name, mask in masks.items():
        dice[name].append(float(2 * (mask.bool() & truth).sum() / (mask.bool().sum() + truth.sum())))
for name, values in dice.items():
    print(f"Dice per image, {name}: {sum(values) / len(values):.2f}")
picture = work / "masks.png"
picture.write_bytes(render_comparison(item["image"], masks, truth, channel_names=["red", "green", "blue"]))
print(f"Picture: {picture}")
