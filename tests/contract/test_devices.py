# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Transforms, inferers and methods leave tensors on their device, by inventory: a new one that does not fails here.

All run on a device that only says it is one (``elsewhere.py``), and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from elsewhere import ELSEWHERE, Distant, elsewhere
from monai.data import DataLoader, set_track_meta
from monai.transforms import Compose, Lambdad, RandFlipd, RandGaussianNoised, RandRotate90d
from test_every_method import LATE, METHODS, make_batch
from test_every_method import tiny as tiny_method
from test_every_transform import FUNCTIONS, MADE, apply, fresh
from torch import nn

import monai_wsss.inferers
from monai_wsss import _labels as labels
from monai_wsss.data import EpochCacheDataset
from monai_wsss.data.dataset import check_workers
from monai_wsss.engines import WSSSTrainer
from monai_wsss.inferers import (
    AboveHealthyLevel,
    AddConversiond,
    ConversionInferer,
    GradientCAMInferer,
    MinMax,
    MultiScaleSeeds,
    VolumeInferer,
    multi_scale_branches,
    multi_view_maps,
)
from monai_wsss.methods import ClassActivationMapping, WSSSMethod
from monai_wsss.networks import CAMEncoder, CycleGenerator, TwoBranchNetwork
from monai_wsss.refinement import (
    ClassMapRefinement,
    DenseCRF,
    DynamicThreshold,
    LabeledImages,
    MaskRule,
    PixelAdaptiveRefinement,
    assigned_thresholds,
    decide_within,
    mixture_threshold,
)
from monai_wsss.transforms import (
    COLOR_OPERATIONS,
    PairedSpatialTransform,
    change_color,
    gland_augmentation,
    imagenet_normalization,
    resize_in_plane,
    strong_and_weak_views,
)

ON_HOST = {
    "NormalizeSubjectd": "measures an image that has no statistics with the same numbers as `prepare`; it stays there",
    "SaveImageMapd": "writes a file",
    "SaveImageMaskd": "writes a file",
}
"""Transforms that read an image on the host, and why."""

WRITERS = {
    "PseudoMaskWriter": "writes files",
    "SlideNormalizer": "normalizes tiles as they are read from a file",
    "SlideReading": "a value: what is read from a file",
    "SlideResult": "a value: names files",
    "TileLayout": "a value: where the tiles of a file are",
    "over_ray": "starts processes",
    "score_pseudo_masks": "reads files",
    "segment_slide": "reads a file and writes others",
}
"""What of the room of inferers works on files, and how."""

