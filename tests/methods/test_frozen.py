# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Losses, gradients and masks of every method as they were when they were frozen: code that moves must not change them.

Each case builds a tiny method, fills its network from the names of its parameters, takes a few steps and records each
loss, each gradient and the masks.  ``tests/vectors/frozen_methods.npz`` holds them in float64: of an array its norm
and two products with vectors drawn from its name.  Float32 is compared with the same numbers, for the first step alone,
since later ones may decide a pixel otherwise on another machine.

To freeze anew, after a change of behavior that is meant: ``python tests/methods/test_frozen.py``.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from monai_wsss.engines import Progress, WeightRamp
from monai_wsss.inferers.multi_scale import multi_scale_branches
from monai_wsss.losses import CrossModalEquivarianceLoss, EquivarianceLoss, MutualDistillationLoss
from monai_wsss.methods import (
    AFA,
    BMP,
    CMER,
    ClassActivationMapping,
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    SegmentationNetwork,
)
from monai_wsss.networks import (
    CAMAdapter,
    CAMEncoder,
    CAMUNet,
    ConvPyramid,
    GlandClassifier,
    MapEnsemble,
    MixTransformer,
    ModalityNetworks,
    PyramidSceneParsing,
    TwoBranchNetwork,
)
from monai_wsss.refinement import (
    PixelAdaptiveRefinement,
    ToMaskd,
    background_aware_scores,
    confident_label,
    confident_segmentation_label,
    cut_score_maps,
    propagated_seed_label,
    refined_seed_label,
    score_maps,
    seed_label,
    to_mask,
)
from monai_wsss.transforms import PairedSpatialTransform

VECTORS = Path(__file__).parents[1] / "vectors" / "frozen_methods.npz"
Record = dict[str, torch.Tensor]
Case = Callable[[torch.dtype, int], Record]  # of the dtype and the largest number of steps

EARLY = Progress(epoch=1, iteration=1, fraction=0.0)
MIDDLE = Progress(epoch=4, iteration=3001, fraction=0.15)
LATE = Progress(epoch=20, iteration=7001, fraction=0.9)

# ------------------------------------------------------------------------------------- what is the same for all cases


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


DROPOUT = False  # draws differ between machines and dtypes


