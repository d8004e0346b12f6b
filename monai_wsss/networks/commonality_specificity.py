# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The attention of CoinGAN: what an image has in common with healthy ones is strengthened, what it has not is removed.

Eq. 6 to 9 and 11 to 16 of the paper. P (c, L) are the features of an image at L positions, A their mean over healthy
images, and B = SE(A). With an incidence matrix R (L, L) between the positions of B and those of P::

    M_c = P R        M_s = P where the probability of M_c is below 0.5, else 0        output = P + M_c - M_s

Eq. 6 does not say over which axis its softmax runs, nor Eq. 8:

| `incidence`          | R                                                    | memory                                 |
|----------------------|------------------------------------------------------|----------------------------------------|
| `reference_channel`  | softmax over the channels of B, transposed, times P  | c x c: M_c = (P softmax(B)^T) P        |
| `reference_position` | softmax over the positions of B, transposed, times P | the same                               |
| `affinity`           | softmax of B^T P over the positions of B             | L x L                                  |
| `affinity_path`      | softmax of B^T P over the positions of P             | L x L                                  |

| `specificity` | the probability of M_c                                                                              |
|---------------|-----------------------------------------------------------------------------------------------------|
| `channel`     | softmax over channels; at most one channel of a position reaches 0.5                                |
| `spatial`     | softmax over positions; at most one position of a channel reaches 0.5                               |
| `sigmoid`     | logistic of M_c, a softmax against a logit of zero                                                  |
| `zsigmoid`    | logistic of M_c, standardized over the positions of each channel                                    |
| `zposition`   | logistic of the mean over channels, standardized over positions: one decision for all channels      |
| `twoway`      | softmax over M_c, scaled as P, and P                                                                |
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer
from torch import nn

from monai_wsss._checks import check_choice, float32_or_wider
from monai_wsss._processes import gather_objects, is_distributed, sum_of_processes
from monai_wsss._resize import linear_mode

__all__ = ["AverageBuffer", "CommonalitySpecificityAttention"]

INCIDENCES = ("reference_channel", "reference_position", "affinity", "affinity_path")
SPECIFICITIES = ("channel", "spatial", "sigmoid", "zsigmoid", "zposition", "twoway")


