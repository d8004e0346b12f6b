# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

import unittest

from monai_wsss_bundle import BundleTests

BUNDLE = "brain_mri_coingan_segmentation"
PHANTOMS = {"modalities": ["FLAIR"], "subjects": (2, 2, 1)}
TRAINING = {"epochs": 1, "grid": [32, 32]}


class TestBrainMriCoinganSegmentation(BundleTests, unittest.TestCase):
    bundle, phantoms, training = BUNDLE, PHANTOMS, TRAINING


if __name__ == "__main__":
    unittest.main()
