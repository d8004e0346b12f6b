# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Loading of a user's weights into a network, entry by entry, with a report of what did not fit.

| an entry of the network or the file                       | in the report |
|-----------------------------------------------------------|---------------|
| both have it, in one shape: it is taken                   | `loaded`      |
| the network has it, the file lacks it: it keeps its value | `missing`     |
| both have it, in two shapes: it keeps its value           | `misshapen`   |
| the file has it, the network lacks it                     | `unexpected`  |

Nothing is downloaded: public checkpoints, such as ImageNet's, come with licenses that the user has to accept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.networks.reading_record import is_reading_record

__all__ = ["WeightReport", "check_same_encoder", "load_pretrained", "read_weights", "spread_rgb_filters"]

logger = logging.getLogger(__name__)

# A file that fills less than this share of a network's values is taken for the wrong file.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class WeightReport:
    """The names of entries by what :func:`load_pretrained` did with them.

    Attributes:
        loaded: entries of the network that were taken from the file.
        missing: entries of the network that the file lacks.
        unexpected: entries of the file, after renaming, that the network lacks.
        misshapen: entries that have another shape in the file.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Name the entries of the network that kept their values."""
        return self.misshapen + self.missing


def load_pretrained(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> WeightReport:
    """Fill a network from a file: take what agrees in name and shape, and name all else in a warning.

    Args:
        network: the network to fill; the file may lack step counters of batch norms (``num_batches_tracked``), as
            checkpoints converted from MXNet do.
        path: a state dict as ``torch.save`` writes it, or ``.safetensors`` where that package is installed; it may lie
            below ``"state_dict"`` or ``"model"``, and its names may begin with ``module.``.
        rename: beginnings of the file's names and their replacements, e.g. ``{"backbone.": ""}``; where several fit,
            the longest counts.
        skip: beginnings of the file's names, before renaming, that are left out and not reported, e.g. ``["fc."]``.
        convert: a function of the file's entries that runs before ``rename`` and ``skip``, for changes that need more
            than names, e.g. to join entries.

    Returns:
        The names by what was done with them; one warning is logged if something did not fit.

    Raises:
        DataError: the file is absent or unreadable, or fills less than a tenth of the network's values; the network
            then stays as it is.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "old.pt"
        >>> torch.save({"backbone.weight": torch.ones(2, 3), "fc.bias": torch.zeros(9)}, path)
        >>> network = nn.Linear(3, 2)
        >>> load_pretrained(network, path, rename={"backbone.": ""}, skip=["fc."])
        WeightReport(loaded=('weight',), missing=('bias',), unexpected=(), misshapen=())
    """
    stored = read_weights(path)
    stored = _renamed(stored if convert is None else convert(stored), rename or {}, tuple(skip))
    # Step counters fit any network and say nothing, and older files lack them.
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    fitting = {name: stored[name] for name in own if name in stored and stored[name].shape == own[name].shape}
    report = WeightReport(
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in stored and not is_reading_record(name)),
        unexpected=tuple(n for n in stored if n not in own and not n.endswith("num_batches_tracked")),
        misshapen=tuple(name for name in own if name in stored and name not in fitting),
    )
    filled = sum(value.numel() for value in fitting.values())
    if filled < _LEAST_SHARE * sum(value.numel() for value in own.values()) or not fitting:
        raise DataError(_mismatch(path, own, stored, fitting))
    network.load_state_dict(fitting, strict=False)
    if report.unfilled or report.unexpected:
        logger.warning("%s.", _summary(path, report, own, stored))
    return report


def load_converted(
    network: nn.Module,
    path: str | os.PathLike[str],
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    *,
    kind: type[nn.Module],
    settings: str,
    strict: bool,
) -> WeightReport:
    """Fill an encoder from a public checkpoint whose entries have other names.

    Args:
        network: the encoder.
        path: see :func:`load_pretrained`.
        convert: (entries of the file) to entries with the names of the network.
        kind: what the encoder has to be.
        settings: of the network that the file decides, for messages.
        strict: refuse a file whose encoder differs from the network in any entry.

    Raises:
        TypeError: another network.
        DataError: see :func:`load_pretrained` and :func:`check_same_encoder`.
    """
    if not isinstance(network, kind):
        raise TypeError(
            f"Expected `network` to be a {kind.__name__}, got {type(network).__name__}: of a whole network give its "
            "`encoder`."
        )

    def checked(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converted = convert(stored)
        if strict:
            check_same_encoder(network.state_dict(), converted, path, settings)
        return converted

    return load_pretrained(network, path, convert=checked)


def check_same_encoder(
    own: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor], path: str | os.PathLike[str], settings: str
) -> None:
    """Check that a network and a file with its names have the same entries in the same shapes.

    Args:
        own: entries of the network.
        stored: entries of the file; none of them passes, since ``load_pretrained`` says more of such a file.
        path: of the file, for the message.
        settings: of the network that the file decides, for the message.

    Raises:
        DataError: they differ.
    """
    misshapen = [name for name in own if name in stored and own[name].shape != stored[name].shape]
    shapes = [f"{n} {tuple(stored[n].shape)} for {tuple(own[n].shape)}" for n in misshapen]
    parts = [
        f"{words} {len(names)} entries, such as {names[0]}"
        for words, names in (
            ("lacks", [name for name in own if name not in stored]),
            ("has in another shape", shapes),
            ("holds besides", [name for name in stored if name not in own]),
        )
        if names
    ]
    if parts and stored:
        raise DataError(
            f"Expected the encoder in {path} to be the network's, but it {'; '.join(parts)}: build the network with "
            f"the file's {settings}, or take what fits with `strict=False`."
        )


