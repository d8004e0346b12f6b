# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Train a method by Lightning: the method gives named losses, Lightning does the rest."""

from __future__ import annotations

import argparse

import lightning
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from monai_wsss.data import load_datalist
from monai_wsss.engines import Progress
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd


class Trained(lightning.LightningModule):
    """A method of one player as a Lightning module.

    Args:
        method: maps a batch to named losses.
        learning_rate: of AdamW.
    """

    def __init__(self, method: torch.nn.Module, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.method = method
        self.learning_rate = learning_rate

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        """Give the sum of the losses, and log each."""
        done = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        losses = self.method(batch, Progress(self.current_epoch + 1, self.global_step + 1, done), "network")
        self.log_dict({name: loss.detach() for name, loss in losses.items()})
        return torch.stack(list(losses.values())).sum()

    def optimizer_step(self, *arguments: object, **words: object) -> None:
        """Step, and let the method follow, as averages of weights do."""
        super().optimizer_step(*arguments, **words)
        done = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        self.method.after_step(Progress(self.current_epoch + 1, self.global_step, min(done, 1.0)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give one optimizer of what the method trains."""
        return torch.optim.AdamW(self.method.player_parameters("network"), lr=self.learning_rate)


def train(datalist: str, in_channels: int, epochs: int, weights: str) -> torch.nn.Module:
    """Train class activation maps on a prepared folder, and write the network's weights.

    Args:
        datalist: path of ``datalist.json``.
        in_channels: of its images.
        epochs: passes over the training images.
        weights: file for the weights.
    """
    read = Compose([LoadImageOrderedd("image"), NormalizeSubjectd("image")])
    loader = DataLoader(Dataset(load_datalist(datalist, "training"), read), batch_size=8, shuffle=True)
    method = ClassActivationMapping.from_preset(in_channels=in_channels)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(Trained(method), loader)
    method.finalize(loader, torch.device("cpu"))  # measures the healthy level, by which masks are cut
    torch.save(method.network.state_dict(), weights)
    return method.network


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datalist", required=True)
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--weights", default="model.pt")
    found = parser.parse_args()
    train(found.datalist, found.in_channels, found.epochs, found.weights)
