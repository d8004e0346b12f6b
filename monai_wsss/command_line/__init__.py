# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.

"""The commands of ``monai-wsss`` as a table. Nothing heavy is imported here, so that help texts need no torch."""
