# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN's generators by words: those of the networks' parts in one list, and the switches of the paper's Table 6.

| word                                       | of                                                              |
|--------------------------------------------|-----------------------------------------------------------------|
| ``use_cconv``                              | whether there is a contrastive convolution                      |
| ``use_ca``, ``use_sa``                     | the attention; without both there is none                       |
| ``kernel_size`` .. ``gate_gradient``       | :class:`~monai_wsss.networks.ContrastiveConvolution`            |
| ``se_reduction`` .. ``max_attention_…``    | :class:`~monai_wsss.networks.CommonalitySpecificityAttention`   |
| ``detach``, ``inference``, ``resize``,     | ``reference`` of :class:`~monai_wsss.networks.CycleGenerator`   |
| ``image_size``                             |                                                                 |
| ``blank_reference``                        | whether the mean of healthy images is, until it is calibrated,  |
|                                            | that of a gray image of ``image_size``: programs that try a     |
|                                            | network without its weights get an answer                       |
| ``norm``                                   | ``instance``, ``batch`` or ``none``, behind all convolutions    |
|                                            | but the contrastive one and the head; statistics of a batch     |
|                                            | are those of one process                                        |
| ``reduction`` .. ``min_contrast``          | ``heat`` of :class:`~monai_wsss.networks.CycleGenerator`        |
| all others                                 | :class:`~monai_wsss.networks.CycleGenerator`                    |

The values of the presets stand in ``COINGAN_NETWORKS`` of ``coingan_settings.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from monai_wsss._checks import as_flag, check_choice
from monai_wsss.methods.coingan_settings import COINGAN_NETWORKS
from monai_wsss.networks import CycleGenerator

__all__ = ["NETWORK_WORDS", "coingan_network", "reverse_of"]

CONTRASTIVE = (
    "kernel_size", "epz_kernel_size", "lam", "gate", "share_weights", "match_kernel_sums", "padding_mode",
    "gate_gradient", "temperature",
)  # fmt: skip
ATTENTION = (
    "se_reduction", "incidence", "specificity", "commonality_scale", "commonality_values", "affinity_scale",
    "reference_temperature", "max_attention_elements",
)  # fmt: skip
REFERENCE = ("inference", "resize", "detach", "over_processes", "image_size")
HEAT = ("reduction", "sign", "smooth", "pooling", "topk_share", "min_contrast")
SWITCHES = ("use_cconv", "use_ca", "use_sa")
NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
    "none": (nn.Identity,),
}
NETWORK_WORDS = ("blank_reference", "norm", *SWITCHES, *CONTRASTIVE, *ATTENTION, *REFERENCE, *HEAT)
"""Words that are not those of ``CycleGenerator`` itself."""


def coingan_network(preset: str, spatial_dims: int, in_channels: int, **changes: Any) -> CycleGenerator:
    """Build the generator of a preset with some words set otherwise.

    Raises:
        ValueError: an unknown preset or choice; TypeError: an unknown word.
    """
    check_choice("preset", preset, tuple(COINGAN_NETWORKS))
    words = {name: one.value for name, one in COINGAN_NETWORKS[preset].items()} | changes
    # Zones of two sides cannot share weights; only who asks for both is told so.
    if "share_weights" not in changes and words["kernel_size"] != words["epz_kernel_size"]:
        words["share_weights"] = False
    told, norm = dict(words), words.pop("norm")
    check_choice("norm", norm, tuple(NORMS))
    blank = as_flag("blank_reference", words.pop("blank_reference", False))
    if blank and words.get("image_size") is None:
        raise ValueError("Expected `image_size` with `blank_reference`, got None.")
    use_cconv, use_ca, use_sa = (as_flag(name, words.pop(name)) for name in SWITCHES)
    parts = [
        {name: words.pop(name) for name in of_part if name in words}
        for of_part in (CONTRASTIVE, ATTENTION, REFERENCE, HEAT)
    ]
    contrastive, attention, reference, heat = parts
    network = CycleGenerator(
        spatial_dims,
        in_channels,
        contrastive=contrastive if use_cconv else None,
        attention={**attention, "use_ca": use_ca, "use_sa": use_sa} if use_ca or use_sa else None,
        reference=reference,
        heat=heat,
        **words,
    )
    _use_norm(network, norm)
    network.settings = {"preset": preset, **_of_parts(network), **told}  # type: ignore[assignment]
    if blank:
        network.calibrate_reference([torch.zeros(1, in_channels, *reference["image_size"])])
    return network


def _of_parts(network: CycleGenerator) -> dict[str, Any]:
    """Give the words that no preset sets, as the parts of a network have them."""
    words: dict[str, tuple[str, ...]] = {
        "contrastive": ("match_kernel_sums", "temperature"),
        "attention": ("affinity_scale", "reference_temperature"),
        "buffer": ("resize",),
    }
    of_parts = [(getattr(network, part), names) for part, names in words.items()]
    return {
        name: getattr(part, name)
        for part, names in [*of_parts, (network, ("reduction", "sign", "smooth", "pooling", "min_contrast"))]
        if part is not None
        for name in names
    }


def _use_norm(network: nn.Module, norm: str) -> None:
    """Put other norms in the place of a generator's instance norms."""
    if norm == "instance":
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NORMS["instance"]):
                flat = isinstance(child, nn.InstanceNorm2d)
                batch = nn.BatchNorm2d if flat else nn.BatchNorm3d
                setattr(module, name, batch(child.num_features) if norm == "batch" else nn.Identity())


def reverse_of(network: CycleGenerator, preset: str, spatial_dims: int, in_channels: int) -> CycleGenerator:
    """Build G' of the size of G, plain: what diseased images have in common with one another is not defined."""
    downs, stem = len(network.downs) // 3, network.stem[0]
    size = {
        "width": stem.out_channels, "num_down": downs, "num_res_blocks": len(network.blocks),
        "embed_stride": network.stride // 2**downs, "output": network.output,
        "norm": next(name for name, kinds in NORMS.items() if isinstance(network.stem[1], kinds)),
    }  # fmt: skip
    return coingan_network(preset, spatial_dims, in_channels, **size, **dict.fromkeys(SWITCHES, False))
