# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A CAM head for any MONAI network.

Two families are adapted alike. One gives a dense tensor: segmenters such as ``UNet`` or ``SegResNet`` with
``out_channels`` features, and encoders such as ``ResNetFeatures``, whose last map is taken. The other are image
classifiers (``resnet18``, ``DenseNet121``, ``SEResNet50``), which :func:`dense_features` cuts before their pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from monai.networks.nets import UNet
from torch import nn

from monai_wsss.networks.activation import ActivationNetwork

__all__ = ["CAMAdapter", "dense_features"]

_IMAGE_LEVEL = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Flatten, nn.Linear,
)  # fmt: skip


def dense_features(classifier: nn.Module) -> nn.Sequential:
    """Cut an image classifier before its image-level pooling: ``(B, C, *S) -> (B, F, *s)``.

    The result holds the children in the order of their registration, up to the first that pools to one value or
    flattens. A last child that mixes both (DenseNet's ``class_layers``) is cut inside. This is right for classifiers
    whose forward pass is that chain: MONAI's ResNet, DenseNet and SENet families. Activations called as functions
    inside ``forward`` are not children; ResNet's are ``act`` and kept.

    Args:
        classifier: the network. Its modules are shared, not copied.

    Raises:
        ValueError: no child pools, so that it is no image classifier of this form.

    Example:
        >>> import torch
        >>> from monai.networks.nets import resnet10
        >>> backbone = dense_features(resnet10(spatial_dims=2, n_input_channels=1, num_classes=1))
        >>> backbone(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 512, 4, 4])
    """
    kept: list[nn.Module] = []
    for child in classifier.children():
        if isinstance(child, _IMAGE_LEVEL):
            return nn.Sequential(*kept)
        grandchildren = list(child.children()) if isinstance(child, nn.Sequential) else []
        if any(isinstance(grandchild, _IMAGE_LEVEL) for grandchild in grandchildren):
            return nn.Sequential(*kept, *dense_features(child))
        kept.append(child)
    raise ValueError(
        f"Expected an image classifier with a pooling child, got {type(classifier).__name__}: "
        "give the dense part itself to CAMAdapter as `backbone`."
    )


class CAMAdapter(ActivationNetwork):
    """Any dense backbone plus a 1x1 class-map head.

    Args:
        backbone: gives ``(B, F, *s)``, or a list or tuple of such maps, of which the last is taken.
        feature_channels: F of that map.
        num_classes: K, the foreground classes.
        spatial_dims: 2 or 3.
        pooling: see :class:`~monai_wsss.networks.activation.ActivationNetwork`.
        topk_share: see there.
        lse_sharpness: see there.

    Raises:
        ValueError: the backbone gives no dense map.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> unet = UNet(2, in_channels=3, out_channels=8, channels=(8, 16, 32), strides=(2, 2))
        >>> CAMAdapter(unet, feature_channels=8, num_classes=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2, 32, 32])
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_channels: int,
        num_classes: int = 1,
        *,
        spatial_dims: int = 2,
        pooling: str = "max",
        topk_share: float = 0.1,
        lse_sharpness: float = 5.0,
    ) -> None:
        super().__init__(spatial_dims, num_classes, pooling=pooling, topk_share=topk_share, lse_sharpness=lse_sharpness)
        self.backbone = backbone
        self.head = Conv[Conv.CONV, spatial_dims](feature_channels, num_classes, kernel_size=1)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> CAMAdapter:
        """Build a small U-Net with a CAM head, which trains in seconds on a CPU."""
        unet = UNet(spatial_dims, in_channels=in_channels, out_channels=4, channels=(4, 8), strides=(2,))
        return cls(unet, 4, num_classes, spatial_dims=spatial_dims)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give raw class maps at the backbone's resolution: ``(B, C, *S) -> (B, K, *s)``."""
        features = self.backbone(image)
        # A scripted backbone has one return type: TorchScript compiles only those that give a tensor.
        if not torch.jit.is_scripting():
            features = self._dense(features, image.ndim)
        return self.head(features)

    @staticmethod
    def _dense(features: torch.Tensor | Sequence[torch.Tensor], ndim: int) -> torch.Tensor:
        """Take the last of several maps and check its shape."""
        last = features if isinstance(features, torch.Tensor) else features[-1]
        if last.ndim != ndim:
            raise ValueError(
                f"Expected `backbone` to give a dense map (B, F, *S), got {tuple(last.shape)}: "
                "cut an image classifier with dense_features first."
            )
        return last
