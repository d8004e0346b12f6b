# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Train a method by ignite alone: an engine whose step sums the method's losses."""

from __future__ import annotations

import argparse

import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from monai_wsss.data import load_datalist
from monai_wsss.engines import Progress
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd


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
    method = ClassActivationMapping.from_preset(in_channels=in_channels).train()
    optimizer = torch.optim.AdamW(method.player_parameters("network"), lr=1e-3)

    def step(engine: Engine, batch: dict) -> dict[str, float]:
        state = engine.state
        progress = Progress(state.epoch, state.iteration, (state.iteration - 1) / (epochs * len(loader)))
        losses = method(batch, progress, "network")
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.after_step(progress)
        return {name: float(loss) for name, loss in losses.items()}

    Engine(step).run(loader, max_epochs=epochs)
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
