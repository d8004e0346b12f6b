# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What a GPU has to get right, as JSON: parity with the CPU, mixed precision, step times, transforms, compilation.

    python speed/gpu_check.py [--repeats 5] [--size 64] [--batch 16]

Without a GPU only the half that needs none runs: the same steps on the CPU.  Exit code 1 and the list ``failed`` tell
what does not agree.  It takes a minute or two.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from harness import command_line
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandGaussianSmoothd, RandRotate90d
from torch import nn

from monai_wsss.data import EpochCacheDataset
from monai_wsss.engines import NonFiniteLossError, Progress, WSSSTrainer
from monai_wsss.methods import (
    AFA,
    BMP,
    CMER,
    ClassActivationMapping,
    CoinGAN,
    CoSA,
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    WSSSMethod,
)
from monai_wsss.networks import CAMEncoder, GlandClassifier, TwoBranchNetwork
from monai_wsss.refinement import MaskRule
from monai_wsss.transforms import RandPhotometricDistortiond, RandScalePadCropd, ResizeInPlaned

CPU = torch.device("cpu")
TINY: tuple[type[WSSSMethod], ...] = (
    ClassActivationMapping, CMER, BMP, AFA, CoSA, CoinGAN, GlandClassification, PseudoMaskSupervision, FullSupervision,
)  # fmt: skip
FULL: dict[str, Callable[[], WSSSMethod]] = {
    "ClassActivationMapping": lambda: ClassActivationMapping.from_preset(in_channels=3),
    "CMER": lambda: CMER.from_preset(network=CMER.network_from_preset(modalities=["T1", "T1c", "FLAIR"])),
    "BMP": lambda: BMP.from_preset("scratch", ready_below="off"),
    "GlandClassification": lambda: GlandClassification.from_preset(num_classes=1, in_channels=3, width=16),
}
"""The methods of the bundles, three channels and one class."""
LATE = Progress(epoch=9, iteration=9, fraction=0.9)  # after the ramps: every term counts
TOLERANCE = 1e-3  # of float32, relative: sums are taken in another order


