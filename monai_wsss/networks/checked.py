# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The base of every public network: what is called with images checks them first."""

from typing import Any

import torch
from torch import nn

from monai_wsss._checks import check_image, other_channels

__all__ = ["CheckedModule"]


class CheckedModule(nn.Module):
    """A module whose first input is images or features (B, C, *S), which are checked when it is called.

    Only sizes and types are looked at, no values.  Compiled, exported and scripted modules leave the check out.

    Raises:
        ValueError: another shape, an empty batch, an axis without pixels, half precision on a CPU, or other channels or
            spatial axes than the module takes.
    """

    def __call__(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the input, then run the module with its hooks."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_tensor(image):
            return super().__call__(image, *args, **kwargs)
        check_image(image)
        try:
            return super().__call__(image, *args, **kwargs)
        except RuntimeError as error:
            if (explained := other_channels(error)) is None:
                raise
            raise explained from error
