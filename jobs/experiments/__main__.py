"""Run an experiment; write its record and its picture to docs/results.

Example: ``python -m jobs.experiments cross_domain``. Each experiment has its own options:
``python -m jobs.experiments NAME --help``. ``--redraw RECORD`` only draws the picture of a record again.
"""

from __future__ import annotations

import sys

from jobs.experiments import SUITE
from jobs.glue.records import main

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__))
