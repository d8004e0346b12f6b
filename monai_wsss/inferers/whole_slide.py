# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A network over a whole slide: tiles over tissue in, a pyramidal mask out, whatever the slide's size.

    slide ── thumbnail → tissue (slide_tissue) → tiles over it (slide_tiles)
      └── tiles at the chosen resolution (slide_reading) → network → blended scores, band by band (slide_bands)
            └── mask rule → bands on disk → pyramidal TIFF, overlay, record (slide_writing)

Only what a pixel's own scores decide can be decided band by band. So the rules are those of
:class:`~monai_wsss.refinement.MaskRule` that need no whole image, and presence is not predicted (give the slide's
label). A network that attends to all of its input attends to a tile here: the tile is its context, and its size and
resolution are best those of training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from monai_wsss._files import make_directory, write_json
from monai_wsss._spread import current_workers
from monai_wsss.inferers.slide_bands import (
    Network,
    Normalize,
    SlideBands,
    SlideWork,
    bands_of_workers,
    normalized_tile,
)
from monai_wsss.inferers.slide_reading import SlideReading, SlideSource, check_slide_packages
from monai_wsss.inferers.slide_tiles import TileLayout
from monai_wsss.inferers.slide_tissue import TissueMap, find_tissue
from monai_wsss.inferers.slide_writing import SlideScratch, draw_overlay, write_mask_pyramid
from monai_wsss.refinement import MaskRule

__all__ = ["SlideResult", "segment_slide"]

logger = logging.getLogger(__name__)

_RULES = ("argmax", "background", "logit", "fixed", "negative_quantile")
_NO_TISSUE = "No tissue was found on the slide: its mask is empty."
_FORMAT = 2  # of the scratch and of what the numbers mean: raised when either changes


