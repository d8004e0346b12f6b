# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What ``monai-wsss predict`` spends its time on, part by part, beside MONAI's own transform of each part.

    python speed/predict_parts.py [--size 240 240 155] [--studies 2]

The studies are phantoms of four sequences, enlarged to the size of a clinical study; the weights are those that come
with the package, with a fourth channel.  Printed are the seconds of each part of one study, their ratio to MONAI's
transform, the share of the network in what is neither start nor reading nor writing, and whether the next study was
read while the network worked on this one.  Seconds are those of the processor, one thread per part, so that other
programs on the machine do not count; "start" is the import, the weights, and whatever is no other part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    DeleteItemsd,
    LoadImaged,
    NormalizeIntensity,
    Resize,
    SaveImage,
    ScaleIntensity,
)

from monai_wsss._files import save_tensors, write_json
from monai_wsss.bundle_run import case_run, find_bundle, predict_masks, prediction
from monai_wsss.bundle_run.case_reading import CaseReader
from monai_wsss.bundle_run.runner import BundleRunner
from monai_wsss.data import make_phantoms
from monai_wsss.engines import with_weights
from monai_wsss.methods import ClassActivationMapping
from monai_wsss.refinement import ToMaskd
from monai_wsss.transforms import NormalizeSubjectd, SaveImageMaskd

BUNDLE = "brain_mri_cam_segmentation"
SEQUENCES = ["T1", "T1c", "T2", "FLAIR"]


class Span(NamedTuple):
    """One call of a part: its name, when it began and ended, and the seconds that its thread used of the processor."""

    part: str
    begin: float
    end: float
    seconds: float


def write_studies(folder: Path, size: list[int], count: int) -> list[Path]:
    """Write studies of one size, and give the files of the first."""
    small = Path(make_phantoms(folder / "small", spatial_dims=3, modalities=SEQUENCES, subjects=(1, 1, 1)))
    for number in range(count):
        for name in SEQUENCES:
            source = next(small.rglob(f"*test*/{name}.nii.gz"))
            volume = torch.as_tensor(np.asarray(nibabel.load(source).dataobj, dtype=np.float32))
            large = Resize(size, mode="trilinear")(volume[None])[0].numpy()
            place = folder / "studies" / f"study{number}" / f"{name}.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(large.round().astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), place)
    return [folder / "studies" / "study0" / f"{name}.nii.gz" for name in SEQUENCES]


def write_weights(folder: Path) -> Path:
    """Write the weights of the package with a fourth channel, as the folder of a training."""
    shipped = torch.load(find_bundle(BUNDLE).path / "models" / "model.pt", weights_only=True)
    network = ClassActivationMapping.network_from_preset(in_channels=len(SEQUENCES), num_classes=1)
    for name, value in network.state_dict().items():
        if shipped[name].shape != value.shape:
            shipped[name] = torch.cat([shipped[name], shipped[name][:, -1:]], dim=1) * 3 / 4
    folder.mkdir()
    save_tensors(folder / "model.pt", dict(shipped))
    record = {"config": {"bundle": BUNDLE, "modalities": SEQUENCES}, "classes": ["tumor"], "background": True}
    write_json(folder / "run.json", {**record, "versions": {"monai_wsss": "0"}})
    return folder


