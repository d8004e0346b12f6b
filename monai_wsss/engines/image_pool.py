# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A pool of images that a generator made earlier, from which its discriminator learns, too (Shrivastava et al. 2017).

A discriminator that sees the latest images alone forgets the faults that the generator had before.  CycleGAN's pool
takes the images of a step one by one:

- while it is not full, it keeps the image and gives it back;
- then it either gives the image back, or an older one in its place, and keeps the new one.

The images of all processes go through one pool, in the order in which a single process would have them.  Whether and
with which one an image is exchanged depends on the seed and on the number of images before it.  So two processes agree
with one, and a resumed run with an uninterrupted one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from monai_wsss._checks import check_shape
from monai_wsss._processes import gather_tensors, is_distributed

__all__ = ["ImagePool"]


class ImagePool(nn.Module):
    """Keep earlier images and exchange new ones with them.

    Args:
        size: images that are kept; 0: none, every image is given back.
        share: share of the images that are exchanged once the pool is full, in [0, 1].
        seed: seed of all decisions.
        over_processes: whether the processes have one pool together; each then gives the same number of images.  Else
            each process has one of its own, and a checkpoint holds that of the first.

    Attributes:
        seen: the number of images that went through the pool, kept in checkpoints, as are the images.

    Raises:
        ValueError: a negative size, or a share outside [0, 1].

    Example:
        >>> pool = ImagePool(size=2, share=1.0)
        >>> given = [pool(torch.full((1, 1, 2, 2), float(number))) for number in range(4)]
        >>> [int(image.mean()) for image in given], pool.images.mean((1, 2, 3)).tolist()
        ([0, 1, 0, 1], [2.0, 3.0])
    """

    seen: torch.Tensor

    def __init__(self, size: int = 50, *, share: float = 0.5, seed: int = 0, over_processes: bool = True) -> None:
        super().__init__()
        if size < 0 or not 0 <= share <= 1:
            raise ValueError(f"Expected `size` >= 0 and `share` in [0, 1], got {size} and {share}.")
        self.size = size
        self.share = float(share)
        self.seed = seed
        self.over_processes = over_processes
        #: The images (n, C, *S), n at most ``size``; not a buffer, since their shape is known with the first ones.
        self.images = torch.empty(0)
        self.register_buffer("seen", torch.tensor(0, dtype=torch.int64))
        self._seen = 0  # on the host, so that no step waits for a GPU
        self.register_load_state_dict_post_hook(_read_seen)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give (N, C, *S) images, some of them earlier ones, for those of a training step, without gradient."""
        check_shape("images", images, "(N, C, *S)")
        if self.size == 0:
            return images.detach()
        processes = dist.get_world_size() if self.over_processes and is_distributed() else 1
        if processes > 1:
            # From rank by rank to the order of one process, whose images the ranks take in turn.
            images = gather_tensors(images).unflatten(0, (processes, -1)).transpose(0, 1).flatten(0, 1)
        given = self._exchange(images.detach())
        return given[dist.get_rank() :: processes] if processes > 1 else given

    def _exchange(self, images: torch.Tensor) -> torch.Tensor:
        """Put images into the pool one by one, and give what comes out of it."""
        kept = list(self.images.to(images))
        given = []
        for image in images:
            draw = np.random.default_rng((self.seed, self._seen))
            self._seen += 1
            if len(kept) < self.size:
                kept.append(image)
            elif draw.random() < self.share:
                place = int(draw.integers(self.size))
                kept[place], image = image, kept[place]
            given.append(image)
        self.images = torch.stack(kept)
        self.seen.fill_(self._seen)
        return torch.stack(given)

    def get_extra_state(self) -> torch.Tensor:
        """Give the images for a checkpoint."""
        return self.images

    def set_extra_state(self, state: Any) -> None:
        """Take the images of a checkpoint."""
        self.images = state.clone()


def _read_seen(pool: ImagePool, *_: Any) -> None:
    pool._seen = int(pool.seen)
