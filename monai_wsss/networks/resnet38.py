# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""ResNet38, the wide and shallow backbone of weakly supervised segmentation, with room for attention between stages.

Wu, Shen & van den Hengel, "Wider or deeper: revisiting the ResNet model for visual recognition", arXiv:1611.10080
(model A1), in the dilated form of Ahn & Kwak 2018.  Feng et al. (AAAI 2025, glands) build on it.  It is written from
the description of the layers and keeps the names of the public checkpoint, so that its weights load as they are.

| part                | blocks                                                    | channels | of 224 pixels |
|---------------------|-----------------------------------------------------------|----------|---------------|
| `conv1a`            | a 3x3 convolution                                         | w = 64   | 224           |
| `b2`, `b2_1`, …     | 3 pre-activation blocks, the first of stride 2            | 2w       | 112           |
| `b3`, …             | 3, the first of stride 2                                  | 4w       | 56            |
| `b4`, …             | 6, the first of stride 2                                  | 8w       | 28            |
| `b5`, …             | 3, dilation 2 in all but the very first convolution       | 16w      | 28            |
| `b6`                | a bottleneck, dilation 4, dropout 0.3                     | 32w      | 28            |
| `b7`, `bn7`, `relu` | a bottleneck, dilation 4, dropout 0.5, batch norm, ReLU   | 64w      | 28            |
| `attention4` … `7`  | modules of `attention`, behind the last block of a stage  | same     | same          |

The paper counts stages without defining them; here stage n is ``b<n>``.  Attention of stage 7 stands behind the last
ReLU.  All others stand behind the last sum of their stage, before the next block's batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Norm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_wsss._checks import check_choice
from monai_wsss.networks.checked import CheckedModule

__all__ = ["PreActivationBlock", "PreActivationBottleneck", "ResNet38"]


class _PreActivation(nn.Module):
    """Batch norm and ReLU before the convolutions; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int, stride: int) -> None:
        super().__init__()
        self.bn_branch2a = Norm[Norm.BATCH, spatial_dims](in_channels)
        self.conv_branch1 = None
        if in_channels != out_channels or stride != 1:
            self.conv_branch1 = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 1, stride, bias=False)

    def activate(self, features: torch.Tensor) -> torch.Tensor:
        """Apply what precedes the convolutions, ``relu(bn(x))``: ``(B, F, *s) -> (B, F, *s)``."""
        return F.relu(self.bn_branch2a(features), inplace=True)

    def residual(self, activated: torch.Tensor) -> torch.Tensor:
        """Apply the convolutions: ``(B, F, *s) -> (B, out_channels, *ceil(s / stride))``."""
        raise NotImplementedError

    def add(self, features: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
        """Add the shortcut and the residual, given the input and what :meth:`activate` makes of it."""
        shortcut = features if self.conv_branch1 is None else self.conv_branch1(activated)
        return shortcut + self.residual(activated)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, out_channels, *ceil(s / stride))``."""
        return self.add(features, self.activate(features))


class PreActivationBlock(_PreActivation):
    """Two 3x3 convolutions, each behind batch norm and ReLU, and a shortcut.

    Args:
        in_channels: F.
        mid_channels: channels between the two convolutions.
        out_channels: channels of the result.
        spatial_dims: 2 or 3.
        stride: of the first convolution and of the shortcut.
        first_dilation: of the first convolution; None takes ``dilation``.
        dilation: of the second convolution.

    Example:
        >>> import torch
        >>> PreActivationBlock(4, 6, 6, stride=2)(torch.zeros(2, 4, 9, 10)).shape
        torch.Size([2, 6, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        stride: int = 1,
        first_dilation: int | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, spatial_dims=spatial_dims, stride=stride)
        first = dilation if first_dilation is None else first_dilation
        conv = Conv[Conv.CONV, spatial_dims]
        self.conv_branch2a = conv(in_channels, mid_channels, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = Norm[Norm.BATCH, spatial_dims](mid_channels)
        self.conv_branch2b1 = conv(mid_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)

    def residual(self, activated: torch.Tensor) -> torch.Tensor:
        """Apply 3x3, batch norm, ReLU and 3x3."""
        features = self.conv_branch2a(activated)
        return self.conv_branch2b1(F.relu(self.bn_branch2b1(features), inplace=True))


class PreActivationBottleneck(_PreActivation):
    """1x1 to a quarter of the channels, 3x3 to a half, 1x1 to all, each behind batch norm and ReLU, and a shortcut.

    Args:
        in_channels: F.
        out_channels: channels of the result, a multiple of 4.
        spatial_dims: 2 or 3.
        stride: of the first convolution and of the shortcut.
        dilation: of the 3x3 convolution.
        dropout: probability that a whole channel is dropped before the second and the third convolution.

    Example:
        >>> import torch
        >>> PreActivationBottleneck(6, 8, dilation=4)(torch.zeros(2, 6, 9, 9)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, spatial_dims=spatial_dims, stride=stride)
        conv, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        quarter, half = out_channels // 4, out_channels // 2
        self.conv_branch2a = conv(in_channels, quarter, 1, stride, bias=False)
        self.bn_branch2b1 = norm(quarter)
        self.conv_branch2b1 = conv(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = norm(half)
        self.conv_branch2b2 = conv(half, out_channels, 1, bias=False)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)

    def residual(self, activated: torch.Tensor) -> torch.Tensor:
        """Apply 1x1, 3x3 and 1x1 with batch norm, ReLU and dropout between them."""
        features = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)), inplace=True)
        features = F.relu(self.bn_branch2b2(self.conv_branch2b1(self.dropout(features))), inplace=True)
        return self.conv_branch2b2(self.dropout(features))