DEVICES = [
    ELSEWHERE,
    pytest.param(
        torch.device("cuda", 0), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]


@contextmanager
def on(device: torch.device) -> Iterator[list[tuple[int, ...]]]:
    """Let ``device`` be there; MONAI's tensors with metadata cannot be ``Distant`` ones."""
    if device != ELSEWHERE:
        yield []
        return
    set_track_meta(False)
    try:
        with elsewhere() as brought_back:
            yield brought_back
    finally:
        set_track_meta(True)


def here(value: Any) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value.held if isinstance(value, Distant) else value.cpu()


def tensors_of(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def check_alike(device: torch.device, found: Any, expected: Any) -> None:
    """Check that results are on the device, with the type and the values of those of the host."""
    results, references = tensors_of(found), tensors_of(expected)
    assert len(results) == len(references) > 0
    for result, reference in zip(results, references, strict=True):
        assert result.device == device
        assert result.dtype == reference.dtype
        torch.testing.assert_close(here(result), reference.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4)


# ---- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", sorted(MADE))
def test_every_transform_leaves_images_on_their_device(name, device, tmp_path):
    transform = MADE[name][0](tmp_path)
    expected = apply(transform, fresh(name))
    item = fresh(name)
    with on(device) as brought_back:
        moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in item.items()}
        result = apply(transform, moved)
        # What methods read on the host may be made there.
        images = [{key: value for key, value in one.items() if key not in labels.ON_HOST} for one in (result, expected)]
        check_alike(device, *images)
    assert not brought_back or name in ON_HOST
    assert result["other"] == "kept"


def test_exceptions_are_transforms_of_ours():
    assert set(ON_HOST) <= set(MADE)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_statistics_of_the_datalist_bring_nothing_back(device):
    item = {"image": 60 + 10 * torch.rand(2, 8, 8), "intensity_mean": [64.0, 65.0], "intensity_std": [2.0, 3.0]}
    transform = MADE["NormalizeSubjectd"][0](None)
    with on(device) as brought_back:
        check_alike(device, transform(item | {"image": item["image"].to(device)})["image"], transform(item)["image"])
    assert not brought_back


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_chains_and_functions_of_transforms_stay_on_the_device(device):
    picture = 255 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    chains = {
        "gland_augmentation": lambda x: gland_augmentation(label=None).set_random_state(3)({"image": x})["image"],
        "imagenet_normalization": lambda x: imagenet_normalization()({"image": x})["image"],
        "resize_in_plane": lambda x: resize_in_plane(x[None], (8, 12)),
        "strong_and_weak_views": lambda x: strong_and_weak_views().set_random_state(3)({"image": x}),
        "change_color": lambda x: [change_color(x, operation) for operation in COLOR_OPERATIONS],
    }
    assert set(chains) == FUNCTIONS - {"has_geometry", "write_mask"}, "these two work on metadata and files"
    for chain in chains.values():
        expected = chain(picture.clone())  # MONAI normalizes in place
        with on(device) as brought_back:
            check_alike(device, chain(picture.clone().to(device)), expected)
        assert not brought_back


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", ["flip", "rotate", "scale", "translate"])
def test_paired_transforms_move_images_on_their_device(kind, device):
    torch.manual_seed(0)
    image = torch.rand(2, 1, 16, 16)
    record = PairedSpatialTransform((kind,)).draw(image.shape)
    expected = record(image, padding="minimum")
    with on(device) as brought_back:
        check_alike(device, record(image.to(device), padding="minimum"), expected)
    assert not brought_back


# ---- inferers --------------------------------------------------------------------------------------------------------

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([[0.0], [1.0]])


def tiny(network: Any) -> nn.Module:
    torch.manual_seed(0)
    return network.tiny(2, 3, 1).eval()


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def healthy_level(image: torch.Tensor) -> torch.Tensor:
    scale = AboveHealthyLevel(1).to(image.device)
    scale.follow(image[:, :1], LabeledImages(image, LABEL))
    return scale(image[:, :1] * 2)


def maps_of_scales(image: torch.Tensor) -> list[torch.Tensor]:
    return multi_scale_branches(lambda x: (x, x[:, :1]), image, ("rectified", "average"))[0]


INFERERS: dict[str, Callable[[torch.Tensor], Any]] = {
    # With metadata, which a tensor elsewhere cannot have here, it concatenates the same maps and converted images.
    "ConversionInferer": lambda image: ConversionInferer()(image, tiny(CycleGenerator).to(image.device)),
    "AddConversiond": lambda image: list(
        AddConversiond("pred", tiny(CycleGenerator).to(image.device))({"image": image[0], "pred": image[0]}).values()
    ),
    "AboveHealthyLevel": healthy_level,
    "GradientCAMInferer": lambda image: GradientCAMInferer("1")(image, classifier().to(image.device)),
    "MinMax": lambda image: MinMax()(image),
    "MultiScaleSeeds": lambda image: MultiScaleSeeds(MinMax())(
        tiny(TwoBranchNetwork).to(image.device), LabeledImages(image, LABEL)
    ),
    "VolumeInferer": lambda image: [
        VolumeInferer(grid=(8, 8), slice_batch=2)(image[..., None], tiny(CAMEncoder).to(image.device)),
        VolumeInferer(roi_size=(8, 8), views="flips")(image, tiny(CAMEncoder).to(image.device)),
    ],
    "multi_scale_branches": maps_of_scales,
    "multi_view_maps": lambda image: multi_view_maps(lambda x: x.square(), image, views="dihedral", scales=(1.0, 0.5)),
}


def test_every_inferer_is_in_the_inventory():
    assert set(INFERERS) | set(WRITERS) == set(monai_wsss.inferers.__all__)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", sorted(INFERERS))
def test_every_inferer_leaves_maps_on_the_device_of_the_image(name, device):
    with torch.set_grad_enabled(name == "GradientCAMInferer"):
        expected = INFERERS[name](IMAGE)
        with on(device) as brought_back:
            check_alike(device, INFERERS[name](IMAGE.to(device)), expected)
    # Labels are read on the host, and nothing of the size of an image.
    assert all(len(shape) < 3 for shape in brought_back)


PAR = PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)


