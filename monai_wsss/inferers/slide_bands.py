# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The bands of a slide's mask: tiles are read ahead, scored by the network, blended and decided.

Any run of bands can be computed by itself: the rows of tiles that reach into its first band are done again, in the same
order.  So a run that was killed goes on in the middle, and workers on several machines share the bands of one slide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from monai_wsss._spread import RayWorkers, check_shared
from monai_wsss.inferers.slide_reading import SlideReading, SlideSource, SlideView
from monai_wsss.inferers.slide_tiles import BandBlender, TileGrid, TileLayout, TileStep
from monai_wsss.inferers.slide_tissue import TissueMap
from monai_wsss.refinement import MaskRule

__all__ = ["Network", "Normalize", "SlideBands", "SlideWork", "bands_of_workers", "normalized_tile"]

_COLUMNS = 2048  # decided at once
_TOGETHER = 8  # bands that a worker does at once: for each such run a row of tiles is done twice

Network = Callable[[torch.Tensor], torch.Tensor]
Normalize = Callable[[torch.Tensor], torch.Tensor]
Part = tuple[int, int, np.ndarray]
"""First row and column of a part of the mask, and its values (h, w) uint8."""


def normalized_tile(pixels: torch.Tensor, normalize: Normalize | None) -> torch.Tensor:
    """Give a tile as the network takes it, (C, t, t)."""
    tile = pixels if normalize is None else torch.as_tensor(normalize(pixels))
    if tile.ndim != 3 or tile.shape[1:] != pixels.shape[1:]:
        raise ValueError(
            f"Expected `normalize` to give (C, h, w) of the tile's size {tuple(pixels.shape[1:])}, got "
            f"{tuple(tile.shape)}."
        )
    return torch.as_tensor(np.asarray(tile), dtype=torch.float32)


@dataclass(frozen=True)
class _Tiles:
    """Reads the tiles of a step."""

    view: SlideView
    side: int
    axes: str
    normalize: Normalize | None

    def __call__(self, step: TileStep, top: int) -> torch.Tensor | None:
        """Read (B, C, t, t) float32; None for a step without tiles."""
        order, tiles = (2, 1, 0) if self.axes == "xy" else (2, 0, 1), []
        for left in step.lefts:
            pixels = self.view.region(top, left, self.side, self.side).transpose(order)
            tiles.append(normalized_tile(torch.from_numpy(pixels.astype(np.float32)), self.normalize))
        return torch.stack(tiles) if tiles else None


class _Scorer:
    """Asks the network for the scores of tiles, in eval mode and on its device."""

    def __init__(self, network: Network, device: str | torch.device | None, amp: bool, axes: str) -> None:
        self.network, self.amp, self.axes = network, amp, axes
        if device is None:
            own = next(network.parameters(), None) if isinstance(network, nn.Module) else None
            device = "cpu" if own is None else own.device
        self.device = torch.device(device)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put the network into eval mode on the device; afterwards it has its former mode."""
        training = self.network.training if isinstance(self.network, nn.Module) else False
        if isinstance(self.network, nn.Module):
            self.network.eval().to(self.device)
        try:
            yield
        finally:
            if isinstance(self.network, nn.Module):
                self.network.train(training)

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Give scores (B, C, t, t) float32, rows first."""
        kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=kind, enabled=self.amp):
            scores = self.network(pixels.to(self.device))
        if not isinstance(scores, torch.Tensor) or scores.ndim != 4 or scores.shape[2:] != pixels.shape[2:]:
            came = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ValueError(
                f"Expected the network to give (B, channels, {pixels.shape[2]}, {pixels.shape[3]}), the size of its "
                f"input, got {came}."
            )
        scores = scores.transpose(2, 3) if self.axes == "xy" else scores
        return scores.float().cpu().numpy()


