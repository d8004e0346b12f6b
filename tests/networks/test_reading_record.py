# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

import copy
import io
import logging
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from monai.networks.nets import UNet
from torch import nn

from monai_wsss.engines import save_weights, with_weights
from monai_wsss.methods import ClassActivationMapping, FullSupervision, PseudoMaskSupervision, SegmentationNetwork
from monai_wsss.networks import (
    CAMEncoder,
    FusedSegmenter,
    MapEnsemble,
    PyramidSceneParsing,
    TwoBranchNetwork,
    load_pretrained,
    reading_order,
    record_reading,
    recorded_reading,
)

HEADER = {"order": "rows_columns", "slicing_axis": "SI", "in_plane_axes": "LP"}
NOTHING = {"order": None, "slicing_axis": None, "in_plane_axes": None}
OLD = "These weights do not record how their images were read"
DEPLOYABLE = [CAMEncoder, FusedSegmenter, MapEnsemble, PyramidSceneParsing, SegmentationNetwork, TwoBranchNetwork]
BUNDLES = Path(__file__).parents[2] / "bundles"

each_network = pytest.mark.parametrize("kind", DEPLOYABLE, ids=lambda kind: kind.__name__)


def recorded(kind=CAMEncoder, header=HEADER):
    network = kind.tiny()
    record_reading(network, header)
    return network


def without_record(network):
    return {name: value for name, value in network.state_dict().items() if ".reading_" not in f".{name}"}


def sentences(caplog):
    return [record.getMessage() for record in caplog.records if OLD in record.getMessage()]


@each_network
def test_the_record_goes_where_the_weights_go(kind, tmp_path, caplog):
    network = recorded(kind)
    assert recorded_reading(network) == HEADER
    assert recorded_reading(copy.deepcopy(network).to(torch.float16)) == HEADER
    save_weights(tmp_path / "model.pt", network)
    assert recorded_reading(with_weights(kind.tiny(), tmp_path / "model.pt")) == HEADER
    assert not sentences(caplog)


@pytest.mark.filterwarnings("ignore")  # of torch's exporters, about themselves
@each_network
def test_the_record_of_compiled_and_exported_networks_is_read(kind):
    network = recorded(kind).eval()
    image = torch.rand(1, 3 if kind is PyramidSceneParsing else 1, 32, 32)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    assert recorded_reading(torch.jit.load(file)) == HEADER
    assert recorded_reading(torch.export.export(network, (image,)).module()) == HEADER


@each_network
def test_weights_of_before_load_strictly_with_one_sentence(kind, caplog):
    old = without_record(kind.tiny())
    network = recorded(kind)
    assert not sentences(caplog), "of a network that was made"
    network.load_state_dict(old, strict=True)
    assert recorded_reading(network) == NOTHING
    assert len(sentences(caplog)) == 1
    assert not any("reading_" in name for name in old), "what was given stays as it is"
    network.load_state_dict(old, strict=True)
    assert len(sentences(caplog)) == 2, "each loading says it"


def test_a_method_with_several_networks_says_it_once(caplog):
    method = ClassActivationMapping(MapEnsemble.tiny())
    method.teacher = copy.deepcopy(method.network)
    method.load_state_dict(without_record(method))
    assert len(sentences(caplog)) == 1


def test_weights_of_new_networks_that_recorded_nothing_say_it_too(caplog):
    CAMEncoder.tiny().load_state_dict(CAMEncoder.tiny().state_dict())
    assert len(sentences(caplog)) == 1


def test_weights_of_a_part_leave_the_record(tmp_path, caplog):
    network = recorded(TwoBranchNetwork)
    torch.save({f"encoder.{name}": value for name, value in network.encoder.state_dict().items()}, tmp_path / "part.pt")
    load_pretrained(network, tmp_path / "part.pt")
    assert recorded_reading(network) == HEADER
    assert not sentences(caplog)


@pytest.mark.parametrize("bundle", ["brain_mri_bmp", "brain_mri_cam", "brain_mri_cmer", "histology_gland"])
def test_shipped_weights_have_an_order(bundle):
    path = BUNDLES / f"{bundle}_segmentation" / "models" / "model.pt"
    assert reading_order(path, {"order": "rows_columns"}) in ("xy", "rows_columns")


@pytest.mark.parametrize("method", ["bmp", "cam", "cmer"])
def test_shipped_brain_weights_know_that_their_slices_were_axial(method, caplog):
    bundle = BUNDLES / f"brain_mri_{method}_segmentation"
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs/inference.json"))
    network = with_weights(config.get_parsed_content("network_def"), bundle / "models" / "model.pt")
    assert recorded_reading(network) == {"order": "xy", "slicing_axis": "SI", "in_plane_axes": "LP"}
    assert reading_order(bundle / "models" / "model.pt", {"order": "rows_columns"}) == "xy"
    assert not sentences(caplog)


