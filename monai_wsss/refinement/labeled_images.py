# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A batch as the makers of pseudo-labels read it: images, the intensities along which labels spread, labels, boxes.

The labels are kept on the host, too: so it is known which images and classes need work without waiting for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from monai_wsss._checks import check_label, plain_tensor
from monai_wsss.refinement.spreading import Region, box_regions, outside_regions

__all__ = ["LabeledImages", "strong_view"]


class LabeledImages:
    """Images with their image-level labels.

    Args:
        image: (B, C, *S).
        label: (B, K), 0/1; labels on a GPU are waited for once.
        intensity: (B, C', *S), along which labels spread; None: the images.
        boxes: (B, 2 d) ints, first and last+1 pixel along each axis: pixels outside are padding; None: no pixel is.
        validate_args: False for labels that were checked before.

    Attributes:
        image: as given.
        intensity: as given, or the images.
        label: (B, K), of the images' dtype and device.
        held: (B, K) bool array on the host: the classes that each image holds.
        regions: the boxes as slices, or None.

    Raises:
        ValueError: labels, intensities or boxes that do not fit the images.

    Example:
        >>> images = LabeledImages(torch.rand(3, 1, 8, 8), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        >>> images.with_findings, images.classes.tolist(), len(images.of(images.with_findings))
        ([0, 2], [0], 2)
    """

    def __init__(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        intensity: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        *,
        validate_args: bool = True,
    ) -> None:
        self.image = plain_tensor(image)
        self.intensity = self.image if intensity is None else plain_tensor(intensity)
        if self.intensity.shape[2:] != self.image.shape[2:] or len(self.intensity) != len(self.image):
            raise ValueError(
                f"Expected `intensity` of the images' batch and size {tuple(self.image.shape)}, got "
                f"{tuple(self.intensity.shape)}."
            )
        label = plain_tensor(label)
        if label.ndim != 2:
            raise ValueError(f"Expected `label` of shape (B, K), got {tuple(label.shape)}.")
        if validate_args:
            check_label(label, len(self.image), label.shape[1])
        self.held: np.ndarray = label.detach().float().cpu().numpy() > 0
        self.label = label.to(self.image)
        self.regions: Sequence[Region] | None = None
        if boxes is not None:
            boxes = torch.as_tensor(plain_tensor(boxes))
            self.regions = box_regions(boxes, len(self.image), self.image.shape[2:])

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> LabeledImages:
        """Read ``image``, ``label`` and, where there are any, ``intensity`` and ``boxes`` of a method's batch.

        The labels have been checked where the batch came in, by ``WSSSMethod.forward``.
        """
        return cls(batch["image"], batch["label"], batch.get("intensity"), batch.get("boxes"), validate_args=False)

    def __len__(self) -> int:
        return len(self.image)

    def of(self, chosen: Sequence[int]) -> LabeledImages:
        """Choose images by their place in the batch."""
        if list(chosen) == list(range(len(self))):
            return self
        part = object.__new__(LabeledImages)
        index = self.index(chosen)
        part.image, part.label = self.image[index], self.label[index]
        part.intensity = part.image if self.intensity is self.image else self.intensity[index]
        part.held = self.held[list(chosen)]
        part.regions = None if self.regions is None else [self.regions[place] for place in chosen]
        return part

    def index(self, chosen: Sequence[int]) -> torch.Tensor:
        """Bring places in the batch to the images' device."""
        return torch.tensor(chosen, dtype=torch.long, device=self.image.device)

    @property
    def with_findings(self) -> list[int]:
        """Give the places of the images that hold any class."""
        return np.flatnonzero(self.held.any(1)).tolist()

    @property
    def without_some(self) -> list[int]:
        """Give the places of the images that lack some class."""
        return np.flatnonzero(~self.held.all(1)).tolist()

    @cached_property
    def found(self) -> torch.Tensor:
        """Tell which images hold any class: (B,) bool, on their device."""
        return torch.as_tensor(self.held.any(1), device=self.image.device)

    @cached_property
    def classes(self) -> torch.Tensor:
        """Give the channels (k,) of the classes that some image holds, on the images' device."""
        return self.index(np.flatnonzero(self.held.any(0)).tolist())

    @property
    def label_values(self) -> list[int]:
        """Give the values that pixel labels of these images can have, ascending: 0 and channel + 1."""
        return [0, *(np.flatnonzero(self.held.any(0)) + 1).tolist()]

    @property
    def padding(self) -> torch.Tensor | None:
        """Mark the pixels that are padding, (B, *S) bool; None if no image has any."""
        if self.regions is None:
            return None
        return outside_regions(self.regions, self.image.shape[2:], self.image.device)


def strong_view(batch: Mapping[str, Any]) -> torch.Tensor:
    """Give the strong view of a method's batch, ``strong`` (B, C, *S), or its image where it has none.

    Raises:
        ValueError: a strong view of another shape than the image.
    """
    image, strong = plain_tensor(batch["image"]), plain_tensor(batch.get("strong", batch["image"]))
    if strong.shape != image.shape:
        raise ValueError(
            f"Expected `strong` of the shape of `image`, {tuple(image.shape)}, got {tuple(strong.shape)}: both views "
            "must show the same crop."
        )
    return strong
