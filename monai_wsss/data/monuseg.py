# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare monuseg``: stained tissue with outlined nuclei, in crops, and the same tissue without nuclei.

=======================================  =============================================================================
``…/Tissue Images/<name>.tif``           tiles of 1000 x 1000 pixels, in any folder below the root; PNG is read as well
``…/Annotations/<name>.xml``             outlines of the nuclei (Aperio ImageScope), in any folder
``…/masks/<name>.png``                   masks in place of outlines, in a folder whose name holds "mask" or "truth"
=======================================  =============================================================================

Every crop counts as one with nuclei, so healthy images are made from the tiles themselves
(:mod:`monai_wsss.data.healthy`), which reads no outline.  They are in training and validation alone.  Tiles of one
patient (``TCGA-18-5592-…``) are in one split, and a tile is cut after the split was drawn.  Crops lie side by side from
the first pixel on; what is left at the end of a tile is left out, so that no pixel is measured twice.

Outlines are filled by the even-odd rule, in any direction.  What lies outside of the tile is cut off, and a region that
ImageScope marks as negative (``NegativeROA="1"``) is a hole in the others.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.case_files import UNNAMED, read_case, read_mask
from monai_wsss.data.find_files import folders_below, visible_entries
from monai_wsss.data.healthy import HEALTHY_TISSUE, blur, healthy_tissue
from monai_wsss.data.label_table import WHOLE
from monai_wsss.data.modalities import COLORS
from monai_wsss.data.outlines import draw_outline
from monai_wsss.data.plain_xml import read_plain_xml
from monai_wsss.data.prepared_folder import Faults, check_output, check_released, warn_of_other_numbers
from monai_wsss.data.prepared_images import PreparedImages
from monai_wsss.data.reading import image_format
from monai_wsss.data.splits import SPLITS, split_by_subject, split_in_name, take_validation
from monai_wsss.data.writing import fits_picture

__all__ = ["prepare_monuseg"]

_PAPER = (0.8, 0.0, 0.2)
"""Shares of the split of CoinGAN's tables."""

_PAPER_NUMBERS = {"tiles": 30}
"""The paper's 21,623 nuclei are those of the 30 tiles that the challenge released for training."""

_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")
_MASKS = re.compile(r"mask|truth", re.IGNORECASE)
_DEPTH = 5  # folders below the root that are searched

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rule:
    """Options of :func:`prepare_monuseg` that say how a tile becomes crops."""

    healthy: str
    radius: int
    sigma: float
    crop: int
    match_resampling: bool

    def check(self) -> None:
        """Raise ``ValueError`` if an entry is out of range."""
        check_choice("healthy", self.healthy, HEALTHY_TISSUE)
        if self.radius < 1:
            raise ValueError(f"Expected `radius` of at least 1 pixel, got {self.radius}.")
        if self.sigma < 0:
            raise ValueError(f"Expected `sigma` of at least 0 pixels, got {self.sigma:g}.")
        if self.crop < 8:
            raise ValueError(f"Expected `crop` of at least 8 pixels, got {self.crop}.")


@dataclass(frozen=True)
class _Tile:
    """A tile with the file of its outlines or its mask, and its released split, each None where there is none."""

    image: Path
    truth: Path | None
    released: str | None

    @property
    def subject(self) -> str:
        """Give the patient, or the tile where its name holds none."""
        match = _PATIENT.match(self.image.stem)
        return match[0] if match else self.image.stem


def _find(root: Path) -> list[_Tile]:
    """Find the tiles with their outlines or masks."""
    images: dict[str, Path] = {}
    truth: dict[str, Path] = {}
    faults = Faults()
    for folder in folders_below(root, _DEPTH):
        of_masks = folder != root and _MASKS.search(folder.name) is not None
        for file in filter(Path.is_file, visible_entries(folder)):
            is_truth = file.suffix.lower() == ".xml" or (of_masks and image_format(file) == "picture")
            if not is_truth and image_format(file) != "picture":
                continue
            found = truth if is_truth else images
            with faults.gather():
                if file.stem in found:
                    raise DataError(f"{found[file.stem]} and {file} belong to the same tile: keep one of them.")
                found[file.stem] = file
    faults.check()
    if not images:
        raise DataError(f"{root} holds no tiles, e.g. in Tissue Images: unpack MoNuSeg there.")
    without = [name for name in images if name not in truth]
    if without:
        _logger.warning("%d of %d tiles have no outlines, first %s.", len(without), len(images), without[0])
    lost = [file for name, file in truth.items() if name not in images]
    if lost:
        _logger.warning("%d files of outlines or masks belong to no tile, first %s.", len(lost), lost[0])
    return [_Tile(file, truth.get(name), _released_split(file, root)) for name, file in images.items()]


