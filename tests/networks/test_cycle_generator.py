# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoinGAN's generator: its layout, where its parts stand, its sizes, the stored reference and the decision."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.utils import copy_model_state
from torch import nn

from monai_wsss.engines.distributed import distribute_method, stop_distributed
from monai_wsss.networks import CycleGenerator
from monai_wsss.refinement import MaskRule

SMALL = {"width": 4, "num_res_blocks": 1}
NEITHER = {"use_ca": False, "use_sa": False}


def images(count: int = 2, channels: int = 1, side: int = 32, dims: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return 2 * torch.rand((count, channels, *(side,) * dims), generator=generator) - 1


def build(**words: object) -> CycleGenerator:
    torch.manual_seed(0)
    return CycleGenerator(**{**SMALL, **words})  # type: ignore[arg-type]


def test_the_default_is_the_network_of_the_paper():
    with torch.device("meta"):
        network = CycleGenerator()
        plain = CycleGenerator(contrastive=None, attention=None)
    convolutions = [one for one in network.modules() if isinstance(one, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [tuple(one.stride) for one in convolutions] == [(1, 1)] + [(2, 2)] * 3 + [(1, 1)] * 18 + [(2, 2)] * 3 + [
        (1, 1)
    ]
    widths = [64, 128, 256, 512] + [512] * 18 + [256, 128, 64, 1]
    assert [one.out_channels for one in convolutions] == widths
    assert len(network.blocks) == 9
    assert not [one for one in network.modules() if isinstance(one, nn.InstanceNorm2d) and one.affine]
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert 45e6 < count < 47e6
    extra = sum(parameter.numel() for parameter in network.parameters()) - count
    assert extra == 64 * 64 * 9 + 2 * 64 * 4 + 64 + 4


def test_weights_start_as_cyclegan_s():
    network = CycleGenerator(width=16, num_res_blocks=2)
    for weight in (network.stem[0].weight, network.contrastive.weight, network.ups[0].weight):
        assert abs(weight.std() - 0.02) < 0.004
    assert not network.head.bias.any()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("position", ["stem", "bottleneck"])
def test_keeps_any_size(position, stride, dims):
    incidence = "affinity" if position == "bottleneck" else "reference_channel"
    network = build(
        spatial_dims=dims, in_channels=2, embed_stride=stride, csa_position=position, attention={"incidence": incidence}
    ).eval()
    for side in (96, 61) if dims == 2 else (96,) if position == "bottleneck" else (33,):
        image = images(1, 2, side, dims)[..., :-1]
        network.calibrate_reference([image])
        deep = stride * 8  # at the bottleneck the contrastive convolution reflects two of at least three positions
        padded = [
            max(2 if position == "stem" else 3, -(-size // deep)) * (deep if position == "stem" else 1)
            for size in image.shape[2:]
        ]
        factor = stride if position == "stem" else 1
        assert list(network.buffer.reference.shape[1:]) == [size // factor for size in padded]
        with torch.no_grad():
            assert network.translate(image).shape == image.shape
            assert network(image).shape == (1, 1, *image.shape[2:])


def test_sizes_of_the_paper_and_small_ones():
    network = build(width=2).eval()
    for side in (224, 96, 64, 3):
        network.calibrate_reference([images(1, side=side)])
        assert network(images(1, side=side)).shape == (1, 1, side, side)


def test_translation_is_the_composition_of_the_parts():
    network = build().eval()
    image, healthy = images(), images(3)
    reference = network.reference_of(healthy)
    torch.testing.assert_close(reference, network.contrastive(network.stem(healthy)).mean(0))
    features = network.attention(network.contrastive(network.stem(image)), reference)
    expected = network.head(network.ups(network.blocks(network.downs(features)))).tanh()
    torch.testing.assert_close(network.translate(image, reference), expected)
    network.calibrate_reference([healthy])
    torch.testing.assert_close(network.translate(image), expected)
    torch.testing.assert_close(network(image), (image - expected).abs())
    residual = build(output="residual").eval()
    torch.testing.assert_close(residual.translate(image, reference), image + expected)


@pytest.mark.parametrize(
    "words",
    [
        {"contrastive": None, "attention": None},
        {"attention": None},
        {"attention": {"use_sa": False}},
        {"attention": {"use_ca": False}},
        {},
        {"contrastive": None},
        {"attention": NEITHER},
    ],
    ids=["backbone", "contrastive", "commonality", "specificity", "all", "attention alone", "neither"],
)
def test_every_part_can_be_left_out(words):
    network = build(**words)
    reference = network.reference_of(images(3))
    assert (reference is None) is (words.get("attention", {}) in (None, NEITHER))
    network.translate(images(), reference).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    unused = set(network.state_dict()) & {
        f"attention.excitation.fc.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")
    }
    assert without == (unused if words == {"attention": {"use_ca": False}} else set())
    # A backbone needs no reference, others say so.
    network.eval()
    if reference is None:
        network.calibrate_reference([])
        assert network(images()).isfinite().all()
    else:
        with pytest.raises(ValueError, match="calibrate_reference"):
            network(images())


def test_the_attention_takes_part():
    network, image = build().eval(), images()
    references = [network.reference_of(images(count)) for count in (3, 4)]
    first, second = (network.translate(image, reference) for reference in references)
    assert not torch.equal(first, second)


def test_a_reference_may_have_no_gradient():
    for detach in (False, True):
        reference = build(reference={"detach": detach}).reference_of(images())
        assert reference.requires_grad is not detach


def test_calibration_uses_all_images_and_leaves_the_mode():
    network, healthy = build(), images(6)
    for training in (True, False):
        network.train(training).calibrate_reference(iter([healthy[:2], healthy[2:]]))
        assert network.training is training
        torch.testing.assert_close(network.buffer.reference, network.eval().represent(healthy).mean(0))
    network.calibrate_reference(iter([healthy[:2], healthy[2:]]), max_batches=1)
    torch.testing.assert_close(network.buffer.reference, network.represent(healthy[:2]).mean(0))


@pytest.mark.parametrize("words", [{}, {"embed_stride": 2}, {"csa_position": "bottleneck"}])
def test_weights_have_their_final_shape_where_the_image_size_is_known(words):
    """MONAI's bundle loading copies entries of equal shapes and leaves out others in silence."""
    trained = build(**words, reference={"image_size": (30, 41)})
    again = build(**words, reference={"image_size": (30, 41)})
    shape = trained.buffer.reference.shape
    trained.calibrate_reference([images(side=41)[:, :, :30]])
    assert trained.buffer.reference.shape == shape
    copy_model_state(again, trained.state_dict())
    image = images(side=41)[:, :, :30]
    assert torch.equal(again.eval()(image), trained.eval()(image))


def test_weights_without_a_known_size_load_with_the_reference():
    trained, again = build(), build()
    trained.calibrate_reference([images()])
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.eval()(images()), trained.eval()(images()))


def test_an_image_with_little_contrast_has_an_empty_mask():
    network = build(heat={"min_contrast": 0.25})
    rule = MaskRule.of(network, rule="otsu")
    heat = torch.zeros(2, 1, 8, 8)
    heat[0, :, 2:4, 2:4], heat[1, :, 2:4, 2:4] = 0.2, 0.3
    assert rule(heat).mask.sum((1, 2, 3)).tolist() == [0, 4]
    assert not rule(torch.full_like(heat, 0.5)).mask.any(), "Otsu's threshold has nothing to separate"
    network.presence_level.fill_(0.0)
    for made in (network, torch.jit.script(network)):
        assert MaskRule.of(made).rule == "otsu", "the rule of differences, whatever the pooling calls for"
        assert MaskRule.of(made, rule=None).rule == "otsu"
        assert MaskRule.of(made)(heat).mask.sum((1, 2, 3)).tolist() == [0, 4], "the contrast stays a condition"
        assert MaskRule.of(made, gate="none")(heat).mask.sum((1, 2, 3)).tolist() == [0, 4]
    network.presence_level.fill_(0.5)
    for made in (network, torch.jit.script(network)):
        assert not MaskRule.of(made, rule="otsu")(heat).mask.any()


def test_the_words_of_the_difference():
    image = images(2, 3)
    for words, groups in (({"reduction": "none"}, 3), ({"reduction": "max", "sign": "positive", "smooth": 3}, 1)):
        network = build(in_channels=3, heat=words).eval()
        network.calibrate_reference([image])
        assert network.groups == groups
        assert network(image).shape == (2, groups, 32, 32)
        network.set_healthy_level(0.0, 0.0)
        assert network.mask_rule()(network(image)).mask.shape == (2, 1, 32, 32)
    assert (network(image) >= 0).all()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"csa_position": "head"}, "csa_position"),
        ({"output": "sum"}, "output"),
        ({"embed_stride": 3}, "embed_stride"),
        ({"width": 0}, "width"),
        ({"attention": {"incidence": "affinity"}}, "bottleneck"),
        ({"heat": {"smooth": 2}}, "smooth"),
        ({"heat": {"min_contrast": -1.0}}, "min_contrast"),
        ({"heat": {"pooling": "sum"}}, "pooling"),
    ],
)
def test_refuses_other_words(words, match):
    with pytest.raises(ValueError, match=match):
        build(**words)


