# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a bundle's configuration may call: a list of what is allowed, so that what nobody thought of is refused.

The list holds rooms, of which all classes and functions may be used, and single names.  Left out are parts that start
programs, import or look things up by name, unpickle, download, or write where they are told to.  Some do so only where
an argument asks for it: such arguments have a list of their own.
"""

from __future__ import annotations

import enum
import inspect
import sys
from typing import Any

import torch

__all__ = ["MEMBERS", "argument_problem", "is_allowed", "told_arguments"]

_ROOMS = {
    "monai.engines": "",
    "monai.inferers": "",
    "monai.losses": "Perceptual",
    "monai.metrics": "",
    "monai.networks.blocks": "",
    "monai.networks.layers": "",
    "monai.networks.nets": "BertPreTrained CellSam EncoderRegister MultiModal TorchVision Transchex pretrained",
    "monai.networks.schedulers": "",
    "monai.optimizers": "LearningRateFinder",
    "monai.transforms": "CuCIM TorchIO TorchVision WriteFileMapping SaveClassification",
    "torch.nn": "",
    "torch.nn.functional": "",
    "torch.nn.parallel": "",
    "torch.optim": "",
    "torch.optim.lr_scheduler": "",
    "torch.utils.data": "",
}
"""Rooms whose classes and functions may be used, and parts of names that may not."""

_OWN = "cams data engines inferers losses methods metrics networks refinement reports transforms"
_OWN_ROOMS = _OWN.split()
"""Rooms of monai_wsss, of which the public names may be used."""

_OWN_EXCLUDED = ("download", "prepare", "remove", "save", "write")
"""Beginnings of the names of functions in them that may not."""

_OWN_WRITERS = ("monai_wsss.reports.write_pseudo_sheet",)
"""Those that may: they write a picture and nothing else."""

_OWN_NAMES = "monai_wsss.methods.coingan_settings.coingan_optimizers"
"""Names of files in these rooms that are not names of the room."""

_NAMES = {
    "monai.data": """
        ArrayDataset CacheDataset DataLoader Dataset DistributedSampler DistributedWeightedRandomSampler
        GridPatchDataset ITKReader IterableDataset MetaTensor NibabelReader NrrdReader PILReader PatchDataset
        PatchIter PatchIterd PydicomReader ShuffleBuffer SmartCacheDataset TestTimeAugmentation
        ThreadDataLoader ZipDataset decollate_batch list_data_collate load_decathlon_datalist no_collation
        pad_list_data_collate partition_dataset partition_dataset_classes select_cross_validation_folds
        set_track_meta
    """,
    "monai.handlers": """
        AveragePrecision CheckpointLoader CheckpointSaver ConfusionMatrix EarlyStopHandler
        GarbageCollector HausdorffDistance IgniteMetricHandler LrScheduleHandler MeanAbsoluteError MeanDice
        MeanIoUHandler MeanSquaredError MetricLogger MetricsSaver PanopticQuality PeakSignalToNoiseRatio PostProcessing
        ProbMapProducer ROCAUC RootMeanSquaredError SmartCacheHandler StatsHandler SurfaceDistance
        TensorBoardImageHandler TensorBoardStatsHandler ValidationHandler from_engine ignore_data stopping_fn_from_loss
        stopping_fn_from_metric
    """,
    "monai.utils": "first set_determinism",
    "torch": """
        abs any all amax amin arange argmax argmin as_tensor cat clamp device exp eye flip full inference_mode linspace
        log logical_and logical_not logical_or manual_seed max mean min no_grad ones sigmoid softmax sqrt squeeze stack
        sum tensor unsqueeze where zeros
    """,
    "torch.cuda": "current_device device_count is_available manual_seed_all",
    "torch.distributed": "get_rank get_world_size is_available is_initialized",
}
"""Single names of other modules."""

_MEMBERS = """
    all any argmax attach build cpu cuda device dtype eval float from_preset get half handlers int item items keys long
    max mean measure min model ndim network network_from_preset networks of pack parameter_groups parameters
    player_parameters requires_grad_ rule run settings shape size state_dict step sum to train type values
