"""The experiments of KDSL: each module ``jobs.experiments.NAME`` answers one question with numbers and a picture.

``python -m jobs.experiments NAME`` (or ``mmd experiment NAME``) runs one and writes ``docs/results/NAME-DATE.json`` and
``.png``; findings in words are in ``docs/results/kdsl-experiments.md``. Nothing here chooses a setting, and no test
split of third-party data is read.
"""

from __future__ import annotations

from jobs.glue.records import Suite

EXPERIMENTS = (
    "cross_domain",
    "false_firing",
    "proposer_size",
    "seesaw",
    "ablation",
    "shots",
    "latency",
)
"""Module names; a new experiment adds its own here."""
SUITE = Suite("experiment", "jobs.experiments", EXPERIMENTS)
