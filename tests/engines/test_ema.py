# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The moving average of weights: its formula, its buffers, its beginning, its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_wsss.engines import WeightAverage
from monai_wsss.networks import TwoBranchNetwork


class Counting(nn.Module):
    """Parameters of two types, a floating buffer, a counter and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.wide = nn.Linear(3, 2).double()
        self.register_buffer("filled", torch.tensor(False))


def change(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*network.parameters(), network.norm.running_mean, network.norm.running_var):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    network.norm.num_batches_tracked += 1
    network.filled.fill_(True)


def test_it_is_the_average_of_torch_with_counters_copied():
    online = Counting()
    average, ema = copy.deepcopy(online), WeightAverage(0.9)
    theirs = AveragedModel(online, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(online)  # the first of their updates copies
    for step in range(4):
        change(online, step)
        ema.update(average, online)
        theirs.update_parameters(online)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(average.state_dict()[name], value)
    assert average.norm.num_batches_tracked == 4
    assert average.filled


def test_both_begin_alike_once():
    """The averaged network counts; what training has changed is never set back."""
    online, average, ema = Counting(), Counting(), WeightAverage(0.5)
    given = average.wide.weight.clone()
    ema.begin(average, online)
    assert torch.equal(online.wide.weight, given)
    change(online, 1)
    ema.begin(average, online)
    assert not torch.equal(online.wide.weight, given)


def test_looking_before_training_begins_nothing():
    online, average, ema = Counting(), Counting(), WeightAverage(0.5).eval()
    ema.begin(average, online)
    assert not ema.begun
    change(average, 2)  # such as weights that are read from a file
    ema.train().begin(average, online)
    assert ema.begun
    assert torch.equal(online.wide.weight, average.wide.weight)


def test_a_resumed_average_does_not_begin_again():
    ema, other = WeightAverage(0.5), WeightAverage(0.5)
    ema.begin(Counting(), Counting())
    other.load_state_dict(ema.state_dict())
    online, average = Counting(), Counting()
    before = online.wide.weight.clone()
    other.begin(average, online)
    assert torch.equal(online.wide.weight, before)


def test_without_momentum_the_average_is_the_network_itself():
    online, average, ema = Counting(), Counting(), WeightAverage(0.0)
    ema.begin(average, online)
    change(online, 1)
    ema.update(average, online)
    assert all(torch.equal(value, online.state_dict()[name]) for name, value in average.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"Expected `momentum` in \[0, 1\), got"):
        WeightAverage(momentum)


@pytest.mark.parametrize("filled", ["online", "average", "both"])
def test_encoder_weights_reach_both_networks_whichever_they_filled(filled):
    networks = {"average": TwoBranchNetwork.tiny(), "online": TwoBranchNetwork.tiny()}
    published = TwoBranchNetwork.tiny().encoder.state_dict()
    for name in networks if filled == "both" else [filled]:
        networks[name].encoder.load_state_dict(published)
        networks[name].encoder_weights = {"pretrained": "file"}
    WeightAverage(0.9).begin(networks["average"], networks["online"])
    for network in networks.values():
        assert all(torch.equal(value, published[key]) for key, value in network.encoder.state_dict().items())
    one, other = (network.state_dict() for network in networks.values())
    assert all(torch.equal(value, other[key]) for key, value in one.items())
