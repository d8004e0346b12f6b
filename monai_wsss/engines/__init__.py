# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""The training loop, schedules and evaluation loop that all methods share. No paper lives here."""

from monai_wsss._doors import open_doors
from monai_wsss.engines.branch_evaluation import BranchEvaluation
from monai_wsss.engines.branch_log import BranchLog
from monai_wsss.engines.checkpoint import (
    latest_checkpoint,
    load_tensors,
    save_checkpoint,
    save_weights,
    with_weights,
)
from monai_wsss.engines.distributed import (
    distribute_method,
    is_main_process,
    local_device,
    start_distributed,
    stop_distributed,
)
from monai_wsss.engines.ema import WeightAverage
from monai_wsss.engines.evaluation import SegmentationScores, TrainingLog, case_spacing
from monai_wsss.engines.image_pool import ImagePool
from monai_wsss.engines.output_dir import check_output_dir
from monai_wsss.engines.overrides import check_command_line, check_overrides, takes_arguments_of
from monai_wsss.engines.schedules import Progress, WeightRamp, one_cycle, polynomial, polynomial_after_warm_up
from monai_wsss.engines.terms import LossGate, Term, short_run_sentences
from monai_wsss.engines.trainer import NonFiniteLossError, WSSSTrainer

__all__ = [
    "BranchEvaluation",
    "BranchLog",
    "ImagePool",
    "LossGate",
    "NonFiniteLossError",
    "Progress",
    "SegmentationScores",
    "Term",
    "TrainingLog",
    "WSSSTrainer",
    "WeightAverage",
    "WeightRamp",
    "case_spacing",
    "check_command_line",
    "check_output_dir",
    "check_overrides",
    "distribute_method",
    "is_main_process",
    "latest_checkpoint",
    "load_tensors",
    "local_device",
    "one_cycle",
    "polynomial",
    "polynomial_after_warm_up",
    "save_checkpoint",
    "save_weights",
    "short_run_sentences",
    "start_distributed",
    "stop_distributed",
    "takes_arguments_of",
    "with_weights",
]

open_doors(globals())