def _released_split(file: Path, root: Path) -> str | None:
    """Give the split that the folders of a tile name, the innermost first."""
    return next(filter(None, map(split_in_name, reversed(file.relative_to(root).parts[:-1]))), None)


def _of_paper(tiles: list[_Tile]) -> list[_Tile]:
    """Leave out the released test tiles, where there are others: the paper's number of nuclei is that without them."""
    kept = [tile for tile in tiles if tile.released != "test"] or tiles
    if len(kept) < len(tiles):
        _logger.info('The split "paper" leaves out %d released test tiles.', len(tiles) - len(kept))
    warn_of_other_numbers({"tiles": len(kept)}, _PAPER_NUMBERS)
    return kept


def _draw(tiles: Sequence[_Tile], split: str, fractions: Sequence[float], share: float, seed: int) -> list[str]:
    """Give every tile its split."""
    subjects, labels = [tile.subject for tile in tiles], [[1]] * len(tiles)
    if split == "released":
        faults = Faults()
        for tile in tiles:
            with faults.gather():
                if tile.released is None:
                    raise DataError(
                        f'No folder of {tile.image} names training or test: take the split "paper" or "drawn".'
                    )
        faults.check()
        given = [str(tile.released) for tile in tiles]
        check_released([tile.image for tile in tiles], subjects, given)
        return take_validation(subjects, labels, given, share=share, seed=seed)
    if split == "paper":
        drawn = split_by_subject(subjects, labels, fractions=_PAPER, seed=seed)
        return take_validation(subjects, labels, drawn, share=share, seed=seed)
    if share:
        raise ValueError(
            f'Expected no `validation_share` with the split "drawn", whose `fractions` give it, got {share:g}.'
        )
    return split_by_subject(subjects, labels, fractions=fractions, seed=seed)


def _corners(region: ElementTree.Element) -> list[float]:
    """Give the corners of a region, x, y, x, y, …"""
    return [float(vertex.attrib[axis]) for vertex in region.iter("Vertex") for axis in ("X", "Y")]


def _draw_regions(path: Path, columns: int, rows: int) -> np.ndarray:
    """Draw the outlines of an XML file: (1, columns, rows) uint8, 1 in nuclei."""
    outlines: dict[bool, list[list[float]]] = {False: [], True: []}  # is it a hole? → its corners
    try:
        for region in read_plain_xml(path).iter("Region"):
            outlines[region.get("NegativeROA", "0") == "1"].append(_corners(region))
    except (KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} has a Vertex without the numbers X and Y ({error}): export the outlines again."
        ) from error
    nuclei, holes = (
        draw_outline(filled, columns, rows, str(path)) if filled else np.zeros((columns, rows), dtype=bool)
        for filled in (list(filter(None, outlines[hole])) for hole in (False, True))
    )
    return (nuclei & ~holes)[None].astype(np.uint8)


