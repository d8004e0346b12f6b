# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""Methods x datasets x seeds: one JSON per run, tables like the papers'."""
