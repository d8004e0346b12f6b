# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checks at the boundary: tensor shapes, said and checked in the same words, and errors that help.

Every mistake that a user can make raises :class:`DataError` (data, files, labels) or ``ValueError`` (arguments) with
one sentence: what is wrong, with which file or argument, and what to do.  The command line prints only that sentence.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import re
import threading
from collections.abc import Iterator, Sequence

import torch
from monai.data.meta_tensor import MetaTensor

__all__ = [
    "DataError",
    "as_flag",
    "check_choice",
    "check_device",
    "check_ignore_index",
    "check_image",
    "check_label",
    "check_label_map",
    "check_seed",
    "check_seeds",
    "check_shape",
    "check_side",
    "check_sizes",
    "checked_once",
    "float32_or_wider",
    "misfit",
    "parts_are_trusted",
    "plain_tensor",
]


class DataError(ValueError):
    """A mistake in the user's files or labels, said in one sentence with its remedy."""


def check_shape(name: str, tensor: torch.Tensor, shape: str) -> None:
    """Check the number of dimensions of ``tensor`` against ``shape``, in the notation of the docstrings.

    Args:
        name: the argument's name, for the message.
        tensor: what the caller gave.
        shape: e.g. ``"(B, K, *S)"``; ``*S`` stands for two or three spatial dimensions, digits are exact sizes.

    Raises:
        ValueError: the shape differs.

    Example:
        >>> import torch
        >>> check_shape("image", torch.zeros(2, 3, 8, 8), "(B, C, *S)")
    """
    axes = [axis.strip() for axis in shape.strip("()").split(",") if axis.strip()]
    fixed = [axis for axis in axes if axis != "*S"]
    allowed = {len(fixed) + 2, len(fixed) + 3} if "*S" in axes else {len(fixed)}
    exact = all(int(axis) == size for axis, size in zip(axes, tensor.shape, strict=False) if axis.isdigit())
    if tensor.ndim not in allowed or not exact:
        raise ValueError(f"Expected `{name}` of shape {shape}, got {tuple(tensor.shape)}.")


def check_image(image: torch.Tensor) -> None:
    """Check a batch of images at the door of a method or an inferer, in the words of whoever prepares data.

    Args:
        image: the images, (B, C, *S).

    Raises:
        ValueError: another shape, an empty batch, an axis without pixels, or half precision on a CPU.

    Example:
        >>> import torch
        >>> check_image(torch.zeros(2, 3, 8, 8))
    """
    check_sizes("image", image)
    if image.dtype == torch.float16 and image.device.type == "cpu":
        raise ValueError("Expected `image` of float32 on a CPU, got float16: convert it, or use bfloat16 or a GPU.")


def check_sizes(name: str, image: torch.Tensor) -> None:
    """Check that a batch of images or features is (B, C, *S) and that no axis is empty.

    Raises:
        ValueError: another shape, an empty batch, or an axis without pixels.

    Example:
        >>> check_sizes("features", torch.zeros(2, 3, 8, 8))
    """
    size = tuple(image.shape)
    if size[0:1] == (0,):
        raise ValueError(f"Expected `{name}` of at least one image, got an empty batch {size}: leave it out.")
    if 0 in size:
        raise ValueError(f"Expected `{name}` with pixels along each axis, got {size}: look at the file it came from.")
    check_shape(name, image, "(B, C, *S)")


_OTHER_AXES = "choose other images or build the network for them (`spatial_dims`)."
_OTHER_TYPES = "of the type of the network's weights, got {0} and {1}: convert one of them, or use autocast."
_MISFITS = {
    r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels": "of {0} channels, got {1}: choose other "
    "images (`modalities`) or build the network for them (`in_channels`).",
    r"input to conv(\d)d, but got input of size: (\[.*?\])": "of {0} spatial axes after batch and channels, got {1}: "
    + _OTHER_AXES,
    r"required rank (\d) tensor to use channels_last": "of {0} axes in all, got others: " + _OTHER_AXES,
    r"Padding size \d is not supported for (\d)D input": "of the network's spatial axes, got {0} axes in all: "
    + _OTHER_AXES,
    r"Input type \((\S+)\) and \w+ type \((\S+)\)": _OTHER_TYPES,
    r"same dtype, but got (?:c10::)?(\w+) (?:and|!=) (?:c10::)?(\w+)": _OTHER_TYPES,
    r"expected scalar type (\w+) but found (\w+)": _OTHER_TYPES,
    r"not implemented for '(Half)'": "of float32 on a CPU, got {0}: convert it, or use bfloat16 or a GPU.",
}
"""What torch complains of when images do not fit a network, and how an error says it."""


def misfit(error: RuntimeError, name: str = "image") -> ValueError | None:
    """Explain torch's complaint that a network takes other channels, spatial axes or types; None for other errors.

    Args:
        error: what torch raised.
        name: the argument that does not fit, for the message.

    Example:
        >>> print(misfit(RuntimeError("out of memory")))
        None
    """
    for pattern, words in _MISFITS.items():
        if found := re.search(pattern, str(error)):
            return ValueError(f"Expected `{name}` {words.format(*found.groups())}")
    return None


_running = threading.local()
"""Whether something that has checked its input runs in this thread."""


def parts_are_trusted() -> bool:
    """Tell whether what runs in this thread has checked its input, so that its parts need not."""
    return getattr(_running, "checked", False)


@contextlib.contextmanager
def checked_once(name: str = "image") -> Iterator[None]:
    """Let parts trust their input, which has been checked, and explain what torch says of it by :func:`misfit`.

    Args:
        name: the argument that was checked, for the message.

    Raises:
        ValueError: an input that does not fit, which only torch noticed.

    Example:
        >>> with checked_once():
        ...     parts_are_trusted()
        True
    """
    outermost = not parts_are_trusted()
    _running.checked = True
    try:
        yield
    except RuntimeError as error:
        if not outermost or (explained := misfit(error, name)) is None:
            raise
        raise explained from error
    finally:
        _running.checked = not outermost


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)}, got {value!r}.")


