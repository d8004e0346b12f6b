# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""BMP: a classification and a segmentation branch on one encoder, each of which gives the other its labels.

Zhu et al., "Branches mutual promotion for end-to-end weakly supervised semantic segmentation", arXiv:2308.04949, on the
two-branch network of AFA (Ru et al., arXiv:2203.02664).  For an image x with image-level labels y over K classes:

    c, C, S^s, A = network(x)                    Eq. 1, 9-11 (OFD)     class logits, seeds, segmentation, affinity
    C', S'       = seeds(network, x)             Sec. IV-A             over scales and the mirror image, no gradient
    Y^c          = labels(C', S')                Eq. 12-13, 3, 5       background-aware spatial propagation (BSP)
    Y^0          = first_labels(C')              AFA                   constant background scores
    L_c2s        = c2s(S^s, Y^c)                 Eq. 6                 the classifier teaches the segmenter
    L_s2c        = s2c(C, Y^s)                   Eq. 7-8               the segmenter teaches the classifier
    L_aff        = affinity(A, Y^0)              AFA                   the encoder's attention learns which tokens agree
    L            = L_cls + lambda_1 L_c2s + lambda_2 L_s2c + lambda_3 L_aff                      Eq. 14

The names on the left are the parts that the constructor receives.  Y^0 is also Y^c in the warm-up of ``labels``.

| part                      | is                                                                              |
|---------------------------|---------------------------------------------------------------------------------|
| ``seeds``                 | ``inferers.MultiScaleSeeds``                                                    |
| ``labels``                | ``refinement.BackgroundAware`` or another maker of labels                       |
| ``first_labels``          | ``refinement.ConstantScores``                                                   |
| ``c2s``, ``affinity``     | terms of ``losses.ClassToSegmentationLoss`` and ``losses.AffinityLoss``         |
| ``s2c``                   | a term of ``SegmentationFeedback``, which makes Y^s                             |

The rows of the paper's Table VI are parts left out: ``c2s``, ``s2c``, ``affinity``, ``labels`` (constant scores stay)
and the network's ``prior`` (OFD).  The presets stand in ``bmp_settings.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._labels import IGNORED
from monai_wsss._resize import resize_nearest
from monai_wsss.engines import LossGate, Progress, Term, WeightRamp, short_run_sentences, takes_arguments_of
from monai_wsss.inferers import MultiScaleSeeds
from monai_wsss.methods.bmp_settings import BMP_PRESETS, BmpSettings, preset_network
from monai_wsss.methods.two_branch_method import TwoBranchMethod, classification_loss
from monai_wsss.networks import TwoBranchNetwork
from monai_wsss.networks.encoder_facts import encoder_name
from monai_wsss.refinement import BackgroundAware, ConstantScores, LabeledImages, PixelAdaptiveRefinement

__all__ = ["BMP"]


class BMP(TwoBranchMethod):
    """Branches mutual promotion: classification and segmentation supervise each other.

    A batch may hold ``intensity`` (B, C', *S), the images before photometric augmentation, along which labels spread
    (default: ``image``), and ``boxes`` (B, 2 d), see :func:`~monai_wsss.refinement.background_aware_scores`: where
    images are not padding.  Build it by words with :meth:`from_preset`.

    Args:
        network: the two branches.
        seeds: makes C' and S'.
        first_labels: makes Y^0, which is also Y^c until ``labels`` take over.
        labels: makes Y^c once ``labels_ramp`` is above 0; None: ``first_labels`` do throughout.
        labels_ramp: says when ``labels`` take over.
        c2s: the term by which the classifier teaches the segmenter; None leaves it out.
        s2c: the term by which the segmenter teaches the classifier; None leaves it out.
        affinity: the term by which the encoder's attention learns Y^0; None leaves it out.
        gate: the branches teach nothing before it opens.
        healthy_is_background: images without any class are background throughout, whatever the labels say.
        healthy_affinity: whether such images, which have positive pairs alone, take part in L_aff.
        train_mode_labels: make labels in training mode: with dropout, and batch statistics updated.

    Raises:
        ValueError: an affinity asked of a network without one; a batch whose boxes or intensities do not fit.

    Example:
        >>> import torch
        >>> batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(BMP.tiny()(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification', 'c2s', 's2c', 'affinity']
    """

    network: TwoBranchNetwork
    presets: ClassVar[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = BMP_PRESETS

    def __init__(
        self,
        network: TwoBranchNetwork,
        *,
        seeds: MultiScaleSeeds,
        first_labels: ConstantScores,
        labels: ConstantScores | BackgroundAware | None,
        labels_ramp: WeightRamp,
        c2s: Term | None,
        s2c: Term | None,
        affinity: Term | None,
        gate: LossGate,
        healthy_is_background: bool = True,
        healthy_affinity: bool = False,
        train_mode_labels: bool = False,
    ) -> None:
        radii: tuple[Any, ...] = (getattr(labels, "radius", None), None if affinity is None else affinity.loss.radius)
        super().__init__(network, seeds=seeds, radii=radii, train_mode_labels=train_mode_labels)
        self.first_labels = first_labels
        self.labels = labels
        self.labels_ramp = labels_ramp
        self.c2s = c2s
        self.s2c = s2c
        self.affinity = affinity
        self.gate = gate
        self.healthy_is_background = healthy_is_background
        self.healthy_affinity = healthy_affinity
        self._progress: Progress | None = None
        self._waits = False

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> BMP:
        """Build all terms on the tiny convolutional encoder: overfits one batch in seconds on a CPU."""
        refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=4, row_stochastic=True)
        return cls.from_preset(network=TwoBranchNetwork.tiny(spatial_dims, in_channels, num_classes), refine=refine)

    @classmethod
    @takes_arguments_of(BmpSettings)
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: TwoBranchNetwork | None = None,
        refine: PixelAdaptiveRefinement | None = None,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1,
        **words: Any,
    ) -> BMP:
        """Build the whole method by words.

        Args:
            preset: see the table of ``bmp_settings.py``.
            network: another in the place of the preset's; it has dimensions and classes of its own.
            refine: another refinement in the place of the preset's.
            spatial_dims: 2 or 3, of the preset's network, as are ``in_channels`` and ``num_classes``.
            words: fields of :class:`~monai_wsss.methods.bmp_settings.BmpSettings` to set otherwise, e.g.
                ``s2c_weight=0.0``.

        Raises:
            ValueError: an unknown preset, or words that do not go together; TypeError: an unknown word.
        """
        check_choice("preset", preset, tuple(cls.presets))
        settings = BmpSettings(**{**cls.presets[preset][0], **words})
        if network is None:
            network = cls.network_from_preset(
                preset, spatial_dims=spatial_dims, in_channels=in_channels, num_classes=num_classes
            )
        method = cls(network, **settings.parts(network.num_classes, refine))
        method.settings |= {"preset": preset, **settings.for_classes(network.num_classes).record()}
        return method

    @classmethod
    @takes_arguments_of(TwoBranchNetwork.build)
    def network_from_preset(
        cls,
        preset: str = "default",
        *,
        encoder: nn.Module | None = None,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1,
        **changes: Any,
    ) -> TwoBranchNetwork:
        """Build the network of a preset, around another encoder on request; all weights are random.

        ImageNet weights, which the published presets presume, come from
        :func:`~monai_wsss.networks.load_encoder_weights`.

        Args:
            preset: as :meth:`from_preset`; ``num_classes`` is K.
            encoder: another encoder; ``spatial_dims`` and ``in_channels`` then have no effect.
            changes: words of :meth:`~monai_wsss.networks.TwoBranchNetwork.build` to set otherwise.
        """
        check_choice("preset", preset, tuple(cls.presets))
        decoding = {**cls.presets[preset][1], **changes}
        network = preset_network(decoding, encoder, spatial_dims, in_channels, num_classes)
        if encoder is not None:
            decoding["encoder"] = encoder_name(encoder)
        network.settings = {"preset": preset, **decoding}  # type: ignore[assignment]
        return network

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``classification``, and ``c2s``, ``s2c`` and ``affinity`` where on; weighted."""
        images = LabeledImages.from_batch(batch)
        outputs = self.branches(images.image, affinity=self.affinity is not None)
        seeds, segmentation = self.at_size(outputs.seeds, images), self.at_size(outputs.segmentation, images)
        self.observe(outputs.seeds, images.label)
        self.follow_healthy_level(images)
        classification = classification_loss(outputs.logits, images.label)
        ready = self.gate(classification)
        self._progress = progress
        self._waits = not ready and Term.any_begun(progress, self.c2s, self.s2c, self.affinity)
        teaching = ready and Term.any_begun(progress, self.c2s, self.affinity)
        label, first = self._class_labels(images, progress) if teaching else (None, None)
        losses = {"classification": classification}
        if self.c2s is not None:
            made = label is not None
            self.observe_segmentation(segmentation, images, when=made and Term.any_begun(progress, self.c2s))
            losses["c2s"] = self.c2s(progress, segmentation, lambda l_seg: l_seg(segmentation, label), when=made)
        if self.s2c is not None:
            bsp = self._begun(progress)
            taught = (images, seeds, segmentation)
            losses["s2c"] = self.s2c(progress, seeds, lambda l_s2c: l_s2c(*taught, bsp=bsp), when=ready)
        if (pairs := outputs.affinity) is not None and self.affinity is not None:
            tokens = None if first is None else resize_nearest(first[:, None], outputs.seeds.shape[2:])[:, 0]
            # Healthy images have positive pairs alone, which draw every affinity to 1.
            told = (tokens, None if self.healthy_affinity else images.found, images.label_values)
            losses["affinity"] = self.affinity(progress, pairs, lambda l_a: l_a(pairs, *told), when=first is not None)
        return losses

    @torch.no_grad()
    def _class_labels(self, images: LabeledImages, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
        """Make Y^c and Y^0, (B, *S) each."""
        label = images.image.new_zeros((len(images), *images.image.shape[2:]), dtype=torch.long)
        first = label.clone()
        # Only where there is something to find; batch statistics, where labels are made by them, want every image.
        found = images.with_findings
        chosen = found if self.healthy_is_background and not self.train_mode_labels else list(range(len(images)))
        if chosen:
            some = images.of(chosen)
            seeds, segmentation = self.seeds_and_segmentation(some)
            first_of = label_of = self.first_labels(some, seeds, segmentation)
            if self.labels is not None and self._begun(progress):
                label_of = self.labels(some, seeds, segmentation, self.pairs)
            label[images.index(chosen)], first[images.index(chosen)] = label_of, first_of
        if self.healthy_is_background and len(chosen) > len(found):
            label = label * images.found.reshape(-1, *[1] * (label.ndim - 1))
        if images.padding is not None:
            label, first = (of.masked_fill(images.padding, IGNORED) for of in (label, first))
        return label, first

    def _begun(self, progress: Progress) -> bool:
        """Tell whether ``labels`` have taken over."""
        return self.labels is not None and self.labels_ramp(progress) > 0

    @property
    def label_maker(self) -> ConstantScores | BackgroundAware:
        """Give what makes Y^c: at the last training step of this process, or else in the end."""
        begun = self._progress is None or self._begun(self._progress)
        return self.labels if self.labels is not None and begun else self.first_labels

    @property
    def may_leave_parameters_unused(self) -> bool:
        """Tell whether nothing trains the decoder (no L_c2s) or the affinity (no L_aff)."""
        return self.c2s is None or (self.affinity is None and self.network.attn_proj is not None)

    def collapse_warnings(self) -> list[str]:
        """Add to those of every method the warm-ups that this run is too short for, and that the gate is closed."""
        terms = {"c2s_ramp": self.c2s or self.affinity, "s2c_ramp": self.s2c}
        ramps = {name: term.ramp for name, term in terms.items() if term is not None}
        ramps |= {} if self.labels is None else {"propagation_ramp": self.labels_ramp}
        waiting = self.gate.sentences() if self._waits else []
        return super().collapse_warnings() + short_run_sentences(ramps, self._progress) + waiting
