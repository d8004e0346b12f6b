# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""``prepare cases``: folders that hold a ``labels.csv`` and either ``cases/*.npz`` or ``images/`` and ``masks/``.

The table has the columns ``id``, ``case`` (the subject), ``split`` (train, val, test or heldout) and the labels.  In
the npz layout a row is a slice, and ``file`` and ``index_in_npz`` say where its pixels are.  Every row is kept.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from tqdm import tqdm

from monai_wsss._checks import DataError
from monai_wsss._intensity import foreground_statistics
from monai_wsss._pictures import XY
from monai_wsss.data.case_files import labels_to_classes, name_channels, write_slice
from monai_wsss.data.crops import TileOptions, TileRule
from monai_wsss.data.datalist import statistics_entry
from monai_wsss.data.find_files import find_masks
from monai_wsss.data.folder import prepare_images
from monai_wsss.data.label_table import LabeledRow, LabelTable, read_label_table
from monai_wsss.data.modalities import sort_modalities
from monai_wsss.data.prepared_folder import check_output, warn_of_contradictions, write_prepared
from monai_wsss.data.tile_folder import TileSource, prepare_tiles

__all__ = ["prepare_cases"]

_BRAIN_CHANNELS = {3: ("T1", "FLAIR", "T1c"), 4: ("T1", "T1c", "T2", "FLAIR")}
"""Number of channels -> the sequences in the order in which the brain MRI sets store them."""

_logger = logging.getLogger(__name__)


def prepare_cases(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    label_columns: Sequence[str] = ("label",),
    modalities: Sequence[str] | None = None,
    tiles: int | None = None,
    labels_from_masks: bool = False,
    **tiling: Unpack[TileOptions],
) -> Path:
    """Turn a folder with ``labels.csv`` and ``cases/*.npz``, or ``images/`` and ``masks/``, into a prepared folder.

    Each npz file holds ``images`` (N, H, W[, C]) of 8 or 16 bits and perhaps ``masks`` (N, H, W).  Its slices become
    PNG files, one per channel, and networks get them in the order [x, y] of their volumes.  The intensity statistics of
    each subject are recorded over all its images; color images get none.  In the layout with ``images/`` the images are
    read as :func:`~monai_wsss.data.folder.prepare_folder` says, and a mask is left out where the column
    ``has_pixel_truth`` is 0.

    With ``tiles`` the training images of either layout are cut into tiles with and without the finding
    (:mod:`monai_wsss.data.tile_folder`).  The splits validation and test hold whole images; the lists
    ``validation_tiles`` and ``test_tiles`` hold their tiles, and ``training_images`` the whole training images.

    Args:
        root: the folder.
        out: the folder to write.
        label_columns: the columns with 0/1 labels, one per class; mask value k is the k-th of them.  With the single
            column ``label`` every mask value above 0 counts.
        modalities: names of the stored channels, in the order of the file.  By default, a table with the columns
            ``index_in_npz`` and ``brain_px`` has T1, FLAIR, T1c for three and T1, T1c, T2, FLAIR for four channels.
            Any other table has "image" for one channel, and "channel 0", … for several.
        tiles: size of the tiles in pixels; None keeps all images whole.
        labels_from_masks: whether the tags of tiles come from the masks.  Such tags simulate image-level labels, and
            the datalist says so.  Otherwise ``tiles.csv`` lists the tiles with id, x, y and labels.
        tiling: the other options of tiles, as :class:`~monai_wsss.data.crops.TileRule` takes them.

    Returns:
        The path of ``datalist.json``.

    Raises:
        DataError: a file or row is wrong; one sentence says what, and the remedy.
        ValueError: an option of tiles is out of range, or given without ``tiles``.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "cases").mkdir()
        >>> np.savez(root / "cases" / "anna.npz", images=np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
        >>> rows = ["id,case,index_in_npz,label,split,file", "a,anna,0,1,val,cases/anna.npz"]
        >>> _ = (root / "labels.csv").write_text("\\n".join(rows))
        >>> prepare_cases(root, root / "prepared").name
        'datalist.json'
    """
    folder = Path(root)
    rule = None if tiles is None else TileRule(tiles, **tiling)
    if rule is None and (labels_from_masks or tiling):
        given = ", ".join(f"`{name}`" for name in (*tiling, *(["labels_from_masks"] if labels_from_masks else [])))
        raise ValueError(f"Expected `tiles`, the size of the tiles, beside {given}: give it, or leave these out.")
    table = read_label_table(
        folder / "labels.csv", subject_column="case", label_columns=label_columns, split_column="split"
    )
    target = check_output(out, folder)
    columns = table.rows[0].values
    stored = "file" in columns and "index_in_npz" in columns
    if stored and rule is not None and rule.region is not None:
        raise DataError(f"{table.path} lists slices in npz files, which have no masks of a region: leave `region` out.")
    if rule is not None:
        sources = _npz_sources(folder, table, modalities) if stored else None
        return prepare_tiles(
            folder, table, target, rule, labels_from_masks=labels_from_masks, modalities=modalities,
            entries={"order": XY} if stored else None, sources=sources,
        )  # fmt: skip
    if stored:
        return _prepare_npz(folder, table, target, modalities)
    rows = [row for row in table.rows if row.values.get("has_pixel_truth", "1") != "0"]
    masks = find_masks(folder / "masks", rows) if (folder / "masks").is_dir() and rows else {}
    _logger.info("%d of %d cases have a mask.", len(masks), len(table.rows))
    return prepare_images(table, folder / "images", masks, target, modalities=modalities)


