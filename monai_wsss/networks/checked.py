# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The base of every public network and part: its images or features are checked when it is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import check_sizes, checked_once, parts_are_trusted
from monai_wsss._doors import explained

__all__ = ["CheckedModule"]


class CheckedModule(nn.Module):
    """A module that checks its first input when it is called: images or features (B, C, *S), or a list of them.

    Sizes alone are looked at, no values.  Other inputs are left to the module.  A module that runs as a part of another
    checked one, or in a step of a method, trusts its input.  Compiled, exported and scripted modules leave the check
    out.

    Raises:
        ValueError: another shape, an empty batch, an axis without pixels, or other channels, spatial axes or another
            type than the module takes, such as half precision for weights in float32.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the input, then run the module with its hooks."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or parts_are_trusted():
            return super().__call__(*args, **kwargs)
        name = _name_of_input(type(self).forward)
        given = args[0] if args else kwargs.get(name)
        for image in given if isinstance(given, (list, tuple)) else [given]:
            if torch.is_tensor(image):
                check_sizes(name, image)
        try:
            with checked_once(name):
                return super().__call__(*args, **kwargs)
        except Exception as error:
            forward, own = type(self).forward, type(self).__name__
            if (said := explained(error, forward, (self, *args), kwargs, name=own)) is None:
                raise
            raise said from error


@functools.cache
def _name_of_input(forward: Callable[..., Any]) -> str:
    """Give the name of the first argument after self."""
    return list(inspect.signature(forward).parameters)[1]
