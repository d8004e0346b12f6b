# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN by words: all values of its presets with their sources, and the parts that the words stand for.

``COINGAN_WORDS`` is the table of the losses, ``COINGAN_NETWORKS`` that of the generator, ``COINGAN_OPTIMIZERS`` that of
the optimizers.  A value has one of these sources:

- a section, an equation, a table or a figure of the paper;
- ``CycleGAN``: Zhu et al. 2017, the backbone that the paper names, or its code;
- ``ours``: where neither says anything, or is not what small medical data need.

``"paper"`` is Eq. 10 as printed, and ``"paper_cyclegan"`` adds the cycle and the identity of the backbone.
``"cyclegan"`` has both with a loss that teaches a weak generator more.  ``"identity"`` leaves out its cycle: it has one
generator, takes a quarter of the time, and is ``"default"``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.optim import Optimizer

from monai_wsss._checks import as_flag, check_choice
from monai_wsss.engines import ImagePool, Term, takes_arguments_of
from monai_wsss.losses import LeastSquaresAdversarialLoss, MinimaxAdversarialLoss, NonSaturatingAdversarialLoss
from monai_wsss.methods.coingan_parts import WayBack
from monai_wsss.methods.cosa_settings import Sourced
from monai_wsss.networks import CycleGenerator

__all__ = ["COINGAN_NETWORKS", "COINGAN_OPTIMIZERS", "COINGAN_WORDS", "CoinganSettings", "coingan_optimizers"]

logger = logging.getLogger(__name__)

ADVERSARIAL = {
    "minimax": MinimaxAdversarialLoss,
    "nonsaturating": NonSaturatingAdversarialLoss,
    "lsgan": LeastSquaresAdversarialLoss,
}


def _table(presets: tuple[str, ...], rows: dict[str, tuple[tuple[Any, str], ...]]) -> dict[str, dict[str, Sourced]]:
    """Give each preset its values, in the order of a row; presets that a row leaves out have its last value."""
    table: dict[str, dict[str, Sourced]] = {preset: {} for preset in presets}
    for word, row in rows.items():
        for place, values in enumerate(table.values()):
            values[word] = Sourced(*row[min(place, len(row) - 1)])
    return table


COINGAN_WORDS = _table(
    ("paper", "paper_cyclegan", "cyclegan", "identity"),
    {
        "gan_mode": (("minimax", "Eq. 10"), ("minimax", "Eq. 10"), ("nonsaturating", "ours: teaches where D is sure")),
        "adv_reduction": (("sum", "Eq. 10"), ("sum", "Eq. 10"), ("mean", "ours: independent of the image's size")),
        "w_adversarial": ((1.0, "Eq. 10"),),
        "w_cycle": ((0.0, "Eq. 10"), (10.0, "CycleGAN"), (10.0, "CycleGAN"), (0.0, "ours: one generator")),
        "w_identity": ((0.0, "Eq. 10"), (5.0, "CycleGAN"), (5.0, "CycleGAN"), (5.0, "ours: as CycleGAN")),
        "pool_size": ((0, "ours: the paper names none"), (50, "CycleGAN"), (50, "CycleGAN"), (0, "ours")),
        "pool_share": ((0.5, "CycleGAN"),),
        "judge_diseased": ((False, "Eq. 10"),),
        "d_steps": ((1, "CycleGAN"),),
        "ndf": ((64, "CycleGAN"), (64, "CycleGAN"), (64, "CycleGAN"), (32, "ours: for small images")),
        "num_layers_d": ((3, "CycleGAN"), (3, "CycleGAN"), (3, "CycleGAN"), (2, "ours: below 70 pixels")),
        "presence_quantile": ((0.95, "ours"),),
        "over_processes": ((True, "ours"),),
        "seed": ((0, "ours"),),
    },
)
COINGAN_NETWORKS = _table(
    tuple(COINGAN_WORDS),
    {
        "width": ((64, "CycleGAN"), (64, "CycleGAN"), (64, "CycleGAN"), (24, "ours: for small data")),
        "num_down": ((3, "Implementation Details"),),
        "num_res_blocks": ((9, "Implementation Details"),),
        "embed_stride": ((1, "ours: zones of 5 pixels are those of borders at full resolution alone"),),
        "csa_position": (("stem", "Eq. 1: upstream of the deep network"),),
        "norm": (("instance", "CycleGAN"),),
        "output": (("image", "CycleGAN"),),
        "use_cconv": ((True, "Table 6"),),
        "use_ca": ((True, "Table 6"),),
        "use_sa": ((True, "Table 6"),),
        "kernel_size": ((3, "ours: the least that 2 k' - k >= 3 allows"),),
        "epz_kernel_size": ((3, "ours: the same"),),
        "lam": ((0.3, "Fig. 4"),),
        "gate": (("channel", "Eq. 5: channels are omitted"),),
        "share_weights": ((True, "Eq. 2 and 4: one letter W"),),
        "padding_mode": (("reflect", "ours: zeros make borders"),),
        "gate_gradient": (("none", "Eq. 5"),),
        "se_reduction": ((16, "ours: as Hu et al. 2018"),),
        "incidence": (("reference_channel", "Eq. 6"),),
        "specificity": (("channel", "Eq. 8"), ("channel", "Eq. 8"), ("sigmoid", "ours: 0.5 is a cut")),
        "commonality_scale": (("none", "Eq. 7"), ("none", "Eq. 7"), ("rms", "ours: M_c grows with the pixels")),
        "commonality_values": (("pathological", "Eq. 7"),),
        "detach": ((False, "ours"),),
        "inference": (("calibrated", "ours: the paper says nothing"),),
    },
)
COINGAN_WORDS["default"] = COINGAN_WORDS["identity"]
COINGAN_NETWORKS["default"] = COINGAN_NETWORKS["identity"]
COINGAN_OPTIMIZERS = _table(
    ("paper", "adam"),
    {
        "generator": (("sgd", "Implementation Details"), ("adam", "ours: SGD with means hardly moves a generator")),
        "generator_rate": ((2.5e-4, "Implementation Details"), (2e-4, "CycleGAN")),
        "momentum": ((0.9, "Implementation Details"),),
        "weight_decay": ((5e-4, "Implementation Details"), (0.0, "CycleGAN")),
        "discriminator_rate": ((1e-4, "Implementation Details"), (2e-4, "CycleGAN")),
        "betas": (((0.5, 0.999), "CycleGAN"),),
        "decay_all": ((False, "ours: norms, biases and the outer zone, which has no gradient, do not decay"),),
    },
)


