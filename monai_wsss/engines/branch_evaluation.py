# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Evaluation of every branch of every network of CoSA, BMP or AFA: class maps, their labels, and the segmentation.

| branch    | mask                                                     | in CoSA | in BMP                      |
|-----------|----------------------------------------------------------|---------|-----------------------------|
| `M`       | the class maps M', cut at xi                             | CPL     | seeds as they are (Tab. II) |
| `M_aux`   | the auxiliary class maps, cut at their own xi            | M†'     |                             |
| `M+M_aux` | the mean of both, cut at the mean of both xi             |         |                             |
| `S`       | the segmentation: the argmax                             | S'      | branch S (Tab. VI)          |
| `Y`       | the labels that seeds become, with nothing ignored       |         | branch C, Y^c (Tab. VI)     |

Each branch is measured by every ``label_filter`` and, all but `Y`, on request after a CRF.  The CRF reads the image as
it was before its normalization where a batch has that (``intensity``), and the softmax of logits.  Logits are those of
the method's label passes: means over scales and mirror images in BMP, sums in CoSA, as in its released code.  The
number is the mean IoU over the K classes and the background, of pixels pooled over the images, as in the papers; where
the datalist names classes with an unlabeled context, that over these classes (C-mIoU, CoSA, Tab. 4b) stands beside it.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from monai_wsss._checks import DataError, check_choice
from monai_wsss._resize import resize_linear, resize_nearest
from monai_wsss.data import load_header
from monai_wsss.engines.branch_cases import BranchCase, batches_of, cases_of
from monai_wsss.engines.branch_masks import decided_masks, threshold_of
from monai_wsss.engines.checkpoint import latest_checkpoint, read_checkpoint, with_weights
from monai_wsss.metrics import PixelCounts, class_miou_pooled, count_pixels, iou_score, miou_pooled
from monai_wsss.metrics.segmentation import where_referenced
from monai_wsss.networks.reading_record import check_order
from monai_wsss.refinement import ClassMapRefinement, DenseCRF, LabeledImages, MaskRule

