# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The second stage of every method: targets from files, warm-up, ignored pixels, any segmenter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet

from monai_wsss.engines import Progress
from monai_wsss.losses import PurifiedLabelLoss, purified_label_loss
from monai_wsss.methods import PseudoMaskSupervision, SegmentationNetwork

EARLY, LATE = (Progress(epoch=1, iteration=1, fraction=fraction) for fraction in (0.0, 0.5))


def batch(values: torch.Tensor, classes: int = 1, channels: int = 1) -> dict[str, torch.Tensor]:
    count, *size = values.shape
    return {
        "image": torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0)),
        "label": torch.ones(count, classes),
        "pseudo_mask": values[:, None].to(torch.uint8),
    }


def reference(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean cross-entropy in float64 over what is not 255."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    valid = target != 255
    taken = np.take_along_axis(log_p, np.where(valid, target, 0)[:, None], axis=1)[:, 0]
    return float(-taken[valid].mean())


@pytest.mark.parametrize("background", [True, False])
def test_plain_is_cross_entropy_over_what_is_not_ignored(background):
    torch.manual_seed(0)
    values = torch.randint(0, 3, (2, 16, 16))
    values[0, :4] = 255
    network = SegmentationNetwork.tiny(num_classes=2 if background else 1)  # 3 or 2 channels
    method = PseudoMaskSupervision(network, background=background).eval()
    data = batch(values, classes=2)
    target = values.numpy().copy()
    if not background:  # value k is channel k-1, 0 is unknown
        target = np.where((target == 0) | (target == 255), 255, target - 1)
    expected = reference(network(data["image"]).detach().double().numpy(), target)
    assert method(data, EARLY)["pseudo_supervision"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("plf", ["paper", "official", "oeem", "oeem_conf"])
def test_weights_begin_after_the_warm_up(plf):
    torch.manual_seed(0)
    values = torch.randint(0, 2, (2, 16, 16))
    method = PseudoMaskSupervision.build(SegmentationNetwork.tiny(), plf=plf, warmup=0.25).eval()
    data = batch(values)
    logits = method.network(data["image"])
    plain = purified_label_loss(logits, values, purify=False)
    assert method(data, EARLY)["pseudo_supervision"].item() == pytest.approx(plain.item())
    weighted = purified_label_loss(logits, values, variant=plf)
    assert method(data, LATE)["pseudo_supervision"].item() == pytest.approx(weighted.item())
    assert weighted.item() != pytest.approx(plain.item())


@pytest.mark.parametrize("plf", ["none", "official"])
def test_words_build_what_parts_do(plf):
    """Without filtration the loss is plain at any time; flags are read as a command line writes them."""
    network = SegmentationNetwork.tiny(num_classes=2)
    loss = None if plf == "none" else PurifiedLabelLoss(variant=plf, ignore_mode="all")
    by_parts = PseudoMaskSupervision(network, loss=loss, background=False).eval()
    by_words = PseudoMaskSupervision.build(network, plf=plf, background="false", ignore_mode="all").eval()
    assert by_words.settings == {
        "method": "PseudoMaskSupervision", "plf": plf, "background": False, "warmup": 0.0, "ignore_mode": "all",
    }  # fmt: skip
    data = batch(torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0)), classes=3)
    values = [method.losses(data, LATE, "network")["pseudo_supervision"] for method in (by_parts, by_words)]
    assert torch.equal(*values)
    target = (data["pseudo_mask"][:, 0].long() - 1).where(data["pseudo_mask"][:, 0] > 0, 255)
    options = {"purify": False} if plf == "none" else {"variant": plf, "ignore_mode": "all"}
    expected = purified_label_loss(network(data["image"]), target, **options)
    assert values[0].item() == pytest.approx(expected.item())


def test_a_batch_of_ignored_pixels_gives_a_zero_that_can_be_differentiated():
    method = PseudoMaskSupervision.tiny()
    loss = method(batch(torch.full((2, 16, 16), 255)), LATE)["pseudo_supervision"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in method.parameters())


def test_any_segmenter_in_3d():
    network = SegResNet(3, init_filters=8, in_channels=2, out_channels=3, blocks_down=(1, 1), blocks_up=(1,))
    method = PseudoMaskSupervision(network, loss=PurifiedLabelLoss(variant="paper"))
    values = torch.randint(0, 3, (1, 16, 16, 16))
    data = batch(values, classes=2, channels=2)
    method(data, LATE)["pseudo_supervision"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_an_auxiliary_head_learns_in_training_alone():
    class WithAuxiliary(torch.nn.Conv2d):
        auxiliary_weight = 0.4

        def __init__(self):
            super().__init__(1, 2, 1)
            self.auxiliary = torch.nn.Conv2d(1, 2, 1)

        def auxiliary_logits(self, image):
            return self(image), self.auxiliary(image)

    method = PseudoMaskSupervision(WithAuxiliary())
    values = torch.randint(0, 2, (2, 16, 16))
    data = batch(values)
    losses = method(data, LATE)
    assert list(losses) == ["pseudo_supervision", "auxiliary"]
    expected = 0.4 * reference(method.network.auxiliary(data["image"]).detach().double().numpy(), values.numpy())
    assert losses["auxiliary"].item() == pytest.approx(expected, rel=1e-5)
    assert list(method.eval()(data, LATE)) == ["pseudo_supervision"]


def test_it_overfits_one_batch():
    torch.manual_seed(0)
    values = torch.zeros(2, 16, 16, dtype=torch.int64)
    values[0, 4:12, 4:12] = 1
    data = batch(values)
    data["image"] = data["image"] * 0.1 + values[:, None]
    method = PseudoMaskSupervision.tiny().train()
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = method(data, EARLY)["pseudo_supervision"]
        loss.backward()
        optimizer.step()
    assert (method.network(data["image"]).argmax(1) == values).float().mean() > 0.95


def test_half_precision():
    method = PseudoMaskSupervision.tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch(torch.randint(0, 2, (2, 16, 16))), LATE)["pseudo_supervision"]
    assert loss.dtype == torch.float32
    loss.backward()


def test_bad_settings_and_batches_are_named():
    network = SegmentationNetwork.tiny()
    with pytest.raises(ValueError, match="`plf` to be one of"):
        PseudoMaskSupervision.build(network, plf="best")
    with pytest.raises(ValueError, match="`ignore_mode` to be one of valid, all, got 'none'"):
        PseudoMaskSupervision.build(network, ignore_mode="none")
    with pytest.raises(ValueError, match="`background` to be true or false, got 'maybe'"):
        PseudoMaskSupervision.build(network, background="maybe")
    with pytest.raises(ValueError, match="`warmup` as a share"):
        PseudoMaskSupervision(network, warmup=2.0)
    data = batch(torch.zeros(2, 16, 16))
    with pytest.raises(ValueError, match="needs `pseudo_mask` in its batch"):
        PseudoMaskSupervision(network)({key: data[key] for key in ("image", "label")}, EARLY)
    with pytest.raises(ValueError, match="learns from image-level labels alone"):
        PseudoMaskSupervision(network)({**data, "mask": data["pseudo_mask"]}, EARLY)
