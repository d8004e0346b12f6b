# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CMER: one classifier per modality; their maps are held equivariant, each to itself and to one another.

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
| s, s~     | ``logits`` of the two views     | lambda_E  | of the terms ``equivariance``, ``cross_modal`` |

What the default deploys.  Networks are compared by their classification loss; weak ones neither teach nor take part in
the fusion.  The best network therefore learns from its labels and from L_ER alone, and where it leaves all others
behind, its map is the mask: cross-modal learning then serves the studies that lack that modality.

The classifier.  The paper's has a softmax over background and tumor, and M is N of the tumor's map alone.  So it is in
``"paper"`` and ``"released"`` (``background_map``): a group has K + 1 maps, and class k is told from the background by
s_k = mean A_k - mean A_0, whose BCE and KL are those of the softmax over the two.  For K = 1 that is the paper; for
more classes, several of which an image may have, each has its own softmax against the one background.  ``"default"``
has K maps without a background: M is then N of what stands for the difference, other maps with equal L_C and L_KD.

Presets: ``"paper"`` takes the equations as printed, ``"released"`` what the authors' code computes; what ``"default"``
changes, and why, is said in ``cmer_settings.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import as_flag, check_choice, float32_or_wider, plain_tensor
from monai_wsss._running import RunningMean
from monai_wsss.cams import normalize_maps
from monai_wsss.engines import Progress, Term, takes_arguments_of
from monai_wsss.losses import (
    peer_weights,
    unit_norm_maps,
)
from monai_wsss.methods.base import WSSSMethod, describe
from monai_wsss.methods.cmer_settings import CMER_PRESETS, CMER_RULES, CmerSettings
from monai_wsss.networks import ModalityNetworks, networks_by_modality
from monai_wsss.networks.encoder_facts import encoder_name
from monai_wsss.transforms import PairedSpatialTransform, SpatialRecord

__all__ = ["CMER"]

PEER_MOMENTUM = 0.98  # of the running classification losses that tell weak peers: about the last fifty batches


class _View(NamedTuple):
    """The networks' outputs for one view of the images."""

    raw: torch.Tensor  # (B, G, K, *S)
    logits: torch.Tensor  # (B, G, K)
    maps: torch.Tensor  # normalized, (B, G, K, *S)


class _Views:
    """Both views of a batch, with the first moved onto the second."""

    def __init__(self, first: _View, second: _View, record: SpatialRecord, *, ignore_border: bool = False) -> None:
        self.first, self.second, self.record, self.ignore_border = first, second, record, ignore_border

    @cached_property
    def inside(self) -> torch.Tensor:
        """Give 1 where a pixel of the second view comes from the first, 0 where padding came in; 1 if not asked."""
        if not self.ignore_border:
            return self.second.maps.new_ones(())
        return (_move(torch.ones_like(self.first.maps[:, :1, :1]), self.record) > 0.999).to(self.second.maps.dtype)

    @cached_property
    def maps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give pi(M) and M~."""
        return _move(self.first.maps, self.record) * self.inside, self.second.maps * self.inside

    @cached_property
    def unit_maps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give pi(n(M)) and n(M~)."""
        return _move(_unit(self.first.maps), self.record) * self.inside, _unit(self.second.maps) * self.inside