"""
MEMBERS = frozenset(_MEMBERS.split())
"""Attributes that an expression may take of what a @reference or a call gives, and class methods that build."""

_READERS = "itkreader nibabelreader nrrdreader pilreader pydicomreader itkwriter nibabelwriter pilwriter"

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "reader": (None, *_READERS.split()),
    "writer": (None, *_READERS.split()),
    "merger_cls": ("avgmerger",),
    "workflow_name": (None, "configworkflow"),
    "allow_pickle": (False,),
    "compile": (False,),
    "pretrained": (None, False),
    "pretrained_url": (None,),
}
"""Arguments of MONAI's parts that name what is imported and called, or ask to unpickle, compile or download, and the
values that are harmless; texts in small letters."""

_DOWNLOADS = ("pretrained", "pretrained_url")
"""Those of them that parts of monai_wsss take, too: they look for installed weights."""


def told_arguments(thing: Any) -> dict[str, Any]:
    """Give the arguments of a class or function that tell it what to import, unpickle, compile or download.

    Returns:
        Their defaults by name.

    Example:
        >>> from monai.transforms import LoadImage
        >>> told_arguments(LoadImage)
        {'reader': None}
    """
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameters[name].default for name in _ARGUMENTS if name in parameters}


def argument_problem(name: str, value: Any, *, own: bool = False) -> str | None:
    """Say why an argument may not have a value that is no dictionary and no list.

    Args:
        name: of the argument.
        value: as the configuration gives it; references and expressions are refused, too.
        own: whether it belongs to a part of monai_wsss.

    Example:
        >>> argument_problem("reader", "PILReader") is None, argument_problem("reader", "os.system") is None
        (True, False)
    """
    harmless = _ARGUMENTS.get(name)
    if harmless is None or (own and name in _DOWNLOADS):
        return None
    if (value.lower() if isinstance(value, str) else value) in harmless:
        return None
    shown = ", ".join("null" if one is None else str(one).lower() for one in harmless)
    return f"tells MONAI by {value!r} what to import, unpickle, compile or download: write one of {shown}, as it stands"


def is_allowed(path: str, thing: Any) -> bool:
    """Tell whether a configuration may use what lies at a path.

    Args:
        path: the full path, such as ``monai.transforms.Compose``.
        thing: what lies there.

    Example:
        >>> is_allowed("torch.optim.Adam", torch.optim.Adam), is_allowed("torch.compile", torch.compile)
        (True, False)
    """
    if isinstance(thing, torch.dtype):
        return True
    room, _, name = path.rpartition(".")
    if _is_own(room, name):
        return True
    if name in MEMBERS and inspect.isclass(_attribute(room)):  # a class method that builds
        owner, _, class_name = room.rpartition(".")
        return _is_own(owner, class_name)
    if name in _NAMES.get(room, "").split():
        return True
    if room == "monai.utils":
        return inspect.isclass(thing) and issubclass(thing, enum.Enum)
    excluded = _ROOMS.get(room)
    if excluded is None or not (inspect.isclass(thing) or room == "torch.nn.functional" or inspect.isfunction(thing)):
        return False
    return not any(part in name for part in excluded.split())


def _is_own(room: str, name: str) -> bool:
    """Tell whether a name is public in a room of monai_wsss, also by the path of its file there."""
    parts = room.split(".")
    if parts[0] != "monai_wsss" or len(parts) not in (2, 3) or parts[1] not in _OWN_ROOMS:
        return False
    public = sys.modules.get(".".join(parts[:2]))
    if name.startswith(_OWN_EXCLUDED) and f"{room}.{name}" not in _OWN_WRITERS:
        return False
    if f"{room}.{name}" in _OWN_NAMES.split():
        return True
    shown = getattr(public, name, None) if name in getattr(public, "__all__", ()) else None
    return shown is not None and shown is _attribute(f"{room}.{name}")


def _attribute(path: str) -> Any:
    """Give what an already imported module holds under the last name of a path, None where there is nothing."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
