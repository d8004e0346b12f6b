# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CMER: one classifier a modality; their maps are held equivariant, each to itself and to one another.

Patel & Dolz, "Weakly supervised segmentation with cross-modality equivariant constraints", arXiv:2104.02488.  For
modalities k = 1..G with image-level labels y, a spatial transform pi drawn for the batch, and M = N(map) in [0, 1]:

    first view    s_k, M_k = f_k(x_k)              second view   s~_k, M~_k = f_k(pi(x_k))
    L_C    = 1/2 [BCE(s_k, y) + BCE(s~_k, y)]                                                  Eq. 5
    L_ER   = || pi(M_k) - M~_k ||^2                                                            Eq. 2
    L_KD   = mean_{l != k} 1/2 [KL(p_l || p_k) + KL(p~_l || p~_k)]                             Eq. 3
    L_CMER = mean_{l != k} 1/2 [|| n(pi(M_l)) - n(M~_k) ||^2 + || n(M~_l) - n(pi(M_k)) ||^2]   Eq. 4
    L      = sum_k L_C + lambda_KD L_KD + lambda_E(t) (L_ER + L_CMER)                          Eq. 8

Networks l != k are teachers: no gradient.  With one modality it is SEAM's equivariance; with every term off, plain
class activation maps.

| symbol    | name                            | symbol    | name                                   |
|-----------|---------------------------------|-----------|----------------------------------------|
| x, y      | ``image``, ``label``            | pi        | ``record``, drawn by ``transform``     |
| M, M~     | ``maps`` of the two views       | pi(M)     | ``warped_maps``                        |
| s, s~     | ``logits`` of the two views     | lambda_E  | ``ramp``                               |

What the default deploys.  Networks are compared by their classification loss; weak ones neither teach nor take part in
the fusion.  The best network therefore learns from its labels and from L_ER alone, and where it leaves all others
behind, its map is the mask: cross-modal learning then serves the studies that lack that modality.

