# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks on disk in the geometry of their source image, one file per case, written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import PILWriter
from monai.data.meta_tensor import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey
from PIL import Image

from monai_wsss._checks import DataError, check_choice, check_shape
from monai_wsss._files import atomic_path, case_file_name, make_directory
from monai_wsss._labels import CLASS_COLORS
from monai_wsss._nifti import as_nifti
from monai_wsss._pictures import ROWS_COLUMNS, as_stored, has_geometry

__all__ = ["SaveImageMaskd", "has_geometry", "write_mask"]


PALETTES = ("none", "voc", "classes")
"""Colors of masks that are pictures: the labels as gray values, or as indices of VOC's or of bright colors."""


def _voc_palette() -> list[int]:
    """Give the colors of PASCAL VOC, red, green, blue of the labels 0 to 255, (768).

    The bits 0, 1, 2 of a label become the highest bits of red, green and blue, the bits 3, 4, 5 the next ones, and so
    on: 0 is black, 1 dark red, 255 a light gray.
    """
    return [
        sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for label in range(256)
        for channel in range(3)
    ]


def _class_palette() -> list[int]:
    """Give black for the background and bright colors of the labels 1 to 255, (768)."""
    return [0, 0, 0, *(value for label in range(255) for value in CLASS_COLORS[label % len(CLASS_COLORS)])]


