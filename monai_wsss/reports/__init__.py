# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Run folders with their HTML page of results, data and weights, and charts as files."""

from monai_wsss._doors import open_doors
from monai_wsss.reports.box_chart import box_chart
from monai_wsss.reports.charts import bar_chart, write_svg
from monai_wsss.reports.conversions import render_conversions, render_switches
from monai_wsss.reports.page import write_report
from monai_wsss.reports.panels import choose_cases, render_comparison, render_panel
from monai_wsss.reports.provenance import collect_provenance, write_run
from monai_wsss.reports.pseudo_sheet import write_pseudo_sheet
from monai_wsss.reports.run_folder import InferenceLog, RunFolder, RunRecord

__all__ = [
    "InferenceLog",
    "RunFolder",
    "RunRecord",
    "bar_chart",
    "box_chart",
    "choose_cases",
    "collect_provenance",
    "render_comparison",
    "render_conversions",
    "render_panel",
    "render_switches",
    "write_pseudo_sheet",
    "write_report",
    "write_run",
    "write_svg",
]

open_doors(globals())
