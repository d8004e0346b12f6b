# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""EfficientNet-Lite, an encoder with published ImageNet weights that a CPU can train, with features of every stride.

Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", arXiv:1905.11946.  The Lite
variants leave out squeeze and excitation and have ReLU6 for swish.  No paper of this package uses them.  The network is
written from the description of the layers and keeps the names of the public checkpoints;
``published_weights.py`` finds and reads those.

| part             | what                                                              | stride | Lite0, 1 | Lite2 |
|------------------|-------------------------------------------------------------------|--------|----------|-------|
| `_conv_stem`     | a 3x3 convolution, batch norm, ReLU6                              | 2      | 32       | 32    |
| `_blocks`        | stage 1, level 1: 3x3, no expansion                               | 2      | 16       | 16    |
|                  | stage 2, level 2: 3x3                                             | 4      | 24       | 24    |
|                  | stage 3, level 3: 5x5                                             | 8      | 40       | 48    |
|                  | stage 4: 3x3                                                      | 16     | 80       | 88    |
|                  | stage 5, level 4: 5x5                                             | 16     | 112      | 120   |
|                  | stage 6: 5x5                                                      | 32     | 192      | 208   |
|                  | stage 7, level 5: 3x3                                             | 32     | 320      | 352   |

A block expands its channels six times, convolves each channel, and projects without an activation.  Padding is
TensorFlow's "SAME": its sides depend on the size of the image, and where they are uneven the last side has one more.
The drop path of the original training is left out, and batch norms have the momentum of torch, 0.1 for 0.01.
"""

# Annotations stay real types: TorchScript reads them.
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monai_wsss._checks import DataError, check_choice
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.pretrained import spread_rgb_filters

__all__ = ["EfficientNetLite"]


class _Layout(NamedTuple):
    """The sizes of a network: filters of the stem, channels and repeats of the seven stages, expansion of blocks."""

    stem: int
    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    expansion: int


_LAYOUTS = {
    "lite0": _Layout(32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 6),
    "lite1": _Layout(32, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), 6),
    "lite2": _Layout(32, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), 6),
    "tiny": _Layout(8, (4, 6, 8, 10, 12, 14, 16), (1, 1, 2, 1, 1, 2, 1), 2),
}
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
# The last stage of each level.
_STAGE_OF_LEVEL = {1: 1, 2: 2, 3: 3, 4: 5, 5: 7}
# What the published files hold for the classification of ImageNet.
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")

# The values of black and white: the published networks saw (x - 127) / 128 of 0 to 255.
_RANGES = {"pixels": (0.0, 255.0), "z_scores": (-127 / 64, 2.0), "unit": (0.0, 1.0)}


class _HalvingConv(nn.Conv2d):
    """A convolution of stride 2 with the padding of TensorFlow's "SAME", for any size."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, out_channels, *ceil(s / 2))``."""
        size = self.kernel_size[0]
        # In all, a side of n pixels needs k - 2 zeros where n is even, k - 1 where it is odd; the smaller half first.
        rows, columns = size - 2 + features.shape[2] % 2, size - 2 + features.shape[3] % 2
        sides = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        return self._conv_forward(F.pad(features, sides), self.weight, self.bias)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int, groups: int) -> nn.Conv2d:
    """Give a convolution without bias with "SAME" padding; of stride 1 it is the same on both sides."""
    if stride == 2:
        return _HalvingConv(in_channels, out_channels, kernel, stride=2, groups=groups, bias=False)
    return nn.Conv2d(
        in_channels, out_channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups,
        bias=False,
    )  # fmt: skip