def check_seed(seed: int) -> None:
    """Check that a seed is a whole number that NumPy takes.

    Raises:
        ValueError: a negative number, a fraction, or no number.

    Example:
        >>> check_seed(0)
    """
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"Expected `seed` to be a whole number from 0 up, got {seed!r}.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Check the seeds of a table: whole numbers that MONAI tells apart, no seed twice: it would count as two trainings.

    Raises:
        ValueError: none, a negative number, one of 2**32 or more, a fraction, no number, or one twice.

    Example:
        >>> check_seeds([0, 1, 2])
    """
    # MONAI takes seeds modulo 2**32.
    whole = all(isinstance(seed, numbers.Integral) and not isinstance(seed, bool) for seed in seeds)
    if not (seeds and whole and all(0 <= seed < 2**32 for seed in seeds) and len(set(seeds)) == len(seeds)):
        raise ValueError(f"Expected `seeds` to be whole numbers from 0 to 2**32 - 1, each once, got {list(seeds)}.")


def check_side(side: int | None) -> None:
    """Check the side of slices and patches in pixels, where one is given.

    Raises:
        ValueError: less than a pixel.

    Example:
        >>> check_side(64), check_side(None)
        (None, None)
    """
    if side is not None and side < 1:
        raise ValueError(f"Expected `side` of at least 1 pixel, got {side}.")


def as_flag(name: str, value: bool | str) -> bool:
    """Read a flag, which a bundle's command line may hand over as ``"true"`` or ``"false"``.

    Raises:
        ValueError: anything else.

    Example:
        >>> as_flag("resume", "true"), as_flag("resume", False)
        (True, False)
    """
    flags = {"true": True, "false": False}
    if str(value).lower() not in flags:
        raise ValueError(f"Expected `{name}` to be true or false, got {value!r}.")
    return flags[str(value).lower()]


def check_label(label: torch.Tensor, batch_size: int, num_classes: int) -> None:
    """Check image-level labels: ``(B, K)``, multi-hot, every value 0 or 1.

    The values of labels on the CPU are looked at by NumPy, so that nothing waits; those on a GPU are waited for.

    Raises:
        ValueError: another shape, or a value other than 0 and 1.
    """
    if label.shape != (batch_size, num_classes):
        raise ValueError(
            f"Expected `label` of shape (B, K) = {(batch_size, num_classes)}, got {tuple(label.shape)}: "
            "one 0/1 entry for each foreground class of the network (`num_classes`)."
        )
    values = plain_tensor(label.detach()).float().cpu().numpy()
    if not ((values == 0) | (values == 1)).all():
        raise ValueError(f"Expected `label` to hold 0 and 1 only, got values up to {values.max():g}.")


def check_device(device: str | None) -> None:
    """Check that a device is there.

    Raises:
        DataError: it is not, or its name is none.
    """
    try:
        torch.zeros(1, device=device or "cpu")
    except Exception as error:  # torch raises many kinds
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise DataError(f"Expected `device` to be one of {', '.join(there)}, got {device!r}.") from error


def check_ignore_index(ignore_index: int, num_classes: int) -> None:
    """Raise ``ValueError`` if ``ignore_index`` is one of the labels 0..K of a pixel, K being ``num_classes``."""
    if 0 <= ignore_index <= num_classes:
        raise ValueError(
            f"Expected `ignore_index` to be no class, got {ignore_index} with classes 0..{num_classes}: "
            "choose another, e.g. -1."
        )


def check_label_map(label: torch.Tensor, name: str, maps: torch.Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Check the labels of pixels: ``(B, *S)`` beside maps ``(B, C, *S)``, every value 0..K or ``ignore_index``.

    Args:
        label: of any dtype; a wrong value would train as a class, or fail far from its cause.
        name: the name of the maps, for the message.
        maps: the maps that the label supervises.
        num_classes: K, the foreground classes.
        ignore_index: the label without a class, itself none of 0..K.

    Raises:
        ValueError: another size, another value, or an ``ignore_index`` that is a class.

    Example:
        >>> import torch
        >>> label = torch.tensor([[[0, 1, 255]]])
        >>> check_label_map(label, "logits", torch.zeros(1, 2, 1, 3), num_classes=1, ignore_index=255)
    """
    expected = (len(maps), *maps.shape[2:])
    if label.shape != expected:
        raise ValueError(
            f"Expected `label` of shape (B, *S) = {expected}, got {tuple(label.shape)}: bring {name} and labels to "
            "one size."
        )
    check_ignore_index(ignore_index, num_classes)
    if label.numel() == 0:
        return
    classes = label.masked_fill(label == ignore_index, 0)
    if classes.is_floating_point():
        # A fraction is no class; as NaN it shows in both extremes.
        classes = classes.where(classes == classes.round(), torch.nan)
    # The two extremes are read at once: a GPU is waited for this one time.
    low, high = torch.stack(classes.aminmax()).tolist()
    if not 0 <= low <= high <= num_classes:
        raise ValueError(
            f"Expected `label` to hold classes 0..{num_classes} and `ignore_index` {ignore_index} only, got "
            + ("fractions or NaN." if math.isnan(low) else f"values from {low:g} to {high:g}.")
        )


def float32_or_wider(tensor: torch.Tensor) -> torch.Tensor:
    """Widen half-precision tensors to float32: exps, norms and comparisons must not run in fp16; keep others."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Strip a MONAI ``MetaTensor`` of its metadata, which slow every operation down; keep other tensors."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
