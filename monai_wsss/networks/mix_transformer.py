# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Mix transformer (MiT): four stages of attention to reduced keys, with convolutions instead of encoded positions.

Xie et al. 2021, "SegFormer: simple and efficient design for semantic segmentation with transformers", arXiv:2105.15203.
It is the encoder of AFA (Ru et al., CVPR 2022) and BMP (Zhu et al., TNNLS, arXiv:2308.04949), which keep the last stage
at stride 16 and learn an affinity from its attention.  Its parts have the names of the public checkpoints, which
``mix_transformer_weights.py`` reads.

| part of stage n  | what                                                                           |
|------------------|--------------------------------------------------------------------------------|
| `patch_embed{n}` | overlapping patches: a convolution (kernel 7, in later stages 3), a layer norm |
| `block{n}.{m}`   | x + attn(norm1(x)), then x + mlp(norm2(x)), each left out at random (drop path) |
| `attn`           | queries of all tokens; keys and values of a map reduced by `sr` on each side   |
| `mlp`            | linear, depth-wise 3x3 convolution, GELU, linear                               |
| `norm{n}`        | layer norm of the stage's result                                               |

| preset | `embed_dims`        | `depths`     | million parameters |
|--------|---------------------|--------------|--------------------|
| mit_b0 | 32, 64, 160, 256    | 2, 2, 2, 2   | 3.3                |
| mit_b1 | 64, 128, 320, 512   | 2, 2, 2, 2   | 13.2               |
| mit_b2 | as B1               | 3, 4, 6, 3   | 24.2               |
| mit_b3 | as B1               | 3, 4, 18, 3  | 44.1               |
| mit_b4 | as B1               | 3, 8, 27, 3  | 60.8               |
| mit_b5 | as B1               | 3, 6, 40, 3  | 81.4               |
"""

# Annotations stay real types: TorchScript reads them.
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss.networks.attention_logits import attention_logits
from monai_wsss.networks.checked import CheckedModule

__all__ = ["MixTransformer"]

_LARGE = (64, 128, 320, 512)
PRESETS = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": (_LARGE, (2, 2, 2, 2)),
    "mit_b2": (_LARGE, (3, 4, 6, 3)),
    "mit_b3": (_LARGE, (3, 4, 18, 3)),
    "mit_b4": (_LARGE, (3, 8, 27, 3)),
    "mit_b5": (_LARGE, (3, 6, 40, 3)),
}


def _to_map(tokens: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Map ``(B, N, F) -> (B, F, *size)``."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _to_tokens(features: torch.Tensor) -> torch.Tensor:
    """Map ``(B, F, *s) -> (B, N, F)``, row-major."""
    return features.flatten(2).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """Overlapping patches as tokens: ``(B, C, *S) -> (B, N, F)`` and the sides ceil(S / stride) of their map."""

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.proj = conv(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Map ``(B, C, *S) -> (B, N, F)``; also give the sides ``s``."""
        features = self.proj(image)
        return self.norm(_to_tokens(features)), list(features.shape[2:])


