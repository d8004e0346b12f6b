# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA: co-training of a classification and a segmentation branch, whose labels an averaged network assigns and swaps.

Yang et al., "Weakly supervised co-training with swapping assignments for semantic segmentation", ECCV 2024,
arXiv:2402.17891.  For a weak view x and a strong view x^s of an image with image-level labels y over K classes:

    z, M, z†, M†, S   = online(x^s)                    logits and class maps of two levels, segmentation     Sec. 3.2
    M', M†', S'       = seeds(network, x)              over scales and the mirror image, no gradient         Sec. 3.2
    xi, xi†           = follow(M'), follow(M†')        dynamic thresholds                                    Eq. 6
    Y, P              = labels(M')                     class labels and their perplexity                     Eq. 3-4
    Y†, P†            = auxiliary_labels(M†')          the same of the earlier level                         Eq. 3-4
    Y^SPL             = guide(S')                      sharpened segmentation                                Eq. 7
    L_c2s, L_c2s†     = c2s(S, Y, P), c2s(S, Y†, P†)   class labels teach the segmentation                   Eq. 5
    L_s2c             = s2c(M, Y^SPL)                  the segmentation guides the class maps                Eq. 8
    L_csc             = csc(M, Y†, P† <= epsilon)      sure pixels of one label draw M together, or features Eq. 9-10
    L                 = L_cls + L_cls† + lambda_c2s (L_c2s + L_c2s†) + lambda_s2c L_s2c + lambda_csc L_csc   Eq. 11
    theta'            <- m theta' + (1 - m) theta      after each real step: ``average``                     Sec. 3.2

``online`` (theta) is trained; ``network`` (theta'), the assignment network, makes the labels and is deployed.  Rows of
the paper's Table 3 are parts left out: ``s2c`` (GC), ``average`` (SA), the weights in ``c2s`` (RAW), ``csc``, and what
moves the thresholds (DT).  Only the released code has the term ``energy``.  The presets: ``cosa_settings.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from monai_wsss._checks import float32_or_wider
from monai_wsss._resize import resize_linear
from monai_wsss.engines import Progress, Term, WeightAverage, short_run_sentences, takes_arguments_of
from monai_wsss.inferers import MultiScaleSeeds
from monai_wsss.methods.cosa_network import ENCODER_WORDS, cosa_network
from monai_wsss.methods.cosa_settings import CosaSettings
from monai_wsss.methods.two_branch_method import TwoBranchMethod, classification_loss
from monai_wsss.networks import ConvPyramid, TwoBranchNetwork
from monai_wsss.refinement import LabeledImages, SegmentationLabels, ThresholdLabels, TwoThresholdLabels
from monai_wsss.refinement.labeled_images import strong_view

__all__ = ["CoSA"]

ClassLabelMaker = ThresholdLabels | TwoThresholdLabels
_TERMS = ("c2s", "auxiliary_c2s", "s2c", "csc", "energy")


class CoSA(TwoBranchMethod):
    """Co-training with swapped assignments: the averaged network's class maps teach the segmentation, and vice versa.

    A batch may hold ``strong`` (B, C, *S), the strong view: the image with other colors and the same geometry (default:
    ``image``, the weak view), ``intensity`` (B, C', *S), along which the energy is computed (default: ``image``), and
    ``boxes`` (B, 2 d): where images are not padding.  Build it by words with :meth:`from_preset`.

    Args:
        network: two branches with an auxiliary classifier, which becomes the assignment network; a copy is trained.
        seeds: makes M', M†' and S'.
        labels: makes Y and P of M'.
        auxiliary_labels: makes Y† and P† of M†', with a threshold of its own.
        guide: makes Y^SPL.
        c2s: the term by which Y teaches the segmentation; None leaves it out, as with all terms.
        auxiliary_c2s: the term by which Y† does.
        s2c: the term by which Y^SPL guides the class maps.
        csc: the term that separates the class maps of pixels with different labels.
        energy: the term by which pixels of similar color get similar segmentations.
        average: moves the assignment network; None: there is one network, which makes its own labels.

    Attributes:
        online: the network that is trained, the one player; ``network`` itself without ``average``.

    Raises:
        ValueError: no auxiliary classifier; another method's assignment network; views, boxes, intensities that misfit.

    Example:
        >>> batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(CoSA.tiny()(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification', 'auxiliary_classification', 'c2s', 'auxiliary_c2s', 's2c', 'csc']
    """

    players: ClassVar[tuple[str, ...]] = ("online",)
    trains_norms: ClassVar[bool] = True

    def __init__(
        self,
        network: TwoBranchNetwork,
        *,
        seeds: MultiScaleSeeds,
        labels: ClassLabelMaker,
        auxiliary_labels: ClassLabelMaker,
        guide: SegmentationLabels,
        c2s: Term | None,
        auxiliary_c2s: Term | None,
        s2c: Term | None,
        csc: Term | None,
        energy: Term | None,
        average: WeightAverage | None,
    ) -> None:
        super().__init__(network, seeds=seeds)
        if network.auxiliary is None or not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(
                "Expected a network with an auxiliary classifier, and with parameters to train: a new one, built by "
                "TwoBranchNetwork.with_auxiliary."
            )
        self.labels, self.auxiliary_labels, self.guide = labels, auxiliary_labels, guide
        self.c2s, self.auxiliary_c2s, self.s2c, self.csc, self.energy = c2s, auxiliary_c2s, s2c, csc, energy
        self.online = network if average is None else copy.deepcopy(network)
        self.average = average
        if average is not None:
            network.requires_grad_(False).eval()
        self._progress: Progress | None = None
        self._waits = False
        self.to(next(network.parameters()).device)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CoSA:
        """Build all terms on the tiny convolutional encoder: overfits one batch in seconds on a CPU."""
        encoder = ConvPyramid(spatial_dims, in_channels, width=4, attention_heads=0)
        network = cls.network_from_preset(encoder=encoder, num_classes=num_classes, decoder_width=8, width=8, stride=2)
        return cls.from_preset(network=network, momentum=0.9, queue=8, seed_scale="minmax")

    @classmethod
    @takes_arguments_of(CosaSettings)
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: TwoBranchNetwork | None = None,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1,
        **words: Any,
    ) -> CoSA:
        """Build the whole method by words.

        Args:
            preset: see the table of ``cosa_settings.py``.
            network: another in the place of the preset's; it has dimensions and classes of its own.
            spatial_dims: 2 or 3, of the preset's network, as are ``in_channels`` and ``num_classes``.
            words: fields of :class:`~monai_wsss.methods.cosa_settings.CosaSettings` to set otherwise, e.g.
                ``raw=False``.

        Raises:
            ValueError: an unknown preset, or words that do not go together; TypeError: an unknown word.
        """
        settings = CosaSettings.of_preset(preset, **words)
        network = network or cosa_network(preset, None, spatial_dims, in_channels, num_classes)
        if settings.detach_seeds is not None:
            network.detach_seeds = settings.detach_seeds
        method = cls(network, **settings.parts(network.num_classes))
        method.settings |= {"preset": preset} | settings.record(preset, network.num_classes, method.settings)
        return method

    @classmethod
    @takes_arguments_of(TwoBranchNetwork.with_auxiliary, *ENCODER_WORDS)
    def network_from_preset(
        cls,
        preset: str = "default",
        *,
        encoder: nn.Module | str | None = None,
        spatial_dims: int = 2,
        in_channels: int = 3,
        num_classes: int = 1,
        **changes: Any,
    ) -> TwoBranchNetwork:
        """Build the network of a preset, around another encoder on request; all weights are random.

        The presets presume ImageNet weights, see :func:`~monai_wsss.networks.load_encoder_weights`.

        Args:
            preset: as :meth:`from_preset`; ``num_classes`` is K.
            encoder: the name of another encoder, or the encoder itself, which has dimensions and channels of its own.
                :class:`~monai_wsss.networks.TwoFusedMaps` brings those of other networks to two maps.
            changes: words of ``cosa_network.py`` to set otherwise.
        """
        return cosa_network(preset, encoder, spatial_dims, in_channels, num_classes, **changes)

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``classification``, ``auxiliary_classification``, and the terms that are on; weighted."""
        if self.average is not None:
            self.average.begin(self.network, self.online)
        self._progress = progress
        images = LabeledImages.from_batch(batch)
        on = {name: term for name in _TERMS if (term := getattr(self, name)) is not None}
        begun = Term.any_begun(progress, *on.values())
        # A decoder without batch statistics has nothing to do before the terms begin.
        decode = begun or any(True for _ in self.online.decoder.buffers())
        outputs = self.online.branches(strong_view(batch), upsample=False, decode=decode)
        self.observe(outputs.seeds, images.label)
        maps, segmentation = float32_or_wider(outputs.seeds), outputs.segmentation
        segmentation = self.at_size(segmentation, images) if decode else segmentation
        compared: Any = outputs.features if self.csc is not None and self.csc.loss.vectors == "feature" else maps
        inside = None if images.padding is None else ~images.padding

        @cache
        def assigned() -> tuple[torch.Tensor, ...]:
            """Give M', M†', S' and M†' at the size of M, once a term asks for them: a warm-up costs nothing."""
            given = self.assignments(images)
            small, small_auxiliary = (resize_linear(each, maps.shape[2:]) for each in given[:2])
            self.labels.follow(images, small)
            self.auxiliary_labels.follow(images, small_auxiliary)
            return *given, small_auxiliary

        classes = cache(lambda: self.labels(images, assigned()[0]))
        auxiliary_classes = cache(lambda: self.auxiliary_labels(images, assigned()[1]))
        terms: dict[str, tuple[torch.Tensor, Callable[[Any], torch.Tensor]]] = {
            "c2s": (segmentation, lambda l_c2s: l_c2s(segmentation, *classes())),
            "auxiliary_c2s": (segmentation, lambda l_c2s: l_c2s(segmentation, *auxiliary_classes())),
            "s2c": (maps, lambda l_s2c: l_s2c(maps, self.guidance(images, assigned()[2], batch))),
            "csc": (compared, lambda l_csc: l_csc(compared, *self.auxiliary_labels.sure(images, assigned()[3]))),
            "energy": (segmentation, lambda l_e: l_e(segmentation, images.intensity, classes().label, inside)),
        }
        losses = {"classification": classification_loss(outputs.logits, images.label)}
        losses["auxiliary_classification"] = classification_loss(outputs.auxiliary_logits, images.label)
        if begun:
            self.follow_healthy_level(images)
        self._waits = begun and not self.seeds.ready
        taught = begun and not (self._waits or self.may_leave_parameters_unused)
        self.observe_segmentation(segmentation, images, when=taught)
        return losses | {name: term(progress, *terms[name], when=not self._waits) for name, term in on.items()}

    def assignments(self, images: LabeledImages) -> tuple[torch.Tensor, ...]:
        """Give M' and M†' (B, K, *S) in [0, 1] and S' (B, K + 1, *S), all 0 for healthy images."""
        with self.label_mode():
            return self.seeds.of_found(self.network, images)

    def guidance(self, images: LabeledImages, segmentation: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Give Y^SPL (B, K + 1, *S) of S', which guides the class maps; other guides may read the batch."""
        return self.guide(images, segmentation)

    def after_step(self, progress: Progress) -> None:
        """Move the assignment network toward the online network."""
        if self.average is not None:
            self.average.update(self.network, self.online)

    def train(self, mode: bool = True) -> CoSA:
        """Switch the mode of the online network; the assignment network stays in evaluation mode."""
        super().train(mode)
        if self.average is not None:
            self.network.eval()
        return self

    @property
    def label_maker(self) -> ClassLabelMaker:
        """Give what makes Y."""
        return self.labels

    @property
    def may_leave_parameters_unused(self) -> bool:
        """Tell whether nothing trains the decoder."""
        return self.c2s is None and self.auxiliary_c2s is None and self.energy is None

    def collapse_warnings(self) -> list[str]:
        """Add to those of every method that the run is shorter than the warm-up, and that there is no healthy level."""
        waits = ["no image without each class has come yet, so the branches teach nothing."] if self._waits else []
        begun = [("warm_up", term.ramp) for term in (getattr(self, name) for name in _TERMS) if term]
        return super().collapse_warnings() + waits + short_run_sentences(dict(begun[:1]), self._progress)
