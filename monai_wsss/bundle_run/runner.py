# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The parts of a bundle's inference, built from its own configuration and applied to one case after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.transforms import EnsureChannelFirstd

from monai_wsss._checks import DataError
from monai_wsss._files import write_json
from monai_wsss.bundle_run.shipped import ShippedBundle
from monai_wsss.bundle_scan.config_scan import scan_expressions
from monai_wsss.engines import check_overrides, with_weights
from monai_wsss.inferers import VolumeInferer
from monai_wsss.refinement import ToMaskd
from monai_wsss.reports.provenance import other_than_trained
from monai_wsss.transforms import LoadImageOrderedd, SaveImageMaskd

__all__ = ["SHOWN", "BundleRunner", "inference_parser", "own_error"]

_logger = logging.getLogger(__name__)
_SMALLEST_WINDOW = 64
SHOWN = "shown"
"""Key of the image of a result as it was loaded, before its intensities were normalized."""
_LOADING = (LoadImageOrderedd, EnsureChannelFirstd)


def own_error(error: BaseException) -> Exception:
    """Give the error that lies below those of MONAI's parser: one sentence of the package, where there is one."""
    below: BaseException | None = error
    seen: list[BaseException] = []
    while below is not None and below not in seen:
        seen.append(below)
        below = below.__cause__ or (None if below.__suppress_context__ else below.__context__)
    told = next((one for kind in (DataError, ValueError) for one in seen if isinstance(one, kind)), None)
    own = next((one for one in seen if type(one).__module__.startswith("monai_wsss")), None)
    if told is None and own is not None:
        return DataError(str(own))
    found = told or next((one for one in seen if not str(one).startswith("Failed to ")), seen[0])
    return found if isinstance(found, Exception) else RuntimeError(str(found))


def inference_parser(
    bundle: ShippedBundle, names: Sequence[str], settings: Mapping[str, Any], header: Mapping[str, Any], work: Path
) -> ConfigParser:
    """Read configurations of a bundle with settings over them; nothing in them is evaluated yet.

    Args:
        bundle: the bundle.
        names: of its configurations, such as "inference".
        settings: ids and values, as on the command line of ``monai.bundle run``.
        header: the header of a datalist, from which the bundle takes classes and order.
        work: a folder for a datalist of that header.

    Raises:
        DataError: an expression is none that a bundle may have, or a setting is none of this bundle.
    """
    files = [bundle.path / "configs" / f"{name}.json" for name in names]
    for file, name in zip(files, names, strict=True):
        faults = scan_expressions(bundle.config(name))
        if faults:
            raise DataError(f"{file} is not run: {faults[0]} `monai-wsss bundles --check` tells all faults.")
    check_overrides([str(file) for file in files], settings)
    write_json(work / "inputs.json", dict(header))
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    known = {"bundle_root": str(bundle.path), "datalist": str(work / "inputs.json"), "num_workers": 0}
    for key, value in {**known, **settings}.items():
        parser[key] = value
    parser.parse(True)
    return parser