class ReducedAttention(nn.Module):
    """Attention of all tokens to the tokens of a map that a strided convolution ``sr`` reduces.

    Each head computes softmax(q k^T / sqrt(F / heads)) v (arXiv:2105.15203, Eqs. 1 and 2).
    """

    def __init__(self, spatial_dims: int, channels: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        # Without a reduction neither is called: TorchScript needs the names, checkpoints have no weights for them.
        self.sr: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if sr_ratio > 1:
            self.sr = Conv[Conv.CONV, spatial_dims](channels, channels, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: torch.Tensor, size: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map ``(B, N, F) -> (B, N, F)``; give queries (B, heads, N, F / heads), keys (B, heads, M, F / heads) too."""
        query = self.q(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        source = tokens
        if self.sr_ratio > 1:
            source = self.norm(_to_tokens(self.sr(_to_map(tokens, size))))
        key_value = self.kv(source).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = key_value[0], key_value[1]
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2)), query, key


class DepthwiseConv(nn.Module):
    """A 3x3 convolution per channel that shows tokens their neighbors: ``(B, N, F) -> (B, N, F)``."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.dwconv = Conv[Conv.CONV, spatial_dims](channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``."""
        return _to_tokens(self.dwconv(_to_map(tokens, size)))


class MixMLP(nn.Module):
    """GELU(DepthwiseConv(x W1)) W2 (arXiv:2105.15203, Eq. 3): ``(B, N, F) -> (B, N, F)``."""

    def __init__(self, spatial_dims: int, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.dwconv = DepthwiseConv(spatial_dims, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, tokens: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class MixBlock(nn.Module):
    """Attention and MLP, each normalized beforehand and added: ``(B, N, F) -> (B, N, F)``."""

    def __init__(
        self, spatial_dims: int, channels: int, num_heads: int, sr_ratio: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ReducedAttention(spatial_dims, channels, num_heads, sr_ratio)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MixMLP(spatial_dims, channels, int(mlp_ratio * channels))

    def forward(self, tokens: torch.Tensor, size: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map ``(B, N, F) -> (B, N, F)``; also give the queries and keys of its attention."""
        update, query, key = self.attn(self.norm1(tokens), size)
        tokens = tokens + self.drop_path(update)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size)), query, key


class MixStage(nn.ModuleList):
    """The blocks of a stage, one after another: ``(B, N, F) -> (B, N, F)``."""

    def forward(self, tokens: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``."""
        for block in self:
            tokens = block(tokens, size)[0]
        return tokens


class MixTransformer(CheckedModule):
    """Features of four stages: ``(B, C, *S) -> [(B, F1, *s1), (B, F2, *s2), (B, F3, *s3), (B, F4, *s4)]``.

    The public weights are for images with three channels; ``load_mix_transformer`` adapts them to other numbers.  In 3D
    every layer has one axis more (our extension).

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        embed_dims: F1 to F4.
        num_heads: heads of the attention of each stage.
        depths: blocks of each stage.
        sr_ratios: factor per stage by which the map of keys and values is reduced on each side.
        strides: strides of the four patch embeddings: (4, 2, 2, 1) in AFA and BMP, (4, 2, 2, 2) in SegFormer; sides
            are rounded up.
        mlp_ratio: hidden channels of the MLPs per input channel.
        drop_path: probability that an update of the last block is left out for an image; it grows linearly from 0 at
            the first block.
        attention_blocks: blocks of the last stage whose attention :meth:`forward_with_attention` gives; AFA and BMP
            take the last two.

    Attributes:
        feature_channels: F1 to F4.
        feature_strides: of the four stages, counted from the image.
        attention_channels: heads of all ``attention_blocks`` together.
        spatial_dims: as given.
        in_channels: as given.

    Raises:
        ValueError: settings that are not for four stages or do not fit each other; an image too small for the
            reduction of its keys: with the default settings a side must have at least 29 pixels.

    Example:
        >>> import torch
        >>> network = MixTransformer.tiny().eval()
        >>> [tuple(features.shape) for features in network(torch.zeros(1, 3, 50, 33))]
        [(1, 8, 13, 9), (1, 16, 7, 5), (1, 24, 4, 3), (1, 32, 4, 3)]
    """

    feature_channels: tuple[int, int, int, int]

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        depths: Sequence[int] = (2, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        strides: Sequence[int] = (4, 2, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        attention_blocks: Sequence[int] = (-2, -1),
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        settings = {
            "embed_dims": embed_dims, "num_heads": num_heads, "depths": depths,
            "sr_ratios": sr_ratios, "strides": strides,
        }  # fmt: skip
        _check_stages(settings)
        self.attention_blocks = _block_indices(attention_blocks, depths[3], sr_ratios[3])
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.feature_channels = (embed_dims[0], embed_dims[1], embed_dims[2], embed_dims[3])
        self.feature_strides = tuple(math.prod(strides[: n + 1]) for n in range(4))
        self.attention_channels = len(self.attention_blocks) * num_heads[3]
        self.smallest_side = max(math.prod(strides[: n + 1]) * (sr_ratios[n] - 1) + 1 for n in range(4))
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        stages = []
        for n in range(4):
            previous = embed_dims[n - 1] if n else in_channels
            blocks = (
                MixBlock(spatial_dims, embed_dims[n], num_heads[n], sr_ratios[n], mlp_ratio, rate)
                for rate in rates[sum(depths[:n]) : sum(depths[: n + 1])]
            )
            embedding = PatchEmbedding(spatial_dims, previous, embed_dims[n], 3 if n else 7, strides[n])
            stages.append((embedding, MixStage(blocks), nn.LayerNorm(embed_dims[n], eps=1e-6)))
        self.patch_embed1, self.block1, self.norm1 = stages[0]
        self.patch_embed2, self.block2, self.norm2 = stages[1]
        self.patch_embed3, self.block3, self.norm3 = stages[2]
        self.patch_embed4, self.block4, self.norm4 = stages[3]
        self.apply(_initialize)

    @classmethod
    def from_preset(
        cls,
        name: str,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        strides: Sequence[int] = (4, 2, 2, 1),
        drop_path: float = 0.1,
        attention_blocks: Sequence[int] = (-2, -1),
    ) -> "MixTransformer":
        """Build one of the published sizes, ``"mit_b0"`` to ``"mit_b5"``; see the table at the head of this file.

        Example:
            >>> MixTransformer.from_preset("mit_b0", in_channels=1).feature_channels
            (32, 64, 160, 256)
        """
        check_choice("name", name, tuple(PRESETS))
        embed_dims, depths = PRESETS[name]
        return cls(
            spatial_dims, in_channels,
            embed_dims=embed_dims, depths=depths, strides=strides, drop_path=drop_path,
            attention_blocks=attention_blocks,
        )  # fmt: skip

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3) -> "MixTransformer":
        """Build one block per stage, two in the last, at few channels; it trains in seconds on a CPU."""
        return cls(
            spatial_dims, in_channels,
            embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 2), sr_ratios=(4, 2, 1, 1),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps of the four stages, of strides 4, 8, 16, 16 by default."""
        first, second, third = self._first_stages(image)
        tokens, size = self.patch_embed4(third)
        return [first, second, third, _to_map(self.norm4(self.block4(tokens, size)), size)]

    def forward_with_queries(
        self, image: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run :meth:`forward` and give queries and keys of ``attention_blocks``, each (B, heads, N, F4 / heads).

        They are by-products of the features; the caller computes logits between them.
        """
        first, second, third = self._first_stages(image)
        tokens, size = self.patch_embed4(third)
        pairs = []
        for index, block in enumerate(self.block4):
            tokens, query, key = block(tokens, size)
            if index in self.attention_blocks:
                pairs.append((query, key))
        return [first, second, third, _to_map(self.norm4(tokens), size)], pairs

    def forward_with_attention(
        self, image: torch.Tensor, radius: int | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run :meth:`forward` and give raw attention logits of ``attention_blocks``, q . k^T, unscaled, no softmax.

        Args:
            image: (B, C, *S).
            radius: None for all pairs of tokens; else neighbors only, see
                :func:`~monai_wsss.networks.attention_logits.attention_logits`.

        Returns:
            The features, and logits (B, heads, N, N) per block, or (B, heads, W, *s4).
        """
        features, pairs = self.forward_with_queries(image)
        return features, [attention_logits(query, key, features[3].shape[2:], radius) for query, key in pairs]

    def _first_stages(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if min(image.shape[2:]) < self.smallest_side:
            raise ValueError(
                f"Expected image sides of at least {self.smallest_side} pixels, got {image.shape[2:]}: enlarge or pad "
                "the image, or build the network with smaller `strides` or `sr_ratios`."
            )
        tokens, size = self.patch_embed1(image)
        first = _to_map(self.norm1(self.block1(tokens, size)), size)
        tokens, size = self.patch_embed2(first)
        second = _to_map(self.norm2(self.block2(tokens, size)), size)
        tokens, size = self.patch_embed3(second)
        return first, second, _to_map(self.norm3(self.block3(tokens, size)), size)


def _check_stages(settings: dict[str, Sequence[int]]) -> None:
    for name, values in settings.items():
        if len(values) != 4 or min(values) < 1:
            raise ValueError(f"Expected `{name}` of four stages, each 1 or more, got {tuple(values)}.")
    for channels, heads in zip(settings["embed_dims"], settings["num_heads"], strict=True):
        if channels % heads:
            raise ValueError(f"Expected `embed_dims` that `num_heads` divide, got {channels} channels, {heads} heads.")


def _block_indices(blocks: Sequence[int], depth: int, sr_ratio: int) -> tuple[int, ...]:
    """Give the indices of blocks of the last stage, counted from 0 and in order."""
    if not all(-depth <= index < depth for index in blocks):
        raise ValueError(f"Expected `attention_blocks` of the last stage's {depth} blocks, got {tuple(blocks)}.")
    if blocks and sr_ratio > 1:
        raise ValueError(
            f"Expected `sr_ratios` of 1 in the last stage, got {sr_ratio}: attention to reduced keys has no logits "
            "between tokens; or give no `attention_blocks`."
        )
    return tuple(sorted({index % depth for index in blocks}))


def _initialize(module: nn.Module) -> None:
    """Draw weights as the public code: linear layers of deviation 0.02, convolutions of variance 2 / fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