@dataclass(frozen=True)
class SlideResult:
    """Where the segmentation of a slide lies, and what it found.

    Attributes:
        mask: pyramidal TIFF, 0 or class + 1.
        overlay: PNG.
        record: JSON of settings and numbers; names nothing of the slide.
        mpp: micrometers per pixel of the mask (y, x).
        size: (height, width) of the mask.
        tiles: number of tiles that the network saw.
        tissue_share: share of the slide's area.
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


def segment_slide(
    slide: str | os.PathLike[str],
    network: Network,
    out: str | os.PathLike[str],
    *,
    reading: SlideReading | None = None,
    layout: TileLayout | None = None,
    rule: str | MaskRule = "argmax",
    label: Sequence[float] | None = None,
    normalize: Normalize | None = None,
    batch_size: int = 4,
    device: str | torch.device | None = None,
    amp: bool = False,
    resume: bool = True,
) -> SlideResult:
    """Segment a pyramidal TIFF, SVS, NDPI, … tile by tile; memory does not grow with the slide.

    Writes ``out`` (tiled, deflate-compressed pyramidal TIFF: 0 outside tissue, class + 1 inside, micrometers per pixel
    in its tags), ``<out>_overlay.png`` and ``<out>.json``, each whole or absent. A run that was killed goes on after
    its last finished band if it is started again; a finished one is not repeated. Inside
    :func:`~monai_wsss.inferers.over_ray` bands are computed by the processes of a cluster.

    Args:
        slide: the file.
        network: gives scores (B, C, h, w) at its input's size: activation maps (G*K channels) or segmentation logits;
            ``mask_rule`` or ``output_kind`` tell which. A module is put into eval mode meanwhile.
        out: the mask, ``….tif`` or ``….tiff``.
        reading: at which resolution the slide is read, and how; None: its own, by OpenSlide.
        layout: where tiles lie and how they blend; None: tiles of 512 pixels over tissue.
        rule: by name, or a whole :class:`~monai_wsss.refinement.MaskRule` where other words of it are needed.
            ``argmax``: all channels are tissue classes (datasets with ``"background": false``); ``background``:
            segmentations whose channel 0 is background; ``logit``, ``fixed`` and ``negative_quantile`` cut activation
            maps. The gate follows from ``label``.
        label: (K,) 0/1 of the slide, if known: absent classes are left out.
        normalize: from a tile (3, h, w) float32, 0..255, to the network's input (C, h, w); applied to each tile by
            itself. None: as it is.
        batch_size: tiles at once.
        device: default: the network's own, else the CPU. A module is moved there.
        amp: autocast, float16 on GPUs and bfloat16 on CPUs.
        resume: False starts anew whatever is there.

    Returns:
        Paths and numbers. A slide without tissue gives an empty mask and says so in ``note``.

    Raises:
        ValueError: arguments that do not fit, a network with another output.
        DataError: a slide that cannot be read, has no resolution or is not RGB; a result that cannot be written.

    Example:
        >>> import tempfile, tifffile
        >>> folder = Path(tempfile.mkdtemp())
        >>> pixels = np.full((300, 200, 3), (200, 120, 180), dtype=np.uint8)
        >>> tifffile.imwrite(folder / "slide.tif", pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit=3)
        >>> result = segment_slide(
        ...     folder / "slide.tif", lambda x: x[:, :2] - 150, folder / "mask.tif", layout=TileLayout(tile=64)
        ... )
        >>> result.mpp, result.size, result.tissue_share
        ((0.5, 0.5), (300, 200), 1.0)
        >>> np.unique(tifffile.imread(result.mask)).tolist()
        [1]
    """
    if batch_size < 1:
        raise ValueError(f"Expected `batch_size` >= 1, got {batch_size}.")
    reading, layout = (reading or SlideReading()).for_network(network), layout or TileLayout()
    given = None if label is None else torch.tensor([[float(value) for value in label]])
    decided_by = _checked_rule(network, rule, gate="none" if given is None else "given")
    settings = {
        **asdict(reading),
        **asdict(layout),
        **decided_by.settings(),
        "label": None if given is None else given[0].tolist(),
        "amp": amp,
    }
    check_slide_packages(reading.backend)
    paths = _paths(slide, out)
    with reading.open(slide) as source:
        view = reading.view(source)
        digest = _digest(settings, source, network, normalize)
        found = _finished(paths, digest) if resume else None
        if found is not None:
            logger.info("%s is finished, with the same settings, weights and slide: nothing to do.", paths[0])
            return found
        scratch = SlideScratch(paths[0].with_name(f".{paths[0].name}.partial"), view.size, digest, resume)
        work = SlideWork(Path(slide), reading, layout, network, normalize, decided_by, given, batch_size, amp)
        run = _Run(work, work.bands(source, device))
        return run(scratch, source.thumbnail(), layout.tissue, paths, {"digest": digest, "settings": settings})


def _checked_rule(network: Network, rule: str | MaskRule, gate: str) -> MaskRule:
    """Give the rule that each pixel decides by itself; the kind of a network that does not tell follows from it."""
    name = rule.rule if isinstance(rule, MaskRule) else rule
    if name not in _RULES:
        raise ValueError(
            f"Expected `rule` to be one of {', '.join(_RULES)}, which each pixel decides by itself, got "
            f"{name!r}: others need the scores of the whole slide at once."
        )
    if isinstance(rule, MaskRule):
        return replace(rule, gate=gate)
    words = {"rule": rule, "gate": gate}
    if not hasattr(network, "mask_rule") and not hasattr(network, "output_kind"):
        words["output_kind"] = "segmentation" if rule == "background" else "activation"
    return MaskRule.of(network, **words)


def _paths(slide: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Give the paths of mask, overlay and record, and make their folder."""
    mask = Path(out)
    if mask.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"Expected `out` to end in .tif or .tiff, got {mask}.")
    if mask.resolve() == Path(slide).resolve():
        raise ValueError(f"Expected `out` to be another file than the slide, got {mask} for both.")
    make_directory(mask.parent)
    return mask, mask.with_name(f"{mask.stem}_overlay.png"), mask.with_suffix(".json")


def _finished(paths: tuple[Path, Path, Path], digest: str) -> SlideResult | None:
    """Give the result of an earlier run that depended on the same, or None."""
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


