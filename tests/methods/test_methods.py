# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Losses of plain CAM and of full supervision against independent calculations, presets, wrong batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from monai_wsss.engines import Progress
from monai_wsss.methods import ClassActivationMapping, FullSupervision, SegmentationNetwork
from monai_wsss.networks import CAMEncoder, MapEnsemble

START = Progress(epoch=1, iteration=1, fraction=0.0)


def make_batch(spatial_dims: int = 2, channels: int = 1, classes: int = 1, size: int = 16, **label) -> dict:
    generator = torch.Generator().manual_seed(1)
    shape = (3, channels, *(size,) * spatial_dims)
    batch = {"image": torch.rand(shape, generator=generator), "label": torch.zeros(3, classes)}
    batch["label"][0] = 1.0
    batch["mask"] = torch.zeros((3, 1, *shape[2:]), dtype=torch.uint8)
    batch["mask"][0, 0, 2:6] = 1
    return batch | label


def as_seen_by(method_class: type, batch: dict) -> dict:
    return batch if method_class.uses_masks else {key: value for key, value in batch.items() if key != "mask"}


@pytest.mark.parametrize("pooling", ["average", "max", "topk", "lse"])
def test_classification_is_the_mean_cross_entropy_summed_over_members(pooling):
    members = [CAMEncoder(2, 1, 2, width=2, pooling=pooling) for _ in range(3)]
    method = ClassActivationMapping(MapEnsemble(members)).double().eval()
    batch = make_batch(classes=2)
    batch["image"] = batch["image"].double()
    batch["label"] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    expected = 0.0
    for member in members:
        maps = member(batch["image"]).detach().numpy().reshape(3, 2, -1)
        ordered = np.sort(maps, axis=2)[..., ::-1]
        logits = {
            "average": maps.mean(2),
            "max": maps.max(2),
            "topk": ordered[..., : round(0.1 * maps.shape[2])].mean(2),
            "lse": np.log(np.exp(5 * maps).mean(2)) / 5,
        }[pooling]
        truth = batch["label"].numpy()
        expected -= (truth * np.log(expit(logits)) + (1 - truth) * np.log(expit(-logits))).mean()
    loss = method(as_seen_by(ClassActivationMapping, batch), START)["classification"]
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_presets_are_what_they_say():
    default = ClassActivationMapping.from_preset(in_channels=3)
    assert len(default.network.members) == 3
    assert default.network.pooling == "max"
    assert default.network.members[0].stride == 4
    paper = ClassActivationMapping.from_preset("paper", spatial_dims=3, num_classes=2)
    assert paper.network.pooling == "average"
    with pytest.raises(ValueError, match="`preset` to be one of default, paper, got 'best'"):
        ClassActivationMapping.from_preset("best")


def test_the_network_of_plain_cam_is_built_by_words():
    network = ClassActivationMapping.network_from_preset("paper", in_channels=2, members=2, width=2)
    assert [member.pooling for member in network.members] == ["average", "average"]
    told = {"preset": "paper", "stride": 4, "pooling": "average", "members": 2, "width": 2}
    assert told.items() <= ClassActivationMapping(network).settings.items()
    with pytest.raises(ValueError, match="Expected `members` >= 1, got 0"):
        ClassActivationMapping.network_from_preset(members=0)


def test_full_supervision_rewards_the_right_mask():
    batch = make_batch()
    method = FullSupervision(torch.nn.Identity())
    method.network.output_kind = "segmentation"
    right = torch.cat([1.0 - batch["mask"].float(), batch["mask"].float()], dim=1) * 20 - 10

    def loss(logits: torch.Tensor) -> float:
        return method(batch | {"image": logits}, START)["full_supervision"].item()

    assert loss(right) < 1e-3 < 1.0 < loss(-right)


def test_a_batch_of_labels_for_another_number_of_images_is_named():
    batch = as_seen_by(ClassActivationMapping, make_batch()) | {"label": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(3, 1\), got \(2, 1\)"):
        ClassActivationMapping.tiny()(batch, START)


def test_labels_of_another_number_of_classes_than_the_network_are_refused():
    batch = as_seen_by(ClassActivationMapping, make_batch())
    method = ClassActivationMapping.tiny(num_classes=3)
    for use in (lambda: method(batch, START), lambda: method.finalize([batch])):
        with pytest.raises(ValueError, match=r"`label` of shape \(B, K\) = \(3, 3\), got \(3, 1\).*num_classes"):
            use()


def test_a_class_without_negatives_has_no_healthy_level():
    batch = as_seen_by(ClassActivationMapping, make_batch(classes=2))
    batch["label"][:, 1] = 1.0
    with pytest.raises(ValueError, match=r"No training image is negative for class 1"):
        ClassActivationMapping.tiny(num_classes=2).finalize([batch])


def test_a_segmentation_network_has_nothing_to_finalize():
    method = FullSupervision(SegmentationNetwork.tiny())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.finalize([])
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_full_supervision_learns_nothing_from_unlabeled_pixels():
    """255 adds nothing to either term: as if those pixels were background and surely called so."""
    method = FullSupervision(SegmentationNetwork(torch.nn.Identity()))
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    mask[:, :, :4] = 1
    mask[:, :, 2:6] = 255
    batch = {"image": logits, "label": torch.ones(2, 1), "mask": mask}
    (loss,) = method(batch, START).values()
    loss.backward()
    assert not logits.grad[:, :, 2:6].any()
    assert logits.grad[:, :, :2].any()
    probability = logits.detach().softmax(1)[:, 1].double()
    truth, labeled = (mask[:, 0] == 1), (mask[:, 0] != 255)
    overlap = probability[truth].sum()
    dice = 1 - (2 * overlap + 1e-5) / (truth.sum() + probability[labeled].sum() + 1e-5)
    entropy = torch.where(truth, -probability.log(), -(1 - probability).log())[labeled].sum() / mask.numel()
    assert loss.item() == pytest.approx(float(dice + entropy), rel=1e-5)
