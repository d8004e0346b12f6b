# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The object prior of BMP's object-aware feature decoding (OFD): one map that says where any class is.

C^m = max_k a(C_k)      a: sigmoid, min-max or the identity      Zhu et al. (arXiv:2308.04949), Eq. 9-11
"""

# Annotations stay real types: TorchScript reads them.
import torch

from monai_wsss._checks import check_choice
from monai_wsss.networks.checked import CheckedModule

__all__ = ["ObjectPrior"]


class ObjectPrior(CheckedModule):
    """The strongest activated seed of each pixel: ``(B, K, *S) -> (B, 1, *S)``.

    Args:
        activation: of the seeds: ``sigmoid`` (the released code), ``minmax`` per image and class, or ``none`` (the
            paper's text).
        detach: whether the decoder's gradient stops here, as in the released code; the paper does not say.

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> import torch
        >>> ObjectPrior()(torch.tensor([[[[0.0, -9.0]], [[-9.0, 9.0]]]])).round().flatten().tolist()
        [0.0, 1.0]
    """

    def __init__(self, activation: str = "sigmoid", *, detach: bool = True) -> None:
        super().__init__()
        check_choice("activation", activation, ("sigmoid", "minmax", "none"))
        self.activation = activation
        self.detach = detach

    def forward(self, seeds: torch.Tensor) -> torch.Tensor:
        """Give C^m: ``(B, K, *S) -> (B, 1, *S)``."""
        if self.detach:
            seeds = seeds.detach()
        if self.activation == "minmax":
            axes = [2, 3] if seeds.dim() == 4 else [2, 3, 4]
            low, high = seeds.amin(dim=axes, keepdim=True), seeds.amax(dim=axes, keepdim=True)
            seeds = (seeds - low) / (high - low + 1e-5)  # 1e-5 as in the code released with AFA and BMP
        prior = seeds.amax(dim=1, keepdim=True)
        # The sigmoid is monotone, so one sigmoid after the maximum gives the same.
        return prior.sigmoid() if self.activation == "sigmoid" else prior
