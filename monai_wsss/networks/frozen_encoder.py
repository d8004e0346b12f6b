# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""An encoder that training leaves as it is, wholly or in its batch norms, and whose maps can be computed once.

A frozen encoder gives the same maps for the same image in every epoch.  :meth:`FrozenEncoder.pack` puts all of them
into one tensor of the image's own size, which a dataset keeps in the image's place
(:class:`~monai_wsss.data.VariantCacheDataset`).  The encoder takes either and tells them apart by their channels:

| given          | shape      | the encoder                    |
|----------------|------------|--------------------------------|
| image          | (B, C, *S) | computes its maps              |
| packed maps    | (B, P, *S) | reads them from the tensor     |

P is the fewest channels that hold all values of the maps, and never C.  Packed maps are read only by an encoder that
has packed maps of that size before; to any other, an image of P channels stays the mistake that it is.  So methods,
losses and the upsampling to the image's size need no change.  Only methods that make another view of the image need the
image itself.  Fill the encoder with its weights before maps are packed: maps of other weights are refused.
"""

# Annotations stay real types: TorchScript reads them.
import math
from collections.abc import Sequence
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_wsss._checks import check_choice, plain_tensor
from monai_wsss.networks.checked import CheckedModule
from monai_wsss.networks.conv_pyramid import ConvPyramid
from monai_wsss.networks.encoder_facts import encoder_channels, encoder_dims, encoder_in_channels, encoder_strides

__all__ = ["FrozenEncoder"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class FrozenEncoder(CheckedModule):
    """An encoder, or its batch norms, that stays in eval mode without gradients, whatever :meth:`train` is told.

    Its weights have the names of the encoder's own, so that a network trained with a frozen encoder is loaded into one
    without this wrapper, and the other way round.

    Args:
        encoder: gives a list of maps.
        frozen: ``"all"``: nothing of the encoder is trained; ``"batch_norm"``: batch norms keep their statistics,
            scales and offsets, the rest is trained; ``"none"``: all is trained, as without this wrapper.
        dtype: of packed maps, ``"float32"`` or ``"float16"``, which halves the memory and rounds.

    Attributes:
        feature_channels: those of the encoder, and so its ``feature_strides``, ``spatial_dims`` and ``in_channels``.
        attention_channels: those of the encoder, 0 where it has none.

    Raises:
        ValueError: an unknown word; an image that has neither the encoder's channels nor those of packed maps; maps
            packed of an encoder that is trained, or too large for float16; packed maps of an encoder whose weights
            are others by now.

    Example:
        >>> import torch
        >>> from monai_wsss.networks import ConvPyramid
        >>> encoder = FrozenEncoder(ConvPyramid.tiny(in_channels=3))
        >>> image = torch.rand(2, 3, 33, 30)
        >>> packed = encoder.pack(image)
        >>> packed.shape
        torch.Size([2, 8, 33, 30])
        >>> all(torch.equal(a, b) for a, b in zip(encoder(packed), encoder(image)))
        True
    """

    def __init__(self, encoder: nn.Module, *, frozen: str = "all", dtype: str = "float32") -> None:
        super().__init__()
        check_choice("frozen", frozen, ("all", "batch_norm", "none"))
        check_choice("dtype", dtype, tuple(_DTYPES))
        self.encoder = encoder
        self.frozen = frozen
        self.packed_dtype = _DTYPES[dtype]
        told = getattr(encoder, "feature_channels", None) is not None or hasattr(encoder, "feature_info")
        self.feature_channels = encoder_channels(encoder) if told else ()
        self.feature_strides = encoder_strides(encoder)
        self.spatial_dims = encoder_dims(encoder)
        self.in_channels = encoder_in_channels(encoder)
        self.attention_channels = int(getattr(encoder, "attention_channels", 0))
        # The shapes of the maps (F, *s) by the size of the images that were packed.
        self._packed: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        # The weights that made them: how often they were written to, and their digest.
        self._changes = 0
        self._checksum = ""
        for part in self._frozen_parts():
            part.eval().requires_grad_(False)
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    @classmethod
    def tiny(cls, spatial_dims: int = 2, in_channels: int = 1) -> "FrozenEncoder":
        """Freeze the batch norms of the tiny :class:`~monai_wsss.networks.ConvPyramid`."""
        return cls(ConvPyramid.tiny(spatial_dims, in_channels), frozen="batch_norm")

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Switch the mode as ``nn.Module`` does, except that frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps of an image (B, C, *S), or those that are packed in a tensor (B, P, *S)."""
        # Packed maps are for training alone: TorchScript leaves this branch out.
        if not torch.jit.is_scripting() and image.shape[1] != self.in_channels:
            return self.unpack(image)
        return self.encoder(image)

    @torch.jit.unused
    def forward_with_queries(
        self, image: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Give the maps of an image, and the queries and keys of the encoder's own attention."""
        return self.encoder.forward_with_queries(image)  # type: ignore[operator]

    @torch.jit.unused
    @torch.no_grad()
    def pack(self, image: torch.Tensor) -> torch.Tensor:
        """Put all maps of images into one tensor of their own size: ``(B, C, *S) -> (B, P, *S)``.

        The image is brought to the encoder's device.  Under float32, :meth:`forward` gives the maps back exactly.
        """
        if self.frozen != "all":
            raise ValueError(
                f"Expected `frozen` 'all' to pack maps, got {self.frozen!r}: those of a trained encoder change."
            )
        first = next(self.encoder.parameters())
        image = plain_tensor(image).to(first)
        if image.shape[1] != self.in_channels:
            raise ValueError(f"Expected an image of {self.in_channels} channels, got {image.shape[1]}.")
        self._check_weights()
        maps = self.encoder(image)
        size = image.shape[2:]
        shapes = self._packed.setdefault(tuple(size), [tuple(each.shape[1:]) for each in maps])
        values = torch.cat([each.flatten(1) for each in maps], dim=1).to(self.packed_dtype)
        if self.packed_dtype == torch.float16 and not bool(values.isfinite().all()):
            raise ValueError(
                "Expected maps in the range of float16, got larger ones: pack them with `dtype` 'float32'."
            )
        missing = self._packed_channels(shapes, size) * math.prod(size) - values.shape[1]
        return F.pad(values, (0, missing)).unflatten(1, (-1, *size))

    @torch.jit.unused
    def unpack(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Give the maps that :meth:`pack` put into a tensor (B, P, *S), in the precision of the encoder's weights."""
        size = packed.shape[2:]
        shapes = self._packed.get(tuple(size), [])
        channels = self._packed_channels(shapes, size)
        if not shapes or packed.shape[1] != channels:
            maps = f", or its packed maps of {channels} channels" if shapes else ""
            raise ValueError(f"Expected an image of {self.in_channels} channels{maps}, got {packed.shape[1]}.")
        self._check_weights()
        counts = [math.prod(shape) for shape in shapes]
        values = plain_tensor(packed).flatten(1)[:, : sum(counts)].to(next(self.encoder.parameters()).dtype)
        return [part.unflatten(1, shape) for part, shape in zip(values.split(counts, dim=1), shapes, strict=True)]

    @torch.jit.unused
    def _check_weights(self) -> None:
        """Refuse packed maps of other weights; values are read only after something has written to the weights."""
        changes = _count_of_changes(self.encoder)
        if changes == self._changes:
            return
        checksum = _checksum(self.encoder)
        if self._packed and checksum != self._checksum:
            raise ValueError(
                "Expected the weights of which maps were packed, got others: fill the encoder first, then make the "
                "dataset of packed maps anew, with a new FrozenEncoder."
            )
        self._changes, self._checksum = changes, checksum

    @torch.jit.unused
    def _packed_channels(self, shapes: Sequence[Sequence[int]], size: Sequence[int]) -> int:
        """Give P: the fewest channels that hold all maps of an image of this size, and not those of an image."""
        channels = -(-sum(math.prod(shape) for shape in shapes) // math.prod(size))
        return channels + (channels == self.in_channels)

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen == "all":
            return [self.encoder]
        return [m for m in self.encoder.modules() if self.frozen == "batch_norm" and isinstance(m, _BatchNorm)]


def _drop_prefix(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Name weights as the encoder does."""
    _rename(state, f"{prefix}encoder.", prefix)


def _add_prefix(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Name weights as this wrapper holds them."""
    _rename(state, prefix, f"{prefix}encoder.")


def _rename(state: dict, old: str, new: str) -> None:
    """Replace the beginning of names; an encoder may have a part ``encoder`` itself, so all leave before any enters."""
    moved = {new + name[len(old) :]: state.pop(name) for name in [name for name in state if name.startswith(old)]}
    state.update(moved)


def _count_of_changes(module: nn.Module) -> int:
    """Give a number that changes whenever something writes to the parameters; it reads no values.

    Distributed training writes the buffers of each step anew, so they do not count.
    """
    return hash(tuple(parameter._version for parameter in module.parameters()))


def _checksum(module: nn.Module) -> str:
    """Give a digest of the values of all weights, the same on every device."""
    digest = sha256()
    for value in (*module.parameters(), *module.buffers()):
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
