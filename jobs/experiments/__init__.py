"""The experiments: each module ``jobs.experiments.NAME`` answers one question with numbers and a picture.

``python -m jobs.experiments NAME`` (or ``mmd experiment NAME``) runs one and writes ``docs/results/NAME-DATE.json`` and
``.png``; findings in words are in ``kdsl-experiments.md``, ``retrieval-experiments.md`` and ``conkd-experiments.md``
of ``docs/results``.
Nothing here chooses a setting, and no test split of third-party data is read unless ``--judge test`` asks for it.
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
    "retrieval_methods",
    "text_fraction",
    "pool_size",
    "encoder_size",
    "rerank_effect",
    "conkd_table",
    "teacher_targets",
    "graph_edges",
    "mode_tokens",
    "gate_by_turn",
)
"""Module names; a new experiment adds its own here."""
SUITE = Suite("experiment", "jobs.experiments", EXPERIMENTS)
