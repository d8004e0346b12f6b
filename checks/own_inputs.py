# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Run the project on inputs of our own, of the kinds that strangers' data have, and print its answers beside ours.

    python checks/own_inputs.py [KIND | NUMBER ...]

All inputs are written from fixed seeds.  The table, in Markdown, says per input what is expected, what the project
says, and whether that is it; the exit status is 0 if it is for all.
"""

from __future__ import annotations

import argparse
import sys

from own_faults import FAULTS
from own_pictures import PICTURES
from own_volumes import VOLUMES
from writers import print_table


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these kinds or numbers")
    return print_table([*VOLUMES, *PICTURES, *FAULTS], parser.parse_args().names)


if __name__ == "__main__":
    sys.exit(main())
