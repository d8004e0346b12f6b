# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The cost of a whole slide: peak memory and throughput for slides of growing size, generated on disk.

    python speed/whole_slide.py [--sides 5000 10000 20000] [--mpp 1.0] [--backend openslide] [--device cpu]

A Markdown table; megapixels are those of the slide's full resolution, glass included.  A slide is a pyramid of JPEG
tiles at 0.5 micrometers per pixel, 60 % of it tissue, and never in memory as a whole.  Each size runs in a process of
its own; memory is the process's peak resident size, and its growth after a first, tiny slide, which loads the libraries
and the network.  On a machine with other work, trust the CPU time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from harness import print_heads, print_line, resident_peak_mib

TILE = 256


def tiles(side: int, step: int) -> Iterator[np.ndarray]:
    """Draw H&E-like tiles of the level that takes one in ``step`` pixels: a disk of tissue with ring-shaped glands."""
    y, x = np.mgrid[:TILE, :TILE] * step % TILE - TILE / 2
    ring = np.hypot(y, x)
    gland = ((ring > 50) & (ring < 100))[..., None]
    noise = np.random.default_rng(0).integers(-12, 12, (TILE, TILE, 3))
    tissue = (np.where(gland, (120, 60, 150), (215, 150, 190)) + noise).astype(np.uint8)
    glass = np.full((TILE, TILE, 3), 244, dtype=np.uint8)
    for top in range(0, side // step, TILE):
        for left in range(0, side // step, TILE):
            y, x = (np.arange(TILE)[:, None] + top) * step / side - 0.5, (np.arange(TILE) + left) * step / side - 0.5
            yield np.where((y**2 + x**2 < 0.6 / np.pi)[..., None], tissue, glass)


def write_slide(path: Path, side: int) -> None:
    """Write a pyramid of three levels, 1, 4 and 16."""
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 4, 16):
            writer.write(
                tiles(side, step),
                shape=(side // step, side // step, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                resolution=(2e4 / step, 2e4 / step),
                resolutionunit="CENTIMETER",
                subfiletype=int(step > 1),
                metadata=None,
                maxworkers=1,
            )


def segment(folder: Path, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Measure seconds, tiles and peak memory of one slide, in a process of its own."""
    import torch

    from monai_wsss.inferers import SlideReading, TileLayout, segment_slide
    from monai_wsss.networks import CAMEncoder

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = CAMEncoder(2, 3, 2, width=options.width).to(options.device)

    def run(name: str) -> tuple[float, float, int]:
        start, busy = time.perf_counter(), time.process_time()
        result = segment_slide(
            folder / f"{name}.tif",
            network,
            folder / f"{name}_mask.tif",
            reading=SlideReading(mpp=options.mpp, backend=options.backend),
            layout=TileLayout(options.tile),
            batch_size=options.batch_size,
            normalize=lambda tile: tile / 127.5 - 1,
            amp=options.amp,
            resume=False,
        )
        return time.perf_counter() - start, time.process_time() - busy, result.tiles

    run("tiny")
    before = resident_peak_mib()
    seconds, busy, count = run(str(side))
    return {"seconds": seconds, "busy": busy, "tiles": count, "before": before, "peak": resident_peak_mib()}


def table(options: argparse.Namespace) -> None:
    print_heads(
        *("slide", "file", "tiles seen", "time", "CPU time", "of slide", "per CPU second", "peak memory"),
        "by the slide",
    )
    with tempfile.TemporaryDirectory() as folder:
        write_slide(Path(folder) / "tiny.tif", 8 * options.tile)  # one full batch
        for side in options.sides:
            slide = Path(folder) / f"{side}.tif"
            write_slide(slide, side)
            command = [sys.executable, *sys.argv, "--one", folder, str(side)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            pixels = side**2 / 1e6
            print_line(
                f"{side} x {side}",
                f"{slide.stat().st_size / 2**20:.0f} MiB",
                f"{found['tiles']:.0f}",
                f"{found['seconds']:.1f} s",
                f"{found['busy']:.1f} s",
                f"{pixels / found['seconds']:.1f} MP/s",
                f"{pixels / found['busy']:.1f} MP",
                f"{found['peak']:.0f} MiB",
                f"{found['peak'] - found['before']:.0f} MiB",
            )
            slide.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10000, 20000])
    parser.add_argument("--mpp", type=float, default=1.0)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--backend", default="openslide")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(segment(Path(options.one[0]), int(options.one[1]), options)))
    else:
        table(options)


if __name__ == "__main__":
    main()