def test_monais_loader_reads_records_and_weights_of_before(tmp_path, caplog):
    for name, state, expected in (
        ("new", recorded().state_dict(), HEADER),
        ("old", without_record(recorded()), NOTHING),
    ):
        torch.save(state, tmp_path / f"{name}.pt")
        network = recorded(header={"order": "xy"})
        loader = CheckpointLoader(str(tmp_path / f"{name}.pt"), {"model": network})
        SupervisedEvaluator("cpu", [{"image": torch.zeros(1, 1, 8, 8)}], network, val_handlers=[loader]).run()
        assert recorded_reading(network) == expected
        assert len(sentences(caplog)) == (name == "old")


def test_distributed_networks_and_callables_are_asked():
    network = recorded()
    wrapped = nn.Sequential()
    wrapped.add_module("module", network)  # as DistributedDataParallel holds it
    assert recorded_reading(wrapped) == HEADER
    assert recorded_reading(torch.relu) == NOTHING
    assert recorded_reading(UNet(2, 1, 2, channels=(4, 8), strides=(2,))) == NOTHING


def test_the_outermost_record_counts():
    ensemble = recorded(MapEnsemble)
    record_reading(ensemble.members[0], {"order": "xy"})
    assert recorded_reading(ensemble) == HEADER


def test_an_ensemble_of_trained_networks_has_their_record():
    assert recorded_reading(MapEnsemble([recorded(), recorded()])) == HEADER
    assert recorded_reading(MapEnsemble([CAMEncoder.tiny(), recorded(header={"order": "xy"})])) == NOTHING
    with pytest.raises(ValueError, match=r"`members` that get images in the same order, got \['rows_columns', 'xy'\]"):
        MapEnsemble([CAMEncoder.tiny(), recorded()])


def test_a_method_records_in_all_its_networks():
    method = PseudoMaskSupervision(SegmentationNetwork.tiny())
    method.teacher = copy.deepcopy(method.network)
    record_reading(method, {"order": None})
    assert [recorded_reading(one)["order"] for one in (method.network, method.teacher)] == ["xy", "xy"]


def test_networks_that_cannot_record_stay_as_they_are_and_one_sentence_says_so(caplog):
    plain = FullSupervision(UNet(2, 1, 2, channels=(4, 8), strides=(2,)))
    names = list(plain.state_dict())
    record_reading(plain, {"order": "xy"})
    assert not caplog.records
    record_reading(plain, HEADER)
    assert list(plain.state_dict()) == names
    (told,) = caplog.records
    assert "FullSupervision cannot record that its images are read in the order rows_columns" in told.getMessage()


@pytest.mark.parametrize(
    ("weights", "header", "expected"),
    [
        (None, None, "xy"), (None, {}, "xy"), (None, {"order": None}, "xy"), (None, HEADER, "rows_columns"),
        ("recorded", {}, "rows_columns"), ("recorded", {"order": "xy"}, "rows_columns"), ("empty", HEADER, "xy"),
    ],
)  # fmt: skip
def test_the_order_of_the_weights_decides(weights, header, expected, tmp_path):
    network = {"recorded": recorded(), "empty": CAMEncoder.tiny()}.get(weights)
    assert reading_order(network, header) == expected
    if network is not None:
        save_weights(tmp_path / "model.pt", network)
        assert reading_order(tmp_path / "model.pt", header) == expected
        # As MONAI's CheckpointSaver writes and its CheckpointLoader reads.
        torch.save({"model": network.state_dict()}, tmp_path / "checkpoint.pt")
        assert reading_order(tmp_path / "checkpoint.pt", header) == expected


@pytest.mark.parametrize("axis", ["RL", "AP", "SI"])
def test_axes_are_recorded_without_those_of_the_slice(axis):
    network = recorded(header={"slicing_axis": axis})
    assert recorded_reading(network) == {"order": "xy", "slicing_axis": axis, "in_plane_axes": None}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"order": "yx"}, "Expected `order` to be one of xy, rows_columns, got 'yx'"),
        ({"slicing_axis": "axial"}, "Expected `slicing_axis` to be one of RL, AP, SI, got 'axial'"),
        ({"slicing_axis": "SI", "in_plane_axes": "LS"}, "two of R, L, A, P, S, I across SI, got 'LS'"),
        ({"slicing_axis": "SI", "in_plane_axes": "L"}, "two of R, L, A, P, S, I across SI, got 'L'"),
        ({"slicing_axis": "SI", "in_plane_axes": "LX"}, "two of R, L, A, P, S, I across SI, got 'LX'"),
    ],
)
def test_unknown_words_are_refused(header, message):
    with pytest.raises(ValueError, match=message):
        record_reading(CAMEncoder.tiny(), header)


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING)
