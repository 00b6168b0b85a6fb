"""Run a benchmark and write its record to docs/results.

Example: ``python -m jobs.bench matching --out docs/results``. Each benchmark has its own options:
``python -m jobs.bench NAME --help``.
"""

from __future__ import annotations

import sys

from jobs.bench import SUITE
from jobs.glue.records import main

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__))
