# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a network remembers of the images that trained it: the order of their pixels, and how volumes were cut.

The record is two buffers, so that it goes wherever the weights go: into files, copies, other processes, compiled and
exported networks.

| buffer          | values                                                                                          |
|-----------------|-------------------------------------------------------------------------------------------------|
| `reading_order` | 0 not recorded; 1 `xy`: images are (C, x, y); 2 `rows_columns`: images are (C, rows, columns)    |
| `reading_axes`  | of the two axes of a slice and of the axis that slices were cut along: 1 R/L, 2 A/P, 3 S/I,      |
|                 | positive where the index rises toward R, A or S; 0 not recorded                                 |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import load_tensors
from monai_wsss._orientation import SIDES, SLICING_AXES
from monai_wsss._pictures import ROWS_COLUMNS, XY

__all__ = [
    "add_reading_record",
    "check_order",
    "is_reading_record",
    "reading_order",
    "record_reading",
    "recorded_reading",
]

_ORDERS = (XY, ROWS_COLUMNS)  # numbered from 1 on in the buffer
_NAMES = _ORDER, _AXES = ("reading_order", "reading_axes")
_MAY_LACK = (*_NAMES, "filled", "num_batches_tracked")
"""Ends of the names of entries that whole weights of before may lack."""

_LETTERS = {number: side for side, number in SIDES.items()}

_logger = logging.getLogger(__name__)
_last_loading: list[Any] = []
"""The list of errors of the last loading that was told: one loading has one list for all its modules."""


def add_reading_record(network: nn.Module) -> None:
    """Give a deployable network the buffers of the record, empty; call it in the constructor.

    Weights without the record load strictly: the record is then empty, and one sentence in the log says what follows.

    Args:
        network: the module.

    Example:
        >>> network = nn.Conv2d(1, 1, 1)
        >>> add_reading_record(network)
        >>> list(network.state_dict())
        ['weight', 'bias', 'reading_order', 'reading_axes']
    """
    network.register_buffer(_ORDER, torch.zeros((), dtype=torch.int64))
    network.register_buffer(_AXES, torch.zeros(3, dtype=torch.int64))
    network.register_load_state_dict_pre_hook(_complete_before_loading)


def record_reading(network: nn.Module, header: Mapping[str, Any]) -> None:
    """Fill the record of a network, and of all networks inside it, from the header of the data that train it.

    A module without the buffers of the record, such as a network of MONAI, stays as it is.  Where no network has them,
    the log says that its weights will be taken for ones of ``xy``, if the data are of another order.

    Args:
        network: the network, or a method with all its networks.
        header: as :func:`~monai_wsss.data.load_header` gives it; its entries ``order``, ``slicing_axis`` and
            ``in_plane_axes`` count.  Data without ``order`` are read as ``xy``.

    Raises:
        ValueError: an unknown order or axis.

    Example:
        >>> from monai_wsss.networks import CAMEncoder
        >>> network = CAMEncoder()
        >>> record_reading(network, {"order": "xy", "slicing_axis": "SI", "in_plane_axes": "LP"})
        >>> recorded_reading(network)
        {'order': 'xy', 'slicing_axis': 'SI', 'in_plane_axes': 'LP'}
    """
    order = header.get("order") or XY
    check_choice("order", order, _ORDERS)
    axes = _axes_as_numbers(header.get("slicing_axis"), header.get("in_plane_axes"))
    if order != XY and not any(is_reading_record(name) for name, _ in network.named_buffers()):
        _logger.warning(
            "%s cannot record that its images are read in the order %s, and its weights will be taken for ones of "
            "images in the order %s: call add_reading_record in the constructor of the network.",
            type(network).__name__,
            order,
            XY,
        )
    with torch.no_grad():
        for module in network.modules():
            buffers = dict(module.named_buffers(recurse=False))
            if _ORDER in buffers and _AXES in buffers:
                buffers[_ORDER].fill_(1 + _ORDERS.index(order))
                buffers[_AXES].copy_(torch.tensor(axes))


def recorded_reading(network: Any) -> dict[str, str | None]:
    """Read the record of a network, also of a compiled, exported or distributed one.

    Args:
        network: any callable; what is no module has no record.

    Returns:
        ``order``, ``slicing_axis`` and ``in_plane_axes``, each None where it is not recorded.

    Example:
        >>> recorded_reading(nn.Conv2d(1, 1, 1))
        {'order': None, 'slicing_axis': None, 'in_plane_axes': None}
    """
    return _as_words(dict(network.named_buffers()) if isinstance(network, nn.Module) else {})