class AverageBuffer(nn.Module):
    """Hold the mean representation of healthy images (Eq. 11 to 13): that of a batch, and one for inference.

    A new batch replaces the mean; nothing of older batches stays.  At inference there is no healthy batch, so a mean is
    stored in the weights.

    Args:
        channels: c.
        spatial_dims: 2 or 3.
        size: the spatial size of the features, if it is known: the weights then have their final shape from the start.
        inference: what is stored: ``"calibrated"``, the mean that :meth:`calibrate` takes over healthy images;
            ``"last_batch"``, the last training batch, or that mean if it is younger; ``"batch"``, nothing.
        resize: bring the stored mean to features of another size, linearly.  Without it another size is an error, since
            the mean is one of aligned positions.
        detach: no gradient flows into the healthy images.
        over_processes: the mean of a batch is that over all processes of a distributed run.

    Attributes:
        reference: (c, *s), the stored mean; without elements until one is stored, unless ``size`` is given.
        filled: bool, true where a mean is stored.

    Raises:
        ValueError: an unknown word.

    Example:
        >>> buffer = AverageBuffer(2)
        >>> buffer(torch.stack((torch.zeros(2, 4, 4), torch.ones(2, 4, 4)))).unique().tolist()
        [0.5]
        >>> buffer.calibrate([torch.ones(3, 2, 4, 4), torch.zeros(1, 2, 4, 4)])
        >>> buffer.stored([4, 4]).unique().tolist()
        [0.75]
    """

    reference: torch.Tensor
    filled: torch.Tensor

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 2,
        *,
        size: Sequence[int] | None = None,
        inference: str = "calibrated",
        resize: bool = False,
        detach: bool = False,
        over_processes: bool = True,
    ) -> None:
        super().__init__()
        check_choice("inference", inference, ("calibrated", "last_batch", "batch"))
        if size is not None and len(size) != spatial_dims:
            raise ValueError(f"Expected `size` of {spatial_dims} sides, got {tuple(size)}.")
        self.inference = inference
        self.resize = resize
        self.detach = detach
        self.over_processes = over_processes
        self._mode = linear_mode(spatial_dims)
        self.register_buffer("reference", torch.zeros(channels, *(size or (0,) * spatial_dims)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_resize_before_loading)

    @torch.jit.unused
    def forward(self, healthy: torch.Tensor) -> torch.Tensor:
        """Give the mean of a batch: ``(N, c, *s) -> (c, *s)``; in training ``"last_batch"`` stores it, too."""
        healthy = healthy.detach() if self.detach else healthy
        total, count = healthy.sum(0), healthy.new_tensor(float(len(healthy)))
        if self.over_processes and is_distributed():
            total, count = _SumOverProcesses.apply(total), sum_of_processes(count)
        mean = total / count
        if self.training and self.inference == "last_batch":
            self._store(mean.detach())
        return mean

    def stored(self, size: list[int]) -> torch.Tensor:
        """Give the stored mean ``(c, *size)``.

        Raises:
            ValueError: nothing is stored, or a mean of another size, which must not be resized.
        """
        empty = self.reference.numel() == 0 or self.inference == "batch"
        # A network that is compiled or exported was asked before; nothing may depend on values then.
        if not empty and (torch.jit.is_scripting() or not _is_traced()):
            empty = not bool(self.filled)
        if empty:
            raise ValueError(
                "Expected the mean representation of healthy images, which is not stored: call "
                "`calibrate_reference` with healthy training images, or give a reference."
            )
        if list(self.reference.shape[1:]) == list(size):
            return self.reference
        if not self.resize:
            raise ValueError(
                f"Expected images whose features have the size {list(self.reference.shape[1:])} of the stored mean, "
                f"got {list(size)}: bring images to the size of the training, or choose resize=True."
            )
        return F.interpolate(self.reference[None], size=list(size), mode=self._mode, align_corners=False)[0]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Store the mean over all images of all batches and processes.

        Args:
            batches: representations (N, c, *s) of healthy images.

        Raises:
            ValueError: no image in any process.
        """
        total, count = None, 0
        for batch in batches:
            added = batch.sum(0, dtype=torch.float64)
            total = added if total is None else total + added
            count += len(batch)
        counts = gather_objects(count)
        if not sum(counts):
            raise ValueError("Expected at least one healthy image for the mean representation, got none.")
        shapes = gather_objects(None if total is None else tuple(total.shape))
        if total is None:
            shape = next(shape for shape in shapes if shape is not None)
            total = torch.zeros(shape, dtype=torch.float64, device=self.reference.device)
        self._store(sum_of_processes(total) / sum(counts))

    @torch.jit.unused
    @torch.no_grad()
    def _store(self, mean: torch.Tensor) -> None:
        if mean.shape != self.reference.shape:
            self.reference.resize_(mean.shape)
        self.reference.copy_(mean)
        self.filled.fill_(True)


class CommonalitySpecificityAttention(nn.Module):
    """Attention that adds what features share with healthy ones and removes what is specific: Eq. 6 to 9, 14 to 16.

    ``(B, c, *s)`` and a reference ``(c, *s)`` to ``(B, c, *s)``.  Everything runs in float32 or wider, under autocast
    too; a scripted module follows autocast.

    Args:
        channels: c.
        spatial_dims: 2 or 3.
        se_reduction: the hidden layer of the squeeze-and-excitation has c / ``se_reduction`` units, at least one.
        incidence: see the table of this module.
        specificity: see the other table; it is decided on M_c as Eq. 7 gives it, whatever its scale.
        commonality_scale: ``"rms"``, M_c of each image gets the root mean square of its P; ``"none"``, as printed.  M_c
            grows with the number of positions, and beside it P vanishes.
        commonality_values: what M_c is a mean of: ``"pathological"``, P as printed, or ``"reference"``, B.
        affinity_scale: divide B^T P by the square root of c.
        use_ca: add M_c.
        use_sa: subtract M_s.
        max_attention_elements: most entries of an R (L, L) per image that are held.

    Raises:
        ValueError: an unknown word; features whose R would be larger.

    Example:
        >>> import torch
        >>> attention = CommonalitySpecificityAttention(4)
        >>> attention(torch.randn(2, 4, 5, 6), torch.randn(4, 5, 6)).shape
        torch.Size([2, 4, 5, 6])
        >>> attention.incidence_matrix(torch.randn(2, 4, 5, 6), torch.randn(4, 5, 6)).shape
        torch.Size([2, 30, 30])
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 2,
        *,
        se_reduction: int = 16,
        incidence: str = "reference_channel",
        specificity: str = "sigmoid",
        commonality_scale: str = "rms",
        commonality_values: str = "pathological",
        affinity_scale: bool = True,
        use_ca: bool = True,
        use_sa: bool = True,
        max_attention_elements: int = 2**26,
    ) -> None:
        super().__init__()
        check_choice("incidence", incidence, INCIDENCES)
        check_choice("specificity", specificity, SPECIFICITIES)
        check_choice("commonality_scale", commonality_scale, ("rms", "none"))
        check_choice("commonality_values", commonality_values, ("pathological", "reference"))
        self.incidence = incidence
        self.specificity = specificity
        self.commonality_scale = commonality_scale
        self.commonality_values = commonality_values
        self.affinity_scale = affinity_scale
        self.use_ca = use_ca
        self.use_sa = use_sa
        self.max_attention_elements = max_attention_elements
        self.excitation = ChannelSELayer(spatial_dims, channels, r=min(se_reduction, channels))

    def forward(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, c, *s)``, beside a healthy mean ``(c, *s)``, to ``(B, c, *s)`` in their own type."""
        if features.shape[1:] != reference.shape:
            raise ValueError(
                f"Expected `reference` of shape (c, *s) = {features.shape[1:]}, as the features, got {reference.shape}."
            )
        if torch.jit.is_scripting():
            return self._attend(features, reference)
        with torch.autocast(features.device.type, enabled=False):
            return self._attend(features, reference)

    def excite(self, reference: torch.Tensor) -> torch.Tensor:
        """Give B = SE(A): ``(c, *s) -> (c, *s)``."""
        return self.excitation(reference[None])[0]

    def incidence_matrix(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Give R ``(B, L, L)``; its rows are the positions of the reference, its columns those of the features.

        Args:
            features: P, (B, c, *s).
            reference: A, (c, *s).

        Raises:
            ValueError: more than ``max_attention_elements`` entries per image.
        """
        return self._incidence(
            float32_or_wider(features).flatten(2), self.excite(float32_or_wider(reference)).flatten(1)
        )

    def commonality(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Give M_c of Eq. 7, unscaled: P ``(B, c, *s)`` and A ``(c, *s)`` to ``(B, c, *s)``."""
        wide = float32_or_wider(features)
        return self._commonality(wide.flatten(2), self.excite(float32_or_wider(reference)).flatten(1)).reshape(
            wide.shape
        )

    def probability(self, commonality: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Give the probability that Eq. 8 compares with 0.5: M_c and P, ``(B, c, *s)`` each, to ``(B, c, *s)``."""
        given = self._probability(commonality.flatten(2), features.flatten(2))
        return given.expand(commonality.flatten(2).shape).reshape(commonality.shape)

    def _attend(self, features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        if not (self.use_ca or self.use_sa):
            return features
        own = float32_or_wider(features).flatten(2)
        healthy = self.excite(float32_or_wider(reference)).flatten(1)
        kept = own
        # Without its own term M_c only decides what is specific, and decisions have no gradient.
        common = self._commonality(own, healthy) if self.use_ca else self._commonality(own.detach(), healthy.detach())
        if self.use_sa:
            kept = own * (self._probability(common.detach(), own.detach()) >= 0.5)
        if self.use_ca:
            kept = kept + (_scaled_as(common, own) if self.commonality_scale == "rms" else common)
        return kept.to(features.dtype).reshape(features.shape)

    def _commonality(self, own: torch.Tensor, healthy: torch.Tensor) -> torch.Tensor:
        """Compute M_c: P ``(B, c, L)`` and B ``(c, L)`` to ``(B, c, L)``, without any R where it has factors."""
        values = own if self.commonality_values == "pathological" else healthy
        if self.incidence == "affinity" or self.incidence == "affinity_path":
            return torch.matmul(values, self._incidence(own, healthy))
        weights = healthy.softmax(0 if self.incidence == "reference_channel" else 1)
        return torch.matmul(torch.matmul(values, weights.transpose(0, 1)), own)

    def _incidence(self, own: torch.Tensor, healthy: torch.Tensor) -> torch.Tensor:
        entries = own.shape[-1] * own.shape[-1]
        if entries > self.max_attention_elements:
            raise ValueError(
                f"Expected at most {self.max_attention_elements} entries in the incidence matrix of an image, got "
                f"{entries} ({entries * 4 // 2**20} MiB in float32): choose incidence='reference_channel', smaller "
                "features (csa_position='bottleneck', embed_stride), or raise max_attention_elements."
            )
        if self.incidence == "reference_channel" or self.incidence == "reference_position":
            weights = healthy.softmax(0 if self.incidence == "reference_channel" else 1)
            return torch.matmul(weights.transpose(0, 1), own)
        logits = torch.matmul(healthy.transpose(0, 1), own)
        if self.affinity_scale:
            logits = logits / float(own.shape[1]) ** 0.5
        return logits.softmax(1 if self.incidence == "affinity" else 2)

    def _probability(self, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Give the probability for ``(B, c, L)``; ``zposition`` has one channel."""
        if self.specificity == "channel":
            return common.softmax(1)
        if self.specificity == "spatial":
            return common.softmax(2)
        if self.specificity == "zsigmoid":
            return _standardized(common).sigmoid()
        if self.specificity == "zposition":
            return _standardized(common.mean(1, keepdim=True)).sigmoid()
        if self.specificity == "twoway":
            return (_scaled_as(common, own) - own).sigmoid()
        return common.sigmoid()


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; every process gives its gradient to all of them."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def _scaled_as(maps: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Give maps ``(B, c, L)`` the root mean square of ``model``, for each image; differentiable also at zero."""
    wanted = torch.linalg.vector_norm(model, dim=[1, 2], keepdim=True)
    given = torch.linalg.vector_norm(maps, dim=[1, 2], keepdim=True)
    return maps * ((wanted + 1e-10) / (given + 1e-10))


def _standardized(maps: torch.Tensor) -> torch.Tensor:
    centered = maps - maps.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True).sqrt() + 1e-12)


@torch.jit.unused
def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _resize_before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the buffer the shape of the stored mean, which is unknown until the first one."""
    given = state.get(prefix + "reference")
    reference = module.reference
    if given is None or not isinstance(reference, torch.Tensor):
        return
    if given.ndim == reference.ndim and len(given) == len(reference) and given.shape != reference.shape:
        reference.resize_(given.shape)
    state.setdefault(prefix + "filled", torch.tensor(given.numel() > 0))
