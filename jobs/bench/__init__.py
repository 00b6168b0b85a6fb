"""Benchmarks: each module ``jobs.bench.NAME`` exposes ``run(options) -> dict`` and states its conditions.

``python -m jobs.bench NAME`` runs one and writes ``docs/results/NAME-DATE.json``: name, code revision, hardware,
load before and after, and what ``run`` returned: configuration, warm-up, repeats, medians with minimum and maximum.
"""

from __future__ import annotations

from jobs.glue.records import Suite

BENCHES = (
    "ingest",
    "matching",
    "mcts",
    "gate_cv",
    "probe",
    "serving",
    "serving_retrieval",
    "serving_recommend",
    "service",
    "rules_cv",
    "finetune",
    "zero",
    "index",
    "retriever",
    "distill",
    "rgcn",
    "scale",
    "sharded",
    "nodes",
)
"""Module names; a new benchmark adds its own here."""
SUITE = Suite("bench", "jobs.bench", BENCHES)