def fill(network: nn.Module) -> None:
    """Give each parameter and each batch statistic values drawn from its name, the same in both dtypes."""
    for module in network.modules():
        for rate in ("p", "drop_prob"):
            if not DROPOUT and isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    statistics = [(name, buffer) for name, buffer in network.named_buffers() if ".running_" in f".{name}"]
    for name, tensor in [*network.named_parameters(), *statistics]:
        values = generator(name).standard_normal(tuple(tensor.shape))
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif tensor.ndim > 1:
            values = values * np.sqrt(2.0 / max(1, tensor[0].numel()))
        else:
            values = (1.0 if name.endswith("weight") else 0.0) + 0.1 * values
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def smooth(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Noise of all scales: what neighbors share, and what they do not."""
    noise = generator(name).standard_normal(tuple(shape))
    maps = noise.copy()
    for axis in range(2, len(shape)):
        maps = sum(np.roll(maps, shift, axis) for shift in range(-2, 3)) / np.sqrt(5.0)
    return torch.from_numpy((maps + 0.3 * noise).astype(np.float32))


def make_batch(name: str, size: Sequence[int], channels: int, classes: int, dtype: torch.dtype) -> dict[str, Any]:
    """Four images: healthy, first class, last class, and all classes (of one class alone: healthy)."""
    label = torch.zeros(4, classes, dtype=dtype)
    label[1, 0] = label[2, -1] = 1.0
    label[3] = float(classes > 1)
    return {"image": smooth(name, (4, channels, *size)).to(dtype), "label": label}


def train(
    method: Any,
    batches: Callable[[int], dict[str, Any]],
    progresses: Sequence[Progress],
    dtype: torch.dtype,
    rate: float = 0.02,
) -> Record:
    """Losses and gradients of a few steps of gradient descent, and what the network gives afterwards."""
    fill(method.network)
    method.to(dtype).train()
    record: Record = {}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=rate)
    for step, progress in enumerate(progresses):
        batch = batches(step)
        torch.manual_seed(step)
        losses = method(batch, progress)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for name, loss in losses.items():
            record[f"step{step}/loss/{name}"] = loss.detach().clone()
        for name, parameter in method.network.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                record[f"step{step}/gradient/{name}"] = gradient.detach().clone()
        optimizer.step()
        method.after_step(progress)
    method.eval()
    with torch.no_grad():
        record["trained/output"] = method.network(batches(0)["image"])
    return record


def without_ties(mask: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """A mask (B, 1, *S) without pixels that two classes share, e.g. where both have their peak: rounding decides."""
    if shares.shape[1] == 1:
        return mask
    highest = shares.topk(2, dim=1).values
    tied = (highest[:, :1] > 0) & (highest[:, :1] - highest[:, 1:] < 1e-6)
    return mask.masked_fill(tied, 254)


def decided(network: nn.Module, image: torch.Tensor, label: torch.Tensor, **options: Any) -> Iterator[tuple[str, Any]]:
    """What the transform makes of the network's outputs."""
    with torch.no_grad():
        scores = network.eval()(image)
    transform = ToMaskd("pred", network, **options)
    for index, (one, present) in enumerate(zip(scores, label, strict=True)):
        item = transform({"pred": one, "label": present, "image": image[index]})
        if "cam" in item:
            item["pred"] = without_ties(item["pred"][None], item["cam"][None])[0]
        for key in ("pred", "cam", "presence"):
            if key in item:
                yield f"{key}{index}", torch.as_tensor(item[key])


# ------------------------------------------------------------------------------------------------------------ the BMP


def two_branches(encoder: nn.Module, classes: int, **words: Any) -> TwoBranchNetwork:
    return TwoBranchNetwork.build(encoder, classes, **{"decoder_width": 8, **words})


def bmp_from_preset(preset: str, network: TwoBranchNetwork, words: dict[str, Any]) -> BMP:
    if preset == "tiny":
        return BMP.tiny(num_classes=network.num_classes)
    if preset == "afa":
        return AFA.from_preset("paper", network=network, **words)
    return BMP.from_preset(preset, network=network, **words)


def bmp(
    preset: str = "default",
    *,
    classes: int = 2,
    dims: int = 2,
    encoder: str = "pyramid",
    network: dict[str, Any] | None = None,
    progresses: Sequence[Progress] = (LATE, LATE, LATE),
    boxes: bool = False,
    intensity: bool = False,
    mask: bool = False,
    **words: Any,
) -> Case:
    """Confidences below the presets', so that a network that has learned nothing labels some of its pixels."""

    def run(dtype: torch.dtype, steps: int) -> Record:
        channels, size = (3, (28, 26)) if encoder == "transformer" else (1, (18, 14) if dims == 2 else (10, 8, 8))
        made = {
            "pyramid": lambda: ConvPyramid.tiny(dims, channels),
            "plain": lambda: ConvPyramid(dims, channels, width=4, attention_heads=0),
            "transformer": lambda: MixTransformer.tiny(dims, channels),
        }[encoder]()
        method = bmp_from_preset(preset, two_branches(made, classes, **(network or {})), words)

        def batches(step: int) -> dict[str, Any]:
            batch = make_batch(f"bmp{step}", size, channels, classes, dtype)
            if boxes:
                ends = [(0, side) if axis else (2, side - 1) for axis, side in enumerate(size)]
                whole = [(0, side) for side in size]
                batch["boxes"] = torch.tensor([sum(of, ()) for of in (whole, ends, whole, ends)])
            if intensity:
                batch["intensity"] = smooth(f"intensity{step}", (4, 2, *size)).to(dtype)
            return batch

        record = train(method, batches, progresses[:steps], dtype)
        if mask:
            batch = batches(0)
            record["mask"] = method.class_branch_mask(batch["image"], batch["label"])
            for gate in (None, "given"):
                for name, value in decided(method.network, batch["image"], batch["label"], gate=gate):
                    record[f"{gate}/{name}"] = value
        return record

    return run


LOW = {"class_confidence": 0.5, "segmentation_confidence": 0.4}
BMP_CASES: dict[str, Case] = {
    "default": bmp(mask=True),
    "tiny": bmp("tiny", mask=True),
    "default-one-class": bmp(classes=1, mask=True, **LOW),
    "default-low": bmp(**LOW),
    "default-three-classes": bmp(classes=3, **LOW),
    "default-ramps": bmp(progresses=(EARLY, MIDDLE, LATE), **LOW),
    "default-middle": bmp(progresses=(MIDDLE,), **LOW),
    "default-3d": bmp(dims=3, progresses=(LATE, LATE), **LOW),
    "default-3d-one-class": bmp(dims=3, classes=1, progresses=(LATE,), **LOW),
    "default-transformer": bmp(encoder="transformer", progresses=(LATE, LATE), mask=True, **LOW),
    "paper": bmp("paper", network={"ofd_activation": "none", "ofd_detach": False}, **LOW),
    "paper-one-class": bmp("paper", classes=1),
    "paper-ramps": bmp("paper", progresses=(EARLY, MIDDLE, LATE), **LOW),
    "released": bmp("released"),
    "released-one-class": bmp("released", classes=1, mask=True),
    "released-ramps": bmp("released", progresses=(EARLY, MIDDLE, LATE)),
    "released-transformer": bmp("released", encoder="transformer", progresses=(LATE, LATE)),
    "afa": bmp("afa", network={"ofd": False, "detach_seeds": True}, mask=True),
    "afa-one-class": bmp("afa", classes=1, network={"ofd": False, "detach_seeds": True}),
    "afa-ramps": bmp("afa", network={"ofd": False, "detach_seeds": True}, progresses=(EARLY, MIDDLE, LATE)),
    "afa-transformer": bmp(
        "afa", encoder="transformer", network={"ofd": False, "detach_seeds": True}, progresses=(LATE, LATE)
    ),
    "afa-3d": bmp("afa", dims=3, network={"ofd": False, "detach_seeds": True}, progresses=(LATE,)),
    "par": bmp(propagation="par", mask=True),
    "affinity": bmp(propagation="affinity", mask=True),
    "affinity-boxes": bmp(propagation="affinity", boxes=True),
    "affinity-healthy": bmp(propagation="affinity", healthy_is_background=False, healthy_affinity=True),
    **{f"c2s-{kind}": bmp(c2s_loss=kind, **LOW) for kind in ("ce", "bce", "balanced")},
    **{f"s2c-{kind}": bmp(s2c_loss=kind, **LOW) for kind in ("ce", "bce", "softmargin")},
    **{f"s2c-scores-{kind}": bmp(s2c_loss=kind, s2c_input="scores", **LOW) for kind in ("ce", "bce", "softmargin")},
    "s2c-scores-one-class-ce": bmp(classes=1, s2c_loss="ce", s2c_input="scores", **LOW),
    "s2c-background": bmp(classes=1, s2c_background=True, **LOW),
    "s2c-background-boxes": bmp(s2c_loss="bce", s2c_background=True, boxes=True, **LOW),
    "logit": bmp(confidence_of="logit", **LOW),
    "unfiltered": bmp(filter_segmentation=False, **LOW),
    **{f"background-{kind}": bmp(background_scale=kind, **LOW) for kind in ("softmax", "minmax")},
    "background-minmax-one-class": bmp(classes=1, background_scale="minmax", **LOW),
    **{f"score-{kind}": bmp(score_scale=kind, **LOW) for kind in ("none", "softmax")},
    "reference": bmp(seed_scale="reference", network={"pooled": "maps"}, mask=True, **LOW),
    "reference-boxes": bmp(seed_scale="reference", network={"pooled": "maps"}, boxes=True, **LOW),
    "reference-training-labels": bmp(seed_scale="reference", train_mode_labels=True, **LOW),
    "reference-scores": bmp(seed_scale="reference", s2c_input="scores", s2c_loss="bce", mask=True, **LOW),
    "scratch": bmp(
        classes=1,
        network={"pooled": "maps"},
        seed_scale="reference",
        downscale=1.0,
        scales=(1.0,),
        ready_below=1.0,
        c2s_ramp=WeightRamp("step", end=0.4),
        s2c_ramp=WeightRamp("step", end=0.7),
        propagation_ramp=WeightRamp("step", end=0.7),
        mask=True,
    ),
    "healthy-seen-unscaled": bmp(healthy_is_background=False, score_scale="none", **LOW),
    "healthy-seen": bmp(healthy_is_background=False, healthy_affinity=True, **LOW),
    "healthy-affinity": bmp(healthy_affinity=True, **LOW),
    "training-labels": bmp(train_mode_labels=True, **LOW),
    "training-labels-healthy-seen": bmp(train_mode_labels=True, healthy_is_background=False, **LOW),
    "no-c2s": bmp(c2s_weight=0.0, **LOW),
    "no-s2c": bmp(s2c_weight=0.0, **LOW),
    "no-affinity": bmp(affinity_weight=0.0, **LOW),
    "classification-alone": bmp(c2s_weight=0.0, s2c_weight=0.0, affinity_weight=0.0),
    "weights": bmp(c2s_weight=1.5, s2c_weight=0.8, affinity_weight=0.6, **LOW),
    "no-attention": bmp(encoder="plain", affinity_weight=0.0, **LOW),
    "never-ready": bmp(ready_below=0.01, **LOW),
    "ready-later": bmp(ready_below=1.355, **LOW),
    "ready-at-once": bmp(ready_below=10.0, **LOW),
    "one-scale": bmp(scales=(1.0,), downscale=1.0, **LOW),
    "two-scales": bmp(scales=(0.75, 1.25), downscale=3.0, mask=True, **LOW),
    "low-high": bmp(propagation="par", low=0.2, high=0.8),
    "radius": bmp(radius=1, **LOW),
    "boxes": bmp(boxes=True, **LOW),
    "boxes-par": bmp(boxes=True, propagation="par"),
    "intensity": bmp(intensity=True, mask=True, **LOW),
    "intensity-boxes-3d": bmp(dims=3, intensity=True, boxes=True, progresses=(LATE,), **LOW),
    **{f"ofd-{kind}": bmp(network={"ofd_activation": kind}, **LOW) for kind in ("minmax", "none")},
    **{
        f"ofd-{kind}-attached": bmp(network={"ofd_activation": kind, "ofd_detach": False}, **LOW)
        for kind in ("sigmoid", "minmax", "none")
    },
    "no-ofd": bmp(network={"ofd": False}, **LOW),
    "detached-seeds": bmp(network={"detach_seeds": True}, **LOW),
    **{
        f"pooled-{pooled}-{pooling}": bmp(network={"pooled": pooled, "pooling": pooling, "topk_share": 0.2}, **LOW)
        for pooled in ("features", "maps")
        for pooling in ("average", "topk")
    },
}

# ----------------------------------------------------------------------------------------------------------- the CMER


def cmer(
    preset: str = "default",
    *,
    groups: int = 2,
    classes: int = 1,
    dims: int = 2,
    network: str = "tiny",
    progresses: Sequence[Progress] = (LATE, LATE, LATE),
    **changes: Any,
) -> Case:
    def run(dtype: torch.dtype, steps: int) -> Record:
        size = (18, 18) if dims == 2 else (12, 12, 12)
        members = {
            "tiny": lambda: ModalityNetworks.tiny(dims, groups, classes),
            "unet": lambda: ModalityNetworks([CAMUNet.tiny(dims, 1, classes) for _ in range(groups)], standardize=True),
        }[network]()
        method = CMER.from_preset(preset, network=members, **changes)
        batches = [make_batch(f"cmer{step}", size, groups, classes, dtype) for step in range(3)]
        rate = 0.002 if preset == "paper" else 0.02  # as printed, sums over pixels
        record = train(method, batches.__getitem__, progresses[:steps], dtype, rate)
        method.finalize(batches)
        record["negative_reference"] = members.negative_reference
        record["negative_quantile"] = members.negative_quantile
        record["reliable"] = members.reliable.to(torch.uint8)
        for fusion, every in itertools.product(("max", "mean"), (True, False)):
            for name, value in decided(
                members, batches[0]["image"], batches[0]["label"], fusion=fusion, reliable_only=every
            ):
                record[f"{fusion}-{every}/{name}"] = value
        return record

    return run


CMER_CASES: dict[str, Case] = {
    "default": cmer(),
    "default-taught": cmer(weak_peer_ratio=1.0, groups=3),
    "default-classes": cmer(groups=3, classes=2, weak_peer_ratio=1.0),
    "default-ramps": cmer(progresses=(EARLY, MIDDLE, LATE), weak_peer_ratio=1.0),
    "default-one": cmer(groups=1),
    "default-3d": cmer(dims=3, weak_peer_ratio=1.0, progresses=(LATE, LATE)),
    "default-unet": cmer(network="unet", weak_peer_ratio=1.0),
    "paper": cmer("paper"),
    "paper-classes": cmer("paper", groups=3, classes=2),
    "paper-ramps": cmer("paper", progresses=(EARLY, Progress(15, 100, 0.47), LATE)),
    "paper-unet": cmer("paper", network="unet"),
    "released": cmer("released"),
    "released-classes": cmer("released", groups=3, classes=2),
    "released-3d": cmer("released", dims=3, progresses=(LATE,)),
    "no-equivariance": cmer("released", equivariance=None),
    "no-cross-modal": cmer("released", cross_modal=None),
    "no-distillation": cmer("released", distillation=None),
    "one-view": cmer("released", equivariance=None, cross_modal=None, second_view=False),
    "plain": cmer("released", equivariance=None, cross_modal=None, distillation=None, second_view=False),
    "classification-of-two-views": cmer("released", equivariance=None, cross_modal=None, distillation=None),
    "norm-max": cmer("released", norm="max"),
    "teachers-better": cmer("released", teachers="better", weak_peer_ratio=1.0, groups=3),
    "teachers-all": cmer(teachers="all"),
    "border": cmer("released", ignore_border=True, transform=PairedSpatialTransform(("translate",))),
    "border-paper": cmer("paper", ignore_border=True, transform=PairedSpatialTransform(mode="compose")),
    "composed": cmer(transform=PairedSpatialTransform(mode="compose"), weak_peer_ratio=1.0),
    "weights": cmer("released", equivariance_weight=2.0, cross_modal_weight=0.3, distillation_weight=1.5),
    "ramps": cmer(
        ramp=WeightRamp("gaussian", end=0.5),
        distillation_ramp=WeightRamp("gaussian", end=0.8),
        teachers="all",
        progresses=(EARLY, MIDDLE, LATE),
    ),
    "equivariance-sum": cmer("released", equivariance=EquivarianceLoss(reduction="sum", mask="none")),
    **{
        f"cross-modal-{mask}": cmer("released", groups=3, classes=2, cross_modal=CrossModalEquivarianceLoss(mask=mask))
        for mask in ("label_and_teacher", "label", "none")
    },
    "cross-modal-before-warp": cmer("released", cross_modal=CrossModalEquivarianceLoss(l2_before_warp=True)),
    "distillation-warm": cmer("released", classes=2, distillation=MutualDistillationLoss(temperature=3.0)),
    "no-turns": cmer("released", transform=PairedSpatialTransform(turns=(0,))),
}

# ------------------------------------------------------------------------------------------------------ other methods


def classifier(make: Callable[[], Any], channels: int, classes: int, size: Sequence[int], rate: float = 0.02) -> Case:
    def run(dtype: torch.dtype, steps: int) -> Record:
        method = make()
        batches = [make_batch(f"classifier{step}", size, channels, classes, dtype) for step in range(3)]
        record = train(method, batches.__getitem__, (EARLY, MIDDLE, LATE)[:steps], dtype, rate)
        method.finalize(batches)
        record["negative_reference"] = method.network.negative_reference
        record["negative_quantile"] = method.network.negative_quantile
        for rule, gate in ((None, None), ("minmax", "given"), ("otsu", "none"), ("negative_quantile", None)):
            for name, value in decided(method.network, batches[0]["image"], batches[0]["label"], rule=rule, gate=gate):
                record[f"{rule}-{gate}/{name}"] = value
        return record

    return run


def segmenter(
    make: Callable[[], Any],
    key: str,
    channels: int,
    classes: int,
    size: Sequence[int],
    *,
    ignored: bool = True,
    rule: str | None = None,
) -> Case:
    def run(dtype: torch.dtype, steps: int) -> Record:
        method = make()

        def batches(step: int) -> dict[str, Any]:
            batch = make_batch(f"segmenter{step}", size, channels, classes, dtype)
            values = generator(f"{key}{step}").integers(0, classes + 1, (4, 1, *size))
            if ignored:
                values = np.where(generator(f"doubt{step}").random(values.shape) < 0.2, 255, values)
            return batch | {key: torch.from_numpy(values.astype(np.uint8))}

        record = train(method, batches, (EARLY, MIDDLE, LATE)[:steps], dtype)
        batch = batches(0)
        for gate in (None, "given"):
            for name, value in decided(method.network, batch["image"], batch["label"], rule=rule, gate=gate):
                record[f"{gate}/{name}"] = value
        return record

    return run


OTHER_CASES: dict[str, Case] = {
    "cam-tiny": classifier(lambda: ClassActivationMapping.tiny(num_classes=2), 1, 2, (18, 14)),
    "cam-tiny-3d": classifier(lambda: ClassActivationMapping.tiny(3, 2, 1), 2, 1, (10, 8, 8)),
    "cam-default": classifier(lambda: ClassActivationMapping.from_preset(in_channels=2), 2, 1, (16, 12)),
    "cam-paper": classifier(lambda: ClassActivationMapping.from_preset("paper", num_classes=2), 1, 2, (16, 12)),
    "cam-ensemble": classifier(lambda: ClassActivationMapping(MapEnsemble.tiny(2, 1, 2)), 1, 2, (18, 14)),
    "cam-unet": classifier(lambda: ClassActivationMapping(CAMUNet.tiny(2, 1, 2)), 1, 2, (18, 14)),
    "cam-adapter": classifier(lambda: ClassActivationMapping(CAMAdapter.tiny(2, 1, 2)), 1, 2, (18, 14)),
    **{
        f"cam-{pooling}": classifier(
            lambda pooling=pooling: ClassActivationMapping(CAMEncoder(2, 1, 2, width=4, pooling=pooling)),
            1, 2, (18, 14),
        )
        for pooling in ("average", "topk", "lse")
    },
    "gland-tiny": classifier(GlandClassification.tiny, 3, 2, (32, 24)),
    "gland-tiny-3d": classifier(lambda: GlandClassification.tiny(3, 1, 2), 1, 2, (12, 10, 8)),
    "gland-default": classifier(lambda: GlandClassification.from_preset(width=4), 3, 2, (32, 24)),
    "gland-paper-small": classifier(
        lambda: GlandClassification.from_preset("paper", width=4, small=True, pyramid=(2, 4)), 3, 2, (32, 24), 1e-6
    ),
    "gland-product": classifier(
        lambda: GlandClassification(GlandClassifier.tiny(num_classes=3)), 3, 3, (32, 24)
    ),
    **{
        f"pseudo-{plf}-{background}": segmenter(
            lambda plf=plf, background=background: PseudoMaskSupervision.build(
                SegmentationNetwork.tiny(2, 1, 2 if background else 1), plf=plf, background=background
            ),
            "pseudo_mask", 1, 2, (16, 12), rule=None if background else "argmax",
        )
        for plf in ("none", "paper", "official", "oeem", "oeem_conf")
        for background in (True, False)
    },
    "pseudo-tiny-3d": segmenter(lambda: PseudoMaskSupervision.tiny(3), "pseudo_mask", 1, 1, (8, 8, 6)),
    "pseudo-warmup-all": segmenter(
        lambda: PseudoMaskSupervision.build(SegmentationNetwork.tiny(), plf="paper", warmup=0.5, ignore_mode="all"),
        "pseudo_mask", 1, 1, (16, 12),
    ),
    "pseudo-auxiliary": segmenter(
        lambda: PseudoMaskSupervision.build(PyramidSceneParsing.tiny(), plf="official"), "pseudo_mask", 3, 1, (32, 24)
    ),
    "pseudo-auxiliary-tissue": segmenter(
        lambda: PseudoMaskSupervision.build(PyramidSceneParsing.tiny(), plf="oeem", background=False),
        "pseudo_mask", 3, 2, (32, 24), rule="argmax",
    ),
    "full-tiny": segmenter(lambda: FullSupervision.tiny(num_classes=2), "mask", 1, 2, (16, 12)),
    "full-3d": segmenter(lambda: FullSupervision.tiny(3), "mask", 1, 1, (8, 8, 6), ignored=False),
    "full-tissue": segmenter(
        lambda: FullSupervision(SegmentationNetwork.tiny(), background=False), "mask", 1, 2, (16, 12), rule="argmax"
    ),
}  # fmt: skip

# -------------------------------------------------------------------------------------------- masks and pseudo-labels


def rules(size: Sequence[int], groups: int, classes: int) -> Case:
    """Every rule of maps with every gate and fusion."""

    def run(dtype: torch.dtype, steps: int) -> Record:
        scores = smooth(f"scores{groups}{classes}", (3, groups * classes, *size)).to(dtype)
        label = torch.ones(3, classes, dtype=dtype)
        label[0], label[1, 0] = 0.0, 0.0
        level = torch.linspace(-0.5, 0.4, groups * classes, dtype=dtype)
        references = {"negative_reference": level, "negative_quantile": level + 0.7}
        record: Record = {}
        reliable = torch.arange(groups) != 1
        names = ("minmax", "max", "negative_reference", "logit", "negative_quantile", "otsu", "fixed", "argmax")
        for rule, gate, fusion, some in itertools.product(
            names, ("none", "predicted", "given"), ("max", "mean") if groups > 1 else ("max",), (False, groups > 1)
        ):
            if rule == "argmax" and classes == 1:
                continue
            options: dict[str, Any] = {"rule": rule, "gate": gate, "fusion": fusion, "groups": groups, **references}
            options |= {"label": label} if gate == "given" else {}
            options |= {"threshold": 0.3} if rule == "fixed" else {}
            options |= {"reliable": reliable} if some else {}
            decide(record, f"{rule}-{gate}-{fusion}-{some}", scores, options)
        return record

    return run


def decide(record: Record, name: str, scores: torch.Tensor, options: dict[str, Any]) -> None:
    shares = score_maps(scores, **options)
    record[f"{name}/scores"] = shares
    record[f"{name}/mask"] = without_ties(to_mask(scores, **options), shares)
    rule = options.get("rule")
    if rule not in (None, "argmax"):
        record[f"{name}/cut"] = without_ties(cut_score_maps(shares, rule, options.get("threshold")), shares)


def poolings(dtype: torch.dtype, steps: int) -> Record:
    """Presence by each pooling, its own rule, and thresholds."""
    scores = smooth("poolings", (6, 2, 9, 8)).to(dtype) - 0.1
    record: Record = {}
    reference = torch.tensor([-0.3, 0.1], dtype=dtype)
    for pooling in ("average", "max", "topk", "lse"):
        options = {"pooling": pooling, "negative_reference": reference, "topk_share": 0.2, "lse_sharpness": 3.0}
        decide(record, pooling, scores, options)
    for rule, threshold in itertools.product(("minmax", "max", "negative_reference"), (0.2, 0.65)):
        options = {"rule": rule, "threshold": threshold, "negative_reference": reference}
        decide(record, f"{rule}-{threshold}", scores, options)
    return record


def segmentations(dtype: torch.dtype, steps: int) -> Record:
    """Logits with and without a background, of each gate."""
    scores = smooth("segmentations", (3, 3, 9, 8)).to(dtype)
    record: Record = {}
    for rule, gate, pooling in itertools.product((None, "argmax"), ("none", "predicted", "given"), ("max", "topk")):
        label = torch.ones(3, 2 if rule is None else 3, dtype=dtype)
        label[0], label[1, 0] = 0.0, 0.0
        options: dict[str, Any] = {"output_kind": "segmentation", "rule": rule, "gate": gate, "pooling": pooling}
        decide(record, f"{rule}-{gate}-{pooling}", scores, options | ({"label": label} if gate == "given" else {}))
    return record


def pseudo_labels(size: Sequence[int], classes: int) -> Case:
    """Each maker of pseudo-labels on fixed seeds, with and without boxes."""

    def run(dtype: torch.dtype, steps: int) -> Record:
        batch = make_batch("labels", size, 2, classes, dtype)
        image, label = batch["image"], batch["label"]
        present = label.reshape(*label.shape, *[1] * len(size))
        seeds = smooth("seeds", (4, classes, *size)).to(dtype).sigmoid() * present
        logits = smooth("logits", (4, classes + 1, *size)).to(dtype)
        grid = tuple(side // 2 for side in size)
        tokens = int(np.prod(grid))
        affinity = smooth("affinity", (4, 1, tokens, tokens)).to(dtype)[:, 0].sigmoid()
        boxes = torch.tensor([[edge for side in size for edge in (1, side - 1)]] * 4)
        record: Record = {"seed_label": seed_label(seeds, low=0.4, high=0.6)}
        for stochastic, downscale in itertools.product((True, False), (1.0, 2.0)):
            refine = PixelAdaptiveRefinement(dilations=(1, 2, 4), iterations=6, row_stochastic=stochastic)
            name = f"{stochastic}-{downscale}"
            options: dict[str, Any] = {"downscale": downscale}
            record[f"{name}/refined"] = refined_seed_label(image, seeds, label, refine, **options)
            for inside in (None, boxes):
                inner = f"{name}-{'boxes' if inside is not None else 'all'}"
                record[f"{inner}/propagated"] = propagated_seed_label(
                    image, seeds, label, affinity, refine, grid=grid, radius=2, boxes=inside, **options
                )
                for kind in ("none", "l1", "softmax"):
                    scores = background_aware_scores(
                        image, seeds, logits.softmax(1)[:, :1], label, refine, normalize=kind, boxes=inside, **options
                    )
                    record[f"{inner}/scores-{kind}"] = scores
                    record[f"{inner}/confident-{kind}"] = confident_label(scores, 0.45)
        valid = image[:, 0] > -1
        for score, held, where in itertools.product(("prob", "logit"), (None, label), (None, valid)):
            name = f"segmentation-{score}-{held is None}-{where is None}"
            record[name] = confident_segmentation_label(logits, held, threshold=0.55, score=score, valid=where)
        return record

    return run


def scales(dtype: torch.dtype, steps: int) -> Record:
    """Seeds and segmentation over scales and the mirror image."""
    record: Record = {}
    for dims, size in ((2, (18, 14)), (3, (8, 8, 8))):
        network = two_branches(ConvPyramid.tiny(dims, 1), 2).to(dtype).eval()
        fill(network)
        image = make_batch("scales", size, 1, 2, dtype)["image"]

        def branches(image: torch.Tensor, network: TwoBranchNetwork = network) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = network.branches(image)
            return outputs.seeds, outputs.segmentation

        for rectify in (True, False):
            with torch.no_grad():
                joins = ("rectified" if rectify else "strongest", "average")
                made, _ = multi_scale_branches(branches, image, joins, scales=(1.0, 0.5, 1.5))
            for name, maps in zip(("seeds", "segmentation"), made, strict=True):
                record[f"{dims}-{rectify}/{name}"] = maps
    return record


MASK_CASES: dict[str, Case] = {
    **{
        f"rules-{groups}-{classes}": rules((9, 8), groups, classes)
        for groups in (1, 2, 3)
        for classes in (1, 2, 3)
        if groups < 3 or classes < 3
    },
    "rules-3d": rules((5, 4, 4), 2, 2),
    "poolings": poolings,
    "segmentations": segmentations,
    **{f"labels-{classes}": pseudo_labels((12, 10), classes) for classes in (1, 3)},
    "labels-3d": pseudo_labels((8, 6, 6), 2),
    "scales": scales,
}

CASES: dict[str, Case] = {
    f"{kind}/{name}": case
    for kind, cases in (("bmp", BMP_CASES), ("cmer", CMER_CASES), ("other", OTHER_CASES), ("masks", MASK_CASES))
    for name, case in cases.items()
}

STEEP = (
    *(f"bmp/{preset}-transformer" for preset in ("default", "released", "afa")),
    *(f"cmer/{name}" for name in ("default-taught", "default-classes", "default-unet", "teachers-better")),
    *(f"cmer/{name}" for name in ("paper", "paper-classes", "paper-unet", "border-paper", "released-classes")),
    *(f"cmer/cross-modal-{mask}" for mask in ("label_and_teacher", "label", "none")),
    "other/cam-lse",
    "other/gland-paper-small",
)
"""Cases whose gradients float32 gives to three to five digits alone."""

# --------------------------------------------------------------------------------------------------------- comparison


@functools.lru_cache(maxsize=4096)
def directions(name: str, count: int) -> np.ndarray:
    return generator(f"direction of {name}").standard_normal((2, count))


def summary(name: str, values: torch.Tensor) -> list[float]:
    """The value itself, or an array's norm and its products with two vectors."""
    flat = values.detach().double().flatten().numpy()
    if flat.size == 1:
        return [float(flat[0])]
    return [float(np.linalg.norm(flat)), *(directions(name.split("/")[-1], flat.size) @ flat).tolist()]


def parts(record: Record) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Numbers, and labels as bytes."""
    numbers = {name: values for name, values in record.items() if values.is_floating_point()}
    labels = {name: values.to(torch.uint8) for name, values in record.items() if name not in numbers}
    return numbers, labels


def frozen(record: Record) -> dict[str, np.ndarray]:
    """What is stored of a record: the checksum of its names and its numbers, and its labels."""
    numbers, labels = parts(record)
    values = [float(checksum(record)), *(value for name in numbers for value in summary(name, numbers[name]))]
    joined = np.concatenate([np.zeros(0, np.uint8), *(of.flatten().numpy() for of in labels.values())])
    return {"values": np.array(values), "labels": joined}


def checksum(record: Record) -> int:
    return zlib.crc32("\n".join(record).encode())


def differences(
    record: Record, values: np.ndarray, labels: np.ndarray, relative: float, floor: float, steep: float | None = None
) -> list[str]:
    """Sentences on what is not as frozen.

    Numbers are compared relative to the largest of their array, which counts as at least ``floor`` of the largest of
    its kind, such as the gradients of one step: those that are zero but for rounding have no relative accuracy.
    Gradients are allowed ``steep``.
    """
    numbers, coded = parts(record)
    found, start = [], 1
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, tensor in numbers.items():
        now = np.array(summary(name, tensor))
        rows[name] = (now, values[start : start + len(now)])
        start += len(now)
    largest: dict[str, float] = {}
    for name, (_, then) in rows.items():
        kind = "/".join(name.split("/")[:2])
        largest[kind] = max(largest.get(kind, 1e-3), float(np.abs(then).max()))
    for name, (now, then) in rows.items():
        scale = max(float(np.abs(then).max()), floor * largest["/".join(name.split("/")[:2])])
        error = float(np.abs(now - then).max()) / scale
        allowed = steep if steep is not None and "/gradient/" in name else relative
        if not error <= allowed:
            found.append(f"{name}: {now.tolist()} instead of {then.tolist()} ({error:.1e} relative)")
    start = 0
    for name, tensor in coded.items():
        now, then = tensor.flatten().numpy(), labels[start : start + tensor.numel()]
        start += tensor.numel()
        if not np.array_equal(now, then):
            found.append(f"{name}: {int((now != then).sum())} of {now.size} pixels differ")
    return found


def freeze() -> None:
    records = {name: frozen(case(torch.float64, 3)) for name, case in CASES.items()}
    arrays: dict[str, np.ndarray] = {"names": np.array(list(records))}
    for part in ("values", "labels"):
        arrays[part] = np.concatenate([record[part] for record in records.values()])
        arrays[f"{part}_ends"] = np.cumsum([record[part].size for record in records.values()])
    VECTORS.parent.mkdir(exist_ok=True)
    np.savez_compressed(VECTORS, **arrays)


@functools.lru_cache(maxsize=1)
def stored() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and labels of each case."""
    with np.load(VECTORS, allow_pickle=False) as file:
        values, labels = (np.split(file[part], file[f"{part}_ends"][:-1]) for part in ("values", "labels"))
        return dict(zip(file["names"].tolist(), zip(values, labels, strict=True), strict=True))


def test_every_case_is_frozen():
    assert list(stored()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_as_frozen_in_float64(name):
    values, labels = stored()[name]
    record = CASES[name](torch.float64, 3)
    assert values[0] == checksum(record), f"other names: {list(record)}"
    assert not differences(record, values, labels, 1e-10, 1e-3)


@pytest.mark.parametrize("name", CASES)
def test_as_frozen_in_float32(name):
    record = CASES[name](torch.float32, 1)
    if not name.startswith("masks/"):  # the first step, with which the stored numbers begin
        record = {key: values for key, values in record.items() if key.startswith("step0/")}
    assert not differences(record, *stored()[name], 1e-5, 1.0, steep=1e-3 if name in STEEP else 1e-5)


if __name__ == "__main__":
    freeze()
