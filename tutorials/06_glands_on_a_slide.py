# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # Glands on a whole slide, from tags of patches
#
# A pathologist tags patches: this one holds glands, that one other tissue, the third both. Nobody draws. A classifier
# that learns the tags has a signed class map, and the larger class wins at each pixel. So it can segment a whole
# slide, tile by tile, in memory that does not grow with the slide.
#
# This is the first stage of the gland method (Feng et al., AAAI 2025). The second is a segmenter that learns the
# pseudo-masks of the first, as in the tutorial on second stages. The bundle `histology_gland_segmentation` has both,
# with weights. Here all runs on phantoms in about two minutes on a CPU, and needs `pip install 'monai-wsss[slides]'`.
#
# Research use only, not for diagnosis.

# %%
import logging
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, RandRotate90d
from monai.utils import set_determinism

from monai_wsss.data import EpochCacheDataset, LabelBalancedSampler, load_datalist, load_header, make_phantoms
from monai_wsss.engines import WSSSTrainer
from monai_wsss.inferers import SlideNormalizer, SlideReading, TileLayout, segment_slide
from monai_wsss.methods import GlandClassification
from monai_wsss.networks import EfficientNetLite, load_encoder_weights
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd

logging.basicConfig(level=logging.WARNING)
set_determinism(0)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
prepared = Path(make_phantoms(work / "phantoms", kind="gland", subjects=(4, 0, 2)))
datalist = prepared / "datalist.json"
patches = load_datalist(datalist, "training")
print(f"{len(patches)} patches, tagged [gland, other]")

# %% [markdown]
# ## 1. Train on the tags
#
# The encoder is EfficientNet-Lite0 with ImageNet weights, which come with the package. Stains differ between subjects,
# so each image is standardized by the tissue of its own section. The sampler draws the same number of patches of each
# kind. `reading` records in the weights how images are read, rows or columns first, so that slides are read so, too.

# %%
read = [LoadImageOrderedd("image"), NormalizeSubjectd("image", foreground="tissue")]
turns = Compose([RandRotate90d("image", prob=0.75), RandFlipd("image", prob=0.5, spatial_axis=0)])
dataset = EpochCacheDataset(patches, Compose(read), turns, seed=0, progress=False)
loader = DataLoader(dataset, batch_size=16, sampler=LabelBalancedSampler(patches, 160))

encoder = EfficientNetLite("lite0", in_channels=3, levels=(2, 3, 4), input_range="z_scores")
method = GlandClassification.from_preset(encoder=encoder)
load_encoder_weights(method.network, "imagenet")
optimizer = torch.optim.AdamW(method.parameter_groups(2e-3, encoder_learning_rate=3e-4), weight_decay=0.01)
WSSSTrainer(method, optimizer, loader, max_epochs=4, reading=load_header(datalist)).run()

# %% [markdown]
# ## 2. A slide
#
# Ours is made of four sections of subjects that were not trained on, with glass between them, 0.62 micrometers per
# pixel. The file says so itself; for one that does not, tell it by `SlideReading(slide_mpp=…)`. Put your SVS, NDPI or
# TIFF in its place.

# %%
keys = ["image", "mask"]
sections = [LoadImageOrderedd(keys)(item) for item in load_datalist(datalist, "test", masks=True)]
height, width, rim = *sections[0]["image"].shape[1:], 32
pixels = np.full((2 * height + 3 * rim, 2 * width + 3 * rim, 3), 244, np.uint8)
truth = np.zeros(pixels.shape[:2], np.uint8)
for place, section in enumerate(sections):
    top, left = rim + place // 2 * (height + rim), rim + place % 2 * (width + rim)
    window = np.s_[top : top + height, left : left + width]
    pixels[window] = section["image"].permute(1, 2, 0).numpy().astype(np.uint8)
    truth[window] = section["mask"][0].numpy()
slide, per_cm = work / "slide.tif", 1e4 / 0.62
tifffile.imwrite(slide, pixels, tile=(128, 128), resolution=(per_cm, per_cm), resolutionunit=3, photometric="rgb")

# %% [markdown]
# ## 3. Its mask
#
# `segment_slide` looks for tissue, lays tiles over it, blends them, and writes a pyramidal mask: 0 outside of tissue, 1
# gland, 2 other tissue. `SlideNormalizer` standardizes the tiles by the tissue of the slide.

# %%
reading = SlideReading(mpp=0.62, backend="tifffile")
result = segment_slide(
    slide,
    method.network.eval(),
    work / "mask.tif",
    reading=reading,
    layout=TileLayout(tile=224),
    normalize=SlideNormalizer(slide, reading),
)
print(f"{result.tiles} tiles, {result.tissue_share:.0%} tissue, areas in mm2: {result.class_mm2}")

# %% [markdown]
# ## 4. Measured
#
# Phantoms have masks; a slide of yours has none, and its overlay is what you look at.

# %%
found, gland = tifffile.imread(result.mask) == 1, truth == 1
print(f"Dice of glands on the slide: {2 * (found & gland).sum() / (found.sum() + gland.sum()):.2f}")
print(f"Picture: {result.overlay}")
