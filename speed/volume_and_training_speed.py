# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The time of a whole study by its parts, the time of a training epoch, and the peak memory of both.

    python speed/volume_and_training_speed.py [--data DIR] [--threads 1] [--repeats 5]

Without ``--data`` (a folder prepared with ``monai-wsss prepare brats``) a study of 240 x 240 x 155 voxels and four
sequences is generated.  Times are medians; memory is the growth of the process's peak resident size.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import nibabel
import numpy as np
import torch
from harness import begin, command_line, resident_peak_mib
from monai.data import DataLoader, DistributedSampler
from monai.transforms import Compose, RandFlipd, RandRotate90d

from monai_wsss.data import EpochCacheDataset, load_datalist, load_header, make_phantoms, write_datalist
from monai_wsss.engines import WSSSTrainer
from monai_wsss.inferers import VolumeInferer
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.networks import CAMEncoder, MapEnsemble
from monai_wsss.refinement import ToMaskd
from monai_wsss.transforms import LoadImageOrderedd, NormalizeSubjectd, SaveImageMaskd


def make_study(folder: Path) -> Path:
    """Write a study of BraTS size: random tissue in an ellipsoid of brain, zero outside, int16."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in (240, 240, 155)), indexing="ij")
    brain = sum(axis**2 for axis in axes) < 1
    names = ["T1", "T1c", "T2", "FLAIR"]
    for name in names:
        volume = np.where(brain, rng.normal(400, 80, brain.shape), 0).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / f"{name}.nii.gz")
    case = {"id": "study", "subject": "study", "image": [f"{name}.nii.gz" for name in names], "label": [1]}
    modality = {str(number): name for number, name in enumerate(names)}
    return write_datalist(folder, {"modality": modality, "classes": ["tumor"], "test": [case]})


def time_study(datalist: Path, repeats: int) -> None:
    header = load_header(datalist)
    splits = ("test", "validation", "training")
    item = next(item for split in splits for item in load_datalist(datalist, split))
    channels = len(header["modality"])
    network = MapEnsemble([CAMEncoder(2, channels, 1) for _ in range(3)]).eval()
    network.set_healthy_level(-3.0, -3.0)
    read, normalize = LoadImageOrderedd("image"), NormalizeSubjectd("image")
    to_mask, save = ToMaskd("pred", network, gate="none"), SaveImageMaskd("pred", tempfile.mkdtemp())
    for views in ("none", "dihedral"):
        inferer = VolumeInferer(grid=(64, 64), views=views)
        seconds: dict[str, list[float]] = defaultdict(list)
        before = resident_peak_mib()
        for _ in range(repeats):
            marks = [time.perf_counter()]
            sample = normalize(read(item))
            marks.append(time.perf_counter())
            with torch.no_grad():
                sample["pred"] = inferer(sample["image"][None], network)[0]
            marks.append(time.perf_counter())
            sample = to_mask(sample)
            marks.append(time.perf_counter())
            save(sample)
            marks.append(time.perf_counter())
            for name, start, end in zip(("reading", "network", "mask", "writing"), marks, marks[1:], strict=False):
                seconds[name].append(end - start)
        parts = {name: statistics.median(values) for name, values in seconds.items()}
        split = ", ".join(f"{name} {value:.2f} s" for name, value in parts.items())
        size = tuple(sample["image"].shape)
        print(
            f"study {size}, views {views}: {sum(parts.values()):.2f} s ({split}); "
            f"peak +{resident_peak_mib() - before:.0f} MiB"
        )


def time_training() -> None:
    items = load_datalist(Path(make_phantoms(tempfile.mkdtemp())) / "datalist.json", "training")
    for members in (1, 3):
        method = ClassActivationMapping(MapEnsemble([CAMEncoder(2, 3, 1) for _ in range(members)]))
        augment = Compose([RandRotate90d("image", 0.75, 3), RandFlipd("image", 0.5, 0)])
        reading = Compose([LoadImageOrderedd("image"), NormalizeSubjectd("image")])
        dataset = EpochCacheDataset(items, reading, augment, progress=False)
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)
        before, start, epochs = resident_peak_mib(), time.perf_counter(), 3
        WSSSTrainer(method, torch.optim.AdamW(method.parameters(), lr=1e-3), loader, epochs, progress_bar=False).run()
        seconds = (time.perf_counter() - start) / epochs
        each = 1000 * seconds / len(items)
        print(
            f"training, {members} member(s), {len(items)} slices of 3 x 64 x 64: {seconds:.1f} s per epoch "
            f"({each:.1f} ms per slice), peak +{resident_peak_mib() - before:.0f} MiB"
        )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, help="a prepared folder with whole studies")
    options = begin(parser)
    time_training()
    folder = options.data or Path(tempfile.mkdtemp())
    datalist = folder / "datalist.json" if options.data else make_study(folder)
    time_study(datalist, options.repeats)


if __name__ == "__main__":
    main()