__all__ = ["BranchEvaluation"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Key = tuple[str, str, str, bool]
"""Network, branch, label filter, and whether a CRF follows."""

_FILTERS = ("none", "predicted", "given")
_SEGMENTATION = {"output_kind": "segmentation"}


class BranchEvaluation:
    """Measure the masks of each branch of each network against pixel masks.

    Args:
        networks: by name, each with ``branches(image)``, e.g. ``{"assignment": …, "online": …}``.
        seeds: ``(network, images)`` to M' and M†' (B, K, *S) in [0, 1] and S' (B, K + 1, *S); or to M' and S' alone.
        thresholds: functions that give xi of M' and of M†' when they are asked.
        classes: names of the K classes.
        background: average over the background, too.
        label_filters: of the table above.
        crf: a :class:`~monai_wsss.refinement.DenseCRF`, or ``"crf"`` for one with its defaults, whose masks are
            measured besides; None or ``"none"``: no CRF.
        grid: size to which images are brought, regardless of their proportions; maps are brought back. None: their own.
        device: of the networks.
        label_maker: a function that gives what makes the labels `Y` when it is asked, with a method ``mask`` as those
            of :mod:`~monai_wsss.refinement.class_labels`; None: there is no branch `Y`.
        context: the classes that something unlabeled always accompanies, for their C-mIoU.

    Raises:
        ValueError: no network or filter, an unknown filter, another ``crf``, or a ``context`` of other classes.

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
        crf: DenseCRF | str | None = None,
        grid: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        label_maker: Callable[[], Any] | None = None,
        context: Sequence[str] = (),
    ) -> None:
        if not networks or not label_filters:
            raise ValueError(
                f"Expected one or more `networks` and `label_filters`, got {list(networks)} and {list(label_filters)}."
            )
        for label_filter in label_filters:
            check_choice("label_filters", label_filter, _FILTERS)
        for name in context:
            check_choice("context", name, tuple(classes))
        self.networks = dict(networks)
        self.seeds = seeds
        self.thresholds = tuple(thresholds)
        self.classes = tuple(classes)
        self.background = background
        self.label_filters = tuple(label_filters)
        refinement = ClassMapRefinement.of(crf, next(iter(self.networks.values())))
        if refinement is not None and not isinstance(refinement.part, DenseCRF):
            raise ValueError(f"Expected `crf` to be a DenseCRF, 'crf' or 'none', got {crf!r}.")
        self.refinement = refinement
        self.grid = grid
        self.device = device
        self.label_maker = label_maker
        self.context = tuple(context)
        self._measure_level: Callable[..., None] | None = None

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
        """Make the evaluation of a method.

        Args:
            method: has ``network`` and ``seeds``, wrapped by ``DistributedDataParallel`` or not.  Of a co-training:
                ``labels`` and ``auxiliary_labels``, which have a threshold, and ``online``, the trained network.  Of
                one network with two branches: ``first_labels``, whose background scores are xi, and ``label_maker``.
            datalist: path, for the names of the classes.
            checkpoint_dir: the method is filled from the latest checkpoint there, if there is one.
            weights: without a checkpoint, fills ``method.network``.  Of a co-training it is then measured alone, at the
                thresholds that the method was built with: ``model.pt`` holds no other.
            words: further arguments of the class.

        Raises:
            ValueError: a method without these parts.
            DataError: neither a checkpoint nor the weights exist, though one of them was named; they are of another
                network or method, or of images in another order than the datalist's.
        """
        core = getattr(method, "module", method)
        networks, makers = _parts_of(core)
        header = load_header(datalist)
        if checkpoint_dir is not None or weights is not None:
            path = None if checkpoint_dir is None else latest_checkpoint(checkpoint_dir)
            if path is not None:
                _fill(core, path)
                logger.info("All networks and thresholds are those of %s.", path)
            elif weights is not None and os.path.isfile(weights):
                with_weights(core.network, weights)
                if networks.pop("online", None) is not None:
                    logger.warning(
                        "No checkpoint: of %s the deployed network alone is measured, at the thresholds of the preset.",
                        weights,
                    )
            else:
                raise DataError(f"Expected a checkpoint in {checkpoint_dir} or the weights {weights}: train first.")
            check_order(core.network, header, path or str(weights))
        if getattr(core, "online", None) is core.network:
            networks = {"network": core.network}
        words = {"background": header.get("background", True), "context": header.get("context", ())} | words
        if not hasattr(core, "online"):
            words["label_maker"] = lambda: core.label_maker
        evaluation = cls(networks, core.seeds, [threshold_of(maker) for maker in makers], header["classes"], **words)
        evaluation._measure_level = getattr(core, "measure_negative_reference", None)
        return evaluation

    @property
    def ready(self) -> bool:
        """Tell whether class maps can be scaled: those above a healthy level wait until it is known."""
        return bool(getattr(self.seeds, "ready", True))

    def prepare(self, train_data_loader: Iterable[Mapping[str, Any]]) -> None:
        """Measure the healthy level of the class maps where it is needed and not known, by image-level labels alone.

        Checkpoints hold it from the end of the warm-up on; the weights of the deployed network do not.

        Args:
            train_data_loader: training images, batches with ``image`` and ``label``.
        """
        if not self.ready and self._measure_level is not None:
            logger.info("The healthy level of the class maps is measured on the training images, by their labels.")
            self._measure_level(train_data_loader, self.device)

    @torch.no_grad()
    def measure(self, loader: Iterable[Mapping[str, Any]], *, split: str = "") -> list[Row]:
        """Measure all branches on the images of a split; images of one size in a row are computed together.

        Args:
            loader: batches, or single items in a batch axis, with ``image`` (B, C, *S), ``label`` (B, K), ``mask``
                (B, 1, *S) and, for the CRF, ``intensity`` (B, C', *S).  Images without a label are left out, and those
                of a class without a mask; healthy images need none.
            split: name for the rows.

        Returns:
            One row per network, branch, filter and CRF: ``split``, ``network``, ``branch``, ``label_filter``, ``crf``,
            ``threshold`` (None for `S`), ``images``, ``left_out``, ``images_per_second``, ``miou``, ``context_miou``
            where there is a ``context``, and ``iou`` (a dict over ``background`` and the classes); None where no
            reference holds the class.

        Raises:
            DataError: no image can be measured.
            ValueError: images of other dimensions than a network or the grid.
        """
        counts: dict[Key, list[PixelCounts]] = {}
        seconds: dict[Any, float] = {}
        left_out: list[int] = []
        images = 0
        modes = {name: network.training for name, network in self.networks.items()}
        for network in self.networks.values():
            network.eval()
        try:
            known = cases_of(tqdm(loader, desc=f"branches {split}".strip(), disable=None), left_out)
            for cases in batches_of(known):
                images += len(cases)
                reference = torch.stack([case.reference for case in cases])
                for key, masks in self._masks(cases, seconds):
                    counts.setdefault(key, []).append(count_pixels(masks, reference, num_classes=len(self.classes)))
        finally:
            for name, network in self.networks.items():
                network.train(modes[name])
        if not counts:
            raise DataError(f"No image of the split {split!r} has a pixel mask: its branches cannot be measured.")
        common = {"split": split, "images": images, "left_out": sum(left_out)}
        return [self._row(key, counts[key], seconds, common) for key in counts]

    def _masks(self, cases: Sequence[BranchCase], seconds: dict[Any, float]) -> Iterator[tuple[Key, torch.Tensor]]:
        """Give the masks (B, 1, *S) of images of one size, of all branches, at the size of their references."""
        image = torch.stack([case.shown["image"] for case in cases]).to(self.device)
        label = torch.stack([case.label for case in cases]).to(self.device)
        cuts = self.cuts
        for name, network in self.networks.items():
            start = time.perf_counter()
            given = self._given(network, image)
            on_grid = self._maps(network, given)
            branches = self._branches(on_grid, cases[0].reference.shape[1:])
            predicted = None
            if "predicted" in self.label_filters:
                predicted = (network.branches(given).logits > 0).to(given)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            _add(seconds, name, time.perf_counter() - start)
            allowed: dict[str, Any] = {"none": torch.ones_like(label), "predicted": predicted, "given": label}
            for branch, scores in branches.items():
                refined: dict[tuple[int, ...], tuple[torch.Tensor, float]] = {}
                for label_filter in self.label_filters:
                    chosen = allowed[label_filter]
                    start = time.perf_counter()
                    masks = decided_masks(scores, cuts.get(branch), chosen).cpu()
                    key = (name, branch, label_filter, False)
                    _add(seconds, key, time.perf_counter() - start)
                    yield key, masks
                    if self.refinement is not None:
                        key = (name, branch, label_filter, True)
                        cut = cuts.get(branch)
                        found = [self._refined(cut, *own, refined) for own in zip(cases, scores, chosen, strict=True)]
                        _add(seconds, key, sum(taken for _, taken in found))
                        yield key, torch.stack([mask for mask, _ in found])
            for label_filter in () if self.label_maker is None else self.label_filters:
                start, key = time.perf_counter(), (name, "Y", label_filter, False)
                masks = self._labels(given, allowed[label_filter], on_grid)
                masks = resize_nearest(masks[:, None], cases[0].reference.shape[1:]).to(torch.uint8).cpu()
                _add(seconds, key, time.perf_counter() - start)
                yield key, masks

    def _given(self, network: Any, image: torch.Tensor) -> torch.Tensor:
        """Give the images as the network takes them."""
        dims = int(getattr(network, "spatial_dims", image.ndim - 2))
        if image.ndim - 2 != dims or len(self.grid or image.shape[2:]) != dims:
            raise ValueError(
                f"Expected images of {dims} dimensions, as the network takes them, and a `grid` of as many, got "
                f"{tuple(image.shape[2:])} and {self.grid}: measure a network of slices on slices."
            )
        return image if self.grid is None else resize_linear(image, self.grid)

    def _maps(self, network: Any, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give class maps and logits of images on the grid, of all classes."""
        every = LabeledImages(given, given.new_ones(len(given), len(self.classes)), validate_args=False)
        return tuple(self.seeds(network, every))

    def _branches(self, on_grid: Sequence[torch.Tensor], size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Give the scores of each branch at a size."""
        *maps, logits = (resize_linear(each, size) for each in on_grid)
        if len(maps) == 2:
            maps.append((maps[0] + maps[1]) / 2)
        return dict(zip(("M", "M_aux", "M+M_aux"), maps, strict=False)) | {"S": logits}

    def _labels(self, given: torch.Tensor, allowed: torch.Tensor, on_grid: Sequence[torch.Tensor]) -> torch.Tensor:
        """Give the labels (B, *grid) that seeds of the allowed classes become, with nothing ignored."""
        assert self.label_maker is not None
        images = LabeledImages(given, allowed, validate_args=False)
        seeds = on_grid[0] * allowed.reshape(*allowed.shape, *[1] * (given.ndim - 2))
        label: torch.Tensor = self.label_maker().mask(images, seeds, on_grid[-1])
        return label

    def _refined(
        self,
        cut: float | None,
        case: BranchCase,
        scores: torch.Tensor,
        allowed: torch.Tensor,
        known: dict[tuple[int, ...], tuple[torch.Tensor, float]],
    ) -> tuple[torch.Tensor, float]:
        """Give the mask (1, *S) of one image after the CRF, and the seconds that it takes.

        Filters that allow the same classes have the same mask, which is ``known`` then, and nothing is found where none
        is allowed.
        """
        held = (id(case), *allowed.nonzero().flatten().tolist())
        if held not in known:
            start = time.perf_counter()
            words: dict[str, Any] = {"rule": "fixed", "threshold": cut} if cut is not None else _SEGMENTATION
            mask = torch.zeros(1, *scores.shape[1:], dtype=torch.uint8)
            if len(held) > 1:
                assert self.refinement is not None
                image = resize_linear(self.refinement.image_of(case.shown), scores.shape[1:])
                rule = MaskRule(**words, gate="given")
                mask = self.refinement(rule, scores[None], image, allowed[None]).mask[0].cpu()
            known[held] = mask, time.perf_counter() - start
        return known[held]

    @property
    def cuts(self) -> dict[str, float]:
        """Give xi of each kind of class maps, as it is now."""
        values = [float(threshold()) for threshold in self.thresholds]
        return dict(zip(("M", "M_aux"), values, strict=False)) | {"M+M_aux": float(np.mean(values))}

    def _row(self, key: Key, counts: Sequence[PixelCounts], seconds: Mapping[Any, float], common: Row) -> Row:
        network, branch, label_filter, with_crf = key
        total = PixelCounts.sum_of(counts)
        ious = where_referenced(iou_score(total), total).tolist()
        means = {"miou": miou_pooled(total, background=self.background)}
        if self.context:
            labels = [self.classes.index(name) + 1 for name in self.context]
            means["context_miou"] = class_miou_pooled(total, labels)
        return {
            **common,
            "network": network,
            "branch": branch,
            "label_filter": label_filter,
            "crf": with_crf,
            "threshold": self.cuts.get(branch),
            "images_per_second": common["images"] / max(seconds[network] + seconds[key], 1e-9),
            **{name: None if np.isnan(mean) else float(mean) for name, mean in means.items()},
            "iou": {
                name: None if np.isnan(iou) else iou
                for name, iou in zip(("background", *self.classes), ious, strict=True)
            },
        }


def _parts_of(method: Any) -> tuple[dict[str, Any], list[Any]]:
    """Give the networks of a method by name, and the makers of labels that have a xi."""
    if hasattr(method, "online") and hasattr(method, "auxiliary_labels"):
        return {"assignment": method.network, "online": method.online}, [method.labels, method.auxiliary_labels]
    if hasattr(method, "first_labels") and hasattr(method, "label_maker"):
        return {"network": method.network}, [method.first_labels]
    raise ValueError(
        f"Expected a co-training method, such as CoSA, or one of two branches, such as BMP, got "
        f"{type(method).__name__}."
    )


def _fill(method: Any, checkpoint: Path) -> None:
    """Load the state of a method from a checkpoint of its training."""
    try:
        method.load_state_dict(read_checkpoint(checkpoint, ["method"])["method"])
    except RuntimeError as error:
        raise DataError(
            f"{checkpoint} holds another method: measure with the settings of its training. {error}"
        ) from error


def _add(seconds: dict[Any, float], key: Any, taken: float) -> None:
    seconds[key] = seconds.get(key, 0.0) + taken
