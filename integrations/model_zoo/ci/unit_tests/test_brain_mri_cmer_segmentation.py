# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

import unittest

from monai_wsss_bundle import BundleTests

BUNDLE = "brain_mri_cmer_segmentation"
PHANTOMS = {"modalities": ["T1", "T1c", "FLAIR"], "subjects": (2, 2, 1)}
TRAINING = {"epochs": 1, "grid": [32, 32]}


class TestBrainMriCmerSegmentation(BundleTests, unittest.TestCase):
    bundle, phantoms, training = BUNDLE, PHANTOMS, TRAINING


if __name__ == "__main__":
    unittest.main()
