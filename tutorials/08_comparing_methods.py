# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # Comparing methods: which one for my images?
#
# Papers measured themselves, each on data and by a metric of its own. Here all methods get the same images, the same
# encoder, the same optimizer and the same number of steps, and all are measured alike. What it takes is a prepared
# folder; masks of some validation subjects are used to measure, and never to train or to choose.
#
# On the command line it is one call, which a kill does not hurt: the next call goes on.
#
# ```
# monai-wsss benchmark --data prepared --out comparison --methods cam,seam,gland,full --seeds 0,1 --budget 20m
# ```
#
# This tutorial makes the same call in Python, on phantoms of brain MRI, in about two minutes on a CPU.
#
# Research use only, not for diagnosis.

# %%
import json
import logging
import tempfile
from pathlib import Path

from monai_wsss.benchmark import make_method_benchmark
from monai_wsss.data import load_datalist, make_phantoms

logging.basicConfig(level=logging.ERROR)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
datalist = Path(make_phantoms(work / "phantoms", modalities=("T1", "FLAIR"), subjects=(10, 10, 0))) / "datalist.json"
for split in ("training", "validation"):
    print(f"{split}: {len(load_datalist(datalist, split))} slices")

# %% [markdown]
# ## 1. Train and measure all
#
# `full` learns from masks: it is the bound, not a competitor. `gland` needs two kinds of tissue, so it is refused here
# with a reason, and the others go on. The budget is fixed beforehand: `20m` per training, or epochs, or steps as here.
# More than one seed tells how much of a difference is chance.

# %%
methods = ("cam", "seam", "gland", "full")
comparison = make_method_benchmark(datalist, work / "comparison", methods=methods, seeds=(0, 1), budget="100-steps")
outcomes = comparison.run()
print((work / "comparison" / "leaderboard.md").read_text(encoding="utf-8"))

# %% [markdown]
# ## 2. What of it may be believed
#
# - **The interval** is over subjects. Where two intervals overlap by most of their length, the order says nothing.
# - **p** compares with plain CAM subject by subject, and there is none below six subjects.
# - **The ratio** to full supervision is what the missing masks cost. `healthy clean` is the share of images without the
#   finding that stay empty: a method that paints everywhere may have a fair Dice.
# - **Seeds** that differ by more than two methods do make these two equals.
#
# Each run is one JSON: settings and their SHA-256, versions, digests of data and code, metrics, time, memory.

# %%
for outcome in outcomes:
    if outcome.row is None:
        print(f"{outcome.pair.name}: {outcome.state}. {outcome.reason}")
        continue
    dice, empty = outcome.row.metrics["dice_subject"], outcome.row.metrics["healthy_clean"]
    low, high = dice["ci95"]
    print(
        f"Dice of {outcome.pair.method} with seed {outcome.seed}: {dice['mean']:.2f} [{low:.2f}, {high:.2f}], "
        f"{empty['mean']:.2f} of the healthy slices empty, {outcome.row.seconds:.0f} s"
    )
run = json.loads(
    (work / "comparison/runs/methods_brain_phantoms/validation/cam_small/seed0.json").read_text(encoding="utf-8")
)
print("Versions:", run["versions"], "\nSettings:", run["source"]["settings_sha256"])

# %% [markdown]
# ## 3. Nothing is trained twice
#
# A second call takes finished runs from their JSON, as long as settings, data and defaults are the same, and trains
# what is new. Over several processes it is `processes=2` (`--processes 2`), over GPUs `torchrun --nproc_per_node 8 -m
# monai_wsss benchmark …`, over machines `--ray auto`.

# %%
again = make_method_benchmark(datalist, work / "comparison", methods=methods, seeds=(0, 1), budget="100-steps").run()
assert again == outcomes

# %% [markdown]
# ## 4. Look at the cases
#
# The page needs no network. Its cases stand in the order of how much the methods disagree: that is where a look is
# worth most. Where no subject has a mask, the same call ranks by image-level labels, says so before it trains, and
# [hardly tells anything about masks](../docs/results/choosing.md): draw five subjects instead.

# %%
print(f"Report: {work / 'comparison' / 'comparison.html'}")
