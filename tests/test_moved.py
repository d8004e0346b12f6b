# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Old names are found, also by configurations, and told."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from monai_wsss.bundle_scan import scan_bundle
from monai_wsss.transforms import SaveImageMaskd


def test_names_that_moved_are_found_and_told():
    with pytest.warns(FutureWarning, match="`monai_wsss.bundle_scan.scan_bundle` now"):
        from monai_wsss.benchmark import scan_bundle as found
    assert found is scan_bundle
    with pytest.raises(ImportError, match="make_nothing"):
        from monai_wsss.benchmark import make_nothing  # noqa: F401


def test_configurations_find_old_names(tmp_path):
    parser = ConfigParser({"save": {"_target_": "monai_wsss.transforms.SaveMaskd", "keys": "pred", "output_dir": "."}})
    with pytest.warns(FutureWarning, match="is `monai_wsss.transforms.SaveImageMaskd` now"):
        assert isinstance(parser.get_parsed_content("save"), SaveImageMaskd)
