# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the unit tests of all bundles of monai_wsss do; it stands beside them, as the zoo's ``utils.py``."""

import os
import shutil
import tempfile

from monai.bundle import ConfigWorkflow

from monai_wsss.data import make_phantoms


class BundleTests:
    """Tests of a bundle in ``models/``; no ``TestCase``, so that the zoo's runner finds those of one bundle alone.

    Attributes:
        bundle: its name.
        phantoms: what ``make_phantoms`` draws for it.
        training: overrides of a training of a few steps.
    """

    bundle = ""
    phantoms: dict
    training: dict

    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.data = make_phantoms(os.path.join(self.folder, "data"), **self.phantoms)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def workflow(self, kind, *names, **override):
        root = f"models/{self.bundle}"
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
        trainer = self.workflow("train", "train", **self.training)
        self.assertFalse(trainer.check_properties())
        self.finish(trainer)
        self.finish(self.workflow("train", "train", "evaluate", **self.training, ckpt_dir=self.folder + "/out"))

    def test_infer_config(self):
        inferrer = self.workflow("infer", "inference")
        self.assertFalse(inferrer.check_properties())
        self.finish(inferrer)
        self.assertTrue(os.listdir(self.folder + "/out/masks"))