def updated_thresholds(image: torch.Tensor) -> list[torch.Tensor]:
    """Give both kinds of thresholds after one batch."""
    given = []
    for words in ({}, {"kind": "three_components", "initial": (0.2, 0.7)}):
        threshold = DynamicThreshold(momentum=0.0, points=100, **words).to(image.device)
        threshold.update(image[:, 0], torch.ones(len(image)), valid=image[:, 0] > 0.1)
        given.append(threshold())
    return given


REFINEMENTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "DenseCRF": lambda image: DenseCRF(iterations=2)(255 * image, image.softmax(1)),
    "ClassMapRefinement": lambda image: [
        *ClassMapRefinement(PAR)(MaskRule(rule="otsu"), image[:, :1] - 0.5, image),
        *ClassMapRefinement(DenseCRF(iterations=2))(MaskRule(rule="otsu"), image[:, :1] - 0.5, image),
        ClassMapRefinement("crf").maps(image[:, :2], image, LABEL.expand(2, 2)),
    ],
    "MaskRule": lambda image: [
        *MaskRule(output_kind="activation", pooling="max", rule="otsu")(image[:, :1] - 0.5),
        *MaskRule(output_kind="activation", pooling="max", rule="mixture")(image[:, :1] - 0.5),
        MaskRule(output_kind="activation", pooling="average", gate="given").mask(image[:, :1] - 0.5, LABEL),
    ],
    "PixelAdaptiveRefinement": lambda image: PixelAdaptiveRefinement(iterations=2)(image, image[:, :2]),
    "DynamicThreshold": updated_thresholds,
    "mixture_threshold": lambda image: [*mixture_threshold(image.flatten()), *assigned_thresholds(image.flatten())],
    "decide_within": lambda image: decide_within(
        MaskRule(rule="otsu"),
        image[:1, :1] - 0.5,
        image[:1, 1:2] > 0.2,
        refine=ClassMapRefinement(PAR),
        image=image[:1],
    ),
}


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", sorted(REFINEMENTS))
def test_refinement_stays_on_the_device(name, device):
    expected = REFINEMENTS[name](IMAGE)
    with on(device):
        check_alike(device, REFINEMENTS[name](IMAGE.to(device)), expected)


# ---- training steps --------------------------------------------------------------------------------------------------


