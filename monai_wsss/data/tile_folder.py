# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare cases --tiles``: training on tiles with and without the finding, evaluation on whole images.

The datalist holds every image twice, whole and as tiles.  The list ``training`` holds tiles, and ``training_images``
the whole images, scaled as the tiles, for a second stage.  The lists ``validation`` and ``test`` hold whole images,
which are measured with their masks; on ``validation_tiles`` and ``test_tiles`` a classifier is measured without a mask.
:mod:`monai_wsss.data.crops` holds the rules of cutting and tagging.

The tags come from masks, which simulates the judgment of an expert and is done only on request, or from ``tiles.csv``
with one row per tile.  Every tile of an image that is labeled 0 lacks the finding, which needs no mask.

A color tile is standardized by the statistics of its whole image, a gray one by those of all images of its subject.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics, tissue_statistics
from monai_wsss._pictures import ROWS_COLUMNS
from monai_wsss.data.case_files import ImageCase, image_name, mask_shows, read_case, read_mask
from monai_wsss.data.crops import (
    TileRule,
    dark_corners,
    resize_image,
    resize_mask,
    scaled_shape,
    tile_fault,
    tile_tags,
)
from monai_wsss.data.datalist import modality_entry, statistics_entry, write_datalist
from monai_wsss.data.datalist_checks import SPLIT_OF_LIST
from monai_wsss.data.find_files import common_modalities, find_images, find_masks
from monai_wsss.data.folder import check_like_first
from monai_wsss.data.label_table import WHOLE, LabeledRow, LabelTable
from monai_wsss.data.patches import patch_origins
from monai_wsss.data.prepared_folder import check_targets, warn_of_contradictions
from monai_wsss.data.reading import is_color_picture
from monai_wsss.data.tile_table import ListedTiles, read_tile_table
from monai_wsss.data.writing import fits_picture, write_picture

__all__ = ["TileFiles", "TileSource", "TileWriter", "prepare_tiles", "tile_header"]

_TILES_OF = {"training": "training", "validation": "validation_tiles", "test": "test_tiles"}
"""Split → list that its tiles go into."""

_IMAGES_OF = {"training": "training_images", "validation": "validation", "test": "test"}
"""Split → list that its whole images go into."""

