"""From a corpus to a report in one resumable command.

Steps: ingest and featurize; for intent mine_rules, fit_intent, then, if the settings name a large model (models.mllm),
augment, finetune_mllm and sweep_gates, and evaluate; for retrieval train_retriever, build_index and
evaluate_retrieval; for recommending build_graph, train_teachers, distill and evaluate_recommend; for the assistant,
which joins them, fit_policy and evaluate_assistant. A corpus without labels has no intent steps, one without answers
to learn from no retrieval and no assistant steps, one whose agent never names an item no recommendation steps.
Each step writes one artefact whose version follows from its settings and inputs; a step whose artefact is already
complete is skipped, so running the same command again after an interruption goes on where it stopped, and a changed
setting redoes only what depends on it. With --force every step starts anew.

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
from collections.abc import Callable, Sequence

from jobs.glue.cluster import hold_cluster
from jobs.glue.entry import JobContext, console, main
from jobs.glue.recommend import require_backbone
from mmd.artifacts import Artifact
from mmd.corpora.store import Corpus
from mmd.errors import ConfigError, CorpusError, ModelError
from mmd.recommend.conversations import names_items
from mmd.retrieval.samples import has_samples
from mmd.tables import plain_table

MLLM_STEPS = ("augment", "finetune_mllm", "sweep_gates")
INTENT_STEPS = ("mine_rules", "fit_intent", *MLLM_STEPS, "evaluate")
RETRIEVAL_STEPS = ("train_retriever", "build_index", "evaluate_retrieval")
RECOMMEND_STEPS = ("build_graph", "train_teachers", "distill", "evaluate_recommend")
ASSISTANT_STEPS = ("fit_policy", "evaluate_assistant")
STEPS = ("ingest", "featurize", *INTENT_STEPS, *RETRIEVAL_STEPS, *RECOMMEND_STEPS, *ASSISTANT_STEPS)


def run(context: JobContext) -> Artifact:
    """Run the steps in order up to ``--until`` and return the last artefact."""
    steps = steps_of(context)
    if "finetune_mllm" in steps:
        require_model(context)
    if set(RETRIEVAL_STEPS) & set(steps):
        require_retriever(context)
    if set(RECOMMEND_STEPS) & set(steps):
        require_backbone(context.config)
    rows: list[tuple[str, Artifact, float, bool]] = []
    with hold_cluster():
        for name in STEPS:
            if name not in steps:
                continue
            console.rule(f"{len(rows) + 1}/{len(steps)} {name}", align="left")
            started_unix_s, started = time.time(), time.perf_counter()
            artifact = _step(name)(context)
            context = context.pinned(artifact)
            skipped = artifact.manifest.created_unix_s < started_unix_s
            rows.append((name, artifact, time.perf_counter() - started, skipped))
            console.print(f"{artifact.ref} {'unchanged, skipped' if skipped else 'written'}", markup=False)
            if name == "ingest":
                steps = possible_steps(context, Corpus(artifact), steps)
    _print_steps(rows)
    if count := int(context.options.get("show") or 0):
        _show(context, steps, count)
    return rows[-1][1]


def _show(context: JobContext, steps: Sequence[str], count: int) -> None:
    """Print what was trained at work: answered conversations, and a reply that recommends."""
    from jobs.glue.showcase import show_command, show_conversations, show_reply

    if "evaluate" in steps:
        show_conversations(context, count)
    if "distill" in steps:
        show_reply(context)
    show_command(context)


def steps_of(context: JobContext) -> tuple[str, ...]:
    """Return the steps that the settings ask for, in order, up to ``--until``.

    Raises:
        ConfigError: ``--until`` names a step of the large model, and the settings name no such model.
    """
    until = context.options.get("until") or STEPS[-1]
    wanted = STEPS[: STEPS.index(until) + 1]
    switches = (
        ("retrieval", context.config.retrieval.enabled, RETRIEVAL_STEPS),
        ("recommend", context.config.recommend.enabled, RECOMMEND_STEPS),
        ("assistant", context.config.assistant.enabled, ASSISTANT_STEPS),
    )
    for section, enabled, steps in switches:
        if not enabled:
            if until in steps and context.options.get("until"):
                raise ConfigError(f"--until {until}: {section}.enabled is false; add --set {section}.enabled=true.")
            wanted = tuple(step for step in wanted if step not in steps)
    if context.config.models.mllm is not None:
        return wanted
    if until in MLLM_STEPS:
        raise ConfigError(
            f"--until {until}: that step works on the large model, and models.mllm names none; "
            "add --set models.mllm=NAME (`mmd models` lists names)."
        )
    return tuple(step for step in wanted if step not in MLLM_STEPS)


def possible_steps(context: JobContext, corpus: Corpus, steps: Sequence[str]) -> tuple[str, ...]:
    """Return the steps for which a corpus has what they learn from, and say what is left out.

    Raises:
        CorpusError: none of the steps that make a model is possible.
    """
    lacking: dict[str, str] = {}
    if not corpus.tasks:
        lacking |= dict.fromkeys(INTENT_STEPS, "no dialogue has a label")
    if not has_samples(corpus, context.config.retrieval.samples):
        reason = "no training dialogue has an answer to learn from"
        lacking |= dict.fromkeys((*RETRIEVAL_STEPS, *ASSISTANT_STEPS), reason)
    if set(RECOMMEND_STEPS) & set(steps) and not names_items(corpus, context.config.recommend.graph):
        lacking |= dict.fromkeys(RECOMMEND_STEPS, "no training dialogue has an answer that names an item")
    for reason in dict.fromkeys(reason for step, reason in lacking.items() if step in steps):
        left_out = ", ".join(step for step in steps if lacking.get(step) == reason)
        console.print(f"left out, since {reason}: {left_out}", markup=False)
    kept = tuple(step for step in steps if step not in lacking)
    models = {*INTENT_STEPS, *RETRIEVAL_STEPS, *RECOMMEND_STEPS}
    if models & set(steps) and not models & set(kept):
        reasons = "; ".join(dict.fromkeys(lacking.values()))
        raise CorpusError(
            f"{corpus.artifact.ref}: there is nothing to learn from: {reasons}. Label dialogues, or give some in which "
            "the agent answers (docs/data.md)."
        )
    return kept


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


def require_retriever(context: JobContext) -> None:
    """Refuse an unknown modality, and encoders that are not here, before hours go into what comes ahead of training.

    Raises:
        ConfigError: a modality of that name is not registered.
        ModelError: a text or vision model's weights are missing.
    """
    from mmd.models.resolve import resolve
    from mmd.retrieval.modalities import modality

    retrieval = context.config.retrieval
    for name in retrieval.samples.modalities:
        modality(name)
    for key, ready in (("text", {"features"}), ("vision", {"features", "none"})):
        name = getattr(retrieval.towers, key)
        if name not in ready:
            try:
                resolve(name, context.config.models)
            except ModelError as error:
                raise ModelError(f"retrieval.towers.{key}: {error}") from None


def _step(name: str) -> Callable[[JobContext], Artifact]:
    import importlib

    step: Callable[[JobContext], Artifact] = importlib.import_module(f"jobs.{name}").run
    return step


def _print_steps(rows: list[tuple[str, Artifact, float, bool]]) -> None:
    table = plain_table("step", "artefact", "seconds", "", title="pipeline")
    for name, artifact, seconds, skipped in rows:
        table.add_row(name, artifact.ref, f"{seconds:.1f}", "skipped" if skipped else "")
    console.print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the pipeline's own options."""
    parser.add_argument("--until", choices=STEPS, help="last step to run (default: all)")
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print N answered test conversations and a reply that recommends",
    )


if __name__ == "__main__":
    sys.exit(main("pipeline", __doc__, run, add_options=add_options))
