# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""AFA: affinity from attention, the baseline of BMP.

Ru et al., "Learning affinity from attention: end-to-end weakly-supervised semantic segmentation with transformers",
CVPR 2022, arXiv:2203.02664.  For an image x with image-level labels y over K classes:

    c, C, S, A = network(x)                   class logits, seeds, segmentation, affinity of tokens        Eq. 1-3
    Y^0        = first_labels(C')             constant background scores, refined along the image (PAR)
    Y^c        = labels(C', A)                the same scores, first spread by the affinity                Eq. 5-6
    L_seg      = balanced cross-entropy of S against Y^c                                                   ``c2s``
    L_aff      = affinity(A, Y^0)                                                                          Eq. 4
    L          = L_cls + lambda_1 L_seg + lambda_2 L_aff                                                   Eq. 10

It has the parts of :class:`~monai_wsss.methods.BMP` under the same names, with other labels, another l_seg and no
feedback.  The presets stand in ``bmp_settings.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai_wsss.methods.bmp import BMP
from monai_wsss.methods.bmp_settings import AFA_PRESETS
from monai_wsss.networks import ConvPyramid
from monai_wsss.refinement import PixelAdaptiveRefinement

__all__ = ["AFA"]


class AFA(BMP):
    """Affinity from attention: the classifier teaches the segmenter by labels that a learned affinity spreads.

    The arguments are those of :class:`~monai_wsss.methods.BMP`, with ``s2c=None`` and
    ``labels=``:class:`~monai_wsss.refinement.LearnedAffinity`.  Build it by words with :meth:`from_preset`: presets
    ``"default"``, ``"scratch"`` and ``"paper"``.

    Example:
        >>> import torch
        >>> from monai_wsss.engines import Progress
        >>> batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(AFA.tiny()(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification', 'c2s', 'affinity']
    """

    presets: ClassVar[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = AFA_PRESETS

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> AFA:
        """Build all terms on the tiny convolutional encoder: overfits one batch in seconds on a CPU."""
        encoder = ConvPyramid.tiny(spatial_dims, in_channels)
        network = cls.network_from_preset(encoder=encoder, num_classes=num_classes, decoder_width=8)
        refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=4, row_stochastic=True)
        method = cls.from_preset(network=network, refine=refine)
        assert isinstance(method, AFA)
        return method
