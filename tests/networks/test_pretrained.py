# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""load_pretrained: all file formats, all that can happen to an entry, and refusals that change nothing."""

from __future__ import annotations

import logging
import pickle
import sys
import types
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_wsss._checks import DataError
from monai_wsss.networks.pretrained import WeightReport, load_pretrained
from monai_wsss.networks.resnest import ResNeSt
from monai_wsss.networks.resnet38 import ResNet38


def make() -> nn.Sequential:
    """A network of nine entries, one of them a step counter."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Conv2d(4, 2, 1)))


def filled(value: float = 7.0) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(entry, value) for name, entry in make().state_dict().items()}


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: entry.clone() for name, entry in network.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": entry for name, entry in state.items()}},
        lambda state: {"state_dict": {"model": OrderedDict(state)}},
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_whatever_wraps_them(tmp_path, caplog, wrap, suffix, zipped):
    path = tmp_path / f"weights.{suffix}"
    torch.save(wrap(filled()), path, _use_new_zipfile_serialization=zipped)
    network = make()
    report = load_pretrained(network, path)
    assert report.unfilled == report.unexpected == ()
    assert len(report.loaded) == 8
    assert all(bool((entry == 7).all()) for name, entry in network.state_dict().items() if entry.ndim)
    assert caplog.text == ""


def test_a_parameter_called_model_is_no_wrapper(tmp_path):
    network = nn.Module()
    network.model = nn.Parameter(torch.zeros(3))
    torch.save({"model": torch.ones(3)}, tmp_path / "weights.pt")
    assert load_pretrained(network, tmp_path / "weights.pt").loaded == ("model",)
    assert bool((network.model == 1).all())


def test_each_entry_is_reported_by_what_became_of_it(tmp_path, caplog):
    state = filled()
    del state["bn.running_mean"], state["bn.num_batches_tracked"]
    state["conv.weight"] = torch.zeros(4, 1, 3, 3)
    state["fc.weight"] = torch.zeros(5)
    torch.save(state, tmp_path / "weights.pt")
    network = make()
    before = state_of(network)
    report = load_pretrained(network, tmp_path / "weights.pt")
    assert report == WeightReport(
        loaded=("conv.bias", "bn.weight", "bn.bias", "bn.running_var", "head.weight", "head.bias"),
        missing=("bn.running_mean",),
        unexpected=("fc.weight",),
        misshapen=("conv.weight",),
    )
    assert report.unfilled == ("conv.weight", "bn.running_mean")
    for name, entry in network.state_dict().items():
        expected = torch.full_like(entry, 7.0) if name in report.loaded else before[name]
        assert torch.equal(entry, expected), name
    assert (
        "filled 6 entries and left 1 entries of the network unfilled: bn.running_mean; has 1 of another shape: "
        "conv.weight (4, 1, 3, 3) for (4, 3, 3, 3); holds 1 that the network lacks: fc.weight."
    ) in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_long_lists_are_cut_in_the_warning_alone(tmp_path, caplog):
    torch.save(filled() | {f"extra.{n}": torch.zeros(1) for n in range(12)}, tmp_path / "weights.pt")
    report = load_pretrained(make(), tmp_path / "weights.pt")
    assert len(report.unexpected) == 12
    assert "holds 12 that the network lacks: extra.0, " in caplog.text
    assert "extra.9 and 2 more." in caplog.text


def test_beginnings_of_names_are_renamed_and_skipped(tmp_path, caplog):
    state = {f"backbone.stem.{name}": entry for name, entry in filled().items() if name.startswith("conv")}
    state |= {f"backbone.{name}": entry for name, entry in filled().items() if not name.startswith("conv")}
    state |= {"backbone.fc.weight": torch.zeros(9), "fc2.weight": torch.zeros(9)}
    torch.save(state, tmp_path / "weights.pt")
    names = {"backbone.": "", "backbone.stem.": ""}
    report = load_pretrained(make(), tmp_path / "weights.pt", rename=names, skip=["backbone.fc.", "fc2."])
    assert report.unfilled == report.unexpected == ()
    assert caplog.text == ""


def test_two_entries_for_one_name_are_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"two entries of the file the name 'weight': leave one out with `skip`"):
        load_pretrained(make(), tmp_path / "weights.pt", rename={"a.": "", "b.": ""})


def test_half_precision_files_keep_the_networks_precision(tmp_path):
    torch.save({name: entry.half() if entry.is_floating_point() else entry for name, entry in filled(0.5).items()},
               tmp_path / "weights.pt")  # fmt: skip
    network = make().double()
    load_pretrained(network, tmp_path / "weights.pt")
    assert network.conv.weight.dtype == torch.float64
    assert bool((network.conv.weight == 0.5).all())


def test_safetensors_are_read_where_that_package_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    module = types.ModuleType("safetensors.torch")
    module.load_file = lambda path: filled()
    monkeypatch.setitem(sys.modules, "safetensors.torch", module)
    assert load_pretrained(make(), tmp_path / "weights.safetensors").unfilled == ()


def test_safetensors_without_that_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(DataError, match="needs the package safetensors: install it, or give a torch file"):
        load_pretrained(make(), tmp_path / "weights.safetensors")


def test_real_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(filled(), tmp_path / "weights.safetensors")
    assert load_pretrained(make(), tmp_path / "weights.safetensors").unfilled == ()


class Foreign:
    """An object that a file of more than tensors may hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No weights at .*check the path"),
        (b"", "Cannot read .* as tensors: it is damaged or no state dict"),
        (b"no archive", "Cannot read .* as tensors"),
        (pickle.dumps(Foreign(), protocol=2), "Cannot read .* as tensors"),
        ([torch.zeros(2)], r"Nothing in .* fits the network, which expects names such as 'conv.weight' of shape "),
        ({"state_dict": 3}, "while the file holds no tensors: give weights of the same architecture and size, or map"),
        ({"features.0.weight": torch.zeros(4, 2)}, r"while the file holds 'features.0.weight' of shape \(4, 2\)"),
        ({"bn.num_batches_tracked": torch.tensor(5)}, "Nothing in .* fits"),
        ({"conv.weight": torch.zeros(4, 3, 3, 3, 3)}, r"file holds 'conv.weight' of shape \(4, 3, 3, 3, 3\)"),
        ({"bn.weight": torch.zeros(4), "head.bias": torch.zeros(2)}, "fills only 2 of 8 entries of the network, which"),
    ],
)
def test_files_of_other_networks_are_refused_and_change_nothing(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    network = make()
    before = state_of(network)
    with pytest.raises(DataError, match=message) as raised:
        load_pretrained(network, path)
    assert str(raised.value).count(". ") == 0
    for name, entry in network.state_dict().items():
        assert torch.equal(entry, before[name]), name


def test_files_of_mxnet_are_named(tmp_path):
    with pytest.raises(DataError, match=r"\.params is a file of MXNet: give its conversion to a torch state dict"):
        load_pretrained(make(), tmp_path / "ilsvrc.params")


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(make().state_dict()))))
def test_loaded_and_unfilled_part_the_network(tmp_path_factory, absent):
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save({name: entry for name, entry in filled().items() if name not in absent}, path)
    network = make()
    try:
        report = load_pretrained(network, path)
    except DataError:
        kept = sum(entry.numel() for name, entry in filled().items() if name not in absent)
        assert kept < 0.1 * sum(entry.numel() for entry in filled().values()) + 1
        return
    counted = {name for name in network.state_dict() if not name.endswith("tracked")}
    assert set(report.loaded) | set(report.unfilled) == counted
    assert set(report.unfilled) == absent & counted


@pytest.mark.parametrize("network_class", [ResNet38, ResNeSt])
def test_backbones_take_their_public_form(tmp_path, caplog, network_class):
    """Read files as converted from MXNet or published with a classifier: no step counters, more entries."""
    donor = network_class.tiny()
    state = {name: entry for name, entry in donor.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state | {"fc.weight": torch.zeros(10, 4)}, tmp_path / "weights.pth")
    network = network_class.tiny()
    report = load_pretrained(network, tmp_path / "weights.pth", skip=["fc."])
    assert report.unfilled == report.unexpected == ()
    assert caplog.text == ""
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), donor.parameters(), strict=True))
