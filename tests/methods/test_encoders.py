# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every method takes an encoder with several maps, trains it, and can give it a learning rate of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import LrScheduleHandler
from monai.networks.nets import ResNetFeatures
from monai.transforms import Compose, RandFlipd
from torch import nn

from monai_wsss.data import VariantCacheDataset
from monai_wsss.engines import Progress, WSSSTrainer, one_cycle
from monai_wsss.methods import (
    AFA,
    BMP,
    CMER,
    ClassActivationMapping,
    FullSupervision,
    GlandClassification,
    PseudoMaskSupervision,
    WSSSMethod,
)
from monai_wsss.networks import (
    AttentionPyramid,
    ConvPyramid,
    EfficientNetLite,
    FrozenEncoder,
    FusedSegmenter,
    MixTransformer,
    fused_cam_network,
)
from monai_wsss.refinement import PixelAdaptiveRefinement

LATE = Progress(epoch=9, iteration=9, fraction=0.9)  # after every warm-up


class LikeTimm(nn.Module):
    """Four maps, told of as timm's networks with ``features_only=True`` do."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        channels = [4, 6, 8, 8]
        pairs = zip([in_channels, *channels], channels, strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in pairs)
        self.feature_info = SimpleNamespace(channels=lambda: channels, reduction=lambda: [2, 4, 8, 16])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]).relu())
        return maps[1:]


def of_monai(in_channels: int) -> nn.Module:
    """Build a network of MONAI that tells nothing of its maps; the wrapper does."""
    resnet = ResNetFeatures("resnet10", pretrained=False, spatial_dims=2, in_channels=in_channels)
    return AttentionPyramid(resnet, 0, feature_channels=(64, 64, 128, 256, 512), levels=(0, 1, 2, 3))


ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "monai": of_monai,
    "timm": LikeTimm,
    "conv_pyramid": lambda channels: ConvPyramid(2, channels, width=4, attention_heads=0),
    "mix_transformer": lambda channels: MixTransformer.tiny(2, channels),
    "efficientnet_lite": lambda channels: EfficientNetLite("tiny", channels, input_range="unit"),
}


def two_branch(kind: type[BMP], encoder: Callable[[int], nn.Module]) -> BMP:
    refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)
    with_attention = AttentionPyramid(encoder(3), heads=2)
    network = kind.network_from_preset(encoder=with_attention, num_classes=2, decoder_width=8)
    return kind.from_preset(network=network, refine=refine)


def cmer(encoder: Callable[[int], nn.Module]) -> CMER:
    network = CMER.network_from_preset(modalities=("a", "b", "c"), num_classes=2, encoder=lambda: encoder(1), width=8)
    return CMER.from_preset(network=network)


METHODS: dict[str, Callable[[Callable[[int], nn.Module]], WSSSMethod]] = {
    "CAM": lambda encoder: ClassActivationMapping(fused_cam_network(encoder(3), 2, width=8)),
    "CMER": cmer,
    "gland, fused": lambda encoder: GlandClassification.from_preset("default", encoder=encoder(3), width=8),
    "gland, one level": lambda encoder: GlandClassification.from_preset(
        "paper", encoder=encoder(3), level=1, pyramid=(2, 4)
    ),
    "BMP": lambda encoder: two_branch(BMP, encoder),
    "AFA": lambda encoder: two_branch(AFA, encoder),
    "full supervision": lambda encoder: FullSupervision(FusedSegmenter(encoder(3), 3, width=8)),
    "second stage": lambda encoder: PseudoMaskSupervision(FusedSegmenter(encoder(3), 3, width=8)),
}


def batch_of(method: WSSSMethod) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch = {"image": torch.rand((3, 3, 32, 32), generator=generator)}
    batch["label"] = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    mask = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    mask[:2, :, 8:20, 8:20] = 1
    mask[1, :, 20:28, 4:12] = 2
    for name, wanted in (("mask", FullSupervision), ("pseudo_mask", PseudoMaskSupervision)):
        batch |= {name: mask} if isinstance(method, wanted) else {}
    return batch


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_any_encoder(name, encoder):
    torch.manual_seed(0)
    method = METHODS[name](ENCODERS[encoder])
    assert method.settings["method"] == type(method).__name__
    before = {key: value.clone() for key, value in method.network.named_parameters()}
    groups = method.parameter_groups(1e-2, encoder_learning_rate=1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    assert sum(len(group["params"]) for group in groups) == len(before)
    optimizer = torch.optim.AdamW(groups)
    batch = batch_of(method)
    method.train()
    for _ in range(3):
        optimizer.zero_grad()
        losses = method(batch, LATE)
        torch.stack(list(losses.values())).sum().backward()
        for key, parameter in method.network.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), key
        optimizer.step()
        method.after_step(LATE)
    moved = {key for key, value in method.network.named_parameters() if not torch.equal(value, before[key])}
    # A branch that taught nothing in this batch leaves its layers; the first convolution of each encoder moves.
    firsts = [key for key in before if "encoder." in key and before[key].ndim == 4]
    assert firsts[0] in moved
    assert {key.split(".encoder.")[0] for key in firsts} <= {key.split(".encoder.")[0] for key in moved}
    assert len(moved) > len(before) / 2


def test_the_settings_name_the_encoder():
    assert cmer(ENCODERS["conv_pyramid"]).network.settings["encoder"] == "ConvPyramid"
    network = GlandClassification.network_from_preset(encoder=EfficientNetLite.tiny(2, 3), in_channels=3, stride=8)
    assert network.settings["encoder"] == "EfficientNetLite"
    assert network.settings["pooling"] == network.pooling == "topk"
    assert "width" not in network.settings
    assert network.backbone.feature_channels == (48,)
    encoder = FrozenEncoder(ConvPyramid.tiny())
    assert (
        BMP.network_from_preset("scratch", encoder=encoder).settings["encoder"] == "FrozenEncoder (all) of ConvPyramid"
    )
    for method in (ClassActivationMapping(fused_cam_network(encoder)), FullSupervision(FusedSegmenter(encoder))):
        assert method.settings["encoder"] == "FrozenEncoder (all) of ConvPyramid"
        assert json.loads(json.dumps(method.settings)) == method.settings


def test_modalities_do_not_share_an_encoder():
    encoder = ConvPyramid.tiny(2, 1)
    with pytest.raises(ValueError, match="Expected `encoder` to make a new encoder at each call"):
        CMER.network_from_preset(modalities=("a", "b"), encoder=lambda: encoder)


@pytest.mark.parametrize(
    "make",
    [
        lambda encoder: ClassActivationMapping(fused_cam_network(encoder, width=8)),
        lambda encoder: two_branch(BMP, lambda channels: encoder),
        lambda encoder: GlandClassification.from_preset(encoder=encoder, width=8),
    ],
)
def test_a_frozen_encoder_has_no_group(make):
    torch.manual_seed(0)
    method = make(FrozenEncoder(EfficientNetLite.tiny(2, 3)))
    of_encoder = {id(part) for part in method.network.modules() if isinstance(part, EfficientNetLite)}
    assert len(of_encoder) == 1
    frozen = {
        id(parameter)
        for part in method.network.modules()
        if isinstance(part, EfficientNetLite)
        for parameter in part.parameters()
    }
    for groups in (method.parameter_groups(1e-2), method.parameter_groups(1e-2, encoder_learning_rate=1e-3)):
        assert all(group["params"] for group in groups)
        assert not frozen & {id(parameter) for group in groups for parameter in group["params"]}
    assert not frozen & {id(parameter) for parameter in method.player_parameters("network")}


@pytest.mark.parametrize("rate", [None, 1e-3])
@pytest.mark.parametrize("kind", [GlandClassification, BMP])
def test_new_layers_around_an_encoder_learn_ten_times_as_fast(kind, rate):
    """Fused maps, queries and keys are new, though they stand beside an encoder or inside the two branches' own."""
    inner = EfficientNetLite.tiny(2, 3)
    if kind is BMP:
        method = two_branch(BMP, lambda channels: AttentionPyramid(inner, heads=2))
    else:
        method = kind.from_preset(encoder=inner, width=8)
    names = {id(parameter): name for name, parameter in method.network.named_parameters()}
    of_encoder = {id(parameter) for parameter in inner.parameters()}
    given = {"learning_rate": 1e-3} if rate is None else {"learning_rate": 1e-2, "encoder_learning_rate": rate}
    for group in method.parameter_groups(**given):
        for parameter in group["params"]:
            twice = 2 if kind is GlandClassification and rate is None and names[id(parameter)].endswith(".bias") else 1
            expected = 1e-3 if id(parameter) in of_encoder else 1e-2
            assert group["lr"] in (pytest.approx(twice * expected), 0.0), names[id(parameter)]
            assert group["lr"] or id(parameter) in of_encoder


