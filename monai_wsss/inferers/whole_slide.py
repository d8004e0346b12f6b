# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A network over a whole slide: tiles over tissue in, a pyramidal mask out, whatever the slide's size.

    slide ── thumbnail → tissue (slide_tissue) → tiles over it (slide_tiles)
      └── tiles at the chosen resolution (slide_reading) → network → blended scores, band by band
            └── to_mask → bands on disk → pyramidal TIFF, overlay, record (slide_writing)

Only what a pixel's own scores decide can be decided band by band, so the rules are those of
:func:`~monai_wsss.refinement.to_mask` that need no whole image; presence is not predicted (give the slide's label).
A network that attends to all of its input attends to a tile here: the tile is its context, and its size and resolution
are best those of training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from monai_wsss._checks import check_choice
from monai_wsss._files import make_directory, write_json
from monai_wsss.inferers.slide_reading import SlideSource, SlideView, check_slide_packages
from monai_wsss.inferers.slide_tiles import BandBlender, TileGrid, TileStep
from monai_wsss.inferers.slide_tissue import TissueMap, find_tissue
from monai_wsss.inferers.slide_writing import SlideScratch, draw_overlay, write_mask_pyramid
from monai_wsss.refinement import to_mask

__all__ = ["SlideResult", "segment_slide"]

logger = logging.getLogger(__name__)

_RULES = ("argmax", "background", "logit", "fixed", "negative_quantile")
_COLUMNS = 2048  # decided at once
_NO_TISSUE = "No tissue was found on the slide: its mask is empty."
_FORMAT = 1  # of the scratch and of what the numbers mean: raised when either changes

Network = Callable[[torch.Tensor], torch.Tensor]
Normalize = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SlideResult:
    """Where the segmentation of a slide lies and what it found.

    Attributes:
        mask: pyramidal TIFF, 0 or class + 1.
        overlay: PNG.
        record: JSON of settings and numbers; names nothing of the slide.
        mpp: micrometers per pixel of the mask (y, x).
        size: (height, width) of the mask.
        tiles: that the network saw.
        tissue_share: of the slide's area.
        class_mm2: area of each class in order, up to the last one that was found.
        note: a sentence where there is something to know, else empty.
    """

    mask: Path
    overlay: Path
    record: Path
    mpp: tuple[float, float]
    size: tuple[int, int]
    tiles: int
    tissue_share: float
    class_mm2: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class _Settings:
    """What decides a mask besides slide and weights; the names are those of :func:`segment_slide`."""

    mpp: float | None
    level: int | None
    slide_mpp: float | None
    tile: int
    overlap: float
    margin: int
    blend: str
    rule: str
    threshold: float | None
    label: tuple[float, ...] | None
    fusion: str
    axes: str
    tissue: str
    backend: str
    amp: bool

    def __post_init__(self) -> None:
        check_choice("axes", self.axes, ("xy", "yx"))
        check_choice("tissue", self.tissue, ("otsu", "all"))
        if self.rule not in _RULES:
            raise ValueError(
                f"Expected `rule` to be one of {', '.join(_RULES)}, which each pixel decides by itself, got "
                f"{self.rule!r}: others need the scores of the whole slide at once."
            )
        if self.tile < 1 or not 0 <= self.overlap < 1:
            raise ValueError(f"Expected `tile` >= 1 and `overlap` in [0, 1), got {self.tile} and {self.overlap}.")


def segment_slide(
    slide: str | os.PathLike[str],
    network: Network,
    out: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    level: int | None = None,
    slide_mpp: float | None = None,
    tile: int = 512,
    overlap: float = 0.25,
    margin: int = 0,
    blend: str = "linear",
    batch_size: int = 4,
    device: str | torch.device | None = None,
    amp: bool = False,
    rule: str = "argmax",
    threshold: float | None = None,
    label: Sequence[float] | None = None,
    fusion: str = "max",
    normalize: Normalize | None = None,
    axes: str = "xy",
    tissue: str = "otsu",
    backend: str = "openslide",
    resume: bool = True,
    progress: bool = True,
) -> SlideResult:
    """Segment a pyramidal TIFF, SVS, NDPI, … tile by tile; memory does not grow with the slide.

    Writes ``out`` (tiled, deflate-compressed pyramidal TIFF: 0 outside tissue, class + 1 inside, micrometers per pixel
    in its tags), ``<out>_overlay.png`` and ``<out>.json``, each whole or absent.  A run that was killed goes on after
    its last finished band if it is started again; a finished one is not repeated.

    Args:
        slide: the file.
        network: gives scores (B, C, h, w) at its input's size: activation maps (G*K channels) or segmentation logits;
            ``decision_traits`` or ``output_kind`` tell which. A module is put into eval mode meanwhile.
        out: the mask, ``….tif`` or ``….tiff``.
        mpp: micrometers per pixel that the network was trained on; resampled from the next finer level. Default: the
            slide's own, level 0.
        level: of the pyramid, in place of ``mpp``.
        slide_mpp: micrometers per pixel of level 0 where the file does not tell.
        tile: side in pixels; of a network with attention over its input also its context.
        overlap: share of a tile that neighbors share, in [0, 1).
        margin: outermost pixels of a tile that are left out, where it has neighbors. With at least the receptive
            field's radius a convolutional network gives exactly what it would give for the whole slide at once.
        blend: ``linear``, ``hann`` or ``constant``, how neighbors fade into one another.
        batch_size: tiles at once.
        device: default: the network's own, else the CPU. A module is moved there.
        amp: autocast, float16 on GPUs and bfloat16 on CPUs.
        rule: of :func:`~monai_wsss.refinement.to_mask`. ``argmax``: all channels are tissue classes (datasets with
            ``"background": false``); ``background``: segmentations whose channel 0 is background; ``logit``, ``fixed``
            and ``negative_quantile`` cut activation maps.
        threshold: the raw response of ``rule="fixed"``.
        label: (K,) 0/1 of the slide, if known: absent classes are left out.
        fusion: ``max`` or ``mean`` over the groups of an activation network.
        normalize: from a tile (3, h, w) float32, 0..255, to the network's input (C, h, w); applied to each tile by
            itself. None: as it is.
        axes: ``xy``: pictures are indexed [x, y] as MONAI's and this package's readers do, so tiles are handed over
            transposed; ``yx``: rows first, for networks that were trained so.
        tissue: ``otsu`` (see :func:`~monai_wsss.inferers.slide_tissue.find_tissue`) or ``all`` for no selection.
        backend: ``openslide`` or ``tifffile``.
        resume: False starts anew whatever is there.
        progress: show a bar.

    Returns:
        Paths and numbers.  A slide without tissue gives an empty mask and says so in ``note``.

    Raises:
        ValueError: arguments that do not fit, a network with another output.
        DataError: a slide that cannot be read, has no resolution or is not RGB; a result that cannot be written.

    Example:
        >>> import tempfile, tifffile
        >>> folder = Path(tempfile.mkdtemp())
        >>> pixels = np.full((300, 200, 3), (200, 120, 180), dtype=np.uint8)
        >>> tifffile.imwrite(folder / "slide.tif", pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit=3)
        >>> result = segment_slide(
        ...     folder / "slide.tif", lambda x: x[:, :2] - 150, folder / "mask.tif", tile=64, progress=False
        ... )
        >>> result.mpp, result.size, result.tissue_share
        ((0.5, 0.5), (300, 200), 1.0)
        >>> np.unique(tifffile.imread(result.mask)).tolist()
        [1]
    """
    settings = _Settings(
        mpp=mpp,
        level=0 if mpp is None and level is None else level,
        slide_mpp=slide_mpp,
        tile=tile,
        overlap=overlap,
        margin=margin,
        blend=blend,
        rule=rule,
        threshold=threshold,
        label=None if label is None else tuple(float(value) for value in label),
        fusion=fusion,
        axes=axes,
        tissue=tissue,
        backend=backend,
        amp=amp,
    )
    check_slide_packages(backend)
    paths = _paths(slide, out)
    with SlideSource(slide, backend=backend, slide_mpp=slide_mpp) as source:
        view = source.view(level=settings.level, mpp=mpp)
        grid = TileGrid(view.size, tile, round(tile * overlap), margin, blend)
        digest = _digest(settings, source, network, normalize)
        found = _finished(paths, digest) if resume else None
        if found is not None:
            logger.info("%s is finished, with the same settings, weights and slide: nothing to do.", paths[0])
            return found
        scratch = SlideScratch(paths[0].with_name(f".{paths[0].name}.partial"), view.size, digest, resume)
        tiles = _Tiles(view, settings, normalize)
        run = _Run(grid, tiles, network, device, settings, batch_size, progress)
        return run(scratch, source.thumbnail(), paths, digest)


def _paths(slide: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Mask, overlay and record; their folder is made."""
    mask = Path(out)
    if mask.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"Expected `out` to end in .tif or .tiff, got {mask}.")
    if mask.resolve() == Path(slide).resolve():
        raise ValueError(f"Expected `out` to be another file than the slide, got {mask} for both.")
    make_directory(mask.parent)
    return mask, mask.with_name(f"{mask.stem}_overlay.png"), mask.with_suffix(".json")


def _finished(paths: tuple[Path, Path, Path], digest: str) -> SlideResult | None:
    """The result of an earlier run that depended on the same."""
    if not all(path.is_file() for path in paths):
        return None
    try:
        record = json.loads(paths[2].read_text(encoding="utf-8"))
    except ValueError:
        return None
    return _result(paths, record) if isinstance(record, dict) and record.get("digest") == digest else None


def _result(paths: tuple[Path, Path, Path], record: dict[str, Any]) -> SlideResult:
    return SlideResult(
        *paths,
        mpp=tuple(record["mpp"]),
        size=tuple(record["size"]),
        tiles=record["tiles"],
        tissue_share=record["tissue_share"],
        class_mm2=tuple(record["class_mm2"]),
        note=record["note"],
    )


def _digest(settings: _Settings, source: SlideSource, network: Network, normalize: Normalize | None) -> str:
    """Of all that a mask depends on: settings, the slide's file, the weights, and what ``normalize`` does."""
    status = source.path.stat()
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    found = hashlib.sha256(repr((_FORMAT, asdict(settings), status.st_size, status.st_mtime_ns, kind)).encode())
    if isinstance(network, nn.Module):
        found.update(repr(network).encode())
        for name, value in network.state_dict().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        plain = {
            name: value
            for name, value in _traits(network, settings.rule).items()
            if not isinstance(value, torch.Tensor)
        }
        found.update(repr(plain).encode())
    else:
        found.update(getattr(network, "__qualname__", "").encode())
    if normalize is not None:  # a function has no weights to look at: what it makes of some pixels tells it
        values = torch.arange(3 * settings.tile**2, dtype=torch.int64).mul(2654435761).remainder(251)
        found.update(_normalized(values.float().reshape(3, settings.tile, settings.tile), normalize).numpy().tobytes())
    return found.hexdigest()


def _traits(network: Network, rule: str) -> dict[str, Any]:
    """What :func:`to_mask` has to know of a network; of one that does not tell, its kind follows from the rule."""
    told = getattr(network, "decision_traits", None)
    if told is not None and not isinstance(network, torch.jit.ScriptModule):
        return dict(told())
    kind = "segmentation" if rule == "background" else "activation"
    names = ("output_kind", "groups", "negative_quantile")
    return {"output_kind": kind} | {name: getattr(network, name) for name in names if hasattr(network, name)}


def _normalized(pixels: torch.Tensor, normalize: Normalize | None) -> torch.Tensor:
    """A tile as the network takes it, (C, t, t)."""
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
    settings: _Settings
    normalize: Normalize | None

    def __call__(self, step: TileStep, top: int) -> torch.Tensor | None:
        """(B, C, t, t) float32, or None for a step without tiles."""
        side, tiles = self.settings.tile, []
        for left in step.lefts:
            order = (2, 1, 0) if self.settings.axes == "xy" else (2, 0, 1)
            pixels = self.view.region(top, left, side, side).transpose(order)
            tiles.append(_normalized(torch.from_numpy(pixels.astype(np.float32)), self.normalize))
        return torch.stack(tiles) if tiles else None


class _Run:
    """One pass over a slide: reads ahead, asks the network, blends, decides and writes."""

    def __init__(
        self,
        grid: TileGrid,
        tiles: _Tiles,
        network: Network,
        device: str | torch.device | None,
        settings: _Settings,
        batch_size: int,
        progress: bool,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` >= 1, got {batch_size}.")
        self.grid, self.tiles, self.network, self.settings = grid, tiles, network, settings
        self.batch_size, self.progress = batch_size, progress
        if device is None:
            own = next(network.parameters(), None) if isinstance(network, nn.Module) else None
            device = "cpu" if own is None else own.device
        self.device = torch.device(device)
        self.seen = 0

    def __call__(
        self, scratch: SlideScratch, thumbnail: np.ndarray, paths: tuple[Path, Path, Path], digest: str
    ) -> SlideResult:
        start, resumed = time.perf_counter(), scratch.done
        if resumed:
            logger.info("Going on after %d of %d finished bands.", resumed, self.grid.bands)
        mpp = self.tiles.view.mpp
        tissue = self._tissue(thumbnail, mpp)
        self._segment(scratch, tissue)
        counts = write_mask_pyramid(scratch, paths[0], mpp)
        draw_overlay(scratch, thumbnail, paths[1])
        areas = counts[1 : int(counts.nonzero()[0].max()) + 1] * (mpp[0] * mpp[1] * 1e-6)
        record = {
            "digest": digest,
            "settings": asdict(self.settings),
            "mpp": list(mpp),
            "size": list(self.grid.size),
            "tiles": sum(len(step.lefts) for step in self.grid.steps(tissue, self.batch_size)),
            "tissue_share": float(tissue.thumbnail.mean()),
            "class_mm2": [float(area) for area in areas],
            "presence": "not predicted" if self.settings.label is None else "given",
            "context": "tile",
            "bands": {"all": self.grid.bands, "taken_over": resumed},
            "seconds": round(time.perf_counter() - start, 3),
            "note": "" if tissue.thumbnail.any() else _NO_TISSUE,
        }
        write_json(paths[2], record)
        scratch.remove()
        return _result(paths, record)

    def _tissue(self, thumbnail: np.ndarray, mpp: tuple[float, float]) -> TissueMap:
        """Where the network looks."""
        if self.settings.tissue == "all":
            return TissueMap(np.ones(thumbnail.shape[:2], dtype=bool), self.grid.size)
        shrink = (self.grid.size[0] / thumbnail.shape[0], self.grid.size[1] / thumbnail.shape[1])
        found = find_tissue(thumbnail, (mpp[0] * shrink[0], mpp[1] * shrink[1]))
        if not found.any():
            logger.warning(_NO_TISSUE)
        return TissueMap(found, self.grid.size)

    def _segment(self, scratch: SlideScratch, tissue: TissueMap) -> None:
        """All bands that are not on disk yet."""
        training = self.network.training if isinstance(self.network, nn.Module) else False
        if isinstance(self.network, nn.Module):
            self.network.eval().to(self.device)
        total = sum(len(step.lefts) for step in self.grid.steps(tissue, self.batch_size, scratch.done))
        try:
            with tqdm(total=total, desc="tiles", unit="tile", disable=not self.progress) as bar, torch.no_grad():
                blender: BandBlender | None = None
                for step, pixels in self._ahead(self.grid.steps(tissue, self.batch_size, scratch.done)):
                    if step.opens or blender is None:
                        blender = BandBlender(self.grid, step.strip)
                    if pixels is not None:
                        for left, scores in zip(step.lefts, self._scores(pixels), strict=True):
                            blender.add(step.row, left, scores)
                        bar.update(len(step.lefts))
                    if step.closes:
                        self._finish(blender, step, scratch, tissue)
        finally:
            if isinstance(self.network, nn.Module):
                self.network.train(training)

    def _ahead(self, steps: Iterator[TileStep]) -> Iterator[tuple[TileStep, torch.Tensor | None]]:
        """Steps with their pixels; the next ones are read while the network works on these."""
        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for step in steps:
                following = (step, pool.submit(self.tiles, step, self.grid.tops[step.row]))
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def _scores(self, pixels: torch.Tensor) -> np.ndarray:
        """Scores (B, C, t, t) float32, rows first."""
        kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=kind, enabled=self.settings.amp):
            scores = self.network(pixels.to(self.device))
        if not isinstance(scores, torch.Tensor) or scores.ndim != 4 or scores.shape[2:] != pixels.shape[2:]:
            came = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ValueError(
                f"Expected the network to give (B, channels, {pixels.shape[2]}, {pixels.shape[3]}), the size of its "
                f"input, got {came}."
            )
        scores = scores.transpose(2, 3) if self.settings.axes == "xy" else scores
        return scores.float().cpu().numpy()

    def _finish(self, blender: BandBlender, step: TileStep, scratch: SlideScratch, tissue: TissueMap) -> None:
        """Decide the band of a row of tiles and write it."""
        top, bottom = self.grid.band(step.row)
        if step.writes:
            for first in range(blender.begin, blender.end, _COLUMNS):
                last = min(first + _COLUMNS, blender.end)
                inside = tissue.pixels(top, bottom, first, last)
                scores = blender.finish(step.row, slice(first - blender.begin, last - blender.begin))
                if scores is not None and inside.any():
                    scratch.write(top, first, np.where(inside, self._mask(scores), np.uint8(0)))
            scratch.finish_band()
        blender.advance(step.row)

    def _mask(self, scores: np.ndarray) -> np.ndarray:
        """(h, w) uint8 of blended scores (C, h, w)."""
        label = None if self.settings.label is None else torch.tensor([self.settings.label])
        mask = to_mask(
            torch.from_numpy(scores)[None],
            **_traits(self.network, self.settings.rule),
            rule=self.settings.rule,
            threshold=self.settings.threshold,
            fusion=self.settings.fusion,
            gate="none" if label is None else "given",
            label=label,
        )
        return mask[0, 0].numpy()