def spread_rgb_filters(filters: torch.Tensor, in_channels: int) -> torch.Tensor:
    """Turn filters for RGB ``(F, 3, *k)`` into filters for C channels, ``(F, C, *k)``; leave other filters.

    Each channel gets the mean of the three filters times 3 / C, so that an image of C equal channels gives what the RGB
    filters give for three of them.

    Example:
        >>> spread_rgb_filters(torch.ones(8, 3, 7, 7), 2).unique()
        tensor([1.5000])
    """
    if filters.shape[1] != 3 or in_channels == 3:
        return filters
    return (filters.mean(1, keepdim=True) * (3 / in_channels)).repeat_interleave(in_channels, dim=1)


def _renamed(stored: dict[str, torch.Tensor], rename: Mapping[str, str], skip: tuple[str, ...]) -> dict[str, Any]:
    """Give the entries that are not skipped, under their new names."""
    result: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        if name.startswith(skip):
            continue
        old = max((prefix for prefix in rename if name.startswith(prefix)), key=len, default=None)
        new = name if old is None else rename[old] + name[len(old) :]
        if new in result:
            raise DataError(f"`rename` gives two entries of the file the name {new!r}: leave one out with `skip`.")
        result[new] = value
    return result


def _mismatch(
    path: str | os.PathLike[str],
    own: dict[str, torch.Tensor],
    stored: dict[str, torch.Tensor],
    fitting: dict[str, torch.Tensor],
) -> str:
    """Write one sentence on a file of another network, with an example of both sides."""
    head = f"Nothing in {path} fits the network"
    if fitting:
        head = f"{path} fills only {len(fitting)} of {len(own)} entries of the network"
    wanted = next((name for name in own if name not in fitting and own[name].ndim > 1), next(iter(own), ""))
    offered = wanted if wanted in stored else next((name for name in stored if name not in fitting), None)
    expected = f"{wanted!r} of shape {tuple(own[wanted].shape)}" if own else "none"
    got = "holds no tensors" if offered is None else f"holds {offered!r} of shape {tuple(stored[offered].shape)}"
    return (
        f"{head}, which expects names such as {expected}, while the file {got}: "
        "give weights of the same architecture and size, or map the beginnings of their names with `rename`."
    )


def _summary(
    path: str | os.PathLike[str], report: WeightReport, own: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]
) -> str:
    """Write one sentence on what did not fit."""
    shapes = [f"{n} {tuple(stored[n].shape)} for {tuple(own[n].shape)}" for n in report.misshapen]
    parts = [
        f"{words} {_listed(names)}"
        for words, names in (
            (f"left {len(report.missing)} entries of the network unfilled:", report.missing),
            (f"has {len(shapes)} of another shape:", shapes),
            (f"holds {len(report.unexpected)} that the network lacks:", report.unexpected),
        )
        if names
    ]
    return f"{path} filled {len(report.loaded)} entries and " + "; ".join(parts)


def _listed(names: Sequence[str], most: int = 10) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the tensors of a state dict by their names, whatever wraps it; see :func:`load_pretrained`."""
    load: Callable[[Any], Any] = partial(torch.load, map_location="cpu", weights_only=True)
    if Path(path).suffix == ".params":
        raise DataError(f"{path} is a file of MXNet: give its conversion to a torch state dict.")
    if Path(path).suffix == ".safetensors":
        load, installed = optional_import("safetensors.torch", name="load_file")
        if not installed:
            raise DataError(f"Reading {path} needs the package safetensors: install it, or give a torch file.")
    try:
        content = load(path)
    except FileNotFoundError as error:
        raise DataError(f"No weights at {path}: check the path.") from error
    except Exception as error:  # damaged file, foreign pickle: both readers raise many types
        raise DataError(f"Cannot read {path} as tensors: it is damaged or no state dict; use another file.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    entries = content.items() if isinstance(content, Mapping) else ()
    return {str(name).removeprefix("module."): value for name, value in entries if torch.is_tensor(value)}