def _norm(channels: int) -> nn.BatchNorm2d:
    # The momentum of the original code, 0.01, is for trainings of many thousand steps: after 150 steps from scratch,
    # a fifth of the running statistics would still be their initial values.
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel, project: ``(B, F, *s) -> (B, out_channels, *ceil(s / stride))``.

    The input is added to the result where ``added`` says so.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        dilation: int,
        expansion: int,
        added: bool,
    ) -> None:
        super().__init__()
        self.added = added
        width = in_channels * expansion
        self._expand_conv = None
        self._bn0 = None
        if expansion > 1:
            self._expand_conv = _conv(in_channels, width, 1, 1, 1, 1)
            self._bn0 = _norm(width)
        self._depthwise_conv = _conv(width, width, kernel, stride, dilation, width)
        self._bn1 = _norm(width)
        self._project_conv = _conv(width, out_channels, 1, 1, 1, 1)
        self._bn2 = _norm(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, F, *s) -> (B, out_channels, *ceil(s / stride))``."""
        inner = features
        if self._expand_conv is not None and self._bn0 is not None:
            inner = F.relu6(self._bn0(self._expand_conv(inner)))
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return features + inner if self.added else inner


class EfficientNetLite(CheckedModule):
    """Features of several strides: ``(B, C, H, W) -> [(B, F_n, *ceil(S / 2**n))]`` for each level n, fine to coarse.

    Weights are random until :func:`~monai_wsss.networks.published_weights.load_encoder_weights` fills them.

    Args:
        name: ``"lite0"``, ``"lite1"`` or ``"lite2"``, trained on images of 224, 240 and 260 pixels; any size goes.
            ``"tiny"`` has no published weights and trains in seconds on a CPU.
        in_channels: C.  Three are RGB, as published.  One is a gray image, which counts as three equal channels.
        spatial_dims: 2.
        levels: the levels n to give, of 1 to 5; blocks behind the last of them are not built.
        output_stride: 8, 16 or 32; strides that would exceed it are replaced by dilation.
        input_range: the values of black and white.  ``"pixels"`` are (0, 255), ``"unit"`` are (0, 1); with
            ``"z_scores"`` the network sees half of what it gets; or a pair of numbers.
        stem: for C other than 3.  ``"average"``: each channel has the mean of the three published filters times 3 / C.
            ``"learned"``: a 1x1 convolution makes three channels, which begin as the mean of all C.  Both begin alike.

    Attributes:
        feature_channels: F_n of each level.
        feature_strides: the strides of the levels, with dilation accounted for.
        attention_channels: 0; there is no attention.
        spatial_dims: 2.
        in_channels: as given.
        name: as given.

    Raises:
        ValueError: another name, level, stride, range or stem, no channels, or volumes.

    Example:
        >>> import torch
        >>> network = EfficientNetLite("lite0", levels=(1, 2, 4), output_stride=8, input_range="unit").eval()
        >>> [tuple(features.shape) for features in network(torch.zeros(1, 3, 50, 33))]
        [(1, 16, 25, 17), (1, 24, 13, 9), (1, 112, 7, 5)]
        >>> network.feature_strides
        (2, 4, 8)
    """

    def __init__(
        self,
        name: str = "lite0",
        in_channels: int = 3,
        *,
        spatial_dims: int = 2,
        levels: Sequence[int] = (2, 3, 4, 5),
        output_stride: int = 32,
        input_range: str | Sequence[float] = "pixels",
        stem: str = "average",
    ) -> None:
        super().__init__()
        check_choice("name", name, tuple(_LAYOUTS))
        check_choice("stem", stem, ("average", "learned"))
        _check_geometry(spatial_dims, in_channels, levels, output_stride)
        layout = _LAYOUTS[name]
        black, white = _black_and_white(input_range)
        self.name = name
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        stages = [_STAGE_OF_LEVEL[level] for level in levels]
        self.feature_channels = tuple(layout.channels[stage - 1] for stage in stages)
        self.feature_strides = tuple(min(2**level, output_stride) for level in levels)
        self.attention_channels = 0
        self.center = black + 127 * (white - black) / 255
        self.scale = 128 * (white - black) / 255
        self.last_blocks = [sum(layout.repeats[:stage]) - 1 for stage in stages]
        self.channel_mix = None
        if stem == "learned" and in_channels != 3:
            self.channel_mix = nn.Conv2d(in_channels, 3, 1, bias=False)
        self._conv_stem = _conv(in_channels if self.channel_mix is None else 3, layout.stem, 3, 2, 1, 1)
        self._bn0 = _norm(layout.stem)
        self._blocks = nn.ModuleList(_blocks(layout, stages[-1], output_stride))
        self.apply(_initialize)
        if self.channel_mix is not None:
            nn.init.constant_(self.channel_mix.weight, 1 / in_channels)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3) -> "EfficientNetLite":
        """Build four levels of few channels at strides 4, 8, 16, 16: trains in seconds on a CPU."""
        return cls("tiny", in_channels, spatial_dims=spatial_dims, output_stride=16, input_range="unit")

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps of the levels, from fine to coarse."""
        features = (image - self.center) / self.scale
        # A third faster on a CPU: only the layout changes, not the values.
        features = features.contiguous(memory_format=torch.channels_last)
        if self.channel_mix is not None:
            features = self.channel_mix(features)
        features = F.relu6(self._bn0(self._conv_stem(features)))
        result: list[torch.Tensor] = []
        for index, block in enumerate(self._blocks):
            features = block(features)
            if index in self.last_blocks:
                result.append(features)
        return result

    @torch.jit.unused
    def load_published(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Fill the network from the entries of a published file; all must agree but the classifier's.

        The file's classifier and its blocks behind the last level are left out.  Filters for RGB become filters for C
        channels by their mean times 3 / C in each channel.

        Args:
            stored: entries under the names of the public checkpoints.

        Raises:
            DataError: an entry is absent, has another shape, or belongs to another network; the network then stays as
                it is.
        """
        own = self.state_dict()
        entries = {name: value for name, value in stored.items() if not self._is_left_out(name)}
        stem = entries.get("_conv_stem.weight")
        channels = own["_conv_stem.weight"].shape[1]
        if stem is not None and stem.ndim == 4:
            entries["_conv_stem.weight"] = spread_rgb_filters(stem, channels)
        if self.channel_mix is not None:
            entries.setdefault("channel_mix.weight", own["channel_mix.weight"])
        wrong = [name for name in own if name not in entries or entries[name].shape != own[name].shape]
        wrong += [name for name in entries if name not in own]
        if wrong:
            raise DataError(
                f"Expected the weights of EfficientNet-{self.name.capitalize()}, got a file with other entries "
                f"({len(wrong)}, such as {wrong[0]}): give the file of this network, or change its `name`."
            )
        self.load_state_dict(entries)

    def _is_left_out(self, name: str) -> bool:
        """Tell whether an entry of a published file has no place here by design."""
        behind = range(len(self._blocks), sum(_LAYOUTS[self.name].repeats))
        return name.startswith((*_CLASSIFIER, *(f"_blocks.{number}." for number in behind)))


def _check_geometry(spatial_dims: int, in_channels: int, levels: Sequence[int], output_stride: int) -> None:
    if spatial_dims != 2:
        raise ValueError(
            f"Expected `spatial_dims` of 2, got {spatial_dims}: the published weights are for images; volumes go "
            "through slice by slice, with `spatial_dims` 2 and VolumeInferer."
        )
    if in_channels < 1:
        raise ValueError(f"Expected `in_channels` of 1 or more, got {in_channels}.")
    if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= set(_STAGE_OF_LEVEL):
        raise ValueError(f"Expected `levels` of 1 to 5 in rising order, got {tuple(levels)}.")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"Expected `output_stride` to be 8, 16 or 32, got {output_stride}.")


def _black_and_white(input_range: str | Sequence[float]) -> tuple[float, float]:
    """Give the values of black and white."""
    if isinstance(input_range, str):
        check_choice("input_range", input_range, tuple(_RANGES))
        return _RANGES[input_range]
    values = [float(value) for value in input_range]
    if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
        raise ValueError(
            f"Expected `input_range` to be one of {', '.join(_RANGES)} or the values of black and white, black being "
            f"less, got {tuple(input_range)}."
        )
    return values[0], values[1]


def _blocks(layout: _Layout, stages: int, output_stride: int) -> list[nn.Module]:
    """Build the blocks of the first stages; ``output_stride`` turns later strides into dilation."""
    blocks: list[nn.Module] = []
    channels, reached, dilation = layout.stem, 2, 1
    for n in range(stages):
        for repeat in range(layout.repeats[n]):
            stride = 1 if repeat else _STRIDES[n]
            halves = reached * stride <= output_stride
            blocks.append(
                InvertedBottleneck(
                    channels, layout.channels[n],
                    kernel=_KERNELS[n], stride=stride if halves else 1, dilation=dilation,
                    expansion=layout.expansion if n else 1, added=stride == 1 and channels == layout.channels[n],
                )
            )  # fmt: skip
            # A stride that is left out leaves every second pixel to the blocks behind it.
            reached, dilation = (reached * stride, dilation) if halves else (reached, dilation * stride)
            channels = layout.channels[n]
    return blocks


def _initialize(module: nn.Module) -> None:
    """Draw the weights of convolutions with variance 2 / fan-out, as the original code, for a training from scratch."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
