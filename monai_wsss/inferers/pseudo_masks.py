# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""From a network's maps and the image-level labels of a split to pseudo-masks on disk, for the second stage.

With a background, an image's pseudo-mask is what its network's :class:`~monai_wsss.refinement.MaskRule` decides, gated
by its label: 0, or 1..K.

Without a background (all classes are real tissue), patches of one image are merged before anything is decided:

    S_k(q) = mean over the patches that cover q of their signed maps F_k(q)       scores, not labels, are averaged
    A(q)   = classes that every one of these patches is tagged with               the label filter
    pseudo(q) = argmax over k in A(q) of S_k(q), plus 1                           255 where A(q) is empty

So a patch with a single tag becomes constant, and its tag counts for the pixels that it shares with its neighbors.

An item with a ``region`` is decided by the pixels in it; others become 255.

With ``refine``, maps are first drawn to the edges of the image; without a background, those of each patch by its own
intensities, before the mean. Patches that were normalized one by one then make no edge where they meet, and memory does
not grow with the image.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice, float32_or_wider, plain_tensor
from monai_wsss._files import case_file_name, file_sha256, load_tensors, make_directory, write_json
from monai_wsss._labels import IGNORED
from monai_wsss._pictures import ROWS_COLUMNS, XY, as_stored, has_geometry, order_of
from monai_wsss._processes import is_distributed, is_main_process
from monai_wsss._spread import check_shared, current_workers, over_ray, shared_folder
from monai_wsss.inferers.patch_merging import merge_patches
from monai_wsss.refinement import ClassMapRefinement, DenseCRF, MaskRule, PixelAdaptiveRefinement, decide_within
from monai_wsss.transforms import write_mask

__all__ = ["MANIFEST", "PseudoMaskWriter", "merge_patches"]

MANIFEST = "manifest.json"

_FORMER = {"order": XY, "slice_axis": None}
"""Settings of pseudo-masks that were written before these settings were recorded."""

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]