def make_batch(size: int, count: int) -> dict[str, torch.Tensor]:
    """Make random images of three channels, the second half of them healthy, with a square of the finding as mask."""
    mask = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    mask[: count // 2, :, size // 4 : size // 2, size // 4 : size // 2] = 1
    image = torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(0)) + mask
    return {"image": image, "label": (torch.arange(count)[:, None] < count // 2).float(), "mask": mask}


def batch_of(method: WSSSMethod | type[WSSSMethod], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give what a method reads: masks only to those that say so."""
    name = method.__name__ if isinstance(method, type) else type(method).__name__
    mask = {"mask": batch["mask"]} if method.uses_masks else {}
    pseudo = {"pseudo_mask": batch["mask"]} if name == "PseudoMaskSupervision" else {}
    return {"image": batch["image"], "label": batch["label"], **mask, **pseudo}


def moved(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value if name == "label" else value.to(device) for name, value in batch.items()}


def losses_of(method: type[WSSSMethod], batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, float]:
    """Give the losses of a tiny method, and the norm of their gradient."""
    torch.manual_seed(0)
    made = method.tiny(2, 3, 1).to(device)
    for module in made.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # devices draw differently
    torch.manual_seed(1)
    losses = made.losses(moved(batch_of(method, batch), device), LATE, made.players[0])
    torch.stack(list(losses.values())).sum().backward()
    squares = [parameter.grad.square().sum() for parameter in made.parameters() if parameter.grad is not None]
    gradient = torch.stack(squares).sum().sqrt()
    return {**{name: float(loss.detach()) for name, loss in losses.items()}, "gradient": float(gradient)}


def parity(device: torch.device, size: int, count: int) -> dict[str, Any]:
    """Compare each method's losses on a device with those on the CPU: the largest relative difference."""
    batch = make_batch(size, count)
    result = {}
    for method in TINY:
        expected, found = losses_of(method, batch, CPU), losses_of(method, batch, device)
        apart = max(abs(found[name] - value) / max(abs(value), 1e-3) for name, value in expected.items())
        result[method.__name__] = {"difference": apart, "agrees": apart < TOLERANCE}
    return result


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(
    method: WSSSMethod, batch: dict[str, torch.Tensor], device: torch.device, amp: bool, steps: int
) -> tuple[list[float], float]:
    """Train for some steps; gives the milliseconds of each and the last loss."""
    method.to(device)
    optimizers = {player: torch.optim.AdamW(method.part_of(player).parameters(), 1e-3) for player in method.players}
    trainer = WSSSTrainer(
        method, optimizers, [moved(batch_of(method, batch), device)] * steps, 1, device=device, amp=amp,
        progress_bar=False,
    )  # fmt: skip
    times: list[float] = []

    def begin(engine: Any) -> None:
        wait_for(device)
        times.append(-time.perf_counter())

    def end(engine: Any) -> None:
        wait_for(device)
        times[-1] = 1000 * (times[-1] + time.perf_counter())

    trainer.add_event_handler("ITERATION_STARTED", begin)
    trainer.add_event_handler("ITERATION_COMPLETED", end)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that so few steps teach nothing
        trainer.run()
    return times, trainer.state.output["loss"]


def steps(device: torch.device, size: int, count: int, repeats: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure training steps of each method, with and without mixed precision; their losses have to be finite."""
    batch = make_batch(size, count)
    builders = {one.__name__: (lambda one=one: one.tiny(2, 3, 1)) for one in TINY} if tiny else FULL
    result: dict[str, Any] = {}
    for name, build in builders.items():
        for amp in (False, True):
            torch.manual_seed(0)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            precision = "mixed" if amp else "float32"
            try:
                times, loss = train(build(), batch, device, amp, repeats + 2)
                own: dict[str, Any] = {"milliseconds": statistics.median(times[2:]), "loss": loss, "agrees": True}
            except NonFiniteLossError as error:
                own = {"error": str(error), "agrees": False}
            if device.type == "cuda":
                own["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
            result[f"{name}, {precision}"] = own
    return result


def transforms(device: torch.device, size: int, count: int) -> dict[str, Any]:
    """Compare random transforms on a device with those on the CPU, and measure an epoch of both."""
    items = [{"image": 120 * image, "label": [0.0]} for image in make_batch(size, count)["image"]]  # below 255
    images, result = {}, {}
    for place in dict.fromkeys((CPU, device)):
        chain = [
            RandRotate90d("image", prob=0.75, max_k=3),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandScalePadCropd("image", size),
            RandPhotometricDistortiond("image"),
            RandGaussianSmoothd("image", prob=0.5),
            RandGaussianNoised("image", prob=1.0),
        ]
        deterministic = Compose([ResizeInPlaned("image", (size + 8, size))])
        data = EpochCacheDataset(items, deterministic, Compose(chain), seed=3, progress=False, device=place)
        loader = DataLoader(data, batch_size=count)
        images[place] = next(iter(loader))["image"].as_tensor()
        wait_for(place)
        start = time.perf_counter()
        next(iter(loader))
        wait_for(place)
        result[f"{place.type}_milliseconds"] = 1000 * (time.perf_counter() - start)
    apart = float((images[device].cpu() - images[CPU]).abs().max())
    stays = images[device].device.type == device.type
    return {**result, "difference": apart, "agrees": apart < 255 * TOLERANCE and stays}


def compilation(device: torch.device, size: int, backend: str) -> dict[str, Any]:
    """Compare deployable networks with themselves behind ``torch.compile``: the largest difference of their maps."""
    result = {}
    image = make_batch(size, 2)["image"].to(device)
    for network in (CAMEncoder, TwoBranchNetwork, GlandClassifier):
        torch.manual_seed(0)
        made = network.tiny(2, 3, 1).to(device).eval()
        compiled: Any = torch.compile(made, backend=backend)
        with torch.no_grad():
            apart = float((compiled(image) - made(image)).abs().max())
        kind = MaskRule.of(compiled).output_kind == made.output_kind
        result[network.__name__] = {"difference": apart, "agrees": apart < TOLERANCE and kind}
    return result


def check(
    device: torch.device, *, size: int, count: int, repeats: int, tiny: bool = False, backend: str = "inductor"
) -> dict[str, Any]:
    """Run all parts on one device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, no GPU",
        "parity": parity(device, 32, 4),
        "steps": steps(device, size, count, repeats, tiny=tiny),
        "transforms": transforms(device, size, count),
        "compilation": compilation(device, 32, backend),
    }
    result["failed"] = [
        f"{part}: {name}"
        for part in ("parity", "steps", "compilation")
        for name, own in result[part].items()
        if not own["agrees"]
    ] + ([] if result["transforms"]["agrees"] else ["transforms"])
    return result


def main() -> None:
    options = command_line(__doc__, size=64, batch=16).parse_args()
    torch.set_num_threads(options.threads)
    there = torch.cuda.is_available()
    if not there:
        print("There is no GPU here: the steps run on the CPU alone.", file=sys.stderr)
    device = torch.device("cuda" if there else "cpu")
    # Compilation for a CPU takes minutes and is tested without this script.
    result = check(
        device,
        size=options.size,
        count=options.batch,
        repeats=options.repeats,
        backend="inductor" if there else "eager",
    )
    print(json.dumps(result, indent=2))
    raise SystemExit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
