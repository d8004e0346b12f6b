# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The generator of CoinGAN: converts an image into a healthy one; where the two differ is the lesion.

CycleGAN's generator, with a contrastive convolution and the commonality-specificity attention in it:

| part          | what                                                                         | channels | stride     |
|---------------|------------------------------------------------------------------------------|----------|------------|
| `stem`        | convolution 7x7, instance norm, ReLU: the paper's EM                         | w        | e          |
| `contrastive` | contrastive convolution, neither norm nor activation                         | w        | e          |
| `attention`   | commonality-specificity attention, beside the mean over healthy images       | w        | e          |
| `downs`       | three times convolution 3x3 of stride 2, instance norm, ReLU                 | 2w 4w 8w | 2e 4e 8e   |
| `blocks`      | nine residual blocks of two convolutions 3x3                                 | 8w       | 8e         |
| `ups`         | three times transposed convolution 3x3 of stride 2, instance norm, ReLU      | 4w 2w w  | 4e 2e e    |
| `head`        | convolution 7x7, then tanh                                                   | C        | 1          |

With w = 64 and e = 1 as the paper's text asks; e > 1 adds steps to `ups`. `csa_position="bottleneck"` moves the
contrastive convolution and the attention behind `downs`.
"""

from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import nn

from monai_wsss._checks import check_choice, plain_tensor
from monai_wsss.cams.differences import check_difference_words, difference_map
from monai_wsss.networks.activation import ActivationNetwork
from monai_wsss.networks.average_buffer import AverageBuffer
from monai_wsss.networks.commonality_specificity import CommonalitySpecificityAttention
from monai_wsss.networks.contrastive_conv import ContrastiveConvolution

__all__ = ["CycleGenerator"]

_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


class CycleGenerator(ActivationNetwork):
    """Convert images into healthy ones, and give the absolute difference as raw activation map of the one class.

    Images have intensities in [-1, 1] and any size; they are extended to a multiple of the deepest stride and cut back.
    Convolution weights start normal with standard deviation 0.02.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        width: w, channels of the stem; 64 in the paper's backbone (46 million parameters).
        num_down: halvings of the sides.
        num_res_blocks: residual blocks.
        embed_stride: e, stride of the stem: 1, 2 or 4.
        csa_position: ``"stem"`` or ``"bottleneck"``, see the table.
        output: ``"image"``, G(I) = tanh; ``"residual"``, G(I) = I + tanh.
        contrastive: words of :class:`~monai_wsss.networks.ContrastiveConvolution`; None leaves it out.
        attention: words of :class:`~monai_wsss.networks.CommonalitySpecificityAttention`; None, or neither ``use_ca``
            nor ``use_sa``, leaves it out, and no reference is needed.
        reference: words of :class:`~monai_wsss.networks.AverageBuffer`; instead of its ``size``, ``image_size``, the
            size of the images.
        heat: ``reduction``, ``sign`` and ``smooth`` of :func:`~monai_wsss.cams.difference_map`; ``pooling`` (``max``)
            and ``topk_share`` of the presence; ``min_contrast`` (0.1): an image no pixel of whose map is above it has
            an empty mask. The presence level starts there, too.

    Attributes:
        presence_level: (G,), a buffer, see :class:`~monai_wsss.networks.ActivationNetwork`; G is C for the reduction
            ``"none"``, 1 otherwise.
        rule: ``"otsu"``, the rule of :class:`~monai_wsss.refinement.MaskRule` that its mask has by default.

    Raises:
        ValueError: an unknown word, numbers out of range, or an incidence by affinity outside the bottleneck; at
            inference, a reference that has not been calibrated.

    Example:
        >>> import torch
        >>> network = CycleGenerator(width=4, num_res_blocks=1).eval()
        >>> healthy, image = torch.rand(5, 1, 30, 33), torch.rand(2, 1, 30, 33)
        >>> network.calibrate_reference([healthy])
        >>> network.translate(image).shape, network(image).shape
        (torch.Size([2, 1, 30, 33]), torch.Size([2, 1, 30, 33]))
    """

    presence_level: torch.Tensor

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        *,
        width: int = 64,
        num_down: int = 3,
        num_res_blocks: int = 9,
        embed_stride: int = 1,
        csa_position: str = "stem",
        output: str = "image",
        contrastive: Mapping[str, Any] | None = _DEFAULTS,
        attention: Mapping[str, Any] | None = _DEFAULTS,
        reference: Mapping[str, Any] = _DEFAULTS,
        heat: Mapping[str, Any] = _DEFAULTS,
    ) -> None:
        words = _heat_words(**heat)
        super().__init__(
            spatial_dims,
            1,
            groups=in_channels if words["reduction"] == "none" else 1,
            pooling=words["pooling"],
            topk_share=words["topk_share"],
        )
        check_choice("csa_position", csa_position, ("stem", "bottleneck"))
        check_choice("output", output, ("image", "residual"))
        if embed_stride not in (1, 2, 4):
            raise ValueError(f"Expected `embed_stride` to be 1, 2 or 4, got {embed_stride}.")
        if min(width, num_down) < 1 or num_res_blocks < 0:
            raise ValueError(
                f"Expected `width` and `num_down` >= 1 and `num_res_blocks` >= 0, got {width}, {num_down} and "
                f"{num_res_blocks}."
            )
        self.reduction, self.sign, self.smooth = words["reduction"], words["sign"], words["smooth"]
        self.rule, self.min_contrast = "otsu", float(words["min_contrast"])
        self.register_buffer("presence_level", torch.full((self.groups,), self.min_contrast))
        self.output = output
        self.csa_position = csa_position
        self.stride = embed_stride * 2**num_down
        self.least = 2  # positions per side at the deepest stride: instance norm needs several
        deepest = width * 2**num_down
        self.stem = nn.Sequential(*_step(spatial_dims, in_channels, width, 7, embed_stride))
        self.downs = nn.Sequential(
            *(layer for i in range(num_down) for layer in _step(spatial_dims, width * 2**i, width * 2 ** (i + 1), 3, 2))
        )
        self.blocks = nn.Sequential(*(_ResidualBlock(spatial_dims, deepest) for _ in range(num_res_blocks)))
        widths = [width * 2**i for i in range(num_down, -1, -1)] + [width] * (embed_stride // 2)
        self.ups = nn.Sequential(*(layer for pair in pairwise(widths) for layer in _up(spatial_dims, *pair)))
        self.head = Conv[Conv.CONV, spatial_dims](width, in_channels, 7, padding=3, padding_mode="reflect")
        channels = width if csa_position == "stem" else deepest
        self._add_attention(channels, embed_stride, contrastive, attention, reference)
        self.apply(_initialize)

    def _add_attention(
        self,
        channels: int,
        embed_stride: int,
        contrastive: Mapping[str, Any] | None,
        attention: Mapping[str, Any] | None,
        reference: Mapping[str, Any],
    ) -> None:
        """Add the parts that CycleGAN does not have."""
        dims = self.spatial_dims
        self.contrastive, self.attention, self.buffer = None, None, None
        if contrastive is not None:
            self.contrastive = ContrastiveConvolution(channels, channels, dims, **contrastive)
            if self.csa_position == "bottleneck":  # where it reflects its input
                self.least = max(self.least, self.contrastive.epz_kernel_size)
        if attention is None or not (attention.get("use_ca", True) or attention.get("use_sa", True)):
            return
        self.attention = CommonalitySpecificityAttention(channels, dims, **attention)
        if self.csa_position == "stem" and self.attention.incidence.startswith("affinity"):
            raise ValueError(
                f"Expected csa_position='bottleneck' with incidence {self.attention.incidence!r}, whose matrix has an "
                "entry for each pair of positions."
            )
        words = dict(reference)
        image_size = words.pop("image_size", None)
        if image_size is not None:
            stride = embed_stride if self.csa_position == "stem" else self.stride
            words["size"] = [side // stride for side in self._padded_size(list(image_size))]
        self.buffer = AverageBuffer(channels, dims, **words)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 1) -> "CycleGenerator":
        """Build the network with width 4 and one residual block; until it is calibrated, its reference is of noise.

        Raises:
            ValueError: another number of classes than one.
        """
        if num_classes != 1:
            raise ValueError(f"Expected `num_classes` 1, since a difference has no classes, got {num_classes}.")
        made = cls(spatial_dims, in_channels, width=4, num_res_blocks=1, reference={"resize": True})
        noise = torch.rand((2, in_channels, *(16,) * spatial_dims), generator=torch.Generator().manual_seed(0))
        made.calibrate_reference([2 * noise - 1])
        return made

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give |I - G(I)|: ``(B, C, *S) -> (B, G, *S)``, with the stored reference."""
        return self.difference(image, self.translate(image, None))

    @torch.jit.export
    def difference(self, image: torch.Tensor, converted: torch.Tensor) -> torch.Tensor:
        """Give the map of images whose converted images are there: two ``(B, C, *S)`` to ``(B, G, *S)``."""
        return difference_map(image, converted, self.reduction, self.sign, self.smooth)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """Give the same as a call: the maps have the input's resolution."""
        return self.forward(image)

    @torch.jit.export
    def translate(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        """Convert images: ``(B, C, *S) -> (B, C, *S)``.

        Args:
            image: I, intensities in [-1, 1].
            reference: (c, *s), as :meth:`reference_of` gives it; None: the stored one.

        Raises:
            ValueError: no reference where the attention needs one, or one of another size.
        """
        features = self.represent(image)
        if self.attention is not None and self.buffer is not None:
            if reference is None:
                reference = self.buffer.stored(list(features.shape[2:]))
            features = self.attention(features, reference)
        if self.csa_position == "stem":
            features = self.downs(features)
        converted = self.head(self.ups(self.blocks(features))).tanh()
        for axis in range(2, image.dim()):
            converted = converted.narrow(axis, 0, image.shape[axis])
        return image + converted if self.output == "residual" else converted

    @torch.jit.export
    def represent(self, image: torch.Tensor) -> torch.Tensor:
        """Give what the attention compares, the paper's P or Q: ``(B, C, *S) -> (B, c, *s)``."""
        pads: list[int] = []
        for axis, side in enumerate(self._padded_size(list(image.shape[2:]))):
            pads = [0, side - image.shape[axis + 2]] + pads  # noqa: RUF005, TorchScript knows no other way
        if max(pads) > 0:
            image = F.pad(image, pads, mode="replicate")
        features = self.stem(image)
        if self.csa_position == "bottleneck":
            features = self.downs(features)
        return features if self.contrastive is None else self.contrastive(features)

    @torch.jit.unused
    def reference_of(self, healthy: torch.Tensor) -> torch.Tensor | None:
        """Give the mean representation of a healthy batch, for :meth:`translate`: ``(N, C, *S) -> (c, *s)``.

        In training the buffer may store it.  Without an attention there is none.
        """
        if self.buffer is None:
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.buffer.detach):
            return self.buffer(self.represent(healthy))

    @torch.jit.unused
    @torch.no_grad()
    def calibrate_reference(self, healthy: Iterable[torch.Tensor], max_batches: int | None = None) -> None:
        """Store the mean representation of healthy training images, as inference uses it.

        The network is in evaluation meanwhile.  In a distributed run the mean is over the images of all processes.

        Args:
            healthy: batches (N, C, *S), all of one size, prepared as in training; they come to the network's device.
            max_batches: how many are used; None: all.

        Raises:
            ValueError: no image.
        """
        if self.buffer is None:
            return
        device, training = self.presence_level.device, self.training
        self.eval()
        try:
            self.buffer.calibrate(
                self.represent(plain_tensor(batch).to(device)) for batch in islice(healthy, max_batches)
            )
        finally:
            self.train(training)

    def _padded_size(self, size: list[int]) -> list[int]:
        """Round sides up to multiples of the deepest stride."""
        return [max(self.least, -(-side // self.stride)) * self.stride for side in size]


class _ResidualBlock(nn.Module):
    """Two convolutions 3x3 with instance norm, a ReLU between them, and the input added."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        first = _step(spatial_dims, channels, channels, 3, 1, "reflect")
        second = _step(spatial_dims, channels, channels, 3, 1, "reflect")
        self.layers = nn.Sequential(*first, *second[:-1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, c, *s) -> (B, c, *s)``."""
        return features + self.layers(features)


def _step(
    spatial_dims: int, in_channels: int, out_channels: int, side: int, stride: int, padding: str | None = None
) -> list[nn.Module]:
    """Give a convolution, instance norm and ReLU; kernels of side 7 see the image reflected at its border."""
    padding = padding or ("reflect" if side == 7 else "zeros")
    convolution = Conv[Conv.CONV, spatial_dims](
        in_channels, out_channels, side, stride=stride, padding=side // 2, padding_mode=padding
    )
    return [convolution, Norm[Norm.INSTANCE, spatial_dims](out_channels), nn.ReLU(inplace=True)]


def _up(spatial_dims: int, in_channels: int, out_channels: int) -> list[nn.Module]:
    """Give a transposed convolution that doubles the sides, instance norm and ReLU."""
    convolution = Conv[Conv.CONVTRANS, spatial_dims](
        in_channels, out_channels, 3, stride=2, padding=1, output_padding=1
    )
    return [convolution, Norm[Norm.INSTANCE, spatial_dims](out_channels), nn.ReLU(inplace=True)]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ContrastiveConvolution):
        for weight in module.parameters():
            nn.init.normal_(weight, 0.0, 0.02)


def _heat_words(
    *,
    reduction: str = "mean",
    sign: str = "both",
    smooth: int = 1,
    pooling: str = "max",
    topk_share: float = 0.1,
    min_contrast: float = 0.1,
) -> dict[str, Any]:
    """Check how a difference is shown and decided, and complete the words by their defaults."""
    check_difference_words(reduction, sign, smooth)
    if min_contrast < 0:
        raise ValueError(f"Expected `min_contrast` >= 0, got {min_contrast}.")
    return {
        "reduction": reduction, "sign": sign, "smooth": smooth, "pooling": pooling, "topk_share": topk_share,
        "min_contrast": min_contrast,
    }  # fmt: skip
