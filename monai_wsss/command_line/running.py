# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The commands that put bundles to work, ``predict``, ``train`` and ``bundles``; a test compares rows and functions."""

from __future__ import annotations

from monai_wsss.command_line.arguments import REQUIRED, Argument, Command, names, pairs, setting

__all__ = ["RUNNING"]

_SET = Argument(
    "--set", "a setting of the bundle, e.g. --set refine=par; may be repeated", kind=setting, parameter="settings"
)

_METHODS = ("auto", "cam", "cmer", "gland", "bmp", "cosa", "coingan")

RUNNING = (
    Command(
        "predict",
        "segment images that nobody has labeled: a file, a folder, DICOM, a slide; masks, overlays, a table and a page",
        "monai-wsss predict scans --bundle brain_mri_cam --out masks\n"
        "  monai-wsss predict new_images --bundle brain_mri_cam --weights run --out masks\n"
        "  monai-wsss predict slide.svs --bundle histology --out masks",
        function="monai_wsss.bundle_run.predict_masks",
        arguments=(
            Argument("source", "image, folder of images or of DICOM, or slide", REQUIRED),
            Argument("--bundle", "name (see `monai-wsss bundles`) or folder", REQUIRED, metavar="NAME"),
            Argument("--out", "the folder to write; a killed run goes on there", REQUIRED, metavar="DIR"),
            Argument("--weights", "folder of a training (default the weights of the bundle)", metavar="RUN"),
            Argument("--device", "e.g. cuda:0 or cpu (default a GPU where there is one)", metavar="NAME"),
            Argument("--modalities", "names of the channels of files with several", kind=names),
            Argument("--replace-missing", "sequences that may stand in for others, e.g. T1=FLAIR", kind=pairs),
            Argument(
                "--subject-pattern",
                "regular expression for the subject in names of cases, e.g. '^(p[0-9]+)' (default: one per folder)",
                metavar="REGEX",
            ),
            _SET,
            Argument("--list-sources", "write sources.csv, which joins cases to files and may name patients", False),
            Argument(
                "--ray",
                "spread cases, and bands of slides, over processes by Ray: of this machine, or of the cluster at "
                "ADDRESS (auto, host:port)",
                metavar="ADDRESS",
                alone="local",
            ),
        ),
    ),
    Command(
        "train",
        "train on a prepared folder by a bundle, and say by image-level labels alone whether the network learned",
        "monai-wsss train prepared --out run\n  monai-wsss train prepared --method cmer --out run --epochs 60",
        function="monai_wsss.bundle_run.train_bundle",
        arguments=(
            Argument("data", "folder that `monai-wsss prepare` wrote", REQUIRED),
            Argument("--out", "the folder of the run", REQUIRED, metavar="DIR"),
            Argument("--method", "which method; auto follows docs/which_method.md", "auto", choices=_METHODS),
            Argument("--bundle", "another bundle: name or folder (default that of the method)", metavar="NAME"),
            Argument("--epochs", "passes over the images (default those of the bundle; more for few)", kind=int),
            Argument("--steps", "instead of --epochs: at least so many steps", kind=int),
            Argument("--seed", "seed of all chance (default 0)", kind=int),
            Argument("--device", "e.g. cuda:0 or cpu (default a GPU where there is one)", metavar="NAME"),
            Argument("--pretrained", "imagenet, none or a file of encoder weights", metavar="WHAT"),
            Argument("--resume", "go on with a run that was stopped", False),
            _SET,
        ),
    ),
    Command(
        "bundles",
        "list the bundles that come with the package and the terms of their weights; copy or check one",
        "monai-wsss bundles\n"
        "  monai-wsss bundles --copy brain_mri_cam_segmentation --out bundles\n"
        "  monai-wsss bundles --check brain_mri_cam_segmentation",
        function="monai_wsss.bundle_run.manage_bundles",
        arguments=(
            Argument("--copy", "copy this bundle", metavar="NAME"),
            Argument("--out", "folder for the copy (default the working folder)", metavar="DIR"),
            Argument("--check", "check this bundle, or a folder with one, without running it", metavar="NAME"),
        ),
    ),
)
