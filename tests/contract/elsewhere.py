# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A device that is not the host, without a GPU: tensors of ordinary memory that say they are on ``cpu:1``.

As on a GPU, a tensor there and one of the host cannot be combined, unless the latter is a single number; what is made
for ``cpu:1`` is there; and :func:`elsewhere` lists what was brought back to the host.  Reading single numbers is none
of its business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["ELSEWHERE", "Distant", "elsewhere"]

ELSEWHERE = torch.device("cpu:1")


class Distant(torch.Tensor):
    """A tensor that says it is on :data:`ELSEWHERE`; its values are in ``held``, a tensor of the host."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Distant:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Distant({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Distant:
        return Distant(self.held.clone())

    def tolist(self) -> Any:
        """Read the values, as of a GPU's tensor: that is no detour of the tensor itself."""
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as a GPU's tensor does."""
        raise TypeError(f"can't convert {ELSEWHERE} device type tensor to numpy.")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(function, args, kwargs or {})


def _apply(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values, and put the result where a device would have it."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    distant = any(isinstance(one, Distant) for one in tensors)
    target = kwargs.get("device")
    name = function.overloadpacket.__name__
    if distant and name not in ("_to_copy", "copy_"):
        here = [one for one in tensors if not isinstance(one, Distant) and one.ndim]
        # Indices may come from the host, as torch allows them to.
        if here and name not in ("index", "index_put", "index_put_"):
            raise RuntimeError(f"Expected all tensors on one device, got {ELSEWHERE} and the host in `{function}`.")
    plain_args, plain_kwargs = tree_map_only(Distant, lambda one: one.held, (args, kwargs))
    if target is not None:
        plain_kwargs["device"] = torch.device("cpu")
    result = function(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    there = distant if target is None else torch.device(target) == ELSEWHERE
    if there and isinstance(result, torch.Tensor) and distant and function._schema.is_mutable:
        return next(one for one in tensors if isinstance(one, Distant))
    return tree_map_only(torch.Tensor, Distant, result) if there else result


class _Watch(TorchDispatchMode):
    """Intercept what is made on the device, and note what leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.brought_back: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        distant = any(isinstance(one, Distant) for one in tensors)
        target = kwargs.get("device")
        if not distant and (target is None or torch.device(target) != ELSEWHERE):
            return function(*args, **kwargs)
        result = _apply(function, args, kwargs)
        if distant and isinstance(result, torch.Tensor) and not isinstance(result, Distant):
            self.brought_back.append(tuple(result.shape))
        return result


class _Made(TorchFunctionMode):
    """Make tensors of numbers where they are asked for; torch does so below its dispatcher."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            return function(*args, **kwargs)
        own = function is torch.Tensor.new_tensor and isinstance(args[0], Distant)
        target = kwargs.pop("device", None)
        there = own if target is None else torch.device(target) == ELSEWHERE
        if function is torch.as_tensor and isinstance(args[0], Distant) and (there or target is None):
            return args[0].to(kwargs.get("dtype") or args[0].dtype)
        given, *data = args
        if own:
            kwargs.setdefault("dtype", given.dtype)
        made = torch.tensor(*data, **kwargs) if own else function(given, *data, **kwargs)
        return made.to(ELSEWHERE) if there else made


@contextmanager
def elsewhere() -> Iterator[list[tuple[int, ...]]]:
    """Make :data:`ELSEWHERE` a device; gives the shapes of the tensors that were brought back to the host."""
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `network.to(ELSEWHERE)`
    try:
        with _Made(), _Watch() as watch:
            yield watch.brought_back
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