def _open_npz(path: Path, row: LabeledRow) -> tuple[np.ndarray, np.ndarray | None]:
    """Read ``images`` (N, H, W, C) and ``masks`` (N, H, W) or None."""
    try:
        with np.load(path, allow_pickle=False) as content:
            images = content["images"]
            masks = content.get("masks")
    except (ValueError, TypeError) as error:  # numpy would advise to unpickle, which runs what the file says
        raise DataError(
            f"{row.where}: cannot read `images` in {path} (it is no npz file of plain numeric arrays): "
            "restore the npz file."
        ) from error
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{row.where}: cannot read `images` in {path} ({error}): restore the npz file.") from error
    if images.ndim not in (3, 4) or images.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{path}: `images` is {images.dtype} of shape {images.shape}: "
            "store unsigned 8 or 16 bits as (N, H, W) or (N, H, W, C)."
        )
    if masks is not None and masks.shape != images.shape[:3]:
        raise DataError(f"{path}: `masks` has shape {masks.shape}, `images` {images.shape}: store one mask per slice.")
    return images.reshape(*images.shape[:3], -1), masks


def _read_slices(root: Path, rows: Sequence[LabeledRow]) -> Iterator[tuple[LabeledRow, np.ndarray, np.ndarray | None]]:
    """Give each row with its slice (C, x, y) and its mask (1, x, y) or None; each file is opened once."""
    opened: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for row in rows:
        file, text = row.values["file"], row.values["index_in_npz"]
        if os.path.isabs(file) or os.path.normpath(file).split(os.sep)[0] == os.pardir:
            raise DataError(f'{row.where}: the file "{file}" is outside {root}: give a path below this folder.')
        if file not in opened:
            opened[file] = _open_npz(root / file, row)
        images, masks = opened[file]
        if not text.isdecimal() or int(text) >= len(images):
            raise DataError(f'{row.where}: index_in_npz is "{text}", but {file} holds slices 0 to {len(images) - 1}.')
        index = int(text)
        yield row, images[index].transpose(2, 1, 0), None if masks is None else masks[index].T[None]


def _channel_names(channels: int, row: LabeledRow, wanted: Sequence[str] | None) -> list[str]:
    """Name the stored channels; the column ``brain_px`` tells the tables of the brain MRI sets."""
    if wanted is None and "brain_px" in row.values:
        wanted = _BRAIN_CHANNELS.get(channels)
    return name_channels(channels, wanted, f"{row.where}: the slice")


def _npz_sources(root: Path, table: LabelTable, wanted: Sequence[str] | None) -> Iterator[TileSource]:
    """Give the slices of all npz files, subject by subject, with their channels in canonical order."""
    modalities: list[str] = []
    for rows in tqdm(table.by_subject().values(), desc="subjects", disable=None):
        for row, pixels, mask in _read_slices(root, rows):
            names = _channel_names(len(pixels), row, wanted)
            modalities = modalities or sort_modalities(names)
            if sort_modalities(names) != modalities:
                raise DataError(
                    f"{row.where}: the slice has the channels {', '.join(names)}, "
                    f"the first one {', '.join(modalities)}: prepare slices of one kind at a time."
                )
            shown = None if mask is None else labels_to_classes(mask, table.classes, f"{row.where}: the mask")
            yield TileSource(row, modalities, False, pixels[[names.index(name) for name in modalities]], shown)


def _prepare_npz(root: Path, table: LabelTable, out: Path, wanted: Sequence[str] | None) -> Path:
    """Write the slices subject by subject, with the statistics of each."""
    modalities: Sequence[str] = ()
    written: dict[str, dict[str, Any]] = {}
    statistics: dict[str, dict[str, list[float]]] = {}
    contradictions: list[str] = []
    for subject, sources in groupby(_npz_sources(root, table, wanted), key=lambda source: source.row.subject):
        slices = []
        for source in sources:
            row, modalities = source.row, source.names
            slices.append(source.pixels)
            written[row.id], agrees = write_slice(out, row, modalities, source.pixels, source.mask)
            contradictions += [] if agrees else [row.id]
        statistics[subject] = statistics_entry(*foreground_statistics(slices))
    _logger.info("%d slices of %d subjects, channels %s.", len(written), len(statistics), ", ".join(modalities))
    warn_of_contradictions(contradictions)
    return write_prepared(out, table, written, modalities, statistics, order=XY)
