# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A classifier that gives class maps: a 1x1 convolution to the maps, and the pooling to image-level logits.

C = conv_1x1(X)                        class maps, (B, K, *s)
c = pool(X) W^T   or   c = pool(C)     image-level logits, (B, K)
"""

# Annotations stay real types: TorchScript reads them.
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_wsss._checks import check_choice
from monai_wsss.cams.pooling import pool_maps
from monai_wsss.networks.checked import CheckedModule

__all__ = ["DETACHED", "ClassHead"]

DETACHED = ("none", "features", "weights", "all")
"""What a loss on class maps may leave untrained: nothing, the features, the classifier's weights, or both."""


class ClassHead(CheckedModule):
    """Class maps of features, and the logits that follow from pooling: ``(B, F, *s) -> (B, K, *s)``.

    Args:
        in_channels: F.
        num_classes: K, the foreground classes.
        spatial_dims: 2 or 3.
        pooling: for the image-level logits: ``max``, ``average`` or ``topk``.
        pooled: ``features``: pool the features before the weights (AFA, BMP); ``maps``: pool the class maps after them,
            which then have a bias.  Max-pooled features may come from channels that peak at different places: the
            logit is then high although the class map is high nowhere.  Networks trained from scratch on small data
            tend to this.
        topk_share: share of the pixels that ``topk`` averages, in (0, 1].

    Raises:
        ValueError: K below 1, or an unknown pooling.

    Example:
        >>> import torch
        >>> head, features = ClassHead(4, 2, pooled="maps"), torch.zeros(1, 4, 8, 8)
        >>> head(features).shape, head.classify(features).shape
        (torch.Size([1, 2, 8, 8]), torch.Size([1, 2]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        *,
        spatial_dims: int = 2,
        pooling: str = "max",
        pooled: str = "features",
        topk_share: float = 0.1,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"Expected `num_classes` >= 1 foreground class, got {num_classes}.")
        check_choice("pooling", pooling, ("max", "average", "topk"))
        check_choice("pooled", pooled, ("features", "maps"))
        self.spatial_dims = spatial_dims
        self.num_classes = num_classes
        self.pooling = pooling
        self.pooled = pooled
        self.topk_share = topk_share
        conv = Conv[Conv.CONV, spatial_dims](in_channels, num_classes, kernel_size=1, bias=pooled == "maps")
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Give the class maps: ``(B, F, *s) -> (B, K, *s)``."""
        if self.spatial_dims == 2:
            return F.conv2d(features, self.weight, self.bias)
        return F.conv3d(features, self.weight, self.bias)

    @torch.jit.unused
    def seeds(self, features: torch.Tensor, detached: str = "none") -> torch.Tensor:
        """Give the class maps of :meth:`forward` with no gradient to what is ``detached``, one of ``DETACHED``.

        Example:
            >>> head, features = ClassHead(4, 2), torch.rand(1, 4, 8, 8, requires_grad=True)
            >>> head.seeds(features, "features").sum().backward()
            >>> features.grad is None, head.weight.grad is None
            (True, False)
        """
        if detached == "all":
            return self(features).detach()
        if detached == "features":
            return self(features.detach())
        if detached == "none":
            return self(features)
        bias = None if self.bias is None else self.bias.detach()
        convolve = F.conv2d if self.spatial_dims == 2 else F.conv3d
        return convolve(features, self.weight.detach(), bias)

    @torch.jit.unused
    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Give the image-level logits: ``(B, F, *s) -> (B, K)``."""
        if self.pooled == "maps":
            return pool_maps(self(features), self.pooling, topk_share=self.topk_share)
        pooled = pool_maps(features, self.pooling, topk_share=self.topk_share)
        return F.linear(pooled, self.weight.flatten(1))