@dataclass(frozen=True, kw_only=True)
class CoinganSettings:
    """The words that choose CoinGAN's losses; :meth:`of_preset` gives them the values of ``COINGAN_WORDS``.

    Args:
        gan_mode: ``"minimax"``, ``"nonsaturating"`` or ``"lsgan"``, see ``losses/adversarial.py``.
        adv_reduction: ``"sum"`` or ``"mean"`` over the patches of an image.
        w_adversarial: weight of the generator's adversarial term; the discriminator's has weight 1.
        w_cycle: weight of the cycle; 0: there is one generator.
        w_identity: weight of the identity; 0 leaves it out.
        pool_size: earlier converted images that a discriminator learns from, too; 0: none.
        pool_share: share of the images that are exchanged for earlier ones.
        judge_diseased: the discriminator learns to tell diseased images from healthy ones, too.
        d_steps: steps of the discriminators for each one of the generators.
        ndf: channels of a discriminator's first layer.
        num_layers_d: its layers between the first and the last: with 3, a patch has 70 pixels, with 2, 34.
        presence_quantile: share of the healthy training images that are below the presence level.
        over_processes: whether all processes have one pool.
        seed: of the pools.

    Raises:
        ValueError: an unknown choice, or a negative weight.
    """

    gan_mode: str
    adv_reduction: str
    w_adversarial: float
    w_cycle: float
    w_identity: float
    pool_size: int
    pool_share: float
    judge_diseased: bool
    d_steps: int
    ndf: int
    num_layers_d: int
    presence_quantile: float
    over_processes: bool
    seed: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                value = as_flag(field.name, value)
            elif field.type == "float":
                value = float(value)
            object.__setattr__(self, field.name, value)
        check_choice("gan_mode", self.gan_mode, tuple(ADVERSARIAL))

    @classmethod
    def of_preset(cls, preset: str = "default", **words: Any) -> CoinganSettings:
        """Give the words of a preset, some of them set otherwise.

        Raises:
            ValueError: an unknown preset; TypeError: an unknown word.

        Example:
            >>> CoinganSettings.of_preset("paper").gan_mode, CoinganSettings.of_preset("paper_cyclegan").w_cycle
            ('minimax', 10.0)
        """
        check_choice("preset", preset, tuple(COINGAN_WORDS))
        return cls(**{**{word: one.value for word, one in COINGAN_WORDS[preset].items()}, **words})

    def check_output(self, network: nn.Module) -> None:
        """Warn of a residual generator that has to go back and forth: leaving images as they are is its best answer."""
        if self.w_cycle > 0 and getattr(network, "output", "image") == "residual":
            logger.warning(
                "A generator with output 'residual' begins at the identity, which is the optimum of cycle and identity "
                "terms: it may stay there. Choose output 'image', or the preset 'identity'."
            )

    def parts(self, spatial_dims: int, in_channels: int, reverse: CycleGenerator | None) -> dict[str, Any]:
        """Build the parts that :class:`~monai_wsss.methods.CoinGAN` receives; the cycle needs ``reverse``, G'."""

        def discriminator() -> PatchDiscriminator:
            return PatchDiscriminator(
                spatial_dims, self.ndf, in_channels, num_layers_d=self.num_layers_d, norm="INSTANCE"
            )

        def pool(seed: int) -> ImagePool:
            return ImagePool(self.pool_size, share=self.pool_share, seed=seed, over_processes=self.over_processes)

        discriminators = [discriminator() for _ in range(2 if self.w_cycle > 0 else 1)]
        back = None
        if self.w_cycle > 0:
            assert reverse is not None
            cycle = Term(nn.L1Loss(), self.w_cycle)
            back = WayBack(reverse, discriminators[1], cycle, pool(2 * self.seed + 1))
        return {
            "discriminator": discriminators[0],
            "adversarial": Term(ADVERSARIAL[self.gan_mode](reduction=self.adv_reduction), self.w_adversarial),
            "identity": Term(nn.L1Loss(), self.w_identity) if self.w_identity > 0 else None,
            "back": back,
            "pool": pool(2 * self.seed),
            "judge_diseased": self.judge_diseased,
            "d_steps": self.d_steps,
            "presence_quantile": self.presence_quantile,
        }

    def record(self, preset: str) -> dict[str, Any]:
        """Give the words as values that JSON can hold, and under ``sources`` where each is from."""
        words = {field.name: getattr(self, field.name) for field in fields(self)}
        given = type(self).of_preset(preset)
        sources = {
            word: one.source if getattr(given, word) == words[word] else "set otherwise"
            for word, one in COINGAN_WORDS[preset].items()
        }
        return {**words, "sources": sources}