def reading_order(weights: nn.Module | str | os.PathLike[str] | None, header: Mapping[str, Any] | None = None) -> str:
    """Tell in which order a network has to get the pixels of pictures: ``xy`` or ``rows_columns``.

    The weights decide, whatever the data say: a network sees images as those that trained it.

    Args:
        weights: the network, or the file of its weights; weights without a record are read as ``xy``.  None: nothing
            is trained yet, so the data decide.
        header: of the data, as :func:`~monai_wsss.data.load_header` gives it; its entry ``order`` counts, and without
            one ``xy``.

    Raises:
        DataError: the file is absent or damaged.
        ValueError: the header has an unknown order.

    Example:
        >>> header = {"order": "rows_columns"}
        >>> reading_order(None, header), reading_order(nn.Conv2d(1, 1, 1), header)
        ('rows_columns', 'xy')
    """
    if weights is None:
        order = (header or {}).get("order") or XY
        check_choice("order", order, _ORDERS)
        return str(order)
    state = dict(weights.named_buffers()) if isinstance(weights, nn.Module) else _flat(load_tensors(weights))
    return _as_words(state)["order"] or XY


def check_order(network: nn.Module, header: Mapping[str, Any], checkpoint: str | os.PathLike[str]) -> None:
    """Check that data have the order with which a training began; a network without a record passes.

    Args:
        network: the network, or a method with all its networks, with the weights of the checkpoint.
        header: of the data with which the training goes on.
        checkpoint: the file, for the message.

    Raises:
        DataError: another order.
    """
    began, now = recorded_reading(network)["order"], header.get("order") or XY
    if began not in (None, now):
        raise DataError(
            f"{checkpoint} is of a training on images in the order {began}, but the data now say {now}: go on with "
            "the same data, or begin anew."
        )


def is_reading_record(name: str) -> bool:
    """Tell whether an entry of a state dict belongs to the record."""
    return name.rpartition(".")[2] in _NAMES


def _as_words(state: Mapping[str, Any]) -> dict[str, str | None]:
    """Give the outermost record in a state dict as words."""
    order, axes = (_outermost(state, name) for name in (_ORDER, _AXES))
    x, y, along = [0, 0, 0] if axes is None else axes.tolist()
    known = 0 if order is None else int(order)
    return {
        "order": _ORDERS[known - 1] if known else None,
        "slicing_axis": SLICING_AXES[abs(along) - 1] if along else None,
        "in_plane_axes": _LETTERS[x] + _LETTERS[y] if x and y else None,
    }


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Give the entries of a state dict, or of those inside a checkpoint, such as MONAI's ``{"model": ...}``."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _outermost(state: Mapping[str, Any], name: str) -> torch.Tensor | None:
    found = [path for path in state if path.rpartition(".")[2] == name]
    return state[min(found, key=lambda path: path.count("."))] if found else None


def _axes_as_numbers(slicing_axis: str | None, in_plane_axes: str | None) -> list[int]:
    """Give the values of the buffer ``reading_axes``."""
    if slicing_axis is None:
        return [0, 0, 0]
    check_choice("slicing_axis", slicing_axis, SLICING_AXES)
    along = SIDES[slicing_axis[0]]
    in_plane = [SIDES.get(side, 0) for side in in_plane_axes or "??"]
    if in_plane_axes is not None and sorted(map(abs, [*in_plane, along])) != [1, 2, 3]:
        raise ValueError(
            f"Expected `in_plane_axes` to be two of R, L, A, P, S, I across {slicing_axis}, got {in_plane_axes!r}."
        )
    return [*in_plane, along]


def _complete_before_loading(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Add an empty record to weights without one, and say once per loading what an empty record means."""
    _whole_numbers(state, prefix)
    if any(prefix + name not in state for name in module.state_dict() if not name.endswith(_MAY_LACK)):
        # Not the weights of this network but those of a part, such as an encoder: the record stays.
        state |= {prefix + name: getattr(module, name).clone() for name in _NAMES if prefix + name not in state}
        return
    for name in _NAMES:
        state.setdefault(prefix + name, torch.zeros_like(getattr(module, name)))
    if bool(state[prefix + _ORDER]) or (_last_loading and _last_loading[0] is errors):
        return
    _last_loading[:] = [errors]
    _logger.warning(
        "These weights do not record how their images were read: pictures are read in the old order, [x, y], and "
        "volumes are cut along their last array axis."
    )


def _whole_numbers(state: dict[str, Any], prefix: str) -> None:
    """Take the record in a mean over the weights of several sites, which are fractions where the sites differ.

    Axes that differ are not recorded.

    Raises:
        DataError: the sites read pictures in different orders.
    """
    for name in _NAMES:
        stored = state.get(prefix + name)
        if stored is None or not stored.is_floating_point():
            continue
        whole = stored.round()
        if bool(((stored - whole).abs() > 1e-3).any()):
            if name == _ORDER:
                raise DataError(
                    "These weights are a mean over networks whose pictures were read in different orders of their "
                    "axes: prepare the data of all sites in one order."
                )
            whole = torch.zeros_like(stored)
        state[prefix + name] = whole.to(torch.int64)
