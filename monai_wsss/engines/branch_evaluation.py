# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Evaluation of every branch of every network of a co-training: class maps, their ensemble, and the segmentation.

| branch         | mask                                                            | in CoSA |
|----------------|-----------------------------------------------------------------|---------|
| `M`            | the class maps M', cut at xi: the label that teaches            | CPL     |
| `M_aux`        | the auxiliary class maps, cut at their own xi                   | M†'     |
| `M+M_aux`      | the mean of both, cut at the mean of both xi                    |         |
| `S`            | the segmentation: the argmax                                    | S'      |

Each branch is measured by every ``label_filter`` and, on request, after a CRF.  The number is the mean IoU over the K
classes and the background, of pixels pooled over the images, as in the papers.

| ``label_filter`` | classes that a mask may hold                                                        |
|------------------|-------------------------------------------------------------------------------------|
| `none`           | all: what a user gets                                                               |
| `predicted`      | those that the classifier finds in the image                                        |
| `given`          | those of the image's label: what CoSA and others print for VOC's validation images  |

Masks are read to measure, and for nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice, plain_tensor
from monai_wsss._resize import resize_linear
from monai_wsss.data import load_header
from monai_wsss.engines.checkpoint import latest_checkpoint, load_tensors
from monai_wsss.metrics import PixelCounts, count_pixels, iou_score, miou_pooled
from monai_wsss.refinement import ClassMapRefinement, LabeledImages, MaskRule