class PseudoMaskWriter:
    """Writes ``<output_dir>/<id>.png`` (or ``.nii.gz``) for each item of a split, and a manifest when all are there.

    A killed run goes on where it stopped. Files of other weights, settings, items or tags are written anew, and so are
    those of images that were read in another order of their axes. Any other change of ``transform`` is not noticed. No
    mask is read.

    Args:
        network: gives the maps; deployable. Images are brought to its device.
        weights: its weights, loaded before the first map.
        items: those of :func:`~monai_wsss.data.load_datalist`, each with its ``label``.
        transform: from an item to ``image`` (C, *S), without chance and at the image's own size.
        inferer: ``inferer(image, network)`` at the image's size, e.g. a
            :class:`~monai_wsss.inferers.VolumeInferer` with scales and flips. It gets as many images of one size at
            once as its ``slice_batch`` says, or 32.
        output_dir: the folder of the pseudo-masks.
        background: whether 0 is a class of its own; see the module for what follows.
        rule: with a background: how maps are cut, by name or as words of :class:`~monai_wsss.refinement.MaskRule`,
            e.g. ``{"rule": "fixed", "threshold": 0.2}``; None: as the network's pooling calls for.
        scores: without a background: ``signed`` compares raw maps; ``cam`` compares their positive part divided by its
            maximum in the patch (Eq. 4), and raw maps where that is zero for all classes that may be there.
        label_filter: without a background: ``neighbors`` as in the module; ``patch`` applies a patch's tags to itself
            alone; ``none`` leaves tags out.
        white: brightness, as a share of 255, above which all three colors of a pixel mean bare glass, which becomes
            255; None for no such rule. It is read from ``picture``, a copy of the image before normalization.
        refine: draws maps to the edges of their image before anything is decided, ``"none"``, ``"par"``, ``"crf"`` or a
            part of own settings, see :class:`~monai_wsss.refinement.ClassMapRefinement`. It reads ``intensity``, or
            ``image`` where an item lacks it. Patches are refined each by its own image, before they are merged.

    Raises:
        ValueError: an unknown choice; ``scores="cam"`` with a CRF, which gives no positive part.
        DataError: when it runs: no items, one without label, weights that cannot be read, a folder that cannot be
            written or holds files of something else, or a white rule without ``picture``.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | os.PathLike[str] | None,
        items: Sequence[Item],
        transform: Callable[[Item], Item],
        inferer: Callable[..., torch.Tensor],
        output_dir: str | os.PathLike[str],
        *,
        background: bool = True,
        rule: str | Mapping[str, Any] | None = None,
        scores: str = "signed",
        label_filter: str = "neighbors",
        white: float | None = None,
        refine: str | PixelAdaptiveRefinement | DenseCRF | ClassMapRefinement | None = None,
    ) -> None:
        check_choice("scores", scores, ("signed", "cam"))
        check_choice("label_filter", label_filter, ("neighbors", "patch", "none"))
        self.network = network
        self.weights = weights
        self.items = items
        self.transform = transform
        self.inferer = inferer
        self.output_dir = Path(output_dir)
        self.background = background
        self.rule = dict(rule) if isinstance(rule, Mapping) else {"rule": rule}
        self.scores = scores
        self.label_filter = label_filter
        self.white = white
        self.batch_size = getattr(inferer, "slice_batch", 32)
        self.refinement = ClassMapRefinement.of(refine, network, getattr(inferer, "slice_axis", None))
        if scores == "cam" and self.refinement is not None and isinstance(self.refinement.part, DenseCRF):
            raise ValueError("Expected scores='signed' with a CRF as `refine`: probabilities have no zero level.")

    def run(self, ray: str | None = None) -> Path:
        """Write what is missing and give the path of the manifest; several processes share the images.

        Args:
            ray: see :func:`~monai_wsss.inferers.over_ray`; None: those around this call, if any.

        Raises:
            DataError: see the class; Ray or a worker's disk is not there.
            ValueError: Ray in a distributed run.
        """
        if is_distributed() and (ray is not None or current_workers() is not None):
            raise ValueError("Expected no `ray` in a distributed run, whose processes share the images already.")
        with over_ray(ray):
            return self._run()

    @torch.no_grad()
    def _run(self) -> Path:
        if not self.items:
            raise DataError("There is no case to make a pseudo-mask of: choose another split.")
        if unknown := [item["id"] for item in self.items if "label" not in item]:
            raise DataError(f"{len(unknown)} cases, such as {unknown[0]}, have no label: choose a split with labels.")
        _wait()  # one process writes the weights, at the end of a training in which all take part
        if self.weights is not None:
            self.network.load_state_dict(load_tensors(self.weights))
        folder, settings = make_directory(self.output_dir), self._settings()
        if is_main_process():
            self._keep_or_clear(folder, settings)
        _wait()
        self._write_missing()
        _wait()
        if is_main_process():
            files = {str(item["id"]): self._path(item).name for item in self.items}
            write_json(folder / MANIFEST, {"settings": settings, "files": files})
            logger.info("%d pseudo-masks in %s.", len(files), folder)
        _wait()
        return folder / MANIFEST

    def _write_missing(self) -> None:
        """Write the pseudo-masks of this process's share, as many images at once as fill a batch."""
        was_training = self.network.training
        self.network.eval()
        groups = list(self._groups())[_share_of_process()]
        missing = [group for group in groups if not all(self._path(item).is_file() for item in group)]
        if len(missing) < len(groups):
            logger.info("%d of %d images have their pseudo-masks already.", len(groups) - len(missing), len(groups))
        with tqdm(total=len(missing), desc="pseudo-masks", disable=None) as bar:
            batches = list(_batches(missing, self.batch_size))
            for number in self._written(batches):
                bar.update(len(batches[number]))
        self.network.train(was_training)

    def _written(self, batches: Sequence[Sequence[Sequence[Item]]]) -> Iterator[int]:
        """Write batches, here or by workers, and yield the number of each; batches are the same for both."""
        workers = current_workers()
        if workers is None:
            for number, together in enumerate(batches):
                self._write(together)
                yield number
            return
        kept = {id(part): part for part in (self.items, self.transform)}
        sent = copy.deepcopy(self, kept)
        sent.items = ()
        sent.network.cpu()
        with shared_folder(self.output_dir) as sign:
            for number, _ in workers.each(_SentWriter(sent, sign), batches, gpu=self._device.type == "cuda"):
                yield number

    @torch.no_grad()
    def _write(self, together: Sequence[Sequence[Item]]) -> None:
        """Write the pseudo-masks of some images, each with all of its patches."""
        for item, mask, affine in self._masks_of(together):
            write_mask(self._path(item, affine), mask, affine, source=getattr(item["image"], "meta", None))

    def _settings(self) -> dict[str, Any]:
        """Give what the pseudo-masks depend on, besides the images."""
        names = ("background", "rule", "scores", "label_filter", "white")
        views = {name: getattr(self.inferer, name, None) for name in ("views", "scales", "grid", "slice_axis")}
        windows = getattr(self.inferer, "windows", None)
        cases = [
            [str(item["id"]), [float(tag) for tag in item["label"]], item.get("source"), item.get("origin")]
            for item in self.items
        ]
        for case, item in zip(cases, self.items, strict=True):
            case += ["region"] if "region" in item else []
        return {
            **{name: getattr(self, name) for name in names},
            **{name: list(value) if isinstance(value, tuple) else value for name, value in views.items()},
            "order": order_of(self.transform(self.items[0])["image"]),
            "refine": "none" if self.refinement is None else self.refinement.settings,
            "window": None if windows is None else [*windows.roi_size, windows.overlap],
            "cam_source": getattr(self.network, "cam_source", None),
            "cases_sha256": hashlib.sha256(json.dumps(cases).encode()).hexdigest(),
            "weights_sha256": None if self.weights is None else file_sha256(self.weights),
        }

    def _keep_or_clear(self, folder: Path, settings: dict[str, Any]) -> None:
        """Remove the files of other settings; what is left belongs to these."""
        path = folder / "settings.json"
        if path.is_file() and _FORMER | json.loads(path.read_text(encoding="utf-8")) == settings:
            return
        masks = [*folder.glob("*.png"), *folder.glob("*.nii.gz")]
        if masks and not path.is_file():
            raise DataError(f"{folder} holds images that no writer of pseudo-masks has left: choose an empty folder.")
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in masks:
            file.unlink()
        write_json(path, settings)

    def _path(self, item: Item, affine: np.ndarray | None = None) -> Path:
        """Give the path of an item's pseudo-mask, or the one it is to have with the geometry ``affine``."""
        stem = self.output_dir / case_file_name(item["id"])
        study = stem.with_name(f"{stem.name}.nii.gz")
        return study if affine is not None or study.is_file() else stem.with_name(f"{stem.name}.png")

    def _groups(self) -> Iterator[list[Item]]:
        """Yield the patches of one image together, and images that are no patches one by one."""
        if self.background:
            yield from ([item] for item in self.items)
            return
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(str(item.get("source", f"id {item['id']}")), []).append(item)
        yield from groups.values()

    def _masks_of(self, groups: Sequence[Sequence[Item]]) -> Iterator[tuple[Item, torch.Tensor, np.ndarray | None]]:
        """Yield each item of these groups with its pseudo-mask (1, *S) and its place in space."""
        loaded = [[self.transform(item) for item in group] for group in groups]
        maps = iter(self._maps([torch.as_tensor(item["image"]) for group in loaded for item in group]))
        for group in loaded:
            for item, mask in zip(group, self._decided(group, [next(maps) for _ in group]), strict=True):
                if self.white is not None:
                    mask = torch.where(self._bare_glass(item), torch.as_tensor(IGNORED, dtype=torch.uint8), mask)
                yield item, *as_stored(mask, item["image"])

    def _decided(self, group: Sequence[Item], maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Decide the pseudo-masks (1, *S) of an image's patches, or of one image with a background."""
        if self.background:
            rule = MaskRule.of(self.network, **{**self.rule, "gate": "given"})
            return [self._decided_with_background(rule, *own) for own in zip(group, maps, strict=True)]
        masks = merge_patches(
            [self._refined(*own) for own in zip(group, maps, strict=True)],
            [torch.as_tensor(item["label"]) for item in group],
            [_first_pixel(item, scores.ndim - 1) for item, scores in zip(group, maps, strict=True)],
            label_filter=self.label_filter,
            scores=self.scores,
        )
        self._tell_of_contradictions(group, masks)
        return masks

    def _decided_with_background(self, rule: MaskRule, item: Item, maps: torch.Tensor) -> torch.Tensor:
        """Decide one pseudo-mask (1, *S) by the rule and the item's label."""
        label = torch.as_tensor(item["label"])[None]
        maps = maps if self.refinement is None else maps.to(self._device)
        if "region" in item:
            region = _plain(item["region"])[None]
            image = None if self.refinement is None else self.refinement.image_of(item)
            return decide_within(rule, maps[None], region, label, refine=self.refinement, image=image)[0].cpu()
        if self.refinement is None:
            return rule.mask(maps[None], label)[0].cpu()
        return self.refinement(rule, maps[None], self.refinement.image_of(item), label).mask[0].cpu()

    def _refined(self, item: Item, maps: torch.Tensor) -> torch.Tensor:
        """Refine the signed maps (K, *S) of a patch; where its tags will filter, they take part in a CRF alone."""
        if self.refinement is None:
            return maps
        label = torch.as_tensor(item["label"])[None] if self.label_filter == "neighbors" else None
        return self.refinement.maps(maps[None].to(self._device), self.refinement.image_of(item), label)[0].cpu()

    @property
    def _device(self) -> torch.device:
        """Give the device of the network, on which maps are refined as well."""
        own = next(self.network.parameters(), None)
        return torch.device("cpu") if own is None else own.device

    def _maps(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Give raw maps (K, *S) of images, those of one size in batches; volumes go with their place in space."""
        device = self._device
        maps: list[torch.Tensor] = []
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            # Volumes of one size may still lie differently in space.
            alike = chunk[0].ndim == 3 and len({image.shape for image in chunk}) == 1
            for batch in map(_batch, [chunk] if alike else [[image] for image in chunk]):
                maps.extend(float32_or_wider(plain_tensor(self.inferer(batch.to(device), self.network))).cpu())
        return maps

    def _tell_of_contradictions(self, group: Sequence[Item], masks: Sequence[torch.Tensor]) -> None:
        """Warn of overlapping patches whose tags leave no class for a pixel."""
        share = float(torch.stack([(mask == IGNORED).float().mean() for mask in masks]).mean())
        if share > 0:
            logger.warning(
                "The tags of overlapping patches contradict each other in %.2g %% of the image of %s: ignored there.",
                100 * share,
                group[0]["id"],
            )

    def _bare_glass(self, item: Item) -> torch.Tensor:
        """Tell which pixels are bare glass, (1, *S) bool, from the image before it was normalized."""
        if self.white is None or "picture" not in item:
            raise DataError(
                'The rule for white pixels reads the key "picture": copy the image before it is normalized '
                "(monai.transforms.CopyItemsd)."
            )
        return (_plain(item["picture"]) > 255 * self.white).all(dim=0, keepdim=True)


@dataclass(frozen=True)
class _SentWriter:
    """A writer in another process.

    Attributes:
        writer: without its items.
        sign: see :func:`~monai_wsss._spread.shared_folder`.
    """

    writer: PseudoMaskWriter
    sign: Path

    def __call__(self, device: str) -> Callable[[Sequence[Sequence[Item]]], None]:
        """Move the network; give the function that writes the pseudo-masks of some images."""
        check_shared(self.sign, f"the folder {self.writer.output_dir}")
        self.writer.network.to(device).eval()
        return self.writer._write


def _first_pixel(item: Item, spatial_dims: int) -> Sequence[int]:
    """Give the first pixel of a patch in its image, along the axes of the patch as it was read."""
    origin = item.get("origin", (0,) * spatial_dims)
    return origin[::-1] if order_of(item["image"]) == ROWS_COLUMNS else origin


def _batches(groups: Sequence[Sequence[Item]], size: int) -> Iterator[list[Sequence[Item]]]:
    """Yield groups in order, together until they hold ``size`` items."""
    together: list[Sequence[Item]] = []
    for group in groups:
        together.append(group)
        if sum(map(len, together)) >= size:
            yield together
            together = []
    if together:
        yield together


def _share_of_process() -> slice:
    """Give every n-th group to each of n processes."""
    if not is_distributed():
        return slice(None)
    return slice(torch.distributed.get_rank(), None, torch.distributed.get_world_size())


def _wait() -> None:
    """Wait until all processes are here."""
    if is_distributed():
        torch.distributed.barrier()


def _batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack images (C, *S) of one size; volumes keep their affines, by which an inferer finds the axis of slices."""
    batch = torch.stack([_plain(image) for image in images])
    affines = [torch.as_tensor(one.affine) for one in images if isinstance(one, MetaTensor) and has_geometry(one)]
    if batch.ndim != 5 or len(affines) < len(images):
        return batch
    return MetaTensor(batch, affine=torch.stack(affines))


def _plain(image: torch.Tensor) -> torch.Tensor:
    return plain_tensor(torch.as_tensor(image))
