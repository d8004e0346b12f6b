# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Every branch of every network against masks cut by hand; label filters, CRF, files, and what fills the networks."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.utils.data import DataLoader

from monai_wsss._checks import DataError
from monai_wsss.engines import BranchEvaluation, BranchLog, save_checkpoint, save_weights
from monai_wsss.engines.evaluation import slice_place
from monai_wsss.methods import BMP
from monai_wsss.metrics import SlicePlace
from monai_wsss.networks import TwoBranchNetwork
from monai_wsss.networks.reading_record import add_reading_record, record_reading
from monai_wsss.refinement import DenseCRF, LabeledImages, PixelAdaptiveRefinement

CLASSES = ["disk", "ring"]


class Network(nn.Module):
    """Maps of each class are channels of the image; the auxiliary ones are mirrored."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def branches(self, image):
        return SimpleNamespace(logits=image.amax((2, 3)) - 0.75)


def seeds(network, images):
    assert not network.training
    maps = (images.image * network.gain).clamp(0, 1) * images.label[..., None, None]
    segmentation = torch.cat((torch.full_like(maps[:, :1], 0.6), maps), 1)
    return maps, maps.flip(-1), segmentation


def item(seed: int = 0, label: tuple[float, float] = (1.0, 0.0), size: tuple[int, int] = (6, 8)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 2, *size, generator=generator)
    mask = torch.randint(0, 3, (1, 1, *size), generator=generator).to(torch.uint8)
    return {"image": image, "label": torch.tensor([label]), "mask": mask}


def evaluation(**words) -> BranchEvaluation:
    networks = {"assignment": Network(), "online": Network(0.5)}
    return BranchEvaluation(networks, seeds, [lambda: torch.tensor(0.4), lambda: 0.6], CLASSES, **words)


def mean_iou(pairs) -> float:
    """Over the classes that some reference holds, pixel by pixel."""
    ious = []
    for k in range(3):
        both = sum(int(((found == k) & (truth == k)).sum()) for found, truth in pairs)
        either = sum(int(((found == k) | (truth == k)).sum()) for found, truth in pairs)
        if any(bool((truth == k).any()) for _, truth in pairs):
            ious.append(both / either)
    return sum(ious) / len(ious)


def by_hand(one, network: Network, branch: str, given: bool):
    maps = (one["image"] * network.gain.detach()).clamp(0, 1)
    kept = one["label"][..., None, None] if given else torch.ones(())
    turned, middle = maps.flip(-1), (maps + maps.flip(-1)) / 2
    scores, cut = {"M": (maps, 0.4), "M_aux": (turned, 0.6), "M+M_aux": (middle, 0.5), "S": (maps, 0.6)}[branch]
    strongest, winner = (scores * kept).max(1)
    return torch.where(strongest > cut, winner + 1, 0), one["mask"][:, 0]


def test_every_branch_of_every_network_is_what_it_is_by_hand():
    one, other = item(0, (1.0, 0.0)), item(1, (1.0, 1.0))
    measured = evaluation()
    rows = measured.measure([one, other], split="training")
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        network = measured.networks[row["network"]]
        pairs = [by_hand(each, network, row["branch"], row["label_filter"] == "given") for each in (one, other)]
        assert row["miou"] == pytest.approx(mean_iou(pairs)), row
        assert (row["split"], row["images"], row["left_out"], row["crf"]) == ("training", 2, 0, False)
        assert row["images_per_second"] > 0
        assert list(row["iou"]) == ["background", *CLASSES]
    cuts = {row["branch"]: row["threshold"] for row in rows}
    assert cuts == pytest.approx({"M": 0.4, "M_aux": 0.6, "M+M_aux": 0.5, "S": None})


def test_classes_with_a_context_are_measured_apart(datalist, tmp_path):
    """The C-mIoU of CoSA's Table 4b, of every branch: the mean IoU of the classes that the datalist names."""
    header = json.loads(datalist.read_text(encoding="utf-8"))
    datalist.write_text(json.dumps(header | {"context": {"ring": "finger"}}), encoding="utf-8")
    log = BranchLog(
        BranchEvaluation.of(CoTraining(), datalist), {"validation": [item(0), item(1, (1.0, 1.0))]}, tmp_path
    )
    rows = log.measure()
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        assert row["context_miou"] == pytest.approx(row["iou"]["ring"]) != row["miou"]
    with open(tmp_path / "branches_once.csv", newline="", encoding="utf-8") as file:
        written = [float(line["context_miou"]) for line in csv.DictReader(file)]
    assert written == pytest.approx([row["context_miou"] for row in rows])
    assert all("context_miou" not in row for row in evaluation().measure([item()]))
    with pytest.raises(ValueError, match="Expected `context` to be one of disk, ring, got 'square'"):
        evaluation(context=["square"])