def _digest(settings: dict[str, Any], source: SlideSource, network: Network, normalize: Normalize | None) -> str:
    """Hash all that a mask depends on: settings, the slide's file, the weights, and what ``normalize`` does."""
    status = source.path.stat()
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    found = hashlib.sha256(repr((_FORMAT, settings, status.st_size, status.st_mtime_ns, kind)).encode())
    if isinstance(network, nn.Module):
        found.update(repr(network).encode())
        for name, value in network.state_dict().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(getattr(network, "__qualname__", "").encode())
    if normalize is not None:  # a function has no weights to look at: what it makes of some pixels tells it
        tile = settings["tile"]
        values = torch.arange(3 * tile**2, dtype=torch.int64).mul(2654435761).remainder(251)
        found.update(normalized_tile(values.float().reshape(3, tile, tile), normalize).numpy().tobytes())
    return found.hexdigest()


class _Run:
    """One pass over a slide: computes its bands, here or by workers, and writes."""

    def __init__(self, work: SlideWork, bands: SlideBands) -> None:
        self.work, self.bands, self.grid = work, bands, bands.grid

    def __call__(
        self,
        scratch: SlideScratch,
        thumbnail: np.ndarray,
        selection: str,
        paths: tuple[Path, Path, Path],
        depends_on: dict[str, Any],
    ) -> SlideResult:
        start, resumed = time.perf_counter(), scratch.done
        if resumed:
            logger.info("Going on after %d of %d finished bands.", resumed, self.grid.bands)
        mpp = self.bands.tiles.view.mpp
        tissue = self._tissue(thumbnail, mpp, selection)
        self._segment(scratch, tissue)
        counts = write_mask_pyramid(scratch, paths[0], mpp)
        draw_overlay(scratch, thumbnail, paths[1])
        areas = counts[1 : int(counts.nonzero()[0].max()) + 1] * (mpp[0] * mpp[1] * 1e-6)
        record = {
            **depends_on,
            "mpp": list(mpp),
            "size": list(self.grid.size),
            "tiles": sum(len(step.lefts) for step in self.grid.steps(tissue, self.work.batch_size)),
            "tissue_share": float(tissue.thumbnail.mean()),
            "class_mm2": [float(area) for area in areas],
            "presence": "not predicted" if depends_on["settings"]["label"] is None else "given",
            "context": "tile",
            "bands": {"all": self.grid.bands, "taken_over": resumed},
            "seconds": round(time.perf_counter() - start, 3),
            "note": "" if tissue.thumbnail.any() else _NO_TISSUE,
        }
        write_json(paths[2], record)
        scratch.remove()
        return _result(paths, record)

    def _tissue(self, thumbnail: np.ndarray, mpp: tuple[float, float], selection: str) -> TissueMap:
        """Find where the network looks."""
        if selection == "all":
            return TissueMap(np.ones(thumbnail.shape[:2], dtype=bool), self.grid.size)
        shrink = (self.grid.size[0] / thumbnail.shape[0], self.grid.size[1] / thumbnail.shape[1])
        found = find_tissue(thumbnail, (mpp[0] * shrink[0], mpp[1] * shrink[1]))
        if not found.any():
            logger.warning(_NO_TISSUE)
        return TissueMap(found, self.grid.size)

    def _segment(self, scratch: SlideScratch, tissue: TissueMap) -> None:
        """Segment all bands that are not on disk yet."""
        steps = self.grid.steps(tissue, self.work.batch_size, scratch.done)
        total = sum(len(step.lefts) for step in steps if step.writes)
        workers = current_workers()
        with tqdm(total=total, desc="tiles", unit="tile", disable=None) as bar:
            if workers is not None:
                for first, tiles, found in bands_of_workers(workers, self.work, self.bands, tissue, scratch.done):
                    for number, parts in enumerate(found, start=first):
                        scratch.write_band(parts, number)
                    bar.update(tiles)
                return
            with self.bands.scorer.ready():
                for tiles, finished in self.bands.over(tissue, scratch.done, self.grid.bands):
                    bar.update(tiles)
                    if finished is not None:
                        scratch.write_band(finished, scratch.done)
