# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Maps and images with real values on disk, beside the masks and in the geometry of their source image."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.config import KeysCollection
from monai.transforms import SaveImaged
from PIL import Image

from monai_wsss._files import atomic_path
from monai_wsss._nifti import as_nifti
from monai_wsss.transforms.save_mask import ItemNames, beside_its_source, result_folder

__all__ = ["SaveImageMapd"]


class SaveImageMapd(SaveImaged):
    """Write maps of an item to ``output_dir/<key>/<id><suffix>.nii.gz`` or ``.png``; paths go to ``<key>_path``.

    NIfTI files hold the values themselves, float32, with the affine of the source image.  Images without geometry give
    PNG: gray of 16 bits, or three channels as RGB of 8 bits, with the lowest value of ``value_range`` as black, the
    highest as white, and what lies outside cut off.  A value is then ``low + (high - low) * gray / 65535`` (RGB: 255).
    Every other number of channels gives one file per channel, numbered from 1: ``<id><suffix>_1.png``.

    Args:
        keys: maps (C, *S) to write.
        output_dir: folder of the run.
        value_range: the lowest and the highest value, for PNG files.
        suffix: added to the file names, such as ``"_normalized"`` where the values are not those of the source image.
        image_key: the source image, see :class:`SaveImageMaskd`.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: an empty range; a map of another size than its source image.
        DataError: the file cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        value_range: Sequence[float] = (0.0, 1.0),
        suffix: str = "",
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys, print_log=False)
        low, high = (float(value) for value in value_range)
        if not low < high:
            raise ValueError(f"Expected `value_range` as a lower and a higher value, got {tuple(value_range)}.")
        self.value_range = (low, high)
        self.output_dir = Path(output_dir)
        self.suffix = suffix
        self.image_key = image_key
        self._names = ItemNames()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            stored, affine = beside_its_source(item, str(key), self.image_key)
            source = getattr(item[self.image_key], "meta", None)
            folder = result_folder(self.output_dir, str(key))
            name = self._names(item, self.image_key) + self.suffix
            planes = stored.detach().cpu().float().numpy()
            if affine is None and len(planes) == 3:
                paths = [self._write(folder / f"{name}.png", planes, affine, source)]
            else:
                ending = ".png" if affine is None else ".nii.gz"
                numbers = [f"_{number}" for number in range(1, len(planes) + 1)] if len(planes) > 1 else [""]
                paths = [
                    self._write(folder / f"{name}{number}{ending}", plane[None], affine, source)
                    for number, plane in zip(numbers, planes, strict=True)
                ]
            item[f"{key}_path"] = paths[0] if len(paths) == 1 else paths
        return item

    def _write(self, path: Path, planes: np.ndarray, affine: np.ndarray | None, source: Any) -> str:
        """Write (1, *S), or (3, x, y) as RGB, and give the path."""
        with atomic_path(path) as temporary:
            if affine is not None:
                nibabel.save(as_nifti(planes[0], affine, source), temporary)
            else:
                low, high = self.value_range
                shares = np.clip((planes.astype(np.float64) - low) / (high - low), 0, 1)
                if len(planes) == 3:
                    Image.fromarray(np.rint(255 * shares).astype(np.uint8).transpose(2, 1, 0)).save(temporary)
                else:
                    Image.fromarray(np.rint(65535 * shares[0].T).astype(np.uint16)).save(temporary)
        return str(path)
