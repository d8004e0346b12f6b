# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Train a bundle at several sites in NVIDIA FLARE's simulator: the mean of their weights, round by round."""

from __future__ import annotations

import argparse
from pathlib import Path

from model import BundleNetwork
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv


def main() -> None:
    """Run the simulation; the weights are in ``server/simulate_job/app_server/FL_global_model.pt``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds prepared folders site-1, site-2, …")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("federated"))
    arguments = parser.parse_args()

    recipe = FedAvgRecipe(
        name="wsss",
        min_clients=arguments.sites,
        num_rounds=arguments.rounds,
        model=BundleNetwork(str(arguments.bundle.resolve())),
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=" ".join(
            f"--{name} {value}"
            for name, value in (
                ("bundle", arguments.bundle.resolve()),
                ("data", arguments.data.resolve()),
                ("rounds", arguments.rounds),
            )
        ),
    )
    run = recipe.execute(SimEnv(num_clients=arguments.sites, workspace_root=str(arguments.out.resolve())))
    print("Status:", run.get_status())
    print("Result:", run.get_result())


if __name__ == "__main__":
    main()
