# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""A name that a bundle does not have is refused in one sentence; what MONAI and our contract know is let through."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from monai_wsss.engines import check_command_line, check_overrides, takes_arguments_of
from monai_wsss.methods import WSSSMethod


class Words(WSSSMethod):
    """Built by words that belong to another."""

    @classmethod
    @takes_arguments_of(pow)
    def from_preset(cls, preset: str = "default", **words: Any) -> None:
        """Build nothing."""

    @classmethod
    def silent(cls, **anything: Any) -> None:
        """Say nothing of its words."""


TRAIN: dict[str, Any] = {
    "epochs": 20,
    "amp": False,
    "resume": False,
    "learning_rate": 0.1,
    "method": {"_target_": f"{__name__}.Words.from_preset", "preset": "scratch"},
    "other": {"_target_": f"{__name__}.Words.silent"},
    "network_def": {"_target_": "monai_wsss.networks.TwoBranchNetwork.tiny", "in_channels": 3},
    "optimizers": {"network": {"_target_": "torch.optim.AdamW", "lr": "@learning_rate"}},
    "train": {
        "trainer": {
            "_target_": "monai_wsss.engines.WSSSTrainer",
            "max_epochs": "@epochs",
            "optimizers": "@optimizers",
        },
        "handlers": [{}],
    },
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])  # `_target_` finds the class above
    for name, content in {
        "train": TRAIN,
        "slide": {"slide": "x.tif", "device": "cpu"},
        "metadata": {"task": 1},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *(
            "epochs",
            "train#trainer#max_epochs",
            "train::trainer::max_epochs",
            "train#handlers#0",
            "optimizers#network#lr",
        ),
        *("optimizers#network#betas", "train#trainer#clip_norm", "method#_disabled_", "method#mod", "other#anything"),
        *("run_id", "config_file", "workflow_type", "args_file", "device", "split", "train#trainer"),
    ],
)
def test_what_there_is_may_be_set(name, configs):
    check_overrides(configs / "train.json", [name])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("epoch", "`epoch` is no setting of this bundle: did you mean `epochs`?"),
        ("dataset_dri", "`dataset_dri` is no setting of this bundle: did you mean `dataset_dir`?"),
        ("zzz", "`zzz` is no setting of this bundle: look for its name in the table of the bundle's README."),
        ("train#epochs", "`train#epochs` is no setting of this bundle: look for its name"),
        ("train#handlers#7", "`train#handlers#7` is no setting of this bundle"),
        ("epochs#x", "`epochs#x` is no setting of this bundle"),
        (
            "train#trainer#max_epoch",
            "`max_epoch` is no argument of `train#trainer`, which is monai_wsss.engines.WSSSTrainer: did you mean "
            "`train#trainer#max_epochs`?",
        ),
        ("method#bass", "`bass` is no argument of `method`, which is .*Words.from_preset: did you mean `method#base`?"),
        ("use_c2s", "`use_c2s` is no setting of this bundle"),  # this method has no c2s_weight
        (
            "weight_decay",
            "`weight_decay` is now `optimizers#network#weight_decay`: write --optimizers#network#weight_dec",
        ),
        ("slide", "`slide` is a setting of .*/slide.json, which this run does not read: add the file to --config_file"),
        ("task", "`task` is no setting of this bundle"),
        (
            "train#trainer#optimizers#network#lr",
            "`train#trainer#optimizers` only refers to `optimizers`: write --optimizers#network#lr …",
        ),
    ],
)
def test_what_there_is_not_is_refused(name, sentence, configs):
    with pytest.raises(ValueError, match=sentence):
        check_overrides([str(configs / "train.json")], ["device", name])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"amp": "false"}, "`amp` takes True or False, and MONAI reads 'false' as a word: write --amp False."),
        ({"epochs": "None"}, r"MONAI leaves out `epochs` when it is None: write '\$None' for it."),
    ],
)
def test_values_that_monai_passes_over_are_refused(override, sentence, configs):
    with pytest.raises(ValueError, match=sentence):
        check_overrides(configs / "train.json", override)
    check_overrides(configs / "train.json", {"resume": "true", "amp": True, "epochs": 3})


def test_what_replaces_a_block_decides_about_its_arguments(configs):
    check_overrides(configs / "train.json", ["optimizers#network#momentum", "optimizers#network#_target_"])
    check_overrides(configs / "train.json", ["network_def#width", "network_def"])
    check_overrides(configs / "train.json", ["tracking", "experiment_name"])


def test_several_files_are_read_together(configs):
    both = [str(configs / "train.json"), str(configs / "slide.json")]
    check_overrides(both, ["slide", "epochs"])
    check_overrides(",".join(both), ["slide"])


# ---- the command line ------------------------------------------------------------------------------------------------

PROGRAM = str(Path(monai.bundle.__file__).with_name("__main__.py"))


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--epoch", "3"], "epoch"),
        (["--epoch=3"], "epoch"),
        (["--epochs", "-3", "--output-dri", "x"], "output_dri"),
        (["training", "--epochs", "3"], None),
        (["--epochs", "3", "--resume", "true", "--", "--verbose"], None),
    ],
)
def test_the_command_line_is_read_as_fire_reads_it(words, wrong, configs, monkeypatch):
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", f"['{configs}/train.json']", *words])
    if wrong is None:
        check_command_line()
        return
    with pytest.raises(SystemExit, match=f"^monai.bundle run: `{wrong}` is no setting of this bundle"):
        check_command_line()