Differences.  The paper's classifier has a softmax over background and tumor and takes the map of the second; here
each of the K classes has one logit and one map, which for K = 1 is the difference of those two, with equal losses.
Presets: ``"paper"`` takes the equations as printed; ``"released"`` takes what the authors' code computes; what
``"default"`` changes, and why, is said in :meth:`CMER.from_preset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from monai_wsss._checks import check_choice, float32_or_wider, plain_tensor
from monai_wsss.cams import normalize_maps
from monai_wsss.engines.schedules import Progress, WeightRamp
from monai_wsss.losses import (
    CrossModalEquivarianceLoss,
    EquivarianceLoss,
    MutualDistillationLoss,
    peer_weights,
    unit_norm_maps,
)
from monai_wsss.methods.base import WSSSMethod, mean_of_processes
from monai_wsss.networks import ModalityNetworks, networks_by_modality
from monai_wsss.transforms import PairedSpatialTransform, SpatialRecord

__all__ = ["CMER"]

PEER_MOMENTUM = 0.98  # of the running classification losses that tell weak peers: about the last fifty batches


class _View(NamedTuple):
    """What the networks say of one view of the images."""

    raw: torch.Tensor  # (B, G, K, *S)
    logits: torch.Tensor  # (B, G, K)
    maps: torch.Tensor  # normalized, (B, G, K, *S)


class CMER(WSSSMethod):
    """Cross-modality equivariant constraints for any number of modalities; every term can be switched off.

    Args:
        network: the classifiers, one a modality.
        transform: draws pi.
        equivariance: L_ER within a modality, or None.
        cross_modal: L_CMER between modalities, or None.
        distillation: L_KD between modalities, or None.
        second_view: whether the classifiers see the transformed images too; without it, and so without the
            equivariances, this is plain CAM for each modality.
        norm: N of :func:`~monai_wsss.cams.normalize_maps`: ``"minmax"`` or ``"max"``.
        equivariance_weight: factor of L_ER.
        cross_modal_weight: factor of L_CMER.
        distillation_weight: lambda_KD.
        ramp: lambda_E(t), of both equivariances; None for a step at half of the run, the paper's 15 of 30 epochs.
        distillation_ramp: the same for lambda_KD; None for a constant.
        ignore_border: leave out of L_ER and L_CMER the pixels that a translation brought in.
        weak_peer_ratio: a peer is weak for a network if its running classification loss is more than this many times as
            large.  Those of the best network are reported, and left out of ``network.reliable`` when training ends.
        teachers: ``"all"``, as in the paper, or ``"better"``: a network is taught only by those whose weak peer it is,
            so that a strong modality is not pulled to a weak one, nor any to one that is no better.

    Raises:
        ValueError: a term that needs the second view without it, or a network that lacks some of its modalities.

    Example:
        >>> import torch
        >>> method = CMER.tiny(in_channels=2)
        >>> batch = {"image": torch.rand(2, 2, 16, 16), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(method(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification/0', 'classification/1', 'distillation', 'equivariance', 'cross_modal']
    """

    network: ModalityNetworks
    peer_loss: torch.Tensor

    def __init__(
        self,
        network: ModalityNetworks,
        transform: PairedSpatialTransform | None = None,
        *,
        equivariance: EquivarianceLoss | None = None,
        cross_modal: CrossModalEquivarianceLoss | None = None,
        distillation: MutualDistillationLoss | None = None,
        second_view: bool = True,
        norm: str = "minmax",
        equivariance_weight: float = 1.0,
        cross_modal_weight: float = 1.0,
        distillation_weight: float = 0.5,
        ramp: WeightRamp | None = None,
        distillation_ramp: WeightRamp | None = None,
        ignore_border: bool = False,
        weak_peer_ratio: float = 1.25,
        teachers: str = "all",
    ) -> None:
        super().__init__(network)
        check_choice("norm", norm, ("minmax", "max"))
        check_choice("teachers", teachers, ("all", "better"))
        if not weak_peer_ratio >= 1:
            raise ValueError(f"Expected `weak_peer_ratio` >= 1, got {weak_peer_ratio}.")
        if not second_view and (equivariance is not None or cross_modal is not None):
            raise ValueError("Expected `second_view` for `equivariance` and `cross_modal`, which compare two views.")
        if network.groups < len(network.modalities):
            raise ValueError("Expected a network with all of its modalities present: `present` is for inference.")
        self.transform = transform or PairedSpatialTransform()
        self.equivariance = equivariance
        self.cross_modal = cross_modal
        self.distillation = distillation
        self.second_view = second_view
        self.norm = norm
        self.equivariance_weight = equivariance_weight
        self.cross_modal_weight = cross_modal_weight
        self.distillation_weight = distillation_weight
        self.ramp = ramp or WeightRamp()
        self.distillation_ramp = distillation_ramp or WeightRamp("none")
        self.ignore_border = ignore_border
        self.weak_peer_ratio = weak_peer_ratio
        self.teachers = teachers
        self.register_buffer("peer_loss", torch.full((network.groups,), float("nan")))

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CMER:
        """All terms on encoders of width 4: small enough to overfit one batch in seconds on a CPU."""
        return cls.from_preset(network=ModalityNetworks.tiny(spatial_dims, in_channels, num_classes))

    @classmethod
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: ModalityNetworks | None = None,
        spatial_dims: int = 2,
        modalities: Sequence[str] | None = None,
        num_classes: int = 1,
        **changes: Any,
    ) -> CMER:
        """The whole method by name.

        | preset         | network               | L_ER          | L_CMER                   | KD   | lambda_E(t)     |
        |----------------|-----------------------|---------------|--------------------------|------|-----------------|
        | ``"paper"``    | U-Net, average, z     | sum, all      | sum, all                 | T=1  | exponential, 15 |
        | ``"released"`` | U-Net, average, z     | mean, labeled | mean, labeled, predicted | T=10 | 1               |
        | ``"default"``  | stride-4 encoder, max | mean, labeled | sum, labeled, predicted  | T=1  | step at half    |

        z: each slice is z-scored in the network; labeled, predicted: the maps that count.
        ``"paper"`` normalizes maps by their maximum and to unit norm before they are transformed, and draws 0 to 3
        quarter turns; the others min-max, unit norm after, 1 to 3.  As printed, Eq. 2 is of the order of 1000 and
        drowns the classification; as released, Eq. 4 is below 2 / number of pixels and has no effect.  ``"default"``
        therefore takes each where both are of the order of 1 or below; and lets a peer teach, distillation too, only
        from half time on and only if the labels have shown it to be clearly better.

        Args:
            preset: ``"default"``, ``"paper"`` or ``"released"``.
            network: other classifiers in the place of the preset's; they have dimensions and classes of their own.
            spatial_dims: 2 or 3.
            modalities: their names, a network each; where ``network`` is not given.
            num_classes: K, the foreground classes.
            changes: arguments of the class to set otherwise, e.g. ``cross_modal=None``.

        Raises:
            ValueError: an unknown preset; both or neither of ``network`` and ``modalities``.
        """
        if (network is None) == (modalities is None):
            raise ValueError("Expected either `network` or `modalities`, the names of the networks to build.")
        check_choice("preset", preset, ("default", "paper", "released"))
        if network is None:
            printed = {"backbone": "unet", "pooling": "average", "standardize": True}
            backbone: dict[str, Any] = {} if preset == "default" else printed
            network = networks_by_modality(
                modalities or (), spatial_dims=spatial_dims, num_classes=num_classes, **backbone
            )
        settings: dict[str, dict[str, Any]] = {
            "default": {
                "transform": PairedSpatialTransform(),
                "equivariance": EquivarianceLoss(),
                "cross_modal": CrossModalEquivarianceLoss(),
                "distillation": MutualDistillationLoss(),
                "distillation_ramp": WeightRamp(),
                "teachers": "better",
            },
            "paper": {
                "transform": PairedSpatialTransform(turns=(0, 1, 2, 3)),
                "equivariance": EquivarianceLoss(reduction="sum", mask="none"),
                "cross_modal": CrossModalEquivarianceLoss(mask="none", l2_before_warp=True, skip_empty=False),
                "distillation": MutualDistillationLoss(),
                "norm": "max",
                "ramp": WeightRamp("exponential", end=15),
            },
            "released": {
                "transform": PairedSpatialTransform(),
                "equivariance": EquivarianceLoss(),
                "cross_modal": CrossModalEquivarianceLoss(reduction="mean", skip_empty=False),
                "distillation": MutualDistillationLoss(temperature=10.0),
                "ramp": WeightRamp("none"),
            },
        }
        return cls(network, **(settings[preset] | changes))

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """``classification/<modality>`` for each, ``distillation``, ``equivariance`` and ``cross_modal`` where on.

        Weighted, and summed over the networks, whose gradients do not mix.
        """
        image = plain_tensor(batch["image"])
        label = batch["label"].to(image.device)
        views = [self._see(image)]
        self.observe(views[0].raw.flatten(1, 2), label)
        if self.second_view:
            record = self.transform.draw(image.shape)
            views.append(self._see(record(image, padding="minimum")))
        losses = self._classification(views, label)
        pairs = self._pairs()
        off = views[0].logits.new_zeros(())  # a term whose ramp is at 0 is logged, not computed
        if self.distillation is not None:
            strength = self.distillation_weight * self.distillation_ramp(progress)
            losses["distillation"] = strength * self._distillation(views, pairs) if strength > 0 else off
        if self.second_view:
            strength = self.ramp(progress)
            terms = self._consistency(views[0], views[1], record, label, pairs) if strength > 0 else {}
            if self.equivariance is not None:
                losses["equivariance"] = strength * self.equivariance_weight * terms.get("equivariance", off)
            if self.cross_modal is not None:
                losses["cross_modal"] = strength * self.cross_modal_weight * terms.get("cross_modal", off)
        return losses

    def _see(self, image: torch.Tensor) -> _View:
        raw = float32_or_wider(self.network(image))
        logits, maps = self.network.pool(raw), normalize_maps(raw, self.norm)
        groups = (self.network.groups, self.network.num_classes)
        return _View(raw.unflatten(1, groups), logits.unflatten(1, groups), maps.unflatten(1, groups))

    def _classification(self, views: Sequence[_View], label: torch.Tensor) -> dict[str, torch.Tensor]:
        """L_C of each network, and a note of how well each does."""
        target = label[:, None].to(views[0].logits).expand_as(views[0].logits)
        of_views = [
            F.binary_cross_entropy_with_logits(view.logits, target, reduction="none").mean((0, 2)) for view in views
        ]
        of_groups = torch.stack(of_views).mean(0)
        with torch.no_grad():
            now = mean_of_processes(of_groups.detach().clone())
            before = torch.where(self.peer_loss.isnan(), now, self.peer_loss)
            self.peer_loss.copy_(PEER_MOMENTUM * before + (1 - PEER_MOMENTUM) * now)
        return {f"classification/{name}": loss for name, loss in zip(self.network.modalities, of_groups, strict=True)}

    def _distillation(self, views: Sequence[_View], pairs: torch.Tensor) -> torch.Tensor:
        """L_KD, summed over the networks, not yet weighted."""
        assert self.distillation is not None
        terms = [self.distillation(view.logits, view.logits, pairs) for view in views]
        return self.network.groups * torch.stack(terms).mean()

    def _consistency(
        self, first: _View, second: _View, record: SpatialRecord, label: torch.Tensor, pairs: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """L_ER and L_CMER, summed over the networks, not yet weighted."""
        groups = self.network.groups
        inside = self._inside(second.maps, first.maps, record)
        moved, maps = _move(first.maps, record) * inside, second.maps * inside
        terms: dict[str, torch.Tensor] = {}
        if self.equivariance is not None:
            labels = label[:, None].expand(-1, groups, -1).flatten(0, 1)
            terms["equivariance"] = groups * self.equivariance(moved.flatten(0, 1), maps.flatten(0, 1), labels)
        if self.cross_modal is not None:
            if self.cross_modal.l2_before_warp:
                moved, maps = _move(_unit(first.maps), record) * inside, _unit(second.maps) * inside
            directions = (
                self.cross_modal(maps, moved, label, first.logits, pairs),
                self.cross_modal(moved, maps, label, second.logits, pairs),
            )
            terms["cross_modal"] = groups * torch.stack(directions).mean()
        return terms

    def _inside(self, moved: torch.Tensor, maps: torch.Tensor, record: SpatialRecord) -> torch.Tensor:
        """1 where a pixel of the second view comes from the first, 0 where padding came in; 1 for all if not asked."""
        if not self.ignore_border:
            return moved.new_ones(())
        return (_move(torch.ones_like(maps[:, :1, :1]), record) > 0.999).to(moved.dtype)

    def _pairs(self) -> torch.Tensor:
        """(G, G): the weight of each teacher (column) for each student (row)."""
        better = self.weak_peer_ratio * self.peer_loss[None, :] < self.peer_loss[:, None]
        allowed = better if self.teachers == "better" else torch.ones_like(better)
        return peer_weights(allowed, dtype=self.peer_loss.dtype)

    @torch.no_grad()
    def finalize(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """As the base's; and marks the modalities that are no weak peers of the best one as ``network.reliable``."""
        super().finalize(train_data_loader, device)
        self.network.reliable.copy_(~(self.peer_loss > self.weak_peer_ratio * self.peer_loss.min()))

    def collapse_warnings(self) -> list[str]:
        """As the base's, and a sentence for each weak peer of the best network."""
        sentences = super().collapse_warnings()
        names, losses = self.network.modalities, self.peer_loss.tolist()
        best = min(range(len(losses)), key=losses.__getitem__)
        remedy = "it does not teach it"
        if self.teachers == "all" and (self.cross_modal is not None or self.distillation is not None):
            remedy = "it may pull it down, see `teachers`"
        for name, loss in zip(names, losses, strict=True):
            if loss > self.weak_peer_ratio * losses[best]:
                sentences.append(
                    f"{name} is a weak peer of {names[best]} (classification loss {loss:.3f} against "
                    f"{losses[best]:.3f}): {remedy}."
                )
        return sentences


def _move(maps: torch.Tensor, record: SpatialRecord) -> torch.Tensor:
    """pi of maps (B, G, K, *S)."""
    return record(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3])


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """n of maps (B, G, K, *S)."""
    return unit_norm_maps(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3])
