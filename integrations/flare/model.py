# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The network of a bundle as FLARE's server makes it: a class with plain arguments."""

from __future__ import annotations

from typing import Any

import torch
from monai.bundle import ConfigParser


class BundleNetwork(torch.nn.Module):
    """The untrained network that ``train.json`` of a bundle defines; its weights have that network's names.

    Args:
        bundle: folder of the bundle.
    """

    def __init__(self, bundle: str) -> None:
        super().__init__()
        self.bundle = bundle  # FLARE reads it here
        config = ConfigParser()
        config.read_config(f"{bundle}/configs/train.json")
        config["bundle_root"] = bundle
        self.network = config.get_parsed_content("network_def")

    def state_dict(self, *arguments: Any, **words: Any) -> dict[str, Any]:
        """Give the weights of the network."""
        return self.network.state_dict(*arguments, **words)

    def load_state_dict(self, *arguments: Any, **words: Any) -> Any:
        """Load the weights of the network."""
        return self.network.load_state_dict(*arguments, **words)