__all__ = ["BranchEvaluation"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
_FILTERS = ("none", "predicted", "given")


class BranchEvaluation:
    """Measure the masks of each branch of each network against pixel masks.

    Args:
        networks: by name, each with ``branches(image)``, e.g. ``{"assignment": …, "online": …}``.
        seeds: ``(network, images)`` to M' and M†' (B, K, *S) in [0, 1] and S' (B, K + 1, *S); or to M' and S' alone.
        thresholds: functions that give xi of M' and of M†' when they are asked.
        classes: names of the K classes.
        background: average over the background, too.
        label_filters: of the table above.
        crf: a :class:`~monai_wsss.refinement.DenseCRF`, whose masks are measured besides; None: no CRF.
        grid: size to which images are brought, regardless of their proportions; maps are brought back. None: their own.
        device: of the networks.

    Raises:
        ValueError: no network, or an unknown filter.

    Example:
        >>> from monai_wsss.inferers import MinMax, MultiScaleSeeds
        >>> from monai_wsss.networks import TwoBranchNetwork
        >>> evaluation = BranchEvaluation(
        ...     {"network": TwoBranchNetwork.tiny()}, MultiScaleSeeds(MinMax(), (1.0,)), [lambda: 0.5], ["lesion"]
        ... )
        >>> item = {"image": torch.rand(1, 1, 16, 16), "label": torch.ones(1, 1), "mask": torch.ones(1, 1, 16, 16)}
        >>> [(row["branch"], row["label_filter"]) for row in evaluation.measure([item])]
        [('M', 'none'), ('M', 'given'), ('S', 'none'), ('S', 'given')]
    """

    def __init__(
        self,
        networks: Mapping[str, Any],
        seeds: Callable[[Any, LabeledImages], tuple[torch.Tensor, ...]],
        thresholds: Sequence[Callable[[], Any]],
        classes: Sequence[str],
        *,
        background: bool = True,
        label_filters: Sequence[str] = ("none", "given"),
        crf: Any = None,
        grid: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not networks or not label_filters:
            raise ValueError(f"Expected one or more `networks` and `label_filters`, got {list(networks)}.")
        for label_filter in label_filters:
            check_choice("label_filters", label_filter, _FILTERS)
        self.networks = dict(networks)
        self.seeds = seeds
        self.thresholds = tuple(thresholds)
        self.classes = tuple(classes)
        self.background = background
        self.label_filters = tuple(label_filters)
        self.refinements = {False: None} if crf is None else {False: None, True: ClassMapRefinement(crf)}
        self.grid = grid
        self.device = device

    @classmethod
    def of(
        cls,
        method: Any,
        datalist: str | os.PathLike[str],
        *,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        **words: Any,
    ) -> BranchEvaluation:
        """Make the evaluation of a co-training method.

        Args:
            method: has ``network``, ``seeds``, ``labels`` and ``auxiliary_labels``, which have a threshold, and
                ``online``, the trained network; wrapped by ``DistributedDataParallel`` or not.
            datalist: path, for the names of the classes.
            checkpoint_dir: the method is filled from the latest checkpoint there, if there is one.
            weights: without a checkpoint, fills ``method.network``, which is then measured alone, at the thresholds
                that the method was built with: ``model.pt`` holds no other.
            words: further arguments of the class.

        Raises:
            DataError: neither a checkpoint nor the weights exist, though one of them was named.
        """
        core = getattr(method, "module", method)
        networks = {"assignment": core.network, "online": core.online}
        if checkpoint_dir is not None or weights is not None:
            path = None if checkpoint_dir is None else latest_checkpoint(checkpoint_dir)
            if path is not None:
                core.load_state_dict(load_tensors(path)["method"])
                logger.info("Both networks and their thresholds are those of %s.", path)
            elif weights is not None and os.path.isfile(weights):
                core.network.load_state_dict(load_tensors(weights))
                del networks["online"]
                logger.warning(
                    "No checkpoint: of %s the deployed network alone is measured, at the thresholds of the preset.",
                    weights,
                )
            else:
                raise DataError(f"Expected a checkpoint in {checkpoint_dir} or the weights {weights}: train first.")
        if core.online is core.network:
            networks = {"network": core.network}
        header = load_header(datalist)
        thresholds = [_threshold_of(maker) for maker in (core.labels, core.auxiliary_labels)]
        words = {"background": header.get("background", True), **words}
        return cls(networks, core.seeds, thresholds, header["classes"], **words)

    @torch.no_grad()
    def measure(self, loader: Iterable[Mapping[str, Any]], *, split: str = "") -> list[Row]:
        """Measure all branches on the images of a split.

        Args:
            loader: batches, or single items in a batch axis, with ``image`` (B, C, *S), ``label`` (B, K) and ``mask``
                (B, 1, *S).  Images of a class without a mask are left out; healthy images need none.
            split: name for the rows.

        Returns:
            One row per network, branch, filter and CRF: ``split``, ``network``, ``branch``, ``label_filter``, ``crf``,
            ``threshold`` (None for `S`), ``images``, ``left_out``, ``images_per_second``, ``miou`` and ``iou`` (a
            dict over ``background`` and the classes; None where no reference holds the class).

        Raises:
            DataError: no image can be measured.
        """
        counts: dict[tuple[str, str, str, bool], list[PixelCounts]] = {}
        seconds: dict[Any, float] = {}
        images = left_out = 0
        modes = {name: network.training for name, network in self.networks.items()}
        for network in self.networks.values():
            network.eval()
        try:
            for batch in tqdm(loader, desc=f"branches {split}".strip(), disable=None):
                for image, label, reference in _cases(batch):
                    if reference is None:
                        left_out += 1
                        continue
                    images += 1
                    for key, mask in self._masks(image, label, reference.shape[1:], seconds):
                        counts.setdefault(key, []).append(count_pixels(mask, reference, num_classes=len(self.classes)))
        finally:
            for name, network in self.networks.items():
                network.train(modes[name])
        if not counts:
            raise DataError(f"No image of the split {split!r} has a pixel mask: its branches cannot be measured.")
        common = {"split": split, "images": images, "left_out": left_out}
        return [self._row(key, counts[key], seconds, common) for key in counts]

    def _masks(
        self, image: torch.Tensor, label: torch.Tensor, size: Sequence[int], seconds: dict[Any, float]
    ) -> Iterator[tuple[tuple[str, str, str, bool], torch.Tensor]]:
        """Give the masks (1, *S) of one image (1, C, *S), of all branches, at the size of its reference."""
        image = image.to(self.device)
        for name, network in self.networks.items():
            start = time.perf_counter()
            branches, predicted = self._branches(network, image, size)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            _add(seconds, name, start)
            allowed = {"none": None, "predicted": predicted, "given": label.to(self.device)}
            for branch, (rule, scores) in branches.items():
                for label_filter in self.label_filters:
                    gate = "none" if label_filter == "none" else "given"
                    for with_crf, refine in self.refinements.items():
                        start = time.perf_counter()
                        decide, chosen = MaskRule(**rule, gate=gate), allowed[label_filter]
                        if refine is None:
                            mask = decide.mask(scores, chosen)[0].cpu()
                        else:
                            mask = refine(decide, scores, resize_linear(image, size), chosen).mask[0].cpu()
                        key = (name, branch, label_filter, with_crf)
                        _add(seconds, key, start)
                        yield key, mask

    def _branches(
        self, network: Any, image: torch.Tensor, size: Sequence[int]
    ) -> tuple[dict[str, tuple[dict[str, Any], torch.Tensor]], torch.Tensor | None]:
        """Give each branch's rule and scores at a size, of all classes; and the predicted label where it is asked."""
        given = image if self.grid is None else resize_linear(image, self.grid)
        every = LabeledImages(given, given.new_ones(1, len(self.classes)), validate_args=False)
        *maps, logits = (resize_linear(each, size) for each in self.seeds(network, every))
        cuts = self.cuts
        if len(maps) == 2:
            maps.append((maps[0] + maps[1]) / 2)
        names = ("M", "M_aux", "M+M_aux")
        branches: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
            name: ({"rule": "fixed", "threshold": cuts[name]}, scores)
            for name, scores in zip(names, maps, strict=False)
        }
        branches["S"] = ({"output_kind": "segmentation"}, logits)
        if "predicted" not in self.label_filters:
            return branches, None
        return branches, (network.branches(given).logits > 0).to(given)

    @property
    def cuts(self) -> dict[str, float]:
        """Give xi of each kind of class maps, as it is now."""
        values = [float(threshold()) for threshold in self.thresholds]
        return dict(zip(("M", "M_aux"), values, strict=False)) | {"M+M_aux": float(np.mean(values))}

    def _row(
        self,
        key: tuple[str, str, str, bool],
        counts: Sequence[PixelCounts],
        seconds: Mapping[Any, float],
        common: Row,
    ) -> Row:
        network, branch, label_filter, with_crf = key
        total = PixelCounts(*(np.sum(part, axis=0) for part in zip(*counts, strict=True)))
        referenced = total.tp + total.fn > 0
        ious = dict(zip(("background", *self.classes), iou_score(total).tolist(), strict=True))
        miou = float(miou_pooled(total, background=self.background))
        return {
            **common,
            "network": network,
            "branch": branch,
            "label_filter": label_filter,
            "crf": with_crf,
            "threshold": self.cuts.get(branch),
            "images_per_second": common["images"] / max(seconds[network] + seconds[key], 1e-9),
            "miou": None if np.isnan(miou) else miou,
            "iou": {name: iou if known else None for (name, iou), known in zip(ious.items(), referenced, strict=True)},
        }


def _threshold_of(maker: Any) -> Callable[[], Any]:
    """Give what tells xi of a maker of labels: its threshold, or the middle between two."""
    threshold = getattr(maker, "threshold", None)
    if threshold is None:
        return lambda: (maker.low + maker.high) / 2
    return lambda: torch.as_tensor(threshold()).float().mean()


def _cases(batch: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Give image (1, C, *S), label (1, K) and reference (1, *S), or None where pixels are unknown."""
    images, labels = plain_tensor(batch["image"]).float(), plain_tensor(batch["label"]).float()
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        if "mask" in batch:
            yield image[None], label[None], plain_tensor(batch["mask"])[place]
        else:
            healthy = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
            yield image[None], label[None], None if label.any() else healthy


def _add(seconds: dict[Any, float], key: Any, start: float) -> None:
    seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start