def test_a_file_of_arguments_is_read_too(configs, monkeypatch, tmp_path_factory):
    path = tmp_path_factory.mktemp("arguments") / "arguments.json"
    path.write_text(json.dumps({"config_file": str(configs / "train.json"), "epoch": 3}))
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--args_file", str(path)])
    with pytest.raises(SystemExit, match="`epoch` is no setting"):
        check_command_line()


@pytest.mark.parametrize("words", [["pytest"], [PROGRAM], [PROGRAM, "ckpt_export", "--epoch"], [PROGRAM, "run"]])
def test_other_programs_have_command_lines_of_their_own(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", words)
    check_command_line()


BUNDLES = Path(__file__).parents[2] / "bundles"
GONE = {
    ("brain_mri_bmp", "train"): """
        weight_decay use_crf width decoder_width pooling topk_share pooled use_ofd ofd_activation ofd_detach
        detach_seeds use_c2s use_s2c use_affinity c2s_weight s2c_weight affinity_weight propagation c2s_loss s2c_input
        s2c_loss seed_scale background_scale score_scale class_confidence segmentation_confidence confidence_of
        filter_segmentation healthy_is_background healthy_affinity train_mode_labels row_stochastic ready_below
        dilations downscale scales settings encoder_def c2s_ramp s2c_ramp propagation_ramp
    """,
    ("brain_mri_bmp", "inference"): """
        use_crf width decoder_width pooling topk_share pooled use_ofd ofd_activation ofd_detach detach_seeds settings
        encoder_def
    """,
    ("brain_mri_cam", "train"): "rule gate settings",
    ("brain_mri_cam", "inference"): "rule gate settings",
    ("brain_mri_cmer", "train"): """
        weight_decay rule threshold gate fusion reliable_only backbone width pooling standardize use_er use_cmer use_kd
        second_view transforms norm teachers settings spatial_transform equivariance cross_modal distillation ramp
        distillation_ramp
    """,
    ("brain_mri_cmer", "inference"): """
        rule threshold gate fusion reliable_only backbone width pooling standardize settings
    """,
    ("histology_gland", "train"): """
        rule gate attention attention_stages pyramid fusion logit cam_source pooling scores label_filter pseudo_views
        pseudo_scales plf warmup settings
    """,
    ("histology_gland", "train paper"): "settings#input_size color_distortion blur",
    ("histology_gland", "train multi_gpu_train"): "distributed_classifier",
    ("histology_gland", "inference"): "rule gate settings",
    ("histology_gland", "inference slide"): "slide_network",
}
"""The ids of 0.1.0 that are gone, by bundle and configuration files."""


@pytest.mark.parametrize(("bundle", "files"), GONE)
def test_every_name_of_0_1_0_is_answered(bundle, files):
    """The answer names a place that can be set, or says that there is none."""
    configs = [BUNDLES / f"{bundle}_segmentation" / "configs" / f"{name}.json" for name in files.split()]
    for name in GONE[bundle, files].split():
        with pytest.raises(ValueError, match=r"is gone: |is now `") as error:
            check_overrides(configs, [name])
        if " is now `" in str(error.value):
            check_overrides(configs, [str(error.value).split(" is now `")[1].split("`")[0].split()[0]])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("c2s_ramp#end", "method#c2s_ramp"),
        ("refine#row_stochastic", "method#row_stochastic"),
        ("refine#dilations", "method#dilations"),
        ("encoder_def#width", "network_def#encoder"),
        ("to_mask#crf", "refine @crf"),
    ],
)
def test_ids_below_a_block_that_is_gone_are_answered(name, place):
    config = BUNDLES / "brain_mri_bmp_segmentation" / "configs" / "train.json"
    with pytest.raises(ValueError, match=rf"`{name}` is now `{place}`: write --{place}( …)?\."):
        check_overrides(config, [name])


def test_a_block_that_an_overlay_brings_takes_its_own_words(tmp_path):
    overlay = tmp_path / "par.json"
    overlay.write_text('{"refine": {"_target_": "monai_wsss.refinement.PixelAdaptiveRefinement", "iterations": 5}}')
    config = BUNDLES / "brain_mri_bmp_segmentation" / "configs" / "train.json"
    check_overrides([config, overlay], ["refine#row_stochastic", "refine#dilations", "refine#iterations"])
    with pytest.raises(ValueError, match="`row` is no argument of `refine`"):
        check_overrides([config, overlay], ["refine#row"])


def test_an_answer_names_nothing_that_another_bundle_has():
    config = BUNDLES / "brain_mri_cam_segmentation" / "configs" / "train.json"
    with pytest.raises(ValueError, match=r"`to_mask#crf` is now `refine crf`: write --refine crf\."):
        check_overrides(config, ["to_mask#crf"])
    with pytest.raises(ValueError, match="`refine#dilations` is no setting of this bundle"):
        check_overrides(config, ["refine#dilations"])


def test_an_argument_of_a_block_is_suggested_with_its_place():
    config = BUNDLES / "brain_mri_bmp_segmentation" / "configs" / "train.json"
    words = "`ready_bellow` is no setting of this bundle: did you mean `method#ready_below`"
    with pytest.raises(ValueError, match=words):
        check_overrides(config, ["ready_bellow"])