class BundleRunner:
    """Read, normalize, segment and write cases as ``python -m monai.bundle run`` of ``inference.json`` does.

    Args:
        parser: of :func:`inference_parser`.
        weights: the file of the weights.

    Attributes:
        network: with its weights, in eval mode.
        device: on which it runs.

    Raises:
        DataError: the weights are damaged or of another network.
    """

    def __init__(self, parser: ConfigParser, weights: Path) -> None:
        self.network = with_weights(parser.get_parsed_content("network"), weights).eval()
        self.device = torch.device(parser.get_parsed_content("device"))
        self.amp = bool(parser.get_parsed_content("amp"))
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.postprocessing = parser.get_parsed_content("postprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        self._weak = [*_weak_sequences(self.network), *other_than_trained(self.network, weights)]
        steps = self.preprocessing.transforms
        self._loaded = 1 + max((n for n, step in enumerate(steps) if isinstance(step, _LOADING)), default=-1)
        for transform in self.postprocessing.transforms:
            if isinstance(transform, SaveImageMaskd) and transform.palette == "none":
                transform.palette = "classes"

    @torch.no_grad()
    def __call__(self, item: Mapping[str, Any]) -> tuple[dict[Any, Any], list[str]]:
        """Segment an item and write its mask.

        Returns:
            The item as the bundle's post-processing leaves it, and sentences on sequences that are none to rely on and
            on what had to be done for want of memory.

        Raises:
            DataError: the image does not fit into the memory of the device by any means.
        """
        loaded = self.preprocessing(dict(item), end=self._loaded)
        batch = list_data_collate([self.preprocessing(dict(loaded), start=self._loaded)])
        batch["image"] = batch["image"].to(self.device)
        batch["pred"], notes = self._maps(batch["image"])
        (result,) = decollate_batch(batch)
        return {**self.postprocessing(result), SHOWN: loaded["image"]}, [*self._weak, *notes]

    def contradictions(self, result: Mapping[Any, Any], classes: Sequence[str]) -> list[str]:
        """Say of which classes there is a mask although their score is that of an absent class.

        Args:
            result: of a case.
            classes: names of the classes, (K).
        """
        gates = [step.settings["gate"] for step in self.postprocessing.transforms if isinstance(step, ToMaskd)]
        if gates != ["none"] or "presence" not in result:
            return []
        level = getattr(self.network, "presence_level", None)
        least = 0.0 if level is None else float(torch.as_tensor(level).min())
        absent = [
            name
            for number, name in enumerate(classes, start=1)
            if result["presence"][number - 1] <= least and (result["pred"] == number).any()
        ]
        return [
            f"the score speaks against {name}, and yet it has a mask: the score does not decide here" for name in absent
        ]

    def _maps(self, image: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """Ask the network, with fewer slices at once and then smaller windows where memory does not suffice."""
        notes: list[str] = []
        windows = getattr(self.inferer, "windows", None)
        try:
            while True:
                try:
                    with torch.autocast(self.device.type, enabled=self.amp):
                        return self.inferer(image, self.network), notes
                except torch.OutOfMemoryError as error:
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    if not self._shrink(image, notes):
                        raise DataError(
                            f"The image of {' x '.join(map(str, image.shape[2:]))} does not fit into the memory of "
                            f"{self.device}, not even in parts: take --device cpu."
                        ) from error
        finally:
            if isinstance(self.inferer, VolumeInferer):
                self.inferer.windows = windows

    def _shrink(self, image: torch.Tensor, notes: list[str]) -> bool:
        """Make the next try smaller; give False where nothing is left to do."""
        inferer = self.inferer
        if not isinstance(inferer, VolumeInferer):
            return False
        at_once = inferer.slice_batch if inferer.windows is None else inferer.windows.sw_batch_size
        if at_once > 1 and (image.ndim == 5 or inferer.windows is not None):
            inferer.slice_batch = max(inferer.slice_batch // 2, 1)
            if inferer.windows is not None:
                inferer.windows.sw_batch_size = max(at_once // 2, 1)
            _logger.warning("The memory of %s does not suffice: fewer slices at once.", self.device)
            return True
        if inferer.grid is not None or inferer.cam is not None:
            return False
        sides = image.shape[2 : 2 + inferer.spatial_dims] if inferer.windows is None else inferer.windows.roi_size
        window = max(-(-max(sides) // 64) * 32, _SMALLEST_WINDOW)
        if window >= max(sides):
            return False
        smaller = VolumeInferer(
            inferer.spatial_dims, roi_size=[window] * inferer.spatial_dims, slice_batch=1, overlap=0.5
        )
        inferer.windows = smaller.windows
        notes[:] = [
            f"computed in windows of {window} pixels for want of memory: the network saw less around each pixel than "
            "in the whole image"
        ]
        _logger.warning("The memory of %s does not suffice: windows of %d pixels.", self.device, window)
        return True


def _weak_sequences(network: torch.nn.Module) -> list[str]:
    """Say that all sequences that a network is given are those that its training found unreliable."""
    reliable, channels = getattr(network, "reliable", None), getattr(network, "channels", None)
    present = getattr(network, "present_modalities", None)
    if reliable is None or channels is None or present is None:
        return []
    given = [bool(one) for one, channel in zip(reliable.tolist(), channels, strict=True) if channel >= 0]
    return [] if any(given) else [f"training found {', '.join(present)} unreliable, so do not rely on this mask"]
