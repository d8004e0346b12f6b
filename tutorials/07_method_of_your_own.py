# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

# %% [markdown]
# # A method of your own
#
# A method is a value: it turns a batch into named losses. Trainer, record, evaluation and report come with it. Here
# it is *hide and seek* (Singh & Lee, ICCV 2017), in one class. Class maps find what tells the classes apart best, a
# bright core perhaps, and stop there. If random squares of each training image are hidden, the core is hidden at
# times, and the network has to look at the rest.
#
# Whether it helps is a question for a measurement, so plain class activation maps are trained beside it, on the same
# phantoms of dermoscopy, with the same steps and the same seed. It takes about a minute on a CPU.
#
# [Add a method](../docs/add_a_method.md) says how a method becomes part of the package, with its tests and its page.
#
# Research use only, not for diagnosis.

# %%
import logging
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from monai.networks.nets import UNet
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_wsss.data import load_datalist, load_header, make_phantoms
from monai_wsss.engines import SegmentationScores, TrainingLog, WSSSTrainer, one_cycle, with_weights
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import ClassActivationMapping, WSSSMethod
from monai_wsss.networks import CAMAdapter
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports import RunFolder, RunRecord
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, SaveImageMaskd

logging.basicConfig(level=logging.WARNING)
work = Path(tempfile.mkdtemp(prefix="monai_wsss_tutorial_"))
folder = Path(make_phantoms(work / "phantoms", kind="skin", subjects=(10, 6, 0)))
datalist = folder / "datalist.json"

# %% [markdown]
# ## 1. The method
#
# The base class checks every batch, refuses masks, measures the healthy level when training ends, and warns of maps
# that collapse. What is left is the idea: `hide` and the loss. Hidden squares are 0, which is the mean of the
# skin of images that were standardized, so that they do not look like a finding. The image is whole at inference: the
# network alone is deployed.

# %%


class HideAndSeek(WSSSMethod):
    """Classify images of which random squares are hidden.

    Args:
        network: gives raw class maps and pools them.
        squares: squares along each side of the image.
        share: chance of each square to be hidden, in [0, 1).
    """

    def __init__(self, network, *, squares=8, share=0.2):
        super().__init__(network)
        self.squares, self.share = squares, share
        self.settings |= {"squares": squares, "share": share}  # for the record of the run

    def hide(self, image):
        """Give the images (B, C, H, W) with squares of each set to 0, the mean of the skin."""
        kept = (torch.rand(len(image), 1, self.squares, self.squares, device=image.device) >= self.share).to(image)
        kept = F.interpolate(kept, image.shape[2:], mode="nearest")
        return kept * image

    def losses(self, batch, progress, player):
        """Give ``classification``."""
        maps = self.network(self.hide(batch["image"])).float()
        self.observe(maps, batch["label"])
        logits = self.network.pool(maps)
        return {"classification": F.binary_cross_entropy_with_logits(logits, batch["label"].to(logits))}


# %% [markdown]
# ## 2. Both methods, trained alike

# %%
read = Compose([LoadImageOrderedd("image"), NormalizeSubjectd("image")])
items = [read(item) for item in load_datalist(datalist, "training")]
epochs = 10


def train(name, build):
    set_determinism(0)
    unet = UNet(2, in_channels=3, out_channels=16, channels=(16, 32, 64), strides=(2, 2), norm="batch")
    network = CAMAdapter(unet, feature_channels=16, num_classes=1, pooling="topk")
    method, out = build(network), work / name
    loader = DataLoader(Dataset(items), batch_size=16, shuffle=True)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = LrScheduleHandler(one_cycle(optimizer, 3e-3, epochs, loader), print_lr=False, epoch_level=False)
    record = RunRecord(out, datalist, seed=0, settings={"tutorial": "07", "method": name})  # also that no mask was read
    handlers = [schedule, TrainingLog(out), record]
    trainer = WSSSTrainer(
        method,
        optimizer,
        loader,
        epochs,
        train_handlers=handlers,
        model_path=out / "model.pt",
        reading=load_header(datalist),
    )
    trainer.run()
    return network


networks = {"plain": train("plain", ClassActivationMapping), "hide": train("hide", HideAndSeek)}

# %% [markdown]
# ## 3. Both on subjects that were not trained on
#
# The report shows every case, and how sure the numbers are. On these phantoms hiding does not help: Dice 0.70 against
# 0.80 of plain maps when this was written. Lesions here are of one color, so there is no core to look away from. With
# six subjects and one seed this is a first look. `monai-wsss benchmark` compares methods with more of both.

# %%
keys = ["image", "mask"]
read = Compose([LoadImageOrderedd(keys, allow_missing_keys=True), NormalizeSubjectd("image")])
validation = load_datalist(datalist, "validation", masks=True)
for name, network in networks.items():
    scores, results = SegmentationScores(datalist), work / name / "results"
    weights = work / name / "model.pt"
    settings = {"tutorial": "07", "method": name}
    words = {"weights": weights, "training_dir": work / name, "modalities": ("red", "green", "blue")}
    record = RunFolder(results, datalist, scores, **words, seed=0, settings=settings)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(validation, read), batch_size=1),
        network=with_weights(network, weights),
        inferer=VolumeInferer(spatial_dims=2),
        postprocessing=Compose([ToMaskd("pred", network), SaveImageMaskd("pred", results)]),
        key_val_metric={"val_dice_subject": scores},
        val_handlers=[record],
    ).run()
    dice = scores.summary["dice_subject"]
    low, high = dice["ci95"]
    print(f"Dice per subject, {name}: {dice['mean']:.2f}, 95 % interval {low:.2f} to {high:.2f}")
print(f"Report: {results / 'report.html'}")
