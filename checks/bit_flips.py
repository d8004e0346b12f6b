# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Flip single bits of every bundle's weights and of a checkpoint, and count the flips that are noticed when it is read.

    python checks/bit_flips.py [--flips 40] [--seed 0] [FILE.pt ...]

Without files, the weights of all bundles and the checkpoint of a short training are tried.  The bits are drawn by the
seed, over the whole file.  The exit status is 0 if each flip is noticed.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

import torch
from monai.transforms import Compose

from monai_wsss._checks import DataError
from monai_wsss._files import load_tensors
from monai_wsss.data import EpochCacheDataset
from monai_wsss.engines import WSSSTrainer
from monai_wsss.methods import ClassActivationMapping

BUNDLES = Path(__file__).parents[1] / "bundles"


def noticed(path: Path, flips: int, seed: int) -> int:
    """Count the single flipped bits with which a copy of a file is refused; each copy has one.

    Raises:
        DataError: the file itself cannot be read.
    """
    load_tensors(path)
    content, rng, count = bytearray(path.read_bytes()), random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for _ in range(flips):
            place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
            content[place] ^= bit
            copy.write_bytes(content)
            content[place] ^= bit
            try:
                load_tensors(copy)
            except DataError:
                count += 1
    return count


def trained_checkpoint(folder: Path) -> Path:
    """Train for one epoch on noise, and give the checkpoint."""
    torch.manual_seed(0)
    items = [{"image": torch.rand(1, 32, 32), "label": torch.tensor([float(number % 2)])} for number in range(4)]
    method = ClassActivationMapping.tiny()
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        EpochCacheDataset(items, Compose([])), batch_size=2
    )
    optimizer = torch.optim.Adam(method.parameters())
    WSSSTrainer(method, optimizer, loader, 1, checkpoint_dir=folder, progress_bar=False).run()
    return folder / "epoch_0001.pt"


def main() -> int:
    """Print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--flips", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [*sorted(BUNDLES.glob("*/models/*.pt")), trained_checkpoint(Path(folder))]
        counts = [noticed(path, arguments.flips, arguments.seed) for path in files]
        for path, count in zip(files, counts, strict=True):
            name = path.relative_to(BUNDLES) if path.is_relative_to(BUNDLES) else path.name
            print(f"{count:4d} of {arguments.flips} flipped bits noticed in {name}")
    return int(any(count < arguments.flips for count in counts))


if __name__ == "__main__":
    sys.exit(main())
