# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Static checks of bundles: files are read, nothing in them is executed. What a bundle computes is not judged here."""

from monai_wsss._doors import open_doors
from monai_wsss.bundle_scan.bundle_checks import check_bundle, scan_bundle

__all__ = ["check_bundle", "scan_bundle"]

open_doors(globals())
