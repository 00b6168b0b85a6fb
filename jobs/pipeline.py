"""From a corpus to a report in one resumable command.

Steps: ingest, featurize, mine_rules, fit_intent, then, if the settings name a large model (models.mllm), augment,
finetune_mllm and sweep_gates, and at the end evaluate. Each writes one artefact whose version follows from its settings
and inputs; a step whose artefact is already complete is skipped, so running the same command again after an
interruption goes on where it stopped, and a changed setting redoes only what depends on it.

    mmd pipeline                                         the built-in shop corpus
    mmd pipeline --corpus taobao=../shared/data/taobao   your copy of a corpus
    mmd pipeline --profile mllm                          the shop with a small vision-language model
    mmd pipeline --set models.mllm=gemma3-270m           any model that `mmd models` offers for it
    mmd pipeline --until mine_rules --set seed=1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from rich.table import Table

from jobs.glue.cluster import hold_cluster
from jobs.glue.entry import JobContext, console, main
from mmd.artifacts import Artifact
from mmd.errors import ConfigError

MLLM_STEPS = ("augment", "finetune_mllm", "sweep_gates")
STEPS = ("ingest", "featurize", "mine_rules", "fit_intent", *MLLM_STEPS, "evaluate")


def run(context: JobContext) -> Artifact:
    """Run the steps in order up to ``--until`` and return the last artefact."""
    steps = steps_of(context)
    if "finetune_mllm" in steps:
        require_model(context)
    rows: list[tuple[str, Artifact, float, bool]] = []
    with hold_cluster():
        for number, name in enumerate(steps, start=1):
            console.rule(f"{number}/{len(steps)} {name}", align="left")
            started_unix_s, started = time.time(), time.perf_counter()
            artifact = _step(name)(context)
            context = context.pinned(artifact)
            skipped = artifact.manifest.created_unix_s < started_unix_s
            rows.append((name, artifact, time.perf_counter() - started, skipped))
            console.print(f"{artifact.ref} {'unchanged, skipped' if skipped else 'written'}", markup=False)
    _print_steps(rows)
    if context.options.get("show"):
        from jobs.glue.showcase import show_conversations

        show_conversations(context, count=int(context.options["show"]))
    return rows[-1][1]


def steps_of(context: JobContext) -> tuple[str, ...]:
    """Return the steps that the settings ask for, in order, up to ``--until``.

    Raises:
        ConfigError: ``--until`` names a step of the large model, and the settings name no such model.
    """
    until = context.options.get("until") or STEPS[-1]
    if context.config.models.mllm is not None:
        return STEPS[: STEPS.index(until) + 1]
    if until in MLLM_STEPS:
        raise ConfigError(
            f"--until {until}: that step works on the large model, and models.mllm names none; "
            "add --set models.mllm=NAME (`mmd models` lists names)."
        )
    return tuple(step for step in STEPS[: STEPS.index(until) + 1] if step not in MLLM_STEPS)


def require_model(context: JobContext) -> None:
    """Refuse a large model that is not here before hours go into what comes ahead of it.

    Raises:
        ModelError: its weights are missing, or it is of another kind.
        ConfigError: more folds shall be held out than there are.
    """
    from mmd.models.resolve import require_kind

    intent, models = context.config.intent, context.config.models
    require_kind(str(models.mllm), models)
    if intent.finetune.held_out_folds > intent.folds:
        raise ConfigError(
            f"intent.finetune.held_out_folds={intent.finetune.held_out_folds}: there are only "
            f"intent.folds={intent.folds} folds."
        )


def _step(name: str) -> Callable[[JobContext], Artifact]:
    import importlib

    step: Callable[[JobContext], Artifact] = importlib.import_module(f"jobs.{name}").run
    return step


def _print_steps(rows: list[tuple[str, Artifact, float, bool]]) -> None:
    table = Table("step", "artefact", "seconds", "", title="pipeline", title_justify="left")
    for name, artifact, seconds, skipped in rows:
        table.add_row(name, artifact.ref, f"{seconds:.1f}", "skipped" if skipped else "")
    console.print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the pipeline's own options."""
    parser.add_argument("--until", choices=STEPS, help="last step to run (default: all)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N answered test conversations")


if __name__ == "__main__":
    sys.exit(main("pipeline", __doc__, run, add_options=add_options))
