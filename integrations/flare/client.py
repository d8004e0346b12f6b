# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One site of a federated training: the bundle's own trainer, between receiving and sending weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nvflare.client as flare
from monai.bundle import ConfigWorkflow


def main() -> None:
    """Train one epoch per round on the data of this site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds a prepared folder per site")
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # the bundle reads the command line, too

    flare.init()
    site = flare.get_site_name()
    workflow = ConfigWorkflow(
        str(arguments.bundle / "configs" / "train.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(arguments.bundle),
        dataset_dir=str(arguments.data / site),
        output_dir=str(Path("training") / site),
        epochs=arguments.rounds,
    )
    workflow.initialize()
    trainer = workflow.trainer
    while flare.is_running():
        received = flare.receive()
        trainer.network.load_state_dict(received.params)
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()
        weights = {name: value.cpu() for name, value in trainer.network.state_dict().items()}
        steps = trainer.state.epoch_length
        flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": steps}))


if __name__ == "__main__":
    main()