def test_predicted_labels_are_those_of_each_network():
    one = item()
    one["image"][:, 1] *= 0.7  # below 0.75: its logit is negative
    rows = evaluation(label_filters=("predicted", "given")).measure([one])
    found = {(row["network"], row["branch"], row["label_filter"]): row["miou"] for row in rows}
    for branch in ("M", "S"):
        assert found["assignment", branch, "predicted"] == found["assignment", branch, "given"]


def test_healthy_images_need_no_mask_and_others_without_one_are_left_out():
    healthy = item(2, (0.0, 0.0))
    del healthy["mask"]
    unknown = item(3)
    del unknown["mask"]
    rows = evaluation(label_filters=("given",)).measure([item(), healthy, unknown])
    assert {(row["images"], row["left_out"]) for row in rows} == {(2, 1)}
    alone = evaluation(label_filters=("given",)).measure([healthy])
    assert {row["miou"] for row in alone} == {None}  # no reference holds a class
    assert {row["iou"]["background"] for row in alone} == {1.0}
    unlabeled = item(4)
    del unlabeled["label"]
    for alone in (unknown, unlabeled):
        with pytest.raises(DataError, match="No image of the split 'test' has a pixel mask"):
            evaluation().measure([alone], split="test")


def test_the_crf_adds_a_row_beside_each():
    crf = DenseCRF.from_preset("cosa", intensity_range=1.0)
    one = item()
    rows = evaluation(crf=crf).measure([one])
    assert [row["crf"] for row in rows] == [False, True] * 16
    nothing = DenseCRF(iterations=0, intensity_range=1.0)
    for plain, refined in zip(*[iter(evaluation(crf=nothing).measure([one]))] * 2, strict=True):
        assert plain["branch"] == refined["branch"]
        assert plain["miou"] == pytest.approx(refined["miou"])
        assert plain["images_per_second"] != refined["images_per_second"]


@pytest.mark.parametrize(("unit", "reads_intensity"), [(255.0, True), (None, False)])
def test_the_crf_reads_the_image_before_its_normalization_unless_it_is_set_for_the_network_s_input(
    unit, reads_intensity
):
    crf = DenseCRF(iterations=2, bilateral_intensity_std=40.0 if unit else 0.2, intensity_range=unit)
    one, generator = item(size=(8, 8)), torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        one["intensity"] = torch.randint(0, 256, (1, 3, 8, 8), generator=generator).float()
        rows = evaluation(crf=crf, label_filters=("none",)).measure([one])
        found.append([row["iou"] for row in rows if row["crf"]])
    assert (found[0] != found[1]) == reads_intensity


def test_words_switch_the_crf():
    assert evaluation(crf="none").refinement is evaluation().refinement is None
    assert isinstance(evaluation(crf="crf").refinement.part, DenseCRF)


def test_images_of_other_dimensions_are_refused():
    measured = evaluation()
    measured.networks["online"].spatial_dims = 3
    with pytest.raises(
        ValueError, match=r"images of 3 dimensions, as the network takes them, .* got \(6, 8\) and None"
    ):
        measured.measure([item()])
    with pytest.raises(ValueError, match=r"a `grid` of as many, got \(6, 8\) and \(4, 4, 4\)"):
        evaluation(grid=(4, 4, 4)).measure([item()])


def test_images_are_squashed_to_a_grid_and_their_maps_brought_back():
    sizes = []

    def noting(network, images):
        sizes.append(tuple(images.image.shape[2:]))
        return seeds(network, images)

    measured = BranchEvaluation({"one": Network()}, noting, [lambda: 0.5] * 2, CLASSES, grid=(4, 4))
    (row, *_) = measured.measure([item(size=(6, 8))])
    assert sizes == [(4, 4)]
    assert row["images"] == 1