def test_a_network_without_an_encoder_has_no_rate_for_it():
    method = FullSupervision.tiny()
    assert [group["lr"] for group in method.parameter_groups(1e-3)] == [1e-3]
    with pytest.raises(ValueError, match="a part `encoder` or `backbone` for `encoder_learning_rate`"):
        method.parameter_groups(1e-3, encoder_learning_rate=1e-4)


def test_groups_keep_the_network_s_order():
    """An optimizer's state is found by it when a run resumes in another process."""
    method = GlandClassification.tiny()
    for groups in (method.parameter_groups(1e-3), method.parameter_groups(1e-3, encoder_learning_rate=1e-4)):
        order = [id(parameter) for parameter in method.network.parameters()]
        for group in groups:
            positions = [order.index(id(parameter)) for parameter in group["params"]]
            assert positions == sorted(positions)


def test_the_cycle_keeps_the_rate_of_each_group():
    method = ClassActivationMapping(fused_cam_network(ConvPyramid.tiny(), width=8))
    groups = method.parameter_groups(2e-3, encoder_learning_rate=3e-4)
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    schedule = one_cycle(optimizer, 2e-3, max_epochs=2, train_data_loader=[0] * 5)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step() if len(rates) < 10 else None
    assert max(each[0] for each in rates) == pytest.approx(3e-4)
    assert max(each[1] for each in rates) == pytest.approx(2e-3)
    assert all(each[0] / each[1] == pytest.approx(0.15) for each in rates)


