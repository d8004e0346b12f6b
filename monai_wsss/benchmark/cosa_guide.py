# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""CoSA whose class maps are guided by pixel masks: the oracle of its Fig. 1 and Table 4a, not for use."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from monai_wsss._labels import IGNORED
from monai_wsss.methods import CoSA
from monai_wsss.refinement import LabeledImages

__all__ = ["OracleCoSA"]


class OracleCoSA(CoSA):
    """CoSA guided by masks in the place of the segmentation: READS MASKS, its class maps are fully supervised."""

    uses_masks: ClassVar[bool] = True

    def guidance(self, images: LabeledImages, segmentation: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Give the masks of the batch as probabilities (B, K + 1, *S); ignored pixels are background.

        Raises:
            ValueError: a batch without masks.
        """
        if "mask" not in batch:
            raise ValueError("The oracle guide needs `mask` in its batch: read the split with masks=True.")
        mask = torch.as_tensor(batch["mask"])[:, 0].long()
        one_hot = F.one_hot(mask.masked_fill(mask == IGNORED, 0), segmentation.shape[1])
        return one_hot.movedim(-1, 1).to(segmentation)