def _read(tile: _Tile, smallest: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels (3, x, y) uint8 and the mask (1, x, y) uint8 of a tile; refuse a tile smaller than a crop."""
    case = read_case({UNNAMED: tile.image}, channel_names=None, color=True, on_white=True)
    if not fits_picture(case.volume):
        raise DataError(f"{tile.image} has no whole values up to 255: save it as RGB of 8 bits.")
    pixels = case.volume.astype(np.uint8)
    if min(pixels.shape[1:]) < smallest:
        raise DataError(
            f"{tile.image} is of {' x '.join(map(str, pixels.shape[1:]))} pixels, smaller than a crop of {smallest}: "
            "take a smaller `crop`."
        )
    if tile.truth is None:
        return pixels, None
    if tile.truth.suffix.lower() == ".xml":
        return pixels, _draw_regions(tile.truth, *pixels.shape[1:])
    return pixels, read_mask(tile.truth, case.images[0], [WHOLE])


def _write(writer: PreparedImages, tile: _Tile, split: str, rule: _Rule) -> None:
    """Write the crops of a tile, and those of its healthy version."""
    pixels, mask = _read(tile, rule.crop)
    name = tile.image.stem
    writer.measure(name, pixels)
    healthy = (
        None if split == "test" else healthy_tissue(pixels, how=rule.healthy, radius=rule.radius, sigma=rule.sigma)
    )
    shown = blur(pixels, rule.sigma) if rule.match_resampling else pixels
    for x in range(0, pixels.shape[1] - rule.crop + 1, rule.crop):
        for y in range(0, pixels.shape[2] - rule.crop + 1, rule.crop):
            window = (slice(None), slice(x, x + rule.crop), slice(y, y + rule.crop))
            place: dict[str, Any] = {"source": name, "origin": [x, y], "statistics": name}
            outlined = None if mask is None else mask[window]
            writer.add(split, f"{name}_{x}_{y}", tile.subject, [1], shown[window], outlined, **place)
            if healthy is not None:
                writer.add(split, f"{name}_{x}_{y}_healthy", tile.subject, [0], healthy[window], **place)


def prepare_monuseg(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "drawn",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    validation_share: float = 0.0,
    seed: int = 0,
    healthy: str = "density",
    radius: int = 7,
    sigma: float = 2.0,
    crop: int = 224,
    match_resampling: bool = False,
) -> Path:
    """Turn MoNuSeg into a prepared folder of crops with nuclei and of the same crops without; the class is "nuclei".

    Args:
        root: the folder in which the set was unpacked.
        out: the folder to write.
        split: "drawn" draws all three splits by ``fractions``.  "paper" is 80 % of the patients for training and 20 %
            for test, as in CoinGAN's tables, drawn anew.  Its number of nuclei is that of the 30 tiles released for
            training, so tiles in folders of the test set are left out.  "released" takes the split from the words
            train and test in the names of folders.
        fractions: shares of the patients for training, validation and test; for "drawn".
        validation_share: share of the training patients taken for validation; for "paper" and "released".
        seed: seed of all draws.
        healthy: "density" removes dark nuclei by erosion of the optical density.  "paper" erodes the colors, as
            printed, which makes nuclei larger.
        radius: radius of the erosion in pixels.
        sigma: width of the blur in pixels.
        crop: size of the square crops in pixels; the paper does not say it.
        match_resampling: whether the crops with nuclei are blurred by ``sigma`` as well.  Otherwise a network may tell
            the two kinds apart by their sharpness alone.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: tiles are missing, there twice, damaged or smaller than a crop, or outlines cannot be read; a line
            per fault.
        ValueError: an option is unknown or out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> tissue = np.random.default_rng(0).integers(120, 220, (32, 32, 3)).astype(np.uint8)
        >>> Image.fromarray(tissue).save(root / "TCGA-18-5592.tif")
        >>> corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((4, 4), (12, 4), (12, 12), (4, 12)))
        >>> _ = (root / "TCGA-18-5592.xml").write_text(f"<A><Region><Vertices>{corners}</Vertices></Region></A>")
        >>> prepare_monuseg(root, root / "prepared", crop=16).name
        'datalist.json'
    """
    check_choice("split", split, ("drawn", "paper", "released"))
    rule = _Rule(healthy, radius, sigma, crop, match_resampling)
    rule.check()
    folder = Path(root)
    tiles = _of_paper(_find(folder)) if split == "paper" else _find(folder)
    splits = _draw(tiles, split, fractions, validation_share, seed)
    writer, faults = PreparedImages(check_output(out, folder)), Faults()
    for tile, of_tile in tqdm(list(zip(tiles, splits, strict=True)), desc="tiles", disable=None):
        with faults.gather():
            _write(writer, tile, of_tile, rule)
    faults.check()
    _logger.info("%d tiles; crops: %s.", len(tiles), ", ".join(f"{len(writer.lists[name])} {name}" for name in SPLITS))
    entries = {
        "split": split,
        "labels": "1 crops, 0 the same crops without nuclei",
        "healthy": {"made_by": healthy, "radius": radius, "sigma": sigma},
        "match_resampling": match_resampling,
        "leaks": [],
    }
    return writer.finish(COLORS, ["nuclei"], ROWS_COLUMNS, entries)