def cached_trainer(folder: Path, epochs: int = 4, resume: bool = False) -> WSSSTrainer:
    """Train on the maps of a frozen encoder, computed once for two variants."""
    torch.manual_seed(0)
    encoder = FrozenEncoder(EfficientNetLite.tiny(2, 3))
    method = ClassActivationMapping(fused_cam_network(encoder, width=8, dropout=0.0))
    generator = torch.Generator().manual_seed(1)
    items = [
        {"image": torch.rand((3, 32, 32), generator=generator), "label": torch.tensor([float(n % 2)]), "id": str(n)}
        for n in range(8)
    ]
    flip = RandFlipd("image", 1.0, 0)
    dataset = VariantCacheDataset(items, Compose([]), flip, encode=encoder.pack, seed=3, progress=False)
    loader = DataLoader(dataset, batch_size=4)
    groups = method.parameter_groups(1e-2, encoder_learning_rate=1e-3)
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    schedule = one_cycle(optimizer, 1e-2, 4, loader)
    return WSSSTrainer(
        method,
        optimizer,
        loader,
        epochs,
        lr_schedulers=schedule,
        train_handlers=[LrScheduleHandler(schedule, print_lr=False, epoch_level=False)],
        checkpoint_dir=folder,
        model_path=folder / "model.pt",
        resume=resume,
        clip_norm=5.0,
        progress_bar=False,
    )


@pytest.mark.filterwarnings("ignore:Epoch")  # so short a run may end with maps that are all or nothing
def test_a_training_on_cached_maps_resumes_bit_for_bit_and_serves_images(tmp_path):
    cached_trainer(tmp_path / "whole").run()
    killed = cached_trainer(tmp_path / "killed")

    @killed.on(Events.ITERATION_COMPLETED(once=5))  # in the third of four epochs
    def kill(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    cached_trainer(tmp_path / "killed", resume=True).run()
    whole, resumed = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["filled"].all()
    # The weights are those of the network without the wrapper, and its encoder is as it was.
    torch.manual_seed(0)
    network = fused_cam_network(EfficientNetLite.tiny(2, 3), width=8)
    before = {name: value.clone() for name, value in network.state_dict().items() if ".encoder." in name}
    network.load_state_dict(whole, strict=True)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert network.eval()(torch.rand(1, 3, 45, 40)).shape == (1, 1, 45, 40)