def test_networks_keep_their_mode():
    measured = evaluation()
    measured.networks["assignment"].eval()
    measured.measure([item()])
    assert [network.training for network in measured.networks.values()] == [False, True]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"label_filters": ("all",)}, "`label_filters` to be one of none"),
        ({"label_filters": ()}, r"one or more `networks` and `label_filters`, got .* and \[\]"),
        ({"crf": "par"}, "`crf` to be a DenseCRF, 'crf' or 'none', got 'par'"),
    ],
)
def test_what_does_not_fit_is_refused(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluation(**words)


# ------------------------------------------------------------------------------------ what fills the networks


class CoTraining(nn.Module):
    def __init__(self, gain: float = 1.0, two: bool = True) -> None:
        super().__init__()
        self.network, self.seeds = Network(gain), seeds
        self.online = Network(gain / 2) if two else self.network
        self.labels, self.auxiliary_labels = nn.Module(), SimpleNamespace(low=0.2, high=0.7)
        self.labels.register_buffer("value", torch.tensor(0.5))
        self.labels.threshold = lambda: self.labels.value


@pytest.fixture
def datalist(tmp_path):
    path = tmp_path / "datalist.json"
    content = {"name": "shapes", "modality": {"0": "gray"}, "classes": CLASSES, "training": [], "validation": []}
    path.write_text(json.dumps(content))
    return path


def test_a_method_is_measured_at_its_thresholds_as_they_are(datalist):
    method = CoTraining()
    measured = BranchEvaluation.of(method, datalist)
    assert measured.classes == tuple(CLASSES)
    assert measured.cuts == pytest.approx({"M": 0.5, "M_aux": 0.45, "M+M_aux": 0.475})
    method.labels.value.fill_(0.3)
    assert measured.cuts["M"] == pytest.approx(0.3)
    assert list(measured.networks) == ["assignment", "online"]
    assert list(BranchEvaluation.of(CoTraining(two=False), datalist).networks) == ["network"]
    with pytest.raises(ValueError, match="such as CoSA, or one of two branches, such as BMP, got Network"):
        BranchEvaluation.of(Network(), datalist)


def test_both_networks_come_from_a_checkpoint_and_one_from_the_weights(datalist, tmp_path, caplog):
    trained = CoTraining(3.0)
    trained.labels.value.fill_(0.35)
    save_checkpoint(tmp_path / "checkpoints", 1, {"method": trained.state_dict()}, keep=1)
    save_weights(tmp_path / "model.pt", trained.network)
    measured = BranchEvaluation.of(CoTraining(), datalist, checkpoint_dir=tmp_path / "checkpoints")
    assert [network.gain.item() for network in measured.networks.values()] == [3.0, 1.5]
    assert measured.cuts["M"] == pytest.approx(0.35)
    absent = {"checkpoint_dir": tmp_path / "nothing"}
    alone = BranchEvaluation.of(CoTraining(), datalist, **absent, weights=tmp_path / "model.pt")
    assert [(name, network.gain.item()) for name, network in alone.networks.items()] == [("assignment", 3.0)]
    assert "the deployed network alone is measured" in caplog.text
    with pytest.raises(DataError, match="train first"):
        BranchEvaluation.of(CoTraining(), datalist, **absent, weights=tmp_path / "other.pt")


def test_checkpoints_and_weights_that_do_not_fit_are_named(datalist, tmp_path):
    trained = CoTraining()
    add_reading_record(trained.network)
    record_reading(trained.network, {"order": "rows_columns"})
    save_weights(tmp_path / "model.pt", trained.network)
    save_checkpoint(tmp_path / "checkpoints", 1, {"method": trained.state_dict()}, keep=1)
    for given in ({"weights": tmp_path / "model.pt"}, {"checkpoint_dir": tmp_path / "checkpoints"}):
        fitting, other = CoTraining(), CoTraining()
        add_reading_record(fitting.network)
        with pytest.raises(DataError, match="in the order rows_columns, but the data now say xy"):
            BranchEvaluation.of(fitting, datalist, **given)
        del other.network.gain
        with pytest.raises(DataError, match=r"of another network|holds another method"):
            BranchEvaluation.of(other, datalist, **given)


# ------------------------------------------------------------------------------- a method with one network


def bmp(**words) -> BMP:
    network = TwoBranchNetwork.tiny(2, 2, 2)
    with torch.no_grad():
        network.classifier.weight *= 50  # seeds of both classes somewhere
    refine = PixelAdaptiveRefinement(dilations=(1, 2), iterations=2, row_stochastic=True)
    return BMP.from_preset(network=network, refine=refine, scales=(1.0,), **words)


def test_both_branches_of_bmp_are_measured_for_several_classes(datalist, tmp_path):
    """Seeds as they are (Zhu et al., Tab. II), Y^c and the segmentation (Tab. VI), by hand from the method's parts."""
    torch.manual_seed(0)
    method = bmp().eval()
    save_weights(tmp_path / "model.pt", method.network)
    cases = [item(seed, label, (12, 16)) for seed, label in enumerate([(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])]
    measured = BranchEvaluation.of(bmp(), datalist, weights=tmp_path / "model.pt")
    rows = measured.measure(cases)
    assert [row["branch"] for row in rows] == ["M", "M", "S", "S", "Y", "Y"]
    assert {row["network"] for row in rows} == {"network"}
    assert rows[0]["threshold"] == pytest.approx(0.45)
    for row in rows:
        pairs = []
        for case in cases:
            label = case["label"] if row["label_filter"] == "given" else torch.ones(1, 2)
            images = LabeledImages(case["image"], label)
            seeds_of, logits = method.seeds(method.network, images)
            gone = torch.nn.functional.pad(label == 0, (1, 0))[..., None, None]
            strongest, winner = seeds_of.max(1)
            pairs.append(
                {
                    "M": torch.where(strongest > 0.45, winner + 1, 0),
                    "S": logits.masked_fill(gone, -torch.inf).argmax(1),
                    "Y": method.class_branch_mask(case["image"], label)[:, 0].long(),
                }[row["branch"]]
            )
        told = list(zip(pairs, (case["mask"][:, 0] for case in cases), strict=True))
        assert row["miou"] == pytest.approx(mean_iou(told)), row
    assert len({row["miou"] for row in rows}) > 3


def test_labels_are_made_on_the_grid_and_brought_to_the_masks(datalist):
    method = bmp(propagation="par")
    measured = BranchEvaluation.of(method, datalist, grid=(8, 8), label_filters=("given",))
    sizes = []
    method.first_labels.mask = lambda images, seeds, logits: (
        sizes.append((images.image.shape[2:], seeds.shape[2:])) or torch.full((len(images), 8, 8), 2)
    )
    rows = measured.measure([item(0, (0.0, 1.0), (12, 16))])
    assert sizes == [((8, 8), (8, 8))]
    assert rows[-1]["branch"] == "Y"
    assert rows[-1]["iou"]["disk"] == 0


# ------------------------------------------------------------------------------------------------ the log


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_branches_are_logged_by_interval_and_a_resumed_run_keeps_earlier_rows(tmp_path):
    log = BranchLog(evaluation(), {"training": [item()], "validation": [item(1)]}, tmp_path, interval=2)
    trainer = Engine(lambda engine, batch: None)
    log.attach(trainer)
    trainer.run([0, 0, 0], max_epochs=5)
    rows = read(tmp_path / "branches.csv")
    assert len(rows) == 2 * 2 * 16
    assert {(row["epoch"], row["iteration"]) for row in rows} == {("2", "6"), ("4", "12")}
    assert {row["split"] for row in rows} == {"training", "validation"}
    resumed = Engine(lambda engine, batch: None)
    BranchLog(evaluation(), {"training": [item()]}, tmp_path, interval=2).attach(resumed)
    resumed.state.epoch, resumed.state.iteration, resumed.state.max_epochs = 2, 6, None
    resumed.load_state_dict({"epoch": 2, "epoch_length": 3, "max_epochs": 4})
    resumed.run([0, 0, 0], max_epochs=4)
    assert [row["epoch"] for row in read(tmp_path / "branches.csv")] == ["2"] * 32 + ["4"] * 16
    BranchLog(evaluation(), {"training": [item()]}, tmp_path).measure()
    assert len(read(tmp_path / "branches.csv")) == 48  # the log of the training stays


def test_branches_are_logged_by_iterations_on_request(tmp_path):
    """As the curves of Zhu et al., Fig. 7; a resumed run keeps what was measured before it, also within an epoch."""
    log = BranchLog(evaluation(label_filters=("given",)), {"validation": [item()]}, tmp_path, iterations=2)
    trainer = Engine(lambda engine, batch: None)
    log.attach(trainer)
    trainer.run([0, 0, 0], max_epochs=2)
    rows = read(tmp_path / "branches.csv")
    assert sorted({(row["epoch"], row["iteration"]) for row in rows}) == [("1", "2"), ("2", "4"), ("2", "6")]
    resumed = Engine(lambda engine, batch: None)
    BranchLog(evaluation(label_filters=("given",)), {"validation": [item()]}, tmp_path, iterations=2).attach(resumed)
    resumed.load_state_dict({"epoch": 1, "epoch_length": 3, "max_epochs": 2})
    resumed.run([0, 0, 0], max_epochs=2)
    assert sorted({row["iteration"] for row in read(tmp_path / "branches.csv")}) == ["2", "4", "6"]
    assert len(read(tmp_path / "branches.csv")) == len(rows)
    with pytest.raises(ValueError, match="`iterations` >= 1, got 0"):
        BranchLog(evaluation(), {}, tmp_path, iterations=0)


def test_branches_are_measured_once_without_a_training(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = BranchLog(evaluation(), {"validation": [item()]}, tmp_path / "new").measure()
    content = json.loads((tmp_path / "new" / "branches.json").read_text(encoding="utf-8"))
    assert content["rows"] == rows
    assert content["reads"] == "pixel masks, to measure only"
    lines = read(tmp_path / "new" / "branches_once.csv")
    assert [float(line["miou"]) for line in lines] == [row["miou"] for row in rows]
    assert "validation, assignment, M, labels given: mIoU 0." in caplog.text
    with pytest.raises(ValueError, match="`interval` >= 1"):
        BranchLog(evaluation(), {}, tmp_path, interval=0)


class Waiting:
    """Seeds that wait for a healthy level."""

    ready = False

    def __call__(self, network, images):
        assert self.ready
        return seeds(network, images)


def test_the_log_begins_once_the_healthy_level_is_known(tmp_path, caplog):
    waiting = Waiting()
    measured = BranchEvaluation({"one": Network()}, waiting, [lambda: 0.5] * 2, CLASSES)
    trainer = Engine(lambda engine, batch: setattr(waiting, "ready", engine.state.epoch > 1))
    BranchLog(measured, {"training": [item()]}, tmp_path).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert {row["epoch"] for row in read(tmp_path / "branches.csv")} == {"2"}
    assert "Epoch 1: no branch is measured, the class maps have no healthy level yet." in caplog.text


def test_weights_alone_get_the_healthy_level_from_training_images(datalist, tmp_path):
    method, loaders = CoTraining(), {"training": [item()], "validation": [item(1)]}
    method.seeds, given = Waiting(), []

    def level(loader, device):
        given.append((loader, device))
        method.seeds.ready = True

    method.measure_negative_reference = level
    save_weights(tmp_path / "model.pt", method.network)
    log = BranchLog(BranchEvaluation.of(method, datalist, weights=tmp_path / "model.pt"), loaders, tmp_path)
    for _ in range(2):  # known the second time
        assert log.measure()
        assert given == [(loaders["training"], "cpu")]


def test_measuring_does_not_change_the_training(tmp_path):
    loader = DataLoader([{name: value[0] for name, value in item(seed).items()} for seed in range(2)])
    drawn = []
    for handlers in ([], [BranchLog(evaluation(), {"training": loader}, tmp_path)]):
        trainer = Engine(lambda engine, batch: drawn.append(torch.rand(1).item()))
        for handler in handlers:
            handler.attach(trainer)
        torch.manual_seed(0)
        trainer.run([0, 0], max_epochs=2)
    assert drawn[:4] == drawn[4:]


def test_label_makers_get_the_first_maps_and_the_logits():
    given = []
    maker = SimpleNamespace(mask=lambda images, seeds, logits: given.append((seeds, logits)))
    evaluation = SimpleNamespace(label_maker=lambda: maker)
    on_grid = [torch.full((1, 1, 2, 2), value) for value in (1.0, 2.0, 3.0)]
    # What a network with auxiliary maps gives: class maps, auxiliary maps, logits.
    BranchEvaluation._labels(evaluation, torch.zeros(1, 1, 2, 2), torch.ones(1, 1), on_grid)
    assert torch.equal(given[0][0], on_grid[0])
    assert torch.equal(given[0][1], on_grid[2])


def test_the_place_of_a_slice_keeps_the_order_of_its_sides():
    item = {"volume": "a", "slice": 3, "voxel_size": [1.0, 2.0, 4.0]}
    assert slice_place(item) == SlicePlace("a", 3, (1.0, 2.0, 4.0))
    assert slice_place(item | {"order": "rows_columns"}) == SlicePlace("a", 3, (2.0, 1.0, 4.0))
    assert slice_place({"volume": "a", "slice": 3}) == SlicePlace("a", 3, None)
    assert slice_place({}) is None
