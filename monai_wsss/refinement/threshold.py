# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Thresholds that need no masks: Otsu's, percentiles, and what the pixels of training-negative images tell.

An image without class k shows class k nowhere, so each of its pixels is labeled for free. The median of their responses
is the *healthy level* (the network's buffer ``negative_reference``); healthy tissue hardly exceeds a high quantile of
them.
"""

from __future__ import annotations

import torch

from monai_wsss._checks import check_label, check_shape, float32_or_wider

__all__ = ["NegativeResponses", "median_reference", "negative_quantile", "otsu_threshold", "percentile_threshold"]

# Kept per channel, 16 MiB in float32; at the 0.999 quantile still 4000 values lie above.
MAX_VALUES_PER_CHANNEL = 2**22


def otsu_threshold(maps: torch.Tensor) -> torch.Tensor:
    """Compute Otsu's threshold (1979) of each map, exactly: no histogram, so neither bins nor outliers matter.

    It is the split of the sorted pixels into a lower share w and the rest that maximizes the variance between the two,
    w (1 - w) (mean_1 - mean_0)^2. With the strict comparison ``map > threshold`` the upper part is foreground.

    Args:
        maps: (B, K, *S), finite.

    Returns:
        (B, K): the largest value of the lower part; for a constant map its value, so that nothing lies above.

    Raises:
        ValueError: another shape.

    Example:
        >>> otsu_threshold(torch.tensor([[[[0.0, 1.0], [8.0, 9.0]]]]))
        tensor([[1.]])
    """
    check_shape("maps", maps, "(B, K, *S)")
    ordered = float32_or_wider(maps).flatten(2).sort(dim=2).values
    count = ordered.shape[2]
    # With values centered on their mean the two parts have opposite sums s, -s: between-variance = s^2 / (w (1 - w)).
    sums = (ordered - ordered.mean(dim=2, keepdim=True)).cumsum(dim=2, dtype=torch.float64)[..., :-1]
    lower = torch.arange(1, count, device=maps.device, dtype=torch.float64)
    between = sums.square_().div_(lower * (count - lower))
    if count == 1:
        return ordered[..., 0]
    # Equal values cannot be parted: only the last of each run is a candidate.
    between.masked_fill_(ordered[..., 1:] == ordered[..., :-1], -1.0)
    return ordered.gather(2, between.argmax(dim=2, keepdim=True)).squeeze(2)


def percentile_threshold(maps: torch.Tensor, percent: float) -> torch.Tensor:
    """Compute the percentile of each map, linear between neighbors as ``numpy.percentile``, of any number of pixels.

    Args:
        maps: (B, K, *S).
        percent: in [0, 100].

    Returns:
        (B, K).

    Raises:
        ValueError: another shape, or a percentile out of range.

    Example:
        >>> percentile_threshold(torch.tensor([[[[4.0, 1.0], [2.0, 3.0]]]]), 50)
        tensor([[2.5000]])
    """
    check_shape("maps", maps, "(B, K, *S)")
    if not 0.0 <= percent <= 100.0:
        raise ValueError(f"Expected `percent` in [0, 100], got {percent}.")
    pixels = float32_or_wider(maps).flatten(2)
    position = percent / 100 * (pixels.shape[2] - 1)
    below = int(position)
    low, high = (pixels.kthvalue(place, dim=2).values for place in (below + 1, min(below + 2, pixels.shape[2])))
    return low + (position - below) * (high - low)


def negative_quantile(values: torch.Tensor, q: float) -> float:
    """Compute the q-quantile of responses, linear between neighbors as ``numpy.quantile``, of any number of values.

    (``torch.quantile`` refuses more than 2^24 values.)

    Args:
        values: (N,), N >= 1.
        q: in [0, 1].

    Raises:
        ValueError: no values, another shape, or q outside [0, 1].

    Example:
        >>> negative_quantile(torch.tensor([4.0, 1.0, 2.0, 3.0]), 0.5)
        2.5
    """
    check_shape("values", values, "(N)")
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"Expected `q` in [0, 1], got {q}.")
    if values.numel() == 0:
        raise ValueError("Expected at least one value, got none.")
    ordered = float32_or_wider(values).sort().values
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below].item(), ordered[above].item()
    return low + (position - below) * (high - low)


def median_reference(values: torch.Tensor) -> float:
    """Compute the median response of training-negative pixels (N,): the healthy level.

    Example:
        >>> median_reference(torch.tensor([-3.0, -1.0, -2.0]))
        -2.0
    """
    return negative_quantile(values, 0.5)


class NegativeResponses:
    """Collects per class, in bounded memory, the responses of pixels of images that are negative for it.

    At most ``max_values_per_image`` evenly spaced pixels of each image are kept. When a channel exceeds 2^22 values,
    every second one is dropped and later images give half as many, so that early and late images weigh the same.
    Channel c = g K + k of the maps belongs to group g and class k.

    Args:
        num_channels: G * K.
        max_values_per_image: number of pixels that are kept per image and channel.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> responses = NegativeResponses(1)
        >>> responses.update(torch.tensor([[[[1.0, 2.0, 3.0]]], [[[7.0, 8.0, 9.0]]]]), torch.tensor([[0.0], [1.0]]))
        >>> responses.reference()
        tensor([2.])
    """

    def __init__(self, num_channels: int, *, max_values_per_image: int = 4096) -> None:
        if num_channels < 1 or max_values_per_image < 1:
            raise ValueError(
                "Expected `num_channels` and `max_values_per_image` of at least 1, "
                f"got {num_channels} and {max_values_per_image}."
            )
        self.max_values_per_image = max_values_per_image
        #: One list of float32 tensors (on the CPU) per channel; :meth:`merge` takes those of another process.
        self.values: list[list[torch.Tensor]] = [[] for _ in range(num_channels)]
        self._halvings = [0] * num_channels
        self._num_classes = num_channels

    @torch.no_grad()
    def update(self, maps: torch.Tensor, label: torch.Tensor) -> None:
        """Take the negative images of a batch.

        Args:
            maps: raw maps (B, G*K, *S).
            label: (B, K), 0/1.

        Raises:
            ValueError: other shapes, or NaN/Inf in the maps of a negative image.
        """
        check_shape("maps", maps, "(B, G*K, *S)")
        if maps.shape[1] != len(self.values) or label.ndim != 2 or len(self.values) % label.shape[1]:
            raise ValueError(
                f"Expected maps of {len(self.values)} channels = groups x classes and label (B, K), "
                f"got {tuple(maps.shape)} and {tuple(label.shape)}."
            )
        check_label(label, maps.shape[0], label.shape[1])
        self._num_classes = label.shape[1]
        flat = maps.detach().flatten(2)
        for image, channel in (label == 0).repeat(1, maps.shape[1] // label.shape[1]).nonzero().tolist():
            pixels = flat[image, channel]
            count = max(1, min(len(pixels), self.max_values_per_image >> self._halvings[channel]))
            taken = pixels[evenly_spaced(len(pixels), count, pixels.device)].float().cpu()
            if not bool(taken.isfinite().all()):
                raise ValueError(
                    f"Expected finite maps, got NaN or infinity in channel {channel}: the training diverged, "
                    "repeat it with a smaller learning rate."
                )
            self._add(channel, [taken])

    def merge(self, values: list[list[torch.Tensor]]) -> None:
        """Add the :attr:`values` that another process (rank) has collected.

        Raises:
            ValueError: another number of channels.
        """
        if len(values) != len(self.values):
            raise ValueError(f"Expected values of {len(self.values)} channels, got {len(values)}.")
        for channel, tensors in enumerate(values):
            self._add(channel, tensors)

    def reference(self) -> torch.Tensor:
        """Compute the median of each channel (G*K,), float32.

        Raises:
            ValueError: a class without any negative image.
        """
        return torch.tensor([median_reference(self._channel(c)) for c in range(len(self.values))])

    def quantile(self, q: float = 0.999) -> torch.Tensor:
        """Compute the q-quantile of each channel (G*K,), float32; by default one healthy pixel in 1000 lies above.

        Raises:
            ValueError: a class without any negative image; q outside [0, 1].
        """
        return torch.tensor([negative_quantile(self._channel(c), q) for c in range(len(self.values))])

    def _add(self, channel: int, tensors: list[torch.Tensor]) -> None:
        """Hold more values of a channel, and halve what is held where it is too much."""
        held = self.values[channel]
        held.extend(tensors)
        while sum(map(len, held)) > MAX_VALUES_PER_CHANNEL and any(len(tensor) > 1 for tensor in held):
            held[:] = [tensor[::2].clone() for tensor in held]
            self._halvings[channel] += 1

    def _channel(self, channel: int) -> torch.Tensor:
        """Give all values of a channel, or say that it has none."""
        if not self.values[channel]:
            raise ValueError(
                f"No training image is negative for class {channel % self._num_classes} (counted from 0), so its "
                "healthy level is unknown: add images labeled 0 for it, or choose a rule without reference: 'otsu'."
            )
        return torch.cat(self.values[channel])


def evenly_spaced(length: int, count: int, device: torch.device) -> torch.Tensor:
    """Spread ``count`` indices over ``length`` pixels: a constant stride would keep hitting the same image columns."""
    return torch.linspace(0, length - 1, count, dtype=torch.float64, device=device).round().long()