@contextmanager
def watched(spans: list[Span]) -> Iterator[None]:
    """Note when each part of ``predict`` begins and ends."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            begin, busy = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **words)
            finally:
                spans.append(Span(part, begin, time.perf_counter(), time.thread_time() - busy))

        return call

    places: list[tuple[Any, str, str]] = [
        (CaseReader, "__call__", "reading"),
        (NormalizeSubjectd, "__call__", "normalizing"),
        (BundleRunner, "_maps", "network"),
        (ToMaskd, "__call__", "mask"),
        (SaveImageMaskd, "__call__", "writing"),
        (case_run, "render_overlay", "page"),
        (case_run, "_write_overlay", "page"),
        (prediction, "write_prediction_page", "page"),
    ]
    patches = [mock.patch.object(owner, name, timed(part, getattr(owner, name))) for owner, name, part in places]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def monai_seconds(files: list[Path], network: torch.nn.Module, out: Path) -> dict[str, float]:
    """Time MONAI's own transform of each part on the same study, once each after a first call."""
    load = Compose(
        [
            LoadImaged(SEQUENCES, ensure_channel_first=True),
            ConcatItemsd(SEQUENCES, "image"),
            DeleteItemsd(SEQUENCES),
        ]
    )
    item = dict(zip(SEQUENCES, map(str, files), strict=True))
    image = load(item)["image"]
    normal = NormalizeIntensity(nonzero=True, channel_wise=True)
    grid = Resize((64, 64), mode="bilinear")
    slices = torch.stack([grid(part).as_tensor() for part in normal(image).movedim(3, 0)])
    logits = MetaTensor(torch.rand(1, *image.shape[1:]), meta=image.meta)
    mask = Compose([ScaleIntensity(), AsDiscrete(threshold=0.5)])
    save = SaveImage(out, output_dtype=np.uint8, resample=False, print_log=False)

    def views() -> None:  # the eight views of the bundle, without resizing: what its network alone costs
        with torch.no_grad():
            for turn in range(4):
                for side in (slices, slices.flip(2)):
                    for chunk in side.rot90(turn, (2, 3)).split(16):
                        SimpleInferer()(chunk, network)

    steps: dict[str, Callable[[], object]] = {
        "reading": lambda: load(item),
        "normalizing": lambda: normal(image.clone()),
        "network": views,
        "mask": lambda: mask(logits),
        "writing": lambda: save(mask(logits)),
    }
    seconds = {}
    for name, step in steps.items():
        busy = time.thread_time()
        step()
        seconds[name] = time.thread_time() - busy
    return seconds


def start_seconds() -> float:
    """Give the seconds of the processor of a new process that imports what ``predict`` needs."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import monai_wsss.bundle_run"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(size: list[int], studies: int) -> None:
    """Measure all parts and print them."""
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    try:
        files, weights = write_studies(work, size, studies), write_weights(work / "run")
        spans: list[Span] = []
        imports, begin, busy = start_seconds(), time.perf_counter(), time.thread_time()
        with watched(spans):
            predict_masks(work / "studies", BUNDLE, work / "out", weights=weights, device="cpu")
        whole, main_thread = time.perf_counter() - begin, time.thread_time() - busy
        network = ClassActivationMapping.network_from_preset(in_channels=len(SEQUENCES), num_classes=1)
        theirs = monai_seconds(files, with_weights(network, weights / "model.pt").eval(), work / "monai")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    own = {"start": imports + max(main_thread - sum(span.seconds for span in spans if span.part != "reading"), 0.0)}
    for part in ("reading", "normalizing", "network", "mask", "writing", "page"):
        own[part] = sum(span.seconds for span in spans if span.part == part) / studies
    print(f"{' x '.join(map(str, size))}, {len(SEQUENCES)} sequences, {studies} studies in {whole:.1f} s\n")
    print("| part | seconds of the processor per study | MONAI's transform | ratio |\n|---|---|---|---|")
    for part, seconds in own.items():
        other = f"{theirs[part]:.2f} | {seconds / theirs[part]:.2f}" if part in theirs else "– | –"
        print(f"| {part} | {seconds:.2f} | {other} |")
    rest = sum(own[part] for part in ("normalizing", "network", "mask", "page"))
    print(f"\nNetwork: {own['network'] / rest:.0%} of normalizing, network, mask and page.")
    if studies > 1:
        readings = sorted(span for span in spans if span.part == "reading")
        begin, end = (
            min(span.begin for span in spans if span.part == "normalizing"),
            min(span.end for span in spans if span.part == "writing"),
        )
        shared = max(0.0, min(readings[1].end, end) - max(readings[1].begin, begin))
        share = shared / (readings[1].end - readings[1].begin)
        print(f"The second study was read while the first was segmented: {share:.0%} of its reading.")


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[240, 240, 155], metavar=("X", "Y", "Z"))
    parser.add_argument("--studies", type=int, default=2)
    options = parser.parse_args()
    measure(options.size, options.studies)


if __name__ == "__main__":
    main()