_LEFT_OUT = {
    "dark": "tiles were left out for their dark corners, in both classes alike",
    "outside": "tiles outside of the region were left out, in both classes alike",
    "between": "tiles with too little of a finding, or too near to one, were left out",
    "untagged": "images give no tile, since neither a mask nor a table says what their tiles show",
    "regionless": "images give no tile, since they have no region",
}
"""Reason → end of the sentence about the number of tiles or images."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileSource:
    """An image with its row, its channels, its pixels (C, *S), and mask and region, each (1, *S) or None."""

    row: LabeledRow
    names: Sequence[str]
    is_color: bool
    pixels: np.ndarray
    mask: np.ndarray | None = None
    region: np.ndarray | None = None


def _scaled(source: TileSource, rule: TileRule) -> TileSource:
    """Scale the pixels, the mask and the region of an image."""
    shape = scaled_shape(source.pixels.shape[1:], rule)
    mask, region = (None if one is None else resize_mask(one, shape) for one in (source.mask, source.region))
    return TileSource(source.row, source.names, source.is_color, resize_image(source.pixels, shape), mask, region)


def _to_source(
    row: LabeledRow, case: ImageCase, mask: Path | None, region: Path | None, classes: Sequence[str]
) -> TileSource:
    """Read the mask and the region of an image, and check that tiles of it can be stored as PNG."""
    pixels = case.volume
    if pixels.ndim != 3 or not all(map(fits_picture, [pixels] if case.is_color else pixels[:, None])):
        raise DataError(
            f'{row.where}: the image of "{row.id}" is no picture of whole numbers (8 or 16 bits in gray, 8 in RGB), '
            "from which tiles are cut: save it as PNG, or cut slices from volumes first."
        )
    shown = None if mask is None else read_mask(mask, case.images[0], classes)
    inside = None if region is None else read_mask(region, case.images[0], [WHOLE])
    return TileSource(row, case.names, case.is_color, pixels.astype(np.uint16), shown, inside)


@dataclass
class TileWriter:
    """Writes images whole or as tiles, and collects their items.

    Attributes:
        out: the folder to write.
        rule: the rule of cutting and tagging.
        from_masks: whether the tags come from masks.
        listed: id of an image → origin → tags, for the images whose tiles a table lists.
        lists: list of the datalist → its items.
        left_out: reason → number of tiles, or of images.
    """

    out: Path
    rule: TileRule
    from_masks: bool
    listed: ListedTiles = field(default_factory=dict)
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in SPLIT_OF_LIST})
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, full: TileSource, scaled: TileSource) -> None:
        """Write an image whole and as tiles."""
        split = str(full.row.split)
        whole = full if self.rule.full_size and split != "training" else scaled
        self.lists[_IMAGES_OF[split]].append(self._write(whole, full.row.id))
        self.lists[_TILES_OF[split]] += self._cut(scaled)

    def _write(
        self,
        source: TileSource,
        name: str,
        window: tuple[slice, slice] = (slice(None), slice(None)),
        *,
        masks: bool = True,
    ) -> dict[str, Any]:
        """Write the part of an image in a window, with mask and region; return its item."""
        row = replace(source.row, id=name)
        pixels = source.pixels[:, *window]
        parts = {"RGB": pixels} if source.is_color else dict(zip(source.names, pixels[:, None], strict=True))
        paths = {f"{image_name(row, channel, len(parts))}.png": values for channel, values in parts.items()}
        item: dict[str, Any] = {"id": name, "subject": row.subject, "label": row.label}
        item["image"] = list(paths) if len(paths) > 1 else next(iter(paths))
        for key, values in (("mask", source.mask), ("region", source.region)) if masks else ():
            if values is not None:
                item[key] = f"{key}s/{row.subject}/{name}.png"
                paths[item[key]] = values[:, *window]
        for path, values in paths.items():
            write_picture(self.out / path, values)
        return {**item, "statistics": source.row.id} if source.is_color else item

    def _tags(self, source: TileSource) -> Mapping[tuple[int, int], list[int] | None] | None:
        """Give the tags of all tiles of an image; None where nothing says what the tiles show."""
        row, shape, size = source.row, source.pixels.shape[1:], self.rule.tiles
        if row.id in self.listed:
            return self.listed[row.id]
        origins = patch_origins(shape, size, self.rule.stride)
        if self.from_masks and source.mask is not None:
            return {place: tile_tags(source.mask[0], place, self.rule, len(row.label)) for place in origins}
        return None if any(row.label) else dict.fromkeys(origins, row.label)

    def _cut(self, source: TileSource) -> list[dict[str, Any]]:
        """Write the tiles of an image; return their items."""
        row, size, shape = source.row, self.rule.tiles, source.pixels.shape[1:]
        if min(shape) < size:
            raise DataError(
                f'{row.where}: the image of "{row.id}" is of {shape[0]} x {shape[1]} pixels where it is cut, smaller '
                f"than a tile of {size}: take smaller tiles or a larger scale, or leave the image out."
            )
        tags = self._tags(source)
        if tags is None or (self.rule.region is not None and source.region is None):
            self.left_out["untagged" if tags is None else "regionless"] += 1
            return []
        dark = dark_corners(source.pixels)
        region = None if source.region is None else source.region[0] > 0
        items = []
        for (x, y), label in tags.items():
            if max(x + size - shape[0], y + size - shape[1]) > 0:
                raise DataError(
                    f'A tile of "{row.id}" at x = {x}, y = {y} ends outside of the image of {shape[0]} x {shape[1]} '
                    f"pixels: give the first column and row of a tile of {size} pixels in the scaled image."
                )
            fault = tile_fault((x, y), self.rule, dark, region) or ("between" if label is None else "")
            if fault:
                self.left_out[fault] += 1
                continue
            window = (slice(x, x + size), slice(y, y + size))
            item = self._write(source, f"{row.id}_{x}_{y}", window, masks=row.split == "training")
            items.append({**item, "label": label, "source": row.id, "origin": [x, y]})
        return items


@dataclass(frozen=True)
class TileFiles:
    """Files of a data set, by the ids of its images.

    Attributes:
        images: id → modality → file.
        masks: id → file, for the images that have a mask.
        regions: id → mask of the organ in which tiles must lie, for the images that have one.
    """

    images: Mapping[str, Mapping[str, Path]]
    masks: Mapping[str, Path]
    regions: Mapping[str, Path]


def _find_files(root: Path, table: LabelTable, rule: TileRule) -> TileFiles:
    """Find the files of all rows in ``images/``, ``masks/`` and the folder of the region."""
    truth = [row for row in table.rows if row.values.get("has_pixel_truth", "1") != "0"]
    masks = find_masks(root / "masks", truth) if (root / "masks").is_dir() and truth else {}
    regions = {} if rule.region is None else find_masks(root / rule.region, table.rows)
    return TileFiles(find_images(root / "images", table), masks, regions)


def _read_sources(files: TileFiles, table: LabelTable, modalities: Sequence[str] | None) -> Iterator[TileSource]:
    """Read all images with their masks and regions, subject by subject."""
    names = common_modalities(files.images, table.rows, modalities)
    pictures = (path for of_image in files.images.values() for path in of_image.values())
    color = modalities is None and any(map(is_color_picture, pictures))
    first: ImageCase | None = None
    for rows in tqdm(table.by_subject().values(), desc="subjects", disable=None):
        for row in rows:
            channels = {name: files.images[row.id][name] for name in names}
            case = read_case(channels, channel_names=modalities, color=color)
            first = first or case
            check_like_first(row, case, first)
            yield _to_source(row, case, files.masks.get(row.id), files.regions.get(row.id), table.classes)


def _warn_of_pairs(classes: Sequence[str], labels: Sequence[tuple[int, ...]]) -> None:
    """Log which classes never show without another one: their labels do not say which of the two is where."""
    found = set(labels)
    for first, second in permutations(range(len(classes)), 2):
        shown = [label for label in found if label[first]]
        if shown and all(label[second] for label in shown):
            _logger.warning(
                "training: every tile with %s shows %s, too, so labels do not tell one from the other: take smaller "
                "tiles, or a smaller margin.",
                classes[first],
                classes[second],
            )


def _describe(writer: TileWriter, classes: Sequence[str]) -> None:
    """Log the number of tiles per list and class, and of those left out with the reason."""
    for name in _TILES_OF.values():
        items = writer.lists[name]
        if not items:
            continue
        counts = np.array([item["label"] for item in items]).sum(axis=0)
        shown = ", ".join(f"{count} with {label}" for count, label in zip(counts, classes, strict=True))
        without = sum(not any(item["label"]) for item in items)
        images = len({item["source"] for item in items})
        if name == "training":
            _warn_of_pairs(classes, [tuple(item["label"]) for item in items])
        _logger.info("%s: %d tiles of %d images (%s, %d without).", name, len(items), images, shown, without)
        for label, count in zip(classes, counts, strict=True):
            if count in (0, len(items)):
                kind = "with" if count == 0 else "without"
                _logger.warning("%s: no tile is %s %s, so there is nothing to tell apart.", name, kind, label)
    for name in _IMAGES_OF.values():
        _logger.info("%s: %d whole images.", name, len(writer.lists[name]))
    for reason, text in _LEFT_OUT.items():
        if writer.left_out[reason]:
            _logger.info("%d %s.", writer.left_out[reason], text)


def tile_header(rule: TileRule, *, labels_from_masks: bool) -> dict[str, Any]:
    """Give the entries of a datalist that say how tiles were cut and are read, and where their tags come from."""
    labels = "of tiles, from tiles.csv and from images without finding"
    if labels_from_masks:
        labels = f"simulated: tags of tiles from masks ({rule.sentence})"
    return {
        "order": ROWS_COLUMNS,
        "labels": labels,
        "simulated_supervision": labels_from_masks,
        "tiles": {**asdict(rule), "tile_stride": rule.stride},
    }


def prepare_tiles(
    root: Path,
    table: LabelTable,
    out: Path,
    rule: TileRule,
    *,
    labels_from_masks: bool = False,
    modalities: Sequence[str] | None = None,
    files: TileFiles | None = None,
    entries: Mapping[str, Any] | None = None,
    sources: Iterable[TileSource] | None = None,
) -> Path:
    """Write tiles for training and whole images for evaluation, and last the datalist.

    Args:
        root: the folder with ``images/``, and perhaps ``masks/``, ``tiles.csv`` and the folder of the region.
        table: the rows of ``labels.csv``, with splits.
        out: the folder to write, made by :func:`~monai_wsss.data.prepared_folder.check_output`.
        rule: the rule of cutting and tagging.
        labels_from_masks: whether the tags of tiles come from the masks; ``tiles.csv`` is not read then.
        modalities: see :func:`~monai_wsss.data.cases.prepare_cases`.
        files: the files of the images, for another layout; None finds them in ``root``.
        entries: further entries of the datalist, which may replace those of :func:`tile_header`.
        sources: the images, subject by subject, where no files hold them one by one; None reads ``files``.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: nothing gives the tags, an image is smaller than a tile or cannot be read, or no tile is left.
    """
    listed: ListedTiles = {}
    if not labels_from_masks:
        listed = read_tile_table(root / "tiles.csv", table)
    writer = TileWriter(out, rule, labels_from_masks, listed)
    statistics: dict[str, dict[str, list[float]]] = {}
    contradictions: list[str] = []
    names: Sequence[str] = ()
    if sources is None:
        found = _find_files(root, table, rule) if files is None else files
        sources = _read_sources(found, table, modalities)
    for _, of_subject in groupby(sources, key=lambda source: source.row.subject):
        gray: list[np.ndarray] = []
        for source in of_subject:
            scaled, names = _scaled(source, rule), source.names
            writer.add(source, scaled)
            if source.mask is not None and not mask_shows(source.mask, source.row.label):
                contradictions.append(source.row.id)
            if source.is_color:
                statistics[source.row.id] = statistics_entry(*tissue_statistics(scaled.pixels))
            else:
                gray.append(scaled.pixels)
        if gray:
            statistics[source.row.subject] = statistics_entry(*foreground_statistics(gray))
    warn_of_contradictions(contradictions)
    _describe(writer, table.classes)
    if not writer.lists["training"] and any(row.split == "training" for row in table.rows):
        raise DataError(
            f"No tile of {rule.tiles} pixels is left to train on, by the rules in the log above: take smaller tiles, "
            "another scale, or looser rules."
        )
    check_targets({item["id"]: item for items in writer.lists.values() for item in items})
    datalist = {
        "name": out.resolve().name,
        "modality": modality_entry(names),
        "classes": table.classes,
        "background": True,
        **tile_header(rule, labels_from_masks=labels_from_masks),
        **(entries or {}),
        "statistics": statistics,
        **writer.lists,
    }
    return write_datalist(out, datalist)
