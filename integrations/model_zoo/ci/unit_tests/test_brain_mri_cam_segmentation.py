# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

import os
import shutil
import tempfile
import unittest

from monai.bundle import ConfigWorkflow

from monai_wsss.data import make_phantoms

BUNDLE = "brain_mri_cam_segmentation"
TRAINING = {"epochs": 1, "grid": [32, 32]}


class TestBrainMriCamSegmentation(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.data = make_phantoms(
            os.path.join(self.folder, "data"), modalities=["T1", "T1c", "FLAIR"], subjects=(2, 2, 1)
        )

    def tearDown(self):
        shutil.rmtree(self.folder)

    def workflow(self, kind, *names, **override):
        root = f"models/{BUNDLE}"
        started = ConfigWorkflow(
            workflow_type=kind,
            config_file=[f"{root}/configs/{name}.json" for name in names],
            logging_file=f"{root}/configs/logging.conf",
            meta_file=f"{root}/configs/metadata.json",
            **{"bundle_root": root, "dataset_dir": str(self.data), "output_dir": self.folder + "/out", **override},
        )
        started.initialize()
        return started

    def finish(self, started):
        started.run()
        started.finalize()

    def test_train_eval_config(self):
        trainer = self.workflow("train", "train", **TRAINING)
        self.assertFalse(trainer.check_properties())
        self.finish(trainer)
        self.finish(self.workflow("train", "train", "evaluate", **TRAINING, ckpt_dir=self.folder + "/out"))

    def test_infer_config(self):
        inferrer = self.workflow("infer", "inference")
        self.assertFalse(inferrer.check_properties())
        self.finish(inferrer)
        self.assertTrue(os.listdir(self.folder + "/out/masks"))


if __name__ == "__main__":
    unittest.main()