@dataclass(frozen=True)
class SlideBands:
    """Computes bands of one open slide.

    Attributes:
        grid: the tiles.
        tiles: reads them.
        scorer: asks the network.
        rule: decides by the scores of each pixel.
        label: (1, K) of the slide, if known.
        batch_size: tiles at once.
    """

    grid: TileGrid
    tiles: _Tiles
    scorer: _Scorer
    rule: MaskRule
    label: torch.Tensor | None
    batch_size: int

    def over(self, tissue: TissueMap, first: int, end: int) -> Iterator[tuple[int, list[Part] | None]]:
        """Compute the bands from ``first`` to before ``end``, in order; the scorer must be ready.

        Yields:
            The number of tiles of a step, those that are done again left out, and the parts of the band that it
            finished, if any.
        """
        blender: BandBlender | None = None
        for step, pixels in self._ahead(self.grid.steps(tissue, self.batch_size, first, end)):
            if step.opens or blender is None:
                blender = BandBlender(self.grid, step.strip)
            if pixels is not None:
                for left, scores in zip(step.lefts, self.scorer(pixels), strict=True):
                    blender.add(step.row, left, scores)
            tiles = len(step.lefts) if step.writes else 0
            yield tiles, self._parts(blender, step, tissue) if step.closes and step.writes else None
            if step.closes:
                blender.advance(step.row)

    def _ahead(self, steps: Iterator[TileStep]) -> Iterator[tuple[TileStep, torch.Tensor | None]]:
        """Yield steps with their pixels; the next ones are read while the network works on these."""
        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for step in steps:
                following = (step, pool.submit(self.tiles, step, self.grid.tops[step.row]))
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    @torch.no_grad()
    def _parts(self, blender: BandBlender, step: TileStep, tissue: TissueMap) -> list[Part]:
        """Decide the band of a row of tiles; parts without tissue are left out."""
        found: list[Part] = []
        top, bottom = self.grid.band(step.row)
        for first in range(blender.begin, blender.end, _COLUMNS):
            last = min(first + _COLUMNS, blender.end)
            inside = tissue.pixels(top, bottom, first, last)
            scores = blender.finish(step.row, slice(first - blender.begin, last - blender.begin))
            if scores is not None and inside.any():
                mask = self.rule.mask(torch.from_numpy(scores)[None], self.label)[0, 0].numpy()
                found.append((top, first, np.where(inside, mask, np.uint8(0))))
        return found


@dataclass(frozen=True)
class SlideWork:
    """What the bands of a slide depend on, as it can be sent to another process.

    Attributes:
        slide: the file.
        reading: how it is read.
        layout: where tiles lie.
        network: gives scores.
        normalize: what the network gets of a tile.
        rule: decides by the scores of each pixel.
        label: (1, K) of the slide, if known.
        batch_size: tiles at once.
        amp: autocast.
    """

    slide: Path
    reading: SlideReading
    layout: TileLayout
    network: Network
    normalize: Normalize | None
    rule: MaskRule
    label: torch.Tensor | None
    batch_size: int
    amp: bool

    def bands(self, source: SlideSource, device: str | torch.device | None) -> SlideBands:
        """Give what computes the bands of the slide, opened here."""
        view, axes = self.reading.view(source), self.reading.axes or "xy"
        tiles = _Tiles(view, self.layout.tile, axes, self.normalize)
        scorer = _Scorer(self.network, device, self.amp, axes)
        return SlideBands(self.layout.over(view.size), tiles, scorer, self.rule, self.label, self.batch_size)


@dataclass(frozen=True)
class _SentWork:
    """A slide's work and its tissue, in another process."""

    work: SlideWork
    tissue: TissueMap

    def __call__(self, device: str) -> Callable[[tuple[int, int]], list[list[Part]]]:
        """Open the slide; give the function that computes bands from a first one to before another."""
        check_shared(self.work.slide, f"the slide {self.work.slide}")
        bands = self.work.bands(self.work.reading.open(self.work.slide), device)

        def compute(span: tuple[int, int]) -> list[list[Part]]:
            with bands.scorer.ready():
                return [parts for _, parts in bands.over(self.tissue, *span) if parts is not None]

        return compute


def bands_of_workers(
    workers: RayWorkers, work: SlideWork, bands: SlideBands, tissue: TissueMap, done: int
) -> Iterator[tuple[int, int, list[list[Part]]]]:
    """Let workers compute what is left of a slide.

    Args:
        workers: the processes.
        work: the slide.
        bands: of this process, which tell where bands lie and on which kind of device they are computed.
        tissue: where the network looks.
        done: bands that are finished.

    Yields:
        The number of a band, the tiles of it and of those after it that came with it, and the parts of these bands.

    Raises:
        DataError: see :meth:`~monai_wsss._spread.RayWorkers.each`.
    """
    grid, gpu = bands.grid, bands.scorer.device.type == "cuda"
    size = max(1, min(_TOGETHER, -(-(grid.bands - done) // max(workers.count(gpu=gpu), 1))))
    rows = len(grid.tops)
    spans = [
        (first, min(first + size, end))
        for end in range(rows, grid.bands + 1, rows)  # no run of bands crosses the border of two strips
        for first in range(max(end - rows, done), end, size)
    ]
    network = work.network
    if isinstance(network, nn.Module):
        network = copy.deepcopy(network).cpu()
    for number, found in workers.each(_SentWork(replace(work, network=network), tissue), spans, gpu=gpu):
        steps = grid.steps(tissue, work.batch_size, *spans[number])
        yield spans[number][0], sum(len(step.lefts) for step in steps if step.writes), found