class CMER(WSSSMethod):
    """Cross-modality equivariant constraints for any number of modalities; every term can be switched off.

    Args:
        network: the classifiers, one per modality.
        transform: draws pi.
        equivariance: L_ER within a modality and lambda_E, or None.
        cross_modal: L_CMER between modalities and lambda_E, or None.
        distillation: L_KD between modalities and lambda_KD, or None.
        second_view: whether the classifiers see the transformed images too; without it, and so without the
            equivariances, this is plain CAM for each modality.
        norm: N of :func:`~monai_wsss.cams.normalize_maps`: ``"minmax"`` or ``"max"``.
        ignore_border: leave out of L_ER and L_CMER the pixels that a translation brought in.
        weak_peer_ratio: a peer is weak for a network if its running classification loss is more than this many times as
            large.  Weak peers of the best network are reported, and ``network.reliable`` leaves them out in the end.
        teachers: ``"all"``, as in the paper, or ``"better"``: only networks whose loss is clearly smaller teach, so
            that no modality is pulled to one that is weaker, or no better.

    Raises:
        ValueError: an unknown ``norm`` or ``teachers``, a ratio below 1, a term that needs the second view without
            it, or a network that lacks some of its modalities.

    Example:
        >>> import torch
        >>> method = CMER.tiny(in_channels=2)
        >>> batch = {"image": torch.rand(2, 2, 16, 16), "label": torch.tensor([[0.0], [1.0]])}
        >>> list(method(batch, Progress(epoch=9, iteration=9, fraction=0.9)))
        ['classification/0', 'classification/1', 'distillation', 'equivariance', 'cross_modal']
    """

    network: ModalityNetworks
    makes_views: ClassVar[bool] = True

    def __init__(
        self,
        network: ModalityNetworks,
        transform: PairedSpatialTransform | None = None,
        *,
        equivariance: Term | None = None,
        cross_modal: Term | None = None,
        distillation: Term | None = None,
        second_view: bool = True,
        norm: str = "minmax",
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
        self.ignore_border = ignore_border
        self.weak_peer_ratio = weak_peer_ratio
        self.teachers = teachers
        self.peer_loss = RunningMean(network.groups, momentum=PEER_MOMENTUM)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CMER:
        """Build all terms on encoders of width 4: small enough to overfit one batch in seconds on a CPU."""
        return cls.from_preset(network=ModalityNetworks.tiny(spatial_dims, in_channels, num_classes))

    @classmethod
    @takes_arguments_of(CmerSettings)
    def from_preset(
        cls,
        preset: str = "default",
        *,
        network: ModalityNetworks | None = None,
        spatial_dims: int = 2,
        modalities: Sequence[str] | None = None,
        num_classes: int = 1,
        **words: Any,
    ) -> CMER:
        """Build the whole method by words.

        Args:
            preset: ``"default"``, ``"paper"`` or ``"released"``, see ``cmer_settings.py``.
            network: other classifiers in the place of the preset's; they have dimensions and classes of their own.
            spatial_dims: 2 or 3.
            modalities: their names, a network each; where ``network`` is not given.
            num_classes: K, the foreground classes.
            words: fields of :class:`~monai_wsss.methods.cmer_settings.CmerSettings` to set otherwise, e.g.
                ``cross_modal=False``.

        Raises:
            ValueError: an unknown preset; both or neither of ``network`` and ``modalities``.
            TypeError: an unknown word.
        """
        if (network is None) == (modalities is None):
            raise ValueError("Expected either `network` or `modalities`, the names of the networks to build.")
        check_choice("preset", preset, tuple(CMER_PRESETS))
        if network is None:
            network = cls.network_from_preset(
                preset, modalities=modalities or (), spatial_dims=spatial_dims, num_classes=num_classes
            )
        settings = CmerSettings(**{name: make() for name, make in CMER_PRESETS[preset][1].items()}).changed(**words)
        method = cls(network, **settings.parts())
        names = ("transform", "equivariance", "cross_modal", "distillation", "second_view", "norm", "ignore_border")
        told = {name: describe(getattr(method, name)) for name in (*names, "weak_peer_ratio", "teachers")}
        method.settings |= {"preset": preset, **told}
        return method

    @classmethod
    @takes_arguments_of(networks_by_modality)
    def network_from_preset(
        cls, preset: str = "default", *, modalities: Sequence[str], standardize: bool | str | None = None, **words: Any
    ) -> ModalityNetworks:
        """Build the networks of a preset.

        Args:
            preset: as :meth:`from_preset`.
            modalities: their names, a network each.
            standardize: whether each slice is z-scored in the network; None: as the preset says.
            words: of :func:`~monai_wsss.networks.networks_by_modality`, to set otherwise than the preset.
        """
        check_choice("preset", preset, tuple(CMER_PRESETS))
        told = {**CMER_PRESETS[preset][0], **words}
        if standardize is not None:
            told["standardize"] = as_flag("standardize", standardize)
        network = networks_by_modality(modalities, **told)
        if preset in CMER_RULES:
            network.rule = told["rule"] = CMER_RULES[preset]  # type: ignore[assignment]
        if told.get("encoder") is not None:
            told["encoder"] = encoder_name(network.members[0].backbone.encoder)  # type: ignore[union-attr, arg-type]
        network.settings = {"preset": preset, "network_modalities": list(modalities), **told}  # type: ignore[assignment]
        return network

    def losses(self, batch: dict[str, Any], progress: Progress, player: str) -> dict[str, torch.Tensor]:
        """Give ``classification/<modality>`` for each, ``distillation``, ``equivariance`` and ``cross_modal`` where on.

        They are weighted, and summed over the networks, whose gradients do not mix.
        """
        image = plain_tensor(batch["image"])
        label = batch["label"].to(image.device)
        views = [self._see(image)]
        self.observe(views[0].raw.flatten(1, 2), label)
        if self.second_view:
            record = self.transform.draw(image.shape)
            views.append(self._see(record(image, padding="minimum")))
        losses = self._classification(views, label)
        pairs, graph = self._pairs(), views[0].logits
        if self.distillation is not None:
            losses["distillation"] = self.distillation(
                progress, graph, lambda loss: self._distilled(loss, views, pairs)
            )
        if not self.second_view:
            return losses
        both = _Views(views[0], views[1], record, ignore_border=self.ignore_border)
        if self.equivariance is not None:
            losses["equivariance"] = self.equivariance(
                progress, graph, lambda loss: self._equivariant(loss, both, label)
            )
        if self.cross_modal is not None:
            losses["cross_modal"] = self.cross_modal(
                progress, graph, lambda loss: self._cross_modal(loss, both, label, pairs)
            )
        return losses

    def _see(self, image: torch.Tensor) -> _View:
        output = float32_or_wider(self.network(image))
        raw, logits = self.network.of_classes(output), self.network.pool(output)
        groups = (self.network.groups, self.network.num_classes)
        maps = normalize_maps(raw, self.norm)
        return _View(raw.unflatten(1, groups), logits.unflatten(1, groups), maps.unflatten(1, groups))

    def _classification(self, views: Sequence[_View], label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give L_C of each network, and take note of how well each does."""
        target = label[:, None].to(views[0].logits).expand_as(views[0].logits)
        of_views = [
            F.binary_cross_entropy_with_logits(view.logits, target, reduction="none").mean((0, 2)) for view in views
        ]
        of_groups = torch.stack(of_views).mean(0)
        if self.training:
            self.peer_loss.update(of_groups)
        return {f"classification/{name}": loss for name, loss in zip(self.network.modalities, of_groups, strict=True)}

    def _distilled(self, loss: nn.Module, views: Sequence[_View], pairs: torch.Tensor) -> torch.Tensor:
        """Give L_KD, summed over the networks."""
        return self.network.groups * torch.stack([loss(view.logits, view.logits, pairs) for view in views]).mean()

    def _equivariant(self, loss: nn.Module, views: _Views, label: torch.Tensor) -> torch.Tensor:
        """Give L_ER, summed over the networks."""
        moved, maps = (of_view.flatten(0, 1) for of_view in views.maps)
        labels = label[:, None].expand(-1, self.network.groups, -1).flatten(0, 1)
        return self.network.groups * loss(moved, maps, labels)

    def _cross_modal(self, loss: Any, views: _Views, label: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Give L_CMER, summed over the networks."""
        moved, maps = views.unit_maps if loss.l2_before_warp else views.maps
        directions = (
            loss(maps, moved, label, views.first.logits, pairs),
            loss(moved, maps, label, views.second.logits, pairs),
        )
        return self.network.groups * torch.stack(directions).mean()

    def _pairs(self) -> torch.Tensor:
        """Give the weight of each teacher (column) for each student (row): (G, G)."""
        losses = self.peer_loss.value
        better = self.weak_peer_ratio * losses[None, :] < losses[:, None]
        allowed = better if self.teachers == "better" else torch.ones_like(better)
        return peer_weights(allowed, dtype=losses.dtype)

    @torch.no_grad()
    def finalize(self, train_data_loader: Iterable, device: torch.device | str = "cpu") -> None:
        """Fill the healthy levels, and mark modalities that are no weak peers of the best as ``network.reliable``."""
        super().finalize(train_data_loader, device)
        losses = self.peer_loss.value
        self.network.reliable.copy_(~(losses > self.weak_peer_ratio * losses.min()))

    def collapse_warnings(self) -> list[str]:
        """Add, to those of every method, a sentence for each weak peer of the best network."""
        sentences = super().collapse_warnings()
        names, losses = self.network.modalities, self.peer_loss.value.tolist()
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
    """Apply pi to maps (B, G, K, *S)."""
    return record(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3])


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Apply n to maps (B, G, K, *S)."""
    return unit_norm_maps(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3])