class ResNet38(CheckedModule, nn.Sequential):
    """Features at stride 8 of images or volumes: ``(B, C, *S) -> (B, 64 * width, *ceil(S / 8))``.

    It is a chain of its parts under the names of the public checkpoint (105 070 912 parameters at width 64), which
    :func:`monai_wsss.networks.pretrained.load_pretrained` reads.  :meth:`small` builds one that can be trained from
    scratch on a CPU.

    Args:
        spatial_dims: 2 or 3; the public weights are for 2.
        in_channels: C.
        width: w, channels of the first convolution.
        blocks: blocks of stages 2-5.
        multiples: channels of stages 2-7 in multiples of ``width``.
        strides: of the first convolution and of stages 2-4.
        dropout: probabilities in the bottlenecks of stages 6 and 7.
        frozen: ``"none"``, or ``"paper"``: ``conv1a``, stage 2 and every batch norm stay in eval mode without
            gradients, whatever :meth:`train` is told.  That is for ImageNet weights: batch norms that never saw data
            stay the identity.  Attention is never frozen.
        attention: modules that keep the shape of the features, by the stage that they follow, 4-7; see :meth:`attend`.

    Attributes:
        stage_channels: the channels behind each of the stages 4-7.
        stride: pixels of the image per pixel of the features, along each axis.

    Raises:
        ValueError: an unknown ``frozen``, sizes of other lengths, channels that bottlenecks cannot divide by 4, an
            unknown stage of attention.

    Example:
        >>> import torch
        >>> network = ResNet38.small(width=4).eval()
        >>> network(torch.zeros(1, 3, 96, 90)).shape
        torch.Size([1, 24, 12, 12])
        >>> network.stage_channels
        {4: 24, 5: 24, 6: 24, 7: 24}
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 3, 6, 3),
        multiples: Sequence[int] = (2, 4, 8, 16, 32, 64),
        strides: Sequence[int] = (1, 2, 2, 2),
        dropout: Sequence[float] = (0.3, 0.5),
        frozen: str = "none",
        attention: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        check_choice("frozen", frozen, ("none", "paper"))
        for name, values, count in (
            ("blocks", blocks, 4), ("multiples", multiples, 6), ("strides", strides, 4), ("dropout", dropout, 2),
        ):  # fmt: skip
            if len(values) != count:
                raise ValueError(f"Expected `{name}` of {count} values, got {tuple(values)}.")
        channels = [multiple * width for multiple in multiples]
        if min(*blocks, *channels) < 1 or channels[4] % 4 or channels[5] % 4:
            raise ValueError(
                "Expected `blocks` and channels of at least 1, those of stages 6 and 7 multiples of 4, got blocks "
                f"{tuple(blocks)} and channels {tuple(channels)}: raise `width` or `multiples`."
            )
        self.frozen = frozen
        self.stage_channels = dict(zip((4, 5, 6, 7), channels[2:], strict=True))
        self.stride = math.prod(strides)
        stem = Conv[Conv.CONV, spatial_dims](in_channels, width, 3, strides[0], padding=1, bias=False)
        self.add_module("conv1a", stem)
        for name, module in _stages(spatial_dims, [width, *channels], blocks, strides[1:], dropout):
            self.add_module(name, module)
        _initialize(self)
        self._freeze()
        self.attend(attention or {})

    @classmethod
    def small(
        cls,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        width: int = 16,
        frozen: str = "none",
        attention: Mapping[int, nn.Module] | None = None,
    ) -> ResNet38:
        """Build a network of five blocks and two bottlenecks with at most 6w channels and the same stride.

        It takes the first factor of 2 in the stem.  At width 16 it has 0.59 million parameters and trains about two
        hundred times as fast as the published network.
        """
        return cls(
            spatial_dims, in_channels,
            width=width, blocks=(1, 1, 2, 1), multiples=(2, 4, 6, 6, 6, 6), strides=(2, 2, 2, 1),
            frozen=frozen, attention=attention,
        )  # fmt: skip

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3) -> ResNet38:
        """Build :meth:`small` at width 4, which trains in seconds on a CPU."""
        return cls.small(spatial_dims, in_channels, width=4)

    @torch.jit.unused
    def attend(self, attention: Mapping[int, nn.Module]) -> ResNet38:
        """Put modules that keep shapes behind stages; the names of all other parts stay as they are.

        Args:
            attention: modules by stage, 4-7; their channels are ``stage_channels``.

        Returns:
            The network itself.

        Example:
            >>> network = ResNet38.tiny()
            >>> isinstance(network.attend({5: nn.Conv2d(24, 24, 1)}).attention5, nn.Conv2d)
            True
        """
        unknown = set(attention) - set(self.stage_channels)
        if unknown:
            raise ValueError(f"Expected the stages of `attention` to be among 4, 5, 6, 7, got {sorted(unknown)}.")
        for stage, module in attention.items():
            setattr(self, f"attention{stage}", module)
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, *S) -> (B, 64 * width, *ceil(S / stride))``, never negative."""
        for part in self:
            image = part(image)
        return image

    @torch.jit.unused
    def taps(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give features of three depths at the network's stride, as multi-level heads on this backbone read them.

        Returns:
            ``conv4`` (B, 8w, *s) and ``conv5`` (B, 16w, *s): behind stages 4 and 5, after the batch norm and ReLU of
            the next block; ``conv6`` (B, 64w, *s): what the network itself gives.
        """
        taps = {}
        for name, part in self.named_children():
            if name in ("b5", "b6"):
                tap = f"conv{int(name[1]) - 1}"
                taps[tap] = part.activate(image)  # type: ignore[operator]
                image = part.add(image, taps[tap])  # type: ignore[operator]
            else:
                image = part(image)
        return taps | {"conv6": image}

    @torch.jit.unused
    def train(self, mode: bool = True) -> ResNet38:
        """Switch the mode as ``nn.Module`` does, except that frozen parts stay in eval mode."""
        super().train(mode)
        if self.frozen == "paper":
            for module in self._frozen_modules():
                module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        """List ``conv1a``, the blocks of stage 2, and the batch norms of all published parts."""
        parts = {name: part for name, part in self.named_children() if not name.startswith("attention")}
        frozen = [part for name, part in parts.items() if name == "conv1a" or name.startswith("b2")]
        return frozen + [m for part in parts.values() for m in part.modules() if isinstance(m, _BatchNorm)]

    def _freeze(self) -> None:
        if self.frozen == "paper":
            for module in self._frozen_modules():
                module.eval().requires_grad_(False)


def _stages(
    spatial_dims: int, channels: Sequence[int], blocks: Sequence[int], strides: Sequence[int], dropout: Sequence[float]
) -> Iterator[tuple[str, nn.Module]]:
    """Build stages 2-7 under their names in the public checkpoint; ``channels`` are those of conv1a and stages 2-7."""
    for n, count, stride in zip((2, 3, 4, 5), blocks, (*strides, 1), strict=True):
        dilation = 2 if n == 5 else 1
        before, out = channels[n - 2], channels[n - 1]
        mid = before if n == 5 else out
        yield (
            f"b{n}",
            PreActivationBlock(
                before, mid, out, spatial_dims=spatial_dims, stride=stride, first_dilation=1, dilation=dilation
            ),
        )
        for i in range(1, count):
            yield f"b{n}_{i}", PreActivationBlock(out, mid, out, spatial_dims=spatial_dims, dilation=dilation)
        if n >= 4:
            yield f"attention{n}", nn.Identity()
    for n, drop in zip((6, 7), dropout, strict=True):
        options = {"spatial_dims": spatial_dims, "dilation": 4, "dropout": drop}
        yield f"b{n}", PreActivationBottleneck(channels[n - 2], channels[n - 1], **options)  # type: ignore[arg-type]
        if n == 6:
            yield "attention6", nn.Identity()
    yield "bn7", Norm[Norm.BATCH, spatial_dims](channels[6])
    yield "relu", nn.ReLU(inplace=True)
    yield "attention7", nn.Identity()


def _initialize(network: nn.Module) -> None:
    """Initialize convolutions as He et al. 2015 for ReLUs, for a training from scratch."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