def write_mask(
    path: str | os.PathLike[str],
    mask: torch.Tensor,
    affine: np.ndarray | None = None,
    *,
    palette: str = "none",
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write a mask (1, *S) of 0..K as uint8: PNG for 2D without geometry, NIfTI with ``affine`` (RAS+) otherwise.

    The axes are (1, x, y) or (1, x, y, z); the columns of a PNG are x.

    Args:
        path: ``….png`` or ``….nii.gz``.
        mask: the mask.
        affine: indices to RAS millimeters, for NIfTI.
        palette: "none", a gray PNG with the labels as values; "voc", a PNG with a palette of VOC's colors and the
            labels as indices, as VOC's server and tools read it; "classes", the same with the colors of the overlays,
            which any viewer shows.  NIfTI has no colors.
        source: the metadata of the image, as MONAI's readers give them.  Where the image was a NIfTI file, the mask
            gets its unit of length, its two forms of the affine and their codes, so that it lies on the image in every
            viewer.

    Raises:
        ValueError: another shape, more than 255 classes, or an unknown palette.
        DataError: the file cannot be written.
    """
    check_choice("palette", palette, PALETTES)
    check_shape("mask", mask, "(1, *S)")
    if int(mask.max()) > 255:
        raise ValueError(f"Expected `mask` of at most 255 classes, got the value {int(mask.max())}.")
    array = mask.detach().cpu().to(torch.uint8).numpy()
    with atomic_path(path) as temporary:
        if str(path).endswith(".png") and palette != "none":
            picture = Image.fromarray(np.ascontiguousarray(array[0].T))
            picture.putpalette(_voc_palette() if palette == "voc" else _class_palette())
            picture.save(temporary)
        elif str(path).endswith(".png"):
            writer = PILWriter(output_dtype=np.uint8, scale=None)
            writer.set_data_array(array, channel_dim=0)
            writer.write(str(temporary))
        else:
            # MONAI's NibabelWriter is not used: it drops the last axis of a study of one slice.
            nibabel.save(as_nifti(array[0], np.eye(4) if affine is None else affine, source), temporary)


def result_folder(output_dir: Path, name: str) -> Path:
    """Make the folder ``name`` below the output folder.

    Raises:
        DataError: the output folder holds a datalist, so its ``masks`` may be references; or it cannot be written.
    """
    if (output_dir / "datalist.json").exists():
        raise DataError(
            f"The output folder {output_dir} holds data, datalist.json: results would replace its masks. Choose "
            "another output folder."
        )
    return make_directory(output_dir / name)


def beside_its_source(item: Mapping[Hashable, Any], key: str, image_key: str) -> tuple[torch.Tensor, np.ndarray | None]:
    """Give a mask or map (C, *S) of an item in the order of files, and the affine of its source image.

    Args:
        item: holds both.
        key: of the mask or map.
        image_key: of the source image, a MetaTensor that knows its file and affine.

    Returns:
        The mask, (C, x, y) or (C, x, y, z), and the affine (4, 4), or None where the image has no geometry.

    Raises:
        ValueError: the mask has another size than its source image, or the image has lost its metadata.
    """
    values, image = item[key], item[image_key]
    if item.get("order") == ROWS_COLUMNS and not isinstance(image, MetaTensor):
        raise ValueError(
            f"Expected `{image_key}` to be a MetaTensor, which knows the order of its axes, got "
            f"{type(image).__name__}: keep MONAI's metadata on (`monai.data.set_track_meta(True)`)."
        )
    if values.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"Expected `{key}` of its source image's size {tuple(image.shape[1:])}, got {tuple(values.shape[1:])}."
        )
    return as_stored(values, image)


class ItemNames:
    """Give each item the name of its files, without suffix: its ``id``, or else the name of the file of its image.

    Where the files of two images have one name, the second gets the folders before it, as many as it takes:
    ``second_T1`` beside ``T1``.  The same items in the same order get the same names.
    """

    def __init__(self) -> None:
        self._file_of: dict[str, str] = {}

    def __call__(self, item: Mapping[Hashable, Any], image_key: str) -> str:
        """Give the name of an item.

        Raises:
            DataError: the item has no ``id``, and its image knows no file.
        """
        if "id" in item:
            return case_file_name(item["id"])
        file = getattr(item[image_key], "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ)
        if not file:
            raise DataError(
                f"A case has no `id`, and its `{image_key}` knows no file to name its results by: give `id`."
            )
        path = Path(str(file)).absolute()
        parts = [re.sub(r"(\.nii)?\.gz$|\.[A-Za-z]\w{0,4}$", "", path.name) or path.name]
        folders = list(path.parent.parts)
        while self._file_of.setdefault(name := case_file_name("_".join(parts)), str(path)) != str(path):
            if not folders:
                raise DataError(f"{path} and {self._file_of[name]} would have results of one name: give each `id`.")
            parts.insert(0, folders.pop())
        return name


class SaveImageMaskd(SaveImaged):
    """Write the masks of an item to ``output_dir/masks/<id>.nii.gz`` or ``.png``; the path goes to ``<key>_path``.

    An item without ``id`` has the name of its image's file; a second file of one name has its folder in front.
    Programs that write masks themselves know this transform by its base class or its name, and leave it out.

    The geometry is that of ``image_key``: the mask has its grid and affine, and unit and forms of a NIfTI header are
    kept, see :func:`write_mask`.  Masks of images without geometry (PNG, JPEG, TIFF) become PNG.  Such a mask lies as
    viewers show its image: upright, also where an EXIF entry turns the image, and without an EXIF entry of its own.

    Args:
        keys: masks (1, *S) to write.
        output_dir: folder of the run.
        image_key: the source image, a MetaTensor that knows its file and affine.
        allow_missing_keys: skip keys that an item lacks.
        palette: "none" for gray PNG files, "voc" or "classes" for colors, see :func:`write_mask`.

    Raises:
        ValueError: the mask has another size than its source image, or the image has lost its metadata.
        DataError: the file cannot be written, ``output_dir`` holds a datalist, whose masks would be replaced, or the
            item has neither ``id`` nor an image that knows its file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        image_key: str = "image",
        allow_missing_keys: bool = False,
        palette: str = "none",
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys, print_log=False)
        check_choice("palette", palette, PALETTES)
        self.palette = palette
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self._names = ItemNames()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            stored, affine = beside_its_source(item, str(key), self.image_key)
            name = self._names(item, self.image_key) + (".png" if affine is None else ".nii.gz")
            folder = result_folder(self.output_dir, "masks")
            source = getattr(item[self.image_key], "meta", None)
            write_mask(folder / name, stored, affine, palette=self.palette, source=source)
            item[f"{key}_path"] = str(folder / name)
        return item
