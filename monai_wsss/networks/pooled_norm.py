# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Batch norm behind a global pooling, where a batch of one image leaves one value per channel.

Such a value has no batch statistics, and ``nn.BatchNorm2d`` refuses it in training.  It occurs at the image level of
atrous and scene-parsing pyramids and in the gates of split attention when a loader's last batch holds one image.
"""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["PooledBatchNorm"]


class PooledBatchNorm(_BatchNorm):
    """Batch norm for images and volumes that accepts a single value per channel: ``(B, F, *s) -> (B, F, *s)``.

    In training such a value is normalized by the running statistics, as in eval mode, and these are not updated.
    Otherwise it is ``nn.BatchNorm2d``, with the same names in the state dict.

    Example:
        >>> import torch
        >>> PooledBatchNorm(4).train()(torch.zeros(1, 4, 1, 1)).shape
        torch.Size([1, 4, 1, 1])
    """

    momentum: float  # never None, which would ask for the average over all batches

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, F, *s)``."""
        measured = self.training and features.numel() > features.shape[1]
        if measured and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, measured, self.momentum, self.eps
        )
