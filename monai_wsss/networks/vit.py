# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Vision transformer (ViT) as an encoder of two maps: of an early block and of the last one.

Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929.  It is the encoder of CoSA (Yang et al.,
ECCV 2024), which classifies both maps.  Its parts have the names of timm's checkpoints, which ``vit_weights.py`` reads.

| part          | what                                                                                     |
|---------------|------------------------------------------------------------------------------------------|
| `patch_embed` | patches as tokens: a convolution whose stride is its kernel                              |
| `cls_token`   | a token in front of the patches; the last layers of a published classifier read it       |
| `pos_embed`   | a vector per token that tells its position; never trained, interpolated to any size      |
| `blocks.{m}`  | x + attn(norm1(x)), then x + mlp(norm2(x))                                               |
| `norm`        | layer norm of the last block's result; the early map is without it, as in CoSA's code    |

| preset    | `hidden_size` | `num_heads` | million parameters |
|-----------|---------------|-------------|--------------------|
| vit_tiny  | 192           | 3           | 5.5                |
| vit_small | 384           | 6           | 21.7               |
| vit_base  | 768           | 12          | 85.8               |

MONAI's ``ViT`` takes images of one size only and has other names.  In 3D every layer has one axis more (our extension).
"""

# Annotations stay real types: TorchScript reads them.
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn

from monai_wsss._checks import check_choice
from monai_wsss._resize import linear_mode
from monai_wsss.networks.checked import CheckedModule

__all__ = ["VisionTransformer"]

PRESETS = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}


class _Patches(nn.Module):
    """Patches as tokens: ``(B, C, *S) -> (B, N, F)`` and the sides ceil(S / p) of their map."""

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.mode = linear_mode(spatial_dims)
        self.proj = Conv[Conv.CONV, spatial_dims](in_channels, channels, patch_size, stride=patch_size)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Map ``(B, C, *S) -> (B, N, F)``; also give the sides of the map of tokens."""
        size = [-(-side // self.patch_size) for side in image.shape[2:]]
        whole = [side * self.patch_size for side in size]
        if whole != list(image.shape[2:]):
            image = F.interpolate(image, size=whole, mode=self.mode, align_corners=False)
        return self.proj(image).flatten(2).mT, size


class _Attention(nn.Module):
    """Attention of all tokens to all tokens: ``(B, N, F) -> (B, N, F)``."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``: softmax(q k^T / sqrt(F / heads)) v of each head."""
        parts = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.proj(attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    """Two linear layers with a GELU between them: ``(B, N, F) -> (B, N, F)``."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class _Block(nn.Module):
    """Attention and MLP, each normalized beforehand and added: ``(B, N, F) -> (B, N, F)``."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _Attention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = _MLP(channels, int(mlp_ratio * channels))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map ``(B, N, F) -> (B, N, F)``."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(CheckedModule):
    """Maps of an early and of the last block: ``(B, C, *S) -> [(B, F, *s), (B, F, *s)]``, s = ceil(S / patch_size).

    Images may have any size.  Sides that are no multiple of the patch are enlarged to the next one, linearly, so that
    the maps cover the image exactly.  Published weights are for images with three channels;
    ``load_vision_transformer`` adapts them to other numbers.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        hidden_size: F.
        num_layers: blocks.
        num_heads: heads of the attention of each block, a divisor of F.
        patch_size: side of a patch in pixels, the stride of the maps; 8 in place of 16 shows smaller findings, at 4
            times the tokens (8 times in 3D).
        image_size: side in pixels of the images for which ``pos_embed`` has a vector per token; weights of a file fit
            its size only.  Other images get interpolated vectors: bicubic in 2D, trilinear in 3D.
        mlp_ratio: hidden channels of the MLPs per channel.
        early_block: the block whose result is the early map, counted from the first (0) or, negative, from the last
            (-1).

    Attributes:
        feature_channels: ``(F, F)``.
        feature_strides: ``(patch_size, patch_size)``.
        attention_channels: 0; the attention is not given.
        spatial_dims: as given.
        in_channels: as given.

    Raises:
        ValueError: settings below 1 or that do not fit each other, or a block that does not exist.

    Example:
        >>> import torch
        >>> network = VisionTransformer.tiny().eval()
        >>> [tuple(features.shape) for features in network(torch.zeros(1, 3, 50, 33))]
        [(1, 24, 7, 5), (1, 24, 7, 5)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        image_size: int = 224,
        mlp_ratio: float = 4.0,
        early_block: int = -3,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Expected `spatial_dims` to be 2 or 3, got {spatial_dims}.")
        if min(in_channels, num_heads, patch_size) < 1 or hidden_size < 1 or hidden_size % num_heads:
            raise ValueError(
                "Expected `in_channels`, `num_heads` and `patch_size` of at least 1 and a `hidden_size` that the heads "
                f"divide, got {in_channels}, {num_heads}, {patch_size} and {hidden_size}."
            )
        if not mlp_ratio > 0:
            raise ValueError(f"Expected `mlp_ratio` > 0, got {mlp_ratio}.")
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"Expected `image_size` as a multiple of the patch {patch_size}, got {image_size}.")
        if not -num_layers <= early_block < num_layers:
            raise ValueError(f"Expected `early_block` among the {num_layers} blocks, got {early_block}.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.feature_channels = (hidden_size, hidden_size)
        self.feature_strides = (patch_size, patch_size)
        self.attention_channels = 0
        self.early_block = early_block % num_layers
        self.grid = [image_size // patch_size] * spatial_dims
        self.mode = "bicubic" if spatial_dims == 2 else linear_mode(spatial_dims)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(_sines(self.grid, hidden_size), requires_grad=False)
        self.patch_embed = _Patches(spatial_dims, in_channels, hidden_size, patch_size)
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialize)

    @classmethod
    def from_preset(
        cls,
        name: str,
        spatial_dims: int = 2,
        in_channels: int = 3,
        *,
        patch_size: int = 16,
        image_size: int = 224,
        early_block: int = -3,
    ) -> "VisionTransformer":
        """Build one of the published sizes, ``"vit_tiny"``, ``"vit_small"`` or ``"vit_base"``, with 12 blocks.

        Example:
            >>> VisionTransformer.from_preset("vit_tiny", in_channels=1).feature_channels
            (192, 192)
        """
        check_choice("name", name, tuple(PRESETS))
        hidden_size, num_heads = PRESETS[name]
        return cls(
            spatial_dims, in_channels,
            hidden_size=hidden_size, num_heads=num_heads, patch_size=patch_size, image_size=image_size,
            early_block=early_block,
        )  # fmt: skip

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 3) -> "VisionTransformer":
        """Build four blocks of 24 channels on patches of 8 pixels, 4 in 3D; it trains in seconds on a CPU."""
        patch_size = 8 if spatial_dims == 2 else 4
        return cls(
            spatial_dims, in_channels,
            hidden_size=24, num_layers=4, num_heads=3, patch_size=patch_size, image_size=4 * patch_size,
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the early map, as the block leaves it, and the final one, normalized."""
        patches, size = self.patch_embed(image)
        positions = self.pos_embed[:, 1:].mT.unflatten(2, self.grid)
        positions = F.interpolate(positions, size=size, mode=self.mode, align_corners=False)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        tokens = torch.cat([first, patches + positions.flatten(2).mT], dim=1)
        early = tokens
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index == self.early_block:
                early = tokens
        return [_to_map(early, size), _to_map(self.norm(tokens), size)]


def _to_map(tokens: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Map ``(B, 1 + N, F) -> (B, F, *size)``; the first token is left out."""
    return tokens[:, 1:].mT.unflatten(2, size)


def _sines(grid: list[int], channels: int) -> torch.Tensor:
    """Give vectors of positions ``(1, 1 + N, F)``: sines and cosines of every axis, 0 for the first token.

    They are our own: ViT trains its vectors, and weights of a file replace these.  CoSA never trains them, so a
    training from scratch begins with vectors that tell positions, not with noise.
    """
    count = channels // (2 * len(grid))
    frequencies = 10000.0 ** (-torch.arange(count) / max(count, 1))
    axes = torch.meshgrid([torch.arange(side, dtype=torch.float32) for side in grid], indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in axes]
    told = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return F.pad(told, (0, channels - told.shape[1], 1, 0))[None]


def _initialize(module: nn.Module) -> None:
    """Draw linear layers with deviation 0.02, as timm."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