def test_there_is_one_class():
    with pytest.raises(ValueError, match="num_classes"):
        CycleGenerator.tiny(2, 1, 2)


def test_a_tiny_network_learns_one_batch():
    torch.manual_seed(0)
    network, image = CycleGenerator.tiny(), images()
    target = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (network.translate(image, network.reference_of(image)) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class Converting(nn.Module):
    """Loss of a generator alone, with the mean of the healthy batch that is stored for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = build(reference={"inference": "last_batch"}).double()

    def forward(self, image: torch.Tensor, healthy: torch.Tensor) -> torch.Tensor:
        reference = self.generator.reference_of(healthy)
        identity = (self.generator.translate(healthy, reference) - healthy).abs().mean()
        return self.generator.translate(image, reference).square().mean() + identity


def trained(method: nn.Module, image: torch.Tensor, healthy: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        method(image, healthy).backward()
        optimizer.step()
    return {name.removeprefix("module."): value for name, value in method.state_dict().items()}


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    image, healthy = images(4, side=16).double(), images(6, side=16).double()[2:]
    own = slice(2 * rank, 2 * rank + 2)
    torch.save(trained(distribute_method(Converting()), image[own], healthy[own]), f"{folder}/{rank}.pt")
    stop_distributed()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    image, healthy = images(4, side=16).double(), images(6, side=16).double()[2:]
    expected = trained(Converting(), image, healthy)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
    assert expected["generator.buffer.reference"].shape == (4, 16, 16)
