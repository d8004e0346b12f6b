# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP: a classification and a segmentation branch on one encoder, each of which gives the other its labels.

Zhu et al., "Branches mutual promotion for end-to-end weakly supervised semantic segmentation", arXiv:2308.04949, on the
two-branch network of AFA (Ru et al., arXiv:2203.02664).  For an image x with image-level labels y over K classes:

    c, C, S^s, A = network(x)                     class logits, seeds, segmentation, affinity     Eq. 1, 9-11 (OFD)
    C', B'       = C and S^s_0 over scales and the mirror image, no gradient, classes not in y left out
    S^c          = refine([B'; C'])               background-aware spatial propagation (BSP)        Eq. 12-13
    Y^c          = argmax S^c where max S^c > sigma_c                                              Eq. 3, 5
    Y^s          = argmax S^s where max S^s > sigma_s, and no background                           Eq. 3, 7
    L_c2s        = l_seg(S^s, Y^c)                the classifier teaches the segmenter              Eq. 6
    L_s2c        = l_seg(C, Y^s)                  the segmenter teaches the classifier              Eq. 8
    L_aff        = affinity of the encoder's attention against Y^c of constant background scores
    L            = L_cls + lambda_1 L_c2s + lambda_2 L_s2c + lambda_3 L_aff                        Eq. 14

| symbol | name              | symbol      | name                                         |
|--------|-------------------|-------------|----------------------------------------------|
| x, y   | ``image, label``  | S^c, Y^c    | ``_class_scores``, ``_class_label``          |
| C, C'  | ``seeds``         | S^s, Y^s    | ``segmentation``, ``_segmentation_label``    |
| A      | ``affinity``      | sigma_c, _s | ``class_confidence``, ``segmentation_confidence`` |

