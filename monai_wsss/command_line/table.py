# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands of ``monai-wsss``: one row per command, with the function that runs and its arguments.

A test compares every row with the signature of its function.
"""

from __future__ import annotations

from pathlib import Path

from monai_wsss.command_line.arguments import REQUIRED, Argument, Command, datalist_in, names, whole_numbers
from monai_wsss.command_line.layouts import LAYOUTS
from monai_wsss.command_line.running import RUNNING

__all__ = ["COMMANDS", "LAYOUTS", "SPLITS"]

SPLITS = ("training", "validation", "test")
"""The splits of every datalist, as in :mod:`monai_wsss.data.splits`, which needs numpy."""

_TABLES = {
    "bmp": "make_bmp_table",
    "bmp-classes": "make_bmp_classes",
    "cam": "make_cam_table",
    "choice": "make_choice_table",
    "cmer": "make_cmer_table",
    "cmer-unet": "make_cmer_full_resolution",
    "cmer-backbone": "make_cmer_backbone",
    "cmer-comparison": "make_cmer_comparison",
    "cmer-errors": "make_cmer_errors",
    "cmer-losses": "make_cmer_losses",
    "cmer-thresholds": "make_cmer_thresholds",
    "cmer-transforms": "make_cmer_transforms",
    "coingan": "make_coingan_table",
    "coingan-figures": "make_coingan_figures",
    "cosa": "make_cosa_table",
    "cosa-figures": "make_cosa_figures",
    "decisions": "make_decision_table",
    "encoder": "make_encoder_table",
    "gland": "make_gland_table",
    "gland-adaptation": "make_gland_adaptation",
    "gland-attention": "make_gland_attention",
    "gland-comparison": "make_gland_comparison",
    "gland-pyramid": "make_gland_pyramid",
    "levers": "make_lever_table",
}
_METHODS = ("cam", "gradcam++", "seam", "cmer", "gland", "afa", "bmp", "cosa", "coingan", "full")
_OTHER_FORM = "methods"
_GLAND_TABLES = tuple(name for name in _TABLES if name.startswith("gland"))
_REFINED_TABLES = ("encoder", "levers")
_ENCODER_TABLES = ("encoder", "levers", "decisions", "choice")
_KEPT_TABLES = ("coingan", "coingan-figures", "cosa", "cosa-figures")
_FIXED_TABLES = (*_KEPT_TABLES, *_ENCODER_TABLES)
_ABLATIONS = ("cam", "cmer", "cmer-unet", "bmp", "gland")
_CMER_PAPER = tuple(name for name in _TABLES if name.startswith("cmer-") and name != "cmer-unet")

COMMANDS = (
    *RUNNING,
    Command(
        "phantom",
        "generate phantom studies with exact masks: MRI of brains with tumors, chest X-rays with opacities, stained "
        "sections with glands, dermoscopy of pigmented lesions, or scenes whose classes have an unlabeled context",
        "monai-wsss phantom --kind brain --modalities T1,FLAIR --out phantoms\n"
        "  monai-wsss phantom --kind gland --out phantoms\n"
        "  monai-wsss phantom --kind skin --out phantoms",
        function="monai_wsss.data.phantoms.make_phantoms",
        arguments=(
            Argument("--kind", "kind of the phantoms", "brain", choices=("brain", "chest", "gland", "scene", "skin")),
            Argument("--out", "the folder to write", REQUIRED, metavar="DIR", parameter="directory"),
            Argument("--spatial-dims", "brains: slices (2) or volumes (3)", 2, int, choices=(2, 3)),
            Argument("--modalities", "brains: any of T1, T1c, T2, FLAIR", kind=names),
            Argument("--seed", "seed of the subjects", 0, int),
        ),
    ),
    Command(
        "report",
        "write report.html for a run that was evaluated",
        "monai-wsss report --run runs/brain",
        function="monai_wsss.reports.write_report",
        arguments=(
            Argument("--run", "folder with run.json, metrics.json", REQUIRED, metavar="DIR", parameter="run_dir"),
        ),
    ),
    Command(
        "benchmark",
        "compare methods on an equal footing, or make the tables and figures of a paper, over seeds, beside full "
        "supervision",
        "monai-wsss benchmark --data prepared --out bench --methods cam,cosa,full --encoders small --budget 20m\n"
        "  monai-wsss benchmark --data prepared --out table --table cmer --seeds 0,1,2",
        functions={
            **{name: f"monai_wsss.benchmark.{table}" for name, table in _TABLES.items()},
            _OTHER_FORM: "monai_wsss.benchmark.make_method_benchmark",
        },
        chooser=Argument("--table", "the table or figure", "cam", choices=tuple(_TABLES)),
        other_form=_OTHER_FORM,
        arguments=(
            Argument(
                "--data",
                "a prepared folder: slices, tiles or patches",
                REQUIRED,
                datalist_in,
                "DIR",
                parameter="datalist",
            ),
            Argument("--out", "weights, rows and the table; a killed run goes on there", REQUIRED, Path, "DIR"),
            Argument(
                "--methods",
                f"instead of --table: methods to compare, of {', '.join(_METHODS)}",
                ("cam", "full"),
                names,
                only=(_OTHER_FORM,),
            ),
            Argument("--encoders", "their encoders, of small, efficientnet", ("small",), names, only=(_OTHER_FORM,)),
            Argument(
                "--budget",
                "of each training of --methods: a time such as 20m, or 8-epochs, or 300-steps",
                "300-steps",
                only=(_OTHER_FORM,),
            ),
            Argument(
                "--processes",
                "--methods: so many trainings at once, each with one thread",
                1,
                int,
                only=(_OTHER_FORM,),
            ),
            Argument(
                "--device",
                "--methods: trains, e.g. cuda:0 or cpu (default a GPU where there is one)",
                metavar="NAME",
                only=(_OTHER_FORM,),
            ),
            Argument(
                "--ray",
                "--methods: share trainings over processes by Ray: of this machine, or of the cluster at ADDRESS "
                "(auto, host:port)",
                metavar="ADDRESS",
                alone="local",
                only=(_OTHER_FORM,),
            ),
            Argument(
                "--ensembles",
                "--methods: rows of several finished runs together, by the mean of their probabilities or by votes; "
                "full supervision takes no part",
                "mean",
                choices=("mean", "vote", "none"),
                only=(_OTHER_FORM,),
            ),
            Argument(
                "--epochs",
                "epochs of every training",
                8,
                int,
                only=tuple(name for name in _TABLES if name not in (*_FIXED_TABLES, *_CMER_PAPER)),
                other_defaults={"gland": 6},
            ),
            Argument("--seeds", "seeds of every recipe", (0, 1, 2), whole_numbers),
            Argument(
                "--one-seed",
                "--methods: those that have the first seed alone",
                (),
                names,
                only=(_OTHER_FORM,),
            ),
            Argument("--split", "the split to measure on", "validation", choices=SPLITS),
            Argument(
                "--sets",
                "tables of the CMER paper: sets of modalities, e.g. T1+T2,T1+FLAIR (default the paper's)",
                (),
                names,
                "A+B,C+D",
                only=_CMER_PAPER,
            ),
            Argument(
                "--size",
                "tables of the CMER paper: run small, or as the paper",
                "small",
                choices=("small", "paper"),
                only=_CMER_PAPER,
            ),
            Argument(
                "--every",
                "gland tables: train on every n-th image",
                1,
                int,
                only=_GLAND_TABLES,
            ),
            Argument("--width", "gland tables: width of ResNet38", 8, int, only=_GLAND_TABLES),
            Argument(
                "--initial",
                "gland-adaptation: classifier.pt and model.pt",
                Path("models"),
                Path,
                "DIR",
                only=("gland-adaptation",),
            ),
            Argument(
                "--initial-oeem",
                "gland-adaptation: the same of the baseline and OEEM's loss",
                kind=Path,
                metavar="DIR",
                only=("gland-adaptation",),
            ),
            Argument(
                "--refine",
                "encoder tables: refinement beside none",
                "par",
                choices=("par", "crf"),
                only=_REFINED_TABLES,
            ),
            Argument(
                "--side",
                "encoder tables, --methods: side of slices and patches in pixels",
                kind=int,
                only=(*_ENCODER_TABLES, _OTHER_FORM),
            ),
            Argument(
                "--colors",
                "encoder tables: colors of tiles",
                "as_they_are",
                choices=("as_they_are", "standardized"),
                only=_REFINED_TABLES,
            ),
            Argument(
                "--rows",
                "encoder, CoSA and CoinGAN tables: make these rows alone, by the names of their folders, e.g. base,gc",
                (),
                names,
                "A,B",
                only=_FIXED_TABLES,
            ),
            Argument(
                "--runs",
                "rows of earlier runs, kept and added to; --methods shows the ablations of the papers that lie there",
                kind=Path,
                metavar="DIR",
                only=(*_FIXED_TABLES, *_ABLATIONS, _OTHER_FORM),
            ),
        ),
    ),
    Command(
        "scan-bundle",
        "check a bundle without running it: files, metadata, weights, every expression of its configs",
        "monai-wsss scan-bundle bundles/brain_mri_cam_segmentation",
        function="monai_wsss.bundle_scan.scan_bundle",
        arguments=(Argument("path", "the folder of the bundle", REQUIRED, metavar="DIR"),),
    ),
)
"""The other commands."""