def step(method: type[WSSSMethod], device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give the losses of a tiny method and their gradients; labels stay on the host, as the trainer leaves them."""
    torch.manual_seed(0)
    made = tiny_method(method).to(device)
    batch = {key: value.to(device) for key, value in make_batch(method, 2, 3, 2, 32).items() if key != "label"}
    batch["label"] = make_batch(method, 2, 3, 2, 32)["label"]
    torch.manual_seed(1)
    losses = [loss for player in made.players for loss in made.losses(batch, LATE, player).values()]
    torch.stack(losses).sum().backward()
    made.after_step(LATE)
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    return [loss.detach() for loss in losses], gradients


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_training_step_waits_for_nothing_but_numbers(method, device):
    expected = step(method, torch.device("cpu"))
    with on(device) as brought_back:
        check_alike(device, step(method, device), expected)
    assert not brought_back


# ---- the random part of the training data ----------------------------------------------------------------------------

ITEMS = [
    {"image": torch.arange(16.0).reshape(1, 4, 4) + 100 * index, "label": torch.ones(1), "id": str(index)}
    for index in range(4)
]
RANDOM = [
    RandRotate90d("image", prob=0.75, max_k=3),
    RandFlipd("image", prob=0.5, spatial_axis=0),
    RandGaussianNoised("image", prob=1.0),
]


def dataset(device: torch.device | str, cache_rate: float = 0.5) -> EpochCacheDataset:
    return EpochCacheDataset(
        ITEMS, Compose([]), Compose(RANDOM), seed=5, cache_rate=cache_rate, progress=False, device=device
    )


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_random_transforms_run_on_the_device_with_the_same_draws(device, cache_rate):
    expected = {key: value for batch in DataLoader(dataset("cpu"), batch_size=4) for key, value in batch.items()}
    with on(device) as brought_back:
        made = dataset(device, cache_rate)
        (batch,) = DataLoader(made, batch_size=4)
        check_alike(device, batch["image"], expected["image"])
        # A second epoch begins from what is cached, not from what was changed.
        assert torch.equal(here(next(iter(DataLoader(made, batch_size=4)))["image"]), here(batch["image"]))
    assert not brought_back
    assert batch["label"].device.type == "cpu"
    assert not isinstance(batch["label"], Distant), "methods read labels on the host"
    assert batch["id"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("options", [{}, {"runtime_cache": True}])
def test_deterministic_transforms_run_once_and_their_results_are_kept_on_the_device(options):
    read: list[str] = []

    def load(identifier: str) -> str:
        read.append(identifier)
        return identifier

    # Tensors without values, since threads fill the cache, and the other device is there for one thread alone.
    transform = Compose([Lambdad("id", load)])
    made = EpochCacheDataset(ITEMS, transform, progress=False, device="meta", **options)
    for _ in range(2):
        assert [made[index]["image"].device.type for index in range(4)] == ["meta"] * 4
    assert all(item["image"].device.type == "meta" for item in made._cache)
    # Once each, and once more to measure the memory that a cache filled at the start will take.
    assert sorted(read) == sorted([*"0123", *("" if options else "0")])


def test_worker_processes_are_refused_where_transforms_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = DataLoader(dataset("cuda:0", cache_rate=0.0), batch_size=2, num_workers=2)
    sentence = "Expected `num_workers` 0 with transforms on cuda:0, got 2"
    with pytest.raises(ValueError, match=sentence):
        check_workers(loader)
    with pytest.raises(ValueError, match=sentence):
        next(iter(loader))
    method = ClassActivationMapping(CAMEncoder.tiny())
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    with pytest.raises(ValueError, match=sentence):
        WSSSTrainer(method, optimizer, loader, 1, progress_bar=False).run()
    check_workers(DataLoader(dataset("cuda:0", cache_rate=0.0), batch_size=2))
    check_workers(DataLoader(dataset("cpu"), batch_size=2, num_workers=2))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no GPU"):
        dataset("cuda")


# ---- the device that only says it is one -----------------------------------------------------------------------------


def test_the_other_device_notices_what_a_gpu_would_refuse():
    with elsewhere() as brought_back:
        there = torch.ones(2, 3).to(ELSEWHERE)
        assert isinstance(there.new_tensor([1.0]), Distant)
        assert isinstance(torch.tensor([1.0], device=there.device), Distant)
        assert isinstance(torch.zeros(2, device=there.device), Distant)
        assert isinstance(there * torch.tensor(2.0), Distant)
        with pytest.raises(RuntimeError, match="on one device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert float(there.sum()) == 6
        assert brought_back == []
        assert torch.equal(there.cpu().to(ELSEWHERE).cpu(), torch.ones(2, 3))
        assert brought_back == [(2, 3), (2, 3)]