Five switches are the rows of the paper's Table VI: ``c2s_weight``, ``s2c_weight``, ``affinity_weight`` (0: off),
``propagation`` (``"bsp"``, or ``"par"`` with constant background scores) and the network's ``ofd``.  AFA, the
baseline, is ``propagation="affinity"`` with the balanced cross-entropy and without feedback.  What the presets change,
and why, is said in :meth:`BMP.from_preset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider, plain_tensor
from monai_wsss._windows import check_radius
from monai_wsss.cams import rescale_maps, subtract_negative_reference
from monai_wsss.engines.schedules import Progress, WeightRamp
from monai_wsss.inferers.multi_scale import multi_scale_branches
from monai_wsss.losses.affinity import AffinityLoss
from monai_wsss.losses.balanced_cross_entropy import balanced_cross_entropy_loss
from monai_wsss.losses.confident_pseudo_label import class_to_segmentation_loss, segmentation_to_class_loss
from monai_wsss.methods.base import WSSSMethod, mean_of_processes
from monai_wsss.methods.full_supervision import IGNORED
from monai_wsss.networks.mix_transformer import MixTransformer
from monai_wsss.networks.two_branch import BranchOutputs, TwoBranchNetwork
from monai_wsss.refinement.confident_labels import confident_label, confident_segmentation_label
from monai_wsss.refinement.pixel_adaptive import PixelAdaptiveRefinement
from monai_wsss.refinement.pseudo_label import (
    background_aware_scores,
    outside_boxes,
    propagated_seed_label,
    refined_seed_label,
)

__all__ = ["BMP"]


class _View(NamedTuple):
    """A batch as the losses read it."""

    image: torch.Tensor  # (B, C, *S)
    intensity: torch.Tensor  # (B, C', *S), along which labels spread
    label: torch.Tensor  # (B, K)
    boxes: torch.Tensor | None  # (B, 2 d)

    def of(self, chosen: torch.Tensor) -> _View:
        """The images of a (B,) bool mask."""
        boxes = None if self.boxes is None else self.boxes[chosen]
        return _View(self.image[chosen], self.intensity[chosen], self.label[chosen], boxes)

    @property
    def padding(self) -> torch.Tensor | None:
        """(B, *S) bool, or None where there is none."""
        return None if self.boxes is None else outside_boxes(self.boxes, self.image.shape[2:])


_MOMENTUM = 0.9
_TOKENS_AN_OFFSET = 4
"""From so many tokens for each offset of the window on, near pairs alone are faster than all pairs."""
_DENSE_TOKENS = 4096
"""All pairs of more tokens are held only where near pairs alone are no fewer: 64 MiB an image."""
_RELEASED: dict[str, Any] = {
    "score_scale": "none",
    "background_scale": "minmax",
    "healthy_is_background": False,
    "healthy_affinity": True,
    "train_mode_labels": True,
    "c2s_ramp": WeightRamp("iteration", end=2000),
}
_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "paper": (
        {
            "s2c_input": "scores",
            "s2c_loss": "softmargin",
            "c2s_ramp": WeightRamp("iteration", end=2000),
            "s2c_ramp": WeightRamp("iteration", end=4000),
            "propagation_ramp": WeightRamp("iteration", end=4000),
        },
        {"ofd_activation": "none", "ofd_detach": False},
    ),
    "released": (
        {
            **_RELEASED,
            "class_confidence": 0.5,
            "segmentation_confidence": 0.75,
            "confidence_of": "logit",
            "filter_segmentation": False,
            "s2c_ramp": WeightRamp("iteration", end=2000),
            "propagation_ramp": WeightRamp("iteration", end=4000),
        },
        {},
    ),
    "afa": (
        {
            **_RELEASED,
            "c2s_weight": 0.1,
            "s2c_weight": 0.0,
            "propagation": "affinity",
            "c2s_loss": "balanced",
            "propagation_ramp": WeightRamp("iteration", end=6000),
        },
        {"ofd": False, "detach_seeds": True},
    ),
}


class BMP(WSSSMethod):
    """Branches mutual promotion: classification and segmentation supervise each other.

    A batch may hold ``intensity`` (B, C', *S), the images before photometric augmentation, along which labels spread
    (default: ``image``), and ``boxes`` (B, 2 d), see :func:`~monai_wsss.refinement.background_aware_scores`: where
    images are not padding.

    Args:
        network: the two branches.
        refine: p of Eq. 13; default: pixel-adaptive refinement whose weights sum to 1.
        c2s_weight: lambda_1; 0 switches the term off, and with it everything that needs Y^c but the affinity loss.
        s2c_weight: lambda_2.
        affinity_weight: lambda_3; 0 for networks whose encoder gives no attention.
        propagation: what makes Y^c: ``"bsp"``; ``"par"``, constant background scores ``low`` and ``high``;
            ``"affinity"``, AFA's: those, spread by the learned affinity before the refinement.
        c2s_loss: l_seg of L_c2s: ``"softmargin"``, ``"ce"``, ``"bce"``, or ``"balanced"``, AFA's.
        s2c_loss: l_seg of L_s2c: ``"ce"``, ``"softmargin"``, ``"bce"``; ``"auto"`` is ``"bce"`` for one class, where
            the cross-entropy over one channel is zero, and ``"ce"`` for several.
        s2c_input: what L_s2c supervises: ``"seeds"``, C upsampled, as released; ``"scores"``, S^c through the
            differentiable refinement with the background held fixed, as printed.
        s2c_background: take confident background pixels of images with findings as negatives of L_s2c.
        class_confidence: sigma_c.
        segmentation_confidence: sigma_s.
        confidence_of: what sigma_s is compared with: ``"prob"``, or ``"logit"`` as released.
        filter_segmentation: leave classes that the image does not hold out of Y^s.
        seed_scale: what the seeds become: ``"minmax"``, scaled per image and class (the paper); ``"reference"``, 0 at
            the level of images without the class, which is followed in training, and 1 at the image's peak: for
            networks with ``pooled="maps"`` trained from scratch.
        background_scale: B^s: ``"softmax"``, its probability; ``"minmax"``, as released, its logits scaled per image;
            ``"auto"`` is the first for one class, since an image that one class fills has background nowhere, and the
            second for several.
        score_scale: what S^c of a pixel becomes before sigma_c: ``"l1"``, ``"softmax"`` or ``"none"``.
        low: background score that lets seeds through.
        high: background score that holds them back.
        downscale: factor by which images shrink for the refinement; 2 is the authors', for images of some 500 pixels.
        healthy_is_background: images without any class are background throughout, whatever S^c says.
        healthy_affinity: whether such images, which have positive pairs alone, take part in L_aff.
        scales: of the passes that make pseudo-labels, each with its mirror image.
        train_mode_labels: make them in training mode, as released: with dropout, and batch statistics updated.
        c2s_ramp: when L_c2s and L_aff begin; default: a tenth of the run, for pretrained encoders.  From scratch begin
            when the classifier classifies: 0.4 of a short run, and 0.7 for the other two.
        s2c_ramp: when L_s2c begins; default: a fifth.
        propagation_ramp: when ``propagation`` replaces ``"par"``; default: a fifth.
        ready_below: the branches teach nothing before the classification loss, as a moving average, was once below it:
            seeds of a classifier that has not learned teach an empty segmentation, which then holds the encoder back.
            From scratch take some two thirds of the loss of a classifier that knows only how frequent the classes
            are, 0.4 where a third of the images has the finding; None: the warm-ups alone.
        radius: of the affinity's pairs, in tokens.

    Raises:
        ValueError: an unknown choice, too many classes, a negative weight, confidences, scores or sizes outside their
            range, options that do not go together; a batch whose boxes or intensities do not fit its images.

    Example:
        >>> import torch
        >>> batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(BMP.tiny()(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification', 'c2s', 's2c', 'affinity']
    """

    network: TwoBranchNetwork
    negative_reference: torch.Tensor
    running_classification: torch.Tensor
    ready: torch.Tensor

    def __init__(
        self,
        network: TwoBranchNetwork,
        *,
        refine: PixelAdaptiveRefinement | None = None,
        c2s_weight: float = 0.7,
        s2c_weight: float = 0.1,
        affinity_weight: float = 0.1,
        propagation: str = "bsp",
        c2s_loss: str = "softmargin",
        s2c_loss: str = "auto",
        s2c_input: str = "seeds",
        s2c_background: bool = False,
        class_confidence: float = 0.75,
        segmentation_confidence: float = 0.5,
        confidence_of: str = "prob",
        filter_segmentation: bool = True,
        seed_scale: str = "minmax",
        background_scale: str = "auto",
        score_scale: str = "l1",
        low: float = 0.35,
        high: float = 0.55,
        downscale: float = 2.0,
        healthy_is_background: bool = True,
        healthy_affinity: bool = False,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5),
        train_mode_labels: bool = False,
        c2s_ramp: WeightRamp | None = None,
        s2c_ramp: WeightRamp | None = None,
        propagation_ramp: WeightRamp | None = None,
        ready_below: float | None = None,
        radius: int = 8,
    ) -> None:
        super().__init__(network)
        check_choice("propagation", propagation, ("bsp", "par", "affinity"))
        check_choice("c2s_loss", c2s_loss, ("softmargin", "ce", "bce", "balanced"))
        check_choice("s2c_loss", s2c_loss, ("auto", "softmargin", "ce", "bce"))
        check_choice("s2c_input", s2c_input, ("seeds", "scores"))
        check_choice("confidence_of", confidence_of, ("prob", "logit"))
        check_choice("seed_scale", seed_scale, ("minmax", "reference"))
        check_choice("background_scale", background_scale, ("auto", "softmax", "minmax"))
        check_choice("score_scale", score_scale, ("none", "l1", "softmax"))
        if network.num_classes >= IGNORED:
            raise ValueError(
                f"Expected fewer than {IGNORED} classes, a label that marks doubt, got {network.num_classes}."
            )
        one_class = network.num_classes == 1
        self.s2c_loss = {"auto": "bce" if one_class else "ce"}.get(s2c_loss, s2c_loss)
        self.background_scale = {"auto": "softmax" if one_class else "minmax"}.get(background_scale, background_scale)
        if min(c2s_weight, s2c_weight, affinity_weight) < 0:
            raise ValueError(
                f"Expected `c2s_weight`, `s2c_weight` and `affinity_weight` >= 0, got {c2s_weight}, {s2c_weight} and "
                f"{affinity_weight}: 0 switches a term off."
            )
        if one_class and s2c_loss == "ce" and s2c_input == "seeds" and s2c_weight > 0:
            raise ValueError("Expected `s2c_loss` 'bce' or 'auto' for a single class: the 'ce' over it is always 0.")
        if network.attn_proj is None and (affinity_weight > 0 or propagation == "affinity"):
            raise ValueError(
                "Expected an encoder with attention for the affinity: take another, or set `affinity_weight` to 0."
            )
        if s2c_background and (self.s2c_loss != "bce" or s2c_input != "seeds"):
            raise ValueError(
                "Expected `s2c_loss` 'bce' and `s2c_input` 'seeds' for `s2c_background`: others have none."
            )
        if not 0 <= class_confidence <= 1 or (confidence_of == "prob" and not 0 <= segmentation_confidence <= 1):
            raise ValueError(
                f"Expected `class_confidence` and `segmentation_confidence` in [0, 1], got {class_confidence} and "
                f"{segmentation_confidence}: shares and probabilities are compared with them."
            )
        if not scales or min(scales) <= 0:
            raise ValueError(f"Expected one or more `scales` > 0, got {tuple(scales)}.")
        check_radius(radius)
        if downscale < 1:
            raise ValueError(f"Expected `downscale` >= 1, got {downscale}.")
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"Expected background scores 0 <= `low` <= `high` <= 1, got {low} and {high}.")
        self.refine = refine or PixelAdaptiveRefinement(row_stochastic=True)
        self.c2s_weight = c2s_weight
        self.s2c_weight = s2c_weight
        self.affinity_weight = affinity_weight
        self.propagation = propagation
        self.c2s_loss = c2s_loss
        self.s2c_input = s2c_input
        self.s2c_background = s2c_background
        self.class_confidence = class_confidence
        self.segmentation_confidence = segmentation_confidence
        self.confidence_of = confidence_of
        self.filter_segmentation = filter_segmentation
        self.seed_scale = seed_scale
        self.score_scale = score_scale
        self.low = low
        self.high = high
        self.downscale = downscale
        self.healthy_is_background = healthy_is_background
        self.healthy_affinity = healthy_affinity
        self.scales = tuple(scales)
        self.train_mode_labels = train_mode_labels
        self.c2s_ramp = c2s_ramp or WeightRamp("step", end=0.1)
        self.s2c_ramp = s2c_ramp or WeightRamp("step", end=0.2)
        self.propagation_ramp = propagation_ramp or WeightRamp("step", end=0.2)
        self.affinity_loss = AffinityLoss(radius=radius, ignore_index=IGNORED)
        self.ready_below = ready_below
        self._waits = False
        self._never: list[str] = []
        self.register_buffer("negative_reference", torch.full((network.num_classes,), torch.nan))
        self.register_buffer("running_classification", torch.tensor(torch.nan))
        self.register_buffer("ready", torch.tensor(False))

    @property
    def may_leave_parameters_unused(self) -> bool:
        """Without L_c2s nothing trains the decoder, without L_aff nothing the affinity."""
        return self.c2s_weight == 0 or (self.affinity_weight == 0 and self.network.attn_proj is not None)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> BMP:
        """All terms on the tiny convolutional encoder: small enough to overfit one batch in seconds on a CPU."""
        network = TwoBranchNetwork.tiny(spatial_dims, in_channels, num_classes)
        return cls(network, refine=PixelAdaptiveRefinement(dilations=(1, 2), iterations=4, row_stochastic=True))

    @classmethod
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: TwoBranchNetwork | None = None,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1,
        **changes: Any,
    ) -> BMP:
        """The whole method by name.

        |                        | ``"default"``    | ``"paper"``      | ``"released"``   | ``"afa"``           |
        |------------------------|------------------|------------------|------------------|---------------------|
        | network                | MiT-B1, OFD      | same, OFD raw,   | as default       | no OFD, seeds fixed |
        |                        |                  | not detached     |                  |                     |
        | warm-ups c2s, s2c, BSP | 10, 20, 20 %     | 2000, 4000, 4000 | 2000, 2000, 4000 | 2000, –, 6000       |
        | sigma_c, sigma_s       | 0.75, 0.5        | 0.75, 0.5        | 0.5, 0.75        | –                   |
        | sigma_s compared with  | probabilities    | probabilities    | logits           | –                   |
        | l_seg of L_c2s         | soft margin      | soft margin      | soft margin      | balanced CE         |
        | L_s2c on               | seeds            | scores S^c       | seeds            | off                 |
        | l_seg of L_s2c         | auto             | soft margin      | auto             | –                   |
        | B^s                    | auto             | auto             | scaled logits    | –                   |
        | S^c                    | shares           | shares           | as refined       | –                   |
        | Y^s filtered by labels | yes              | yes              | no               | –                   |
        | refinement's weights   | sum to 1         | sum to 1         | sum to 1.01      | sum to 1.01         |
        | lambda_1, _2, _3       | 0.7, 0.1, 0.1    | 0.7, 0.1, 0.1    | 0.7, 0.1, 0.1    | 0.1, 0, 0.1         |

        Labels spread by BSP but in ``"afa"``, whose affinity does.  ``"released"`` and ``"afa"`` also make their labels
        in training mode, and treat images without findings as any other.  For one class the released code's L_s2c is a
        cross-entropy over one channel, which is always 0: ``auto`` takes the binary one.  ``"paper"`` reads the shares
        S^c as logits, as its equation does, so that its L_s2c lies between 0.5 and 1.0.  The absolute warm-ups are
        iterations: on a run of fewer they never end, and a warning says so.

        Args:
            preset: ``"default"``, ``"paper"``, ``"released"`` or ``"afa"``.
            network: another in the place of MiT-B1; it has dimensions and classes of its own, and the OFD it was
                built with.
            spatial_dims: 2 or 3.
            in_channels: C of the images.
            num_classes: K, the foreground classes.
            changes: arguments of the class to set otherwise, e.g. ``s2c_weight=0.0``.

        Raises:
            ValueError: an unknown preset.
        """
        check_choice("preset", preset, tuple(_PRESETS))
        settings, decoding = _PRESETS[preset]
        if network is None:
            encoder = MixTransformer.from_preset("mit_b1", spatial_dims=spatial_dims, in_channels=in_channels)
            network = TwoBranchNetwork(encoder, num_classes, **decoding)
        refine = PixelAdaptiveRefinement(row_stochastic=preset in ("default", "paper"))
        return cls(network, **{"refine": refine, **settings, **changes})

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What is trained at which rate: the encoder at the given one, its norms not at all, all else at ten times.

        Args:
            learning_rate: of the encoder; 6e-5 in the paper.

        Returns:
            Three groups for ``torch.optim``.
        """
        # In the network's order, by which an optimizer's state finds its parameters when a run resumes.
        norms = [
            parameter
            for module in self.network.encoder.modules()
            if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._NormBase))
            for parameter in module.parameters(recurse=False)
        ]
        known = set(norms)
        encoder = [parameter for parameter in self.network.encoder.parameters() if parameter not in known]
        heads = [parameter for name, parameter in self.network.named_parameters() if not name.startswith("encoder.")]
        return [
            {"params": encoder, "lr": learning_rate},
            {"params": norms, "lr": 0.0, "weight_decay": 0.0},
            {"params": heads, "lr": 10 * learning_rate},
        ]

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """``classification``, and ``c2s``, ``s2c`` and ``affinity`` where on; weighted."""
        view = _view(batch)
        with_affinity = self.affinity_weight > 0
        outputs = self._branches(view.image, affinity=with_affinity)
        seeds, segmentation = (self._at_size(maps, view.image) for maps in (outputs.seeds, outputs.segmentation))
        self.observe(outputs.seeds, view.label)
        if self.seed_scale == "reference":
            self._follow_negative_reference(view)
        losses = {"classification": F.multilabel_soft_margin_loss(float32_or_wider(outputs.logits), view.label)}
        ready = self._is_ready(losses["classification"].detach())
        from_class, from_segmentation = self.c2s_ramp(progress), self.s2c_ramp(progress)
        class_turn = (self.c2s_weight > 0 or with_affinity) and from_class > 0
        segmentation_turn = self.s2c_weight > 0 and from_segmentation > 0
        self._never = self._never_begin(progress)
        self._waits = not ready and (class_turn or segmentation_turn)
        label, constant = self._class_labels(view, progress) if class_turn and ready else (None, None)
        # A term that has not begun is 0 with a graph: every parameter has a gradient, as distributed training asks.
        if self.c2s_weight > 0:
            c2s = 0 * segmentation.sum() if label is None else self._c2s(segmentation, label)
            losses["c2s"] = self.c2s_weight * from_class * c2s
        if self.s2c_weight > 0:
            s2c = self._s2c(seeds, segmentation, view) if segmentation_turn and ready else 0 * seeds.sum()
            losses["s2c"] = self.s2c_weight * from_segmentation * s2c
        if with_affinity:
            assert outputs.affinity is not None
            affinity = 0 * outputs.affinity.sum()
            if constant is not None:
                affinity = self._affinity(outputs.affinity, constant, outputs.seeds.shape[2:], view.label)
            losses["affinity"] = self.affinity_weight * from_class * affinity
        return losses

    def _never_begin(self, progress: Progress) -> list[str]:
        """The warm-ups that this run is too short for."""
        if progress.fraction == 0:
            return []
        total = max(progress.iteration, round((progress.iteration - 1) / progress.fraction))
        last = Progress(progress.epoch, total, max(progress.fraction, (total - 1) / total))
        begun = {
            "c2s_ramp": not (self.c2s_weight or self.affinity_weight) or self.c2s_ramp(last),
            "s2c_ramp": not self.s2c_weight or self.s2c_ramp(last),
            "propagation_ramp": self.propagation == "par" or self.propagation_ramp(last),
        }
        return [name for name, weight in begun.items() if not weight]

    @torch.no_grad()
    def measure_negative_reference(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Set ``negative_reference``, which is no part of the network's weights, from the training images.

        Args:
            train_data_loader: batches with ``image`` and ``label``.
            device: of the network.
        """

        def seeds(image: torch.Tensor) -> torch.Tensor:
            return self.network.branches(image, upsample=False).seeds

        self.negative_reference.copy_(
            self._negative_responses(seeds, len(self.negative_reference), train_data_loader, device).reference()
        )

    def collapse_warnings(self) -> list[str]:
        """Those of every method, what this run is too short for, and that the branches do not teach yet."""
        warnings = super().collapse_warnings()
        if self._never:
            warnings.append(
                f"{', '.join(f'`{name}`' for name in self._never)} will not end in this run, so what waits for it is "
                "not trained: train for more iterations, or shorten the warm-up."
            )
        if self._waits:
            warnings.append(
                f"the branches do not teach each other before the classification loss, now "
                f"{float(self.running_classification):.2f}, is below `ready_below` {self.ready_below}: until then the "
                "segmentation learns nothing; train longer, or raise the learning rate or `ready_below`."
            )
        return warnings

    def _is_ready(self, classification: torch.Tensor) -> bool:
        """Whether the classifier has once learned enough to teach; takes note of this step's loss."""
        now = mean_of_processes(classification.to(self.running_classification, copy=True))
        before = torch.where(self.running_classification.isnan(), now, self.running_classification)
        self.running_classification.copy_(before.lerp(now, 1 - _MOMENTUM))
        if self.ready_below is not None:
            self.ready.logical_or_(self.running_classification < self.ready_below)
        return self.ready_below is None or bool(self.ready)

    @torch.no_grad()
    def _follow_negative_reference(self, view: _View) -> None:
        """Moving average of each class's median response in the images of a batch that do not hold it.

        In evaluation mode, as labels are made: batch statistics would give other responses.
        """
        absent = view.label == 0
        now = torch.full_like(self.negative_reference, torch.nan)
        some = absent.any(1)
        if some.any():
            with self._label_mode():
                maps = self._at_size(self.network.branches(view.image[some], upsample=False).seeds, view.image)
            valid = absent[some].reshape(*absent[some].shape, *[1] * (maps.ndim - 2))
            if view.padding is not None:
                valid = valid & ~view.padding[some, None]
            for index in range(len(now)):
                responses = maps[:, index][valid[:, index].expand_as(maps[:, index])]
                if len(responses):
                    now[index] = responses.median()
        now = mean_of_processes(now)
        before = torch.where(self.negative_reference.isnan(), now, self.negative_reference)
        self.negative_reference.copy_(torch.where(now.isnan(), before, before.lerp(now, 1 - _MOMENTUM)))

    @contextmanager
    def _label_mode(self) -> Iterator[None]:
        """Passes that make labels: in evaluation mode, unless ``train_mode_labels``."""
        training = self.network.training
        self.network.train(training and self.train_mode_labels)
        try:
            yield
        finally:
            self.network.train(training)

    @torch.no_grad()
    def class_branch_mask(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The classification branch's own masks, Y^c with nothing ignored: argmax S^c with ``propagation="bsp"``,
        else the refined seeds against one background score between ``low`` and ``high``.

        Args:
            image: (B, C, *S).
            label: (B, K), 0/1: given, or predicted.

        Returns:
            uint8 (B, 1, *S), 0..K.
        """
        view = _view({"image": image, "label": label})
        seeds, segmentation = self._over_scales(view)
        if self.propagation == "bsp":
            mask = confident_label(self._class_scores(seeds, segmentation, view), 0.0)
        else:
            middle = (self.low + self.high) / 2
            mask = self._constant_label(seeds, view, middle, middle)
        return mask[:, None].to(torch.uint8)

    # ------------------------------------------------------------------------------------ what supervises, Eq. 3, 5, 7

    @torch.no_grad()
    def _class_labels(self, view: _View, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
        """Y^c, and the label of constant background scores, which the affinity learns; both (B, *S)."""
        label = torch.zeros(len(view.image), *view.image.shape[2:], dtype=torch.long, device=view.image.device)
        constant = label.clone()
        found = (view.label > 0).any(1)
        # Only where there is something to find; batch statistics, where labels are made by them, want every image.
        chosen = found if self.healthy_is_background and not self.train_mode_labels else torch.ones_like(found)
        if chosen.any():
            label[chosen], constant[chosen] = self._seed_labels(view.of(chosen), progress)
        if self.healthy_is_background:
            label[~found] = 0
        if view.padding is not None:
            label, constant = (of.masked_fill(view.padding, IGNORED) for of in (label, constant))
        return label, constant

    def _seed_labels(self, view: _View, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
        seeds, segmentation = self._over_scales(view)
        constant = self._constant_label(seeds, view, self.low, self.high)
        if self.propagation == "bsp" and self.propagation_ramp(progress) > 0:
            return confident_label(self._class_scores(seeds, segmentation, view), self.class_confidence), constant
        if self.propagation == "affinity" and self.propagation_ramp(progress) > 0:
            return self._propagated_label(seeds, view), constant
        return constant, constant

    def _constant_label(self, seeds: torch.Tensor, view: _View, low: float, high: float) -> torch.Tensor:
        return refined_seed_label(
            view.intensity,
            seeds,
            view.label,
            self.refine,
            low=low,
            high=high,
            downscale=self.downscale,
            ignore_index=IGNORED,
        )

    def _over_scales(self, view: _View) -> tuple[torch.Tensor, torch.Tensor]:
        """C' in [0, 1], zero for absent classes, and the segmentation logits, a mean over scales."""

        def branches(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = self.network.branches(image)
            return outputs.seeds, outputs.segmentation

        minmax = self.seed_scale == "minmax"
        with self._label_mode():
            seeds, segmentation = multi_scale_branches(branches, view.image, scales=self.scales, rectify=minmax)
        present = view.label.reshape(*view.label.shape, *[1] * (seeds.ndim - 2))
        if not minmax:
            seeds = seeds / len(self.scales)
        return self._scaled(seeds) * present, segmentation / len(self.scales)

    def _scaled(self, seeds: torch.Tensor) -> torch.Tensor:
        """Raw seeds in [0, 1]."""
        if self.seed_scale == "minmax":
            return rescale_maps(F.relu(seeds))
        if bool(self.negative_reference.isnan().any()):
            raise ValueError(
                "Expected training images without each class before labels are made, which `seed_scale='reference'` "
                "needs: take 'minmax', or for weights read from a file call `measure_negative_reference` first."
            )
        return subtract_negative_reference(seeds, self.negative_reference)

    def _class_scores(self, seeds: torch.Tensor, segmentation: torch.Tensor, view: _View) -> torch.Tensor:
        """S^c (B, K+1, *S) of seeds in [0, 1] and segmentation logits."""
        if self.background_scale == "minmax":
            background = rescale_maps(segmentation[:, :1])
        else:
            background = segmentation.softmax(1)[:, :1]
        return background_aware_scores(
            view.intensity,
            seeds,
            background,
            view.label,
            self.refine,
            normalize=self.score_scale,
            downscale=self.downscale,
            boxes=view.boxes,
        )

    def _propagated_label(self, seeds: torch.Tensor, view: _View) -> torch.Tensor:
        """AFA's label, by the affinity of the image at its largest scale."""
        size = [int(side * max(self.scales)) for side in view.image.shape[2:]]
        large = F.interpolate(view.image, size=size, mode=self.network.mode, align_corners=False)
        with self._label_mode():
            outputs = self._branches(large, affinity=True)
        assert outputs.affinity is not None
        return propagated_seed_label(
            view.intensity,
            seeds,
            view.label,
            float32_or_wider(outputs.affinity),
            self.refine,
            grid=outputs.seeds.shape[2:],
            radius=self.affinity_loss.radius,
            low=self.low,
            high=self.high,
            downscale=self.downscale,
            boxes=view.boxes,
        )

    # ----------------------------------------------------------------------------------------------- losses, Eq. 6, 8

    def _c2s(self, segmentation: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if self.c2s_loss == "balanced":
            return balanced_cross_entropy_loss(segmentation, label, ignore_index=IGNORED)
        return class_to_segmentation_loss(segmentation, label, kind=self.c2s_loss, ignore_index=IGNORED)

    def _s2c(self, seeds: torch.Tensor, segmentation: torch.Tensor, view: _View) -> torch.Tensor:
        label = confident_segmentation_label(
            segmentation,
            view.label if self.filter_segmentation else None,
            threshold=self.segmentation_confidence,
            score=self.confidence_of,
            valid=None if view.padding is None else ~view.padding,
            ignore_index=IGNORED,
        )
        if self.s2c_input == "scores":
            scores = self._class_scores(self._scaled(seeds), segmentation.detach(), view)
            return class_to_segmentation_loss(scores, label.masked_fill(label == 0, IGNORED), kind=self.s2c_loss)
        return segmentation_to_class_loss(
            seeds,
            label,
            kind=self.s2c_loss,
            use_background=self.s2c_background,
            positive=(view.label > 0).any(1),
            ignore_index=IGNORED,
        )

    def _branches(self, image: torch.Tensor, *, affinity: bool) -> BranchOutputs:
        """At the sizes of the levels, with the affinity in its faster form where both are small, else its smaller."""
        radius = self.affinity_loss.radius
        offsets = (2 * radius + 1) ** (image.ndim - 2)
        dense_up_to = max(offsets, min(_TOKENS_AN_OFFSET * offsets, _DENSE_TOKENS))
        return self.network.branches(image, affinity=affinity, radius=radius, dense_up_to=dense_up_to, upsample=False)

    def _affinity(
        self, affinity: torch.Tensor, label: torch.Tensor, grid: torch.Size, image_label: torch.Tensor
    ) -> torch.Tensor:
        tokens = F.interpolate(label[:, None].float(), size=grid, mode="nearest")[:, 0].long()
        include = None if self.healthy_affinity else (image_label > 0).any(1)
        return self.affinity_loss(affinity, tokens, include)

    def _at_size(self, maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(float32_or_wider(maps), size=image.shape[2:], mode=self.network.mode, align_corners=False)


def _view(batch: dict[str, Any]) -> _View:
    image, label = plain_tensor(batch["image"]), plain_tensor(batch["label"])
    intensity = plain_tensor(batch["intensity"]) if "intensity" in batch else image
    if intensity.shape[2:] != image.shape[2:] or len(intensity) != len(image):
        raise ValueError(
            f"Expected `intensity` of the images' batch and size {tuple(image.shape)}, got {tuple(intensity.shape)}."
        )
    boxes = batch.get("boxes")
    if boxes is not None:
        boxes = torch.as_tensor(plain_tensor(boxes), device=image.device)
        if boxes.shape != (len(image), 2 * (image.ndim - 2)):
            raise ValueError(
                f"Expected `boxes` of shape (B, 2 d) = {(len(image), 2 * (image.ndim - 2))}, got {tuple(boxes.shape)}."
            )
    return _View(image, intensity, label.to(image), boxes)