@takes_arguments_of(*COINGAN_OPTIMIZERS["adam"])
def coingan_optimizers(method: Any, preset: str = "adam", **words: Any) -> dict[str, Optimizer]:
    """Make the optimizers of both players.

    Args:
        method: gives ``part_of(player)``.
        preset: ``"paper"``: SGD for the generator, Adam for the discriminator; ``"adam"``: Adam for both.
        words: of ``COINGAN_OPTIMIZERS`` to set otherwise: ``generator`` (``"sgd"`` or ``"adam"``), ``generator_rate``,
            ``momentum`` and ``weight_decay`` of the generator, ``discriminator_rate``, ``betas`` of Adam, and
            ``decay_all``: whether norms, biases and the outer zone of contrastive convolutions decay, too.

    Raises:
        ValueError: an unknown preset or optimizer; TypeError: an unknown word.

    Example:
        >>> from monai_wsss.methods import CoinGAN
        >>> optimizers = coingan_optimizers(CoinGAN.tiny(), "paper", generator_rate=1e-3)
        >>> {player: (type(one).__name__, one.param_groups[0]["lr"]) for player, one in optimizers.items()}
        {'generator': ('SGD', 0.001), 'discriminator': ('Adam', 0.0001)}
    """
    check_choice("preset", preset, tuple(COINGAN_OPTIMIZERS))
    unknown = set(words) - set(COINGAN_OPTIMIZERS[preset])
    if unknown:
        raise TypeError(f"Expected words of {', '.join(COINGAN_OPTIMIZERS[preset])}, got {', '.join(sorted(unknown))}.")
    told = {word: one.value for word, one in COINGAN_OPTIMIZERS[preset].items()} | words
    check_choice("generator", told["generator"], ("sgd", "adam"))
    rate, (first, second) = float(told["generator_rate"]), told["betas"]
    betas = (float(first), float(second))
    decay, decay_all = float(told["weight_decay"]), as_flag("decay_all", told["decay_all"])
    groups = _by_decay(method.part_of("generator"), decay, decay_all)
    generator: Optimizer = torch.optim.Adam(groups, lr=rate, betas=betas)
    if told["generator"] == "sgd":
        generator = torch.optim.SGD(groups, lr=rate, momentum=float(told["momentum"]))
    trained = [parameter for parameter in method.part_of("discriminator").parameters() if parameter.requires_grad]
    discriminator = torch.optim.Adam(trained, lr=float(told["discriminator_rate"]), betas=betas)
    return {"generator": generator, "discriminator": discriminator}


def _by_decay(part: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Split the trained parameters into those that decay and those that do not; norms and biases have one axis."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            decays = decay_all or (parameter.ndim > 1 and "epz" not in name)
            groups.setdefault(weight_decay if decays else 0.0, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
