"""Mine the rule base: Monte Carlo Tree Searches for rules, spread by Ray Tune, selected by held-out evidence.

Makes rulebase/NAME from the training split of corpus/NAME and features/NAME: rules.yaml (readable, editable), its
prototypes' vectors, and held_out.json (what rules said of examples they had not seen; fit_intent chooses τ with it).
A search is (task, label, partition, fold); searches of one fold share their mined predicates, so batches of them
are the trials. The same searches in one process (mmd.intent.miner.mine_rulebase) give the same base, byte by byte.

Interrupted, the same command restores the run: finished batches are kept, unfinished ones are searched again. With
--force all are.

    mmd mine_rules                                            the built-in shop corpus
    mmd mine_rules --corpus taobao=../shared/data/taobao
    mmd mine_rules --set intent.search.rollouts=800 --set models.proposer=gemma-3-270m
    mmd mine_rules --space cluster/sweeps/rules.yaml
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import JobContext, main
from jobs.glue.sweeping import SweepRun, add_space, record_found, recorded, with_space
from jobs.glue.tune import tune_batches
from mmd.artifacts import Artifact, version_for
from mmd.config import AppConfig
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.features.store import Features
from mmd.intent.examples import label_vectors, load_examples
from mmd.intent.firings import save_firings
from mmd.intent.miner import (
    FoldMiner,
    MinedTask,
    SearchUnit,
    UnitResult,
    assemble,
    in_order,
    join,
    plan_units,
    result_from_json,
    result_to_json,
)
from mmd.intent.mining import NameVectors
from mmd.intent.proposer import MinedProposer, Proposer, make_proposer
from mmd.intent.settings import IntentSettings
from mmd.intent.types import IntentExample
from mmd.models.settings import ModelSettings
from mmd.sweeps.types import Trial


def run(context: JobContext) -> Artifact:
    """Write rulebase/NAME unless the same was mined before."""
    context = with_space(context, "rules")
    inputs = context.lineage("features")
    settings, seeds = mining_settings(context.config), {"mining": context.config.seed}
    version = version_for("rulebase", settings, inputs, seeds)
    if found := context.existing("rulebase", settings, inputs, seeds):
        record_found(context, "rules", version, found)
        return found
    with recorded(context, "rules", version, searches_of) as sweep:
        artifact = write_base(context, settings, inputs, seeds, sweep)
        sweep.made(artifact.ref)
    return artifact


def write_base(
    context: JobContext,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    seeds: Mapping[str, int],
    sweep: SweepRun,
) -> Artifact:
    """Search for rules and write what is selected among them."""
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    examples = training_examples(corpus, features)
    names = {task: label_vectors(features, corpus.tasks[task]) for task in examples}
    version = version_for("rulebase", settings, inputs, seeds)
    mined, metrics = mine(context, examples, names, run_name=f"mine_rules-{context.name}-{version}", sweep=sweep)
    meta = {"corpus": inputs["corpus"].ref, "features": inputs["features"].ref, "seed": str(context.config.seed)}
    with context.store.write(
        "rulebase", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        join(mined, meta).save(writer)
        save_firings(writer, {m.task: m.firings for m in mined}, {task: len(rows) for task, rows in examples.items()})
        writer.metrics = metrics
    return context.store.open(f"rulebase/{context.name}@{version}")


def mining_settings(config: AppConfig) -> dict[str, Any]:
    """Return the settings that the base depends on; how searches are batched is not among them."""
    wanted = {"folds", "min_precision", "min_support", "min_found", "max_overlap", "predicates", "search"}
    return config.intent.model_dump(mode="json", include=wanted) | {"proposer": config.models.proposer}


def training_examples(corpus: Corpus, features: Features) -> dict[str, list[IntentExample]]:
    """Return task → labelled training examples, ordered; tasks without any are left out.

    Raises:
        CorpusError: no task has any.
    """
    rows = {task: in_order(load_examples(corpus, features, task, "train")) for task in sorted(corpus.tasks)}
    found = {task: examples for task, examples in rows.items() if examples}
    if not found:
        raise CorpusError(
            f"{corpus.artifact.ref}: no training dialogue has an intent label; its tasks: "
            f"{', '.join(corpus.tasks) or 'none'}. Label some dialogues, or work on a corpus such as shop or taobao."
        )
    return found


def batch_units(units: Sequence[SearchUnit], size: int) -> list[list[SearchUnit]]:
    """Cut the plan into batches of up to ``size`` searches that never span two folds."""
    batches: list[list[SearchUnit]] = []
    for unit in units:
        last = batches[-1] if batches else []
        same_fold = last and (last[-1].task, last[-1].repeat, last[-1].fold) == (unit.task, unit.repeat, unit.fold)
        if same_fold and len(last) < size:
            last.append(unit)
        else:
            batches.append([unit])
    return batches


class BatchSearcher:
    """Runs batches of searches in one worker process; the fold last worked on keeps its mined predicates.

    Args:
        examples: task → ordered training examples.
        names: task → sentence vectors of labels' names.
        settings: of mining.
        models: where a language-model proposer's weights come from.
        seed: decides partitions.
    """

    def __init__(
        self,
        examples: Mapping[str, Sequence[IntentExample]],
        names: Mapping[str, NameVectors],
        settings: IntentSettings,
        models: ModelSettings,
        seed: int,
    ) -> None:
        self._examples, self._names = examples, names
        self._settings, self._seed = settings, seed
        self._proposer: Proposer = make_proposer(settings.predicates, models)
        self._fold: tuple[str, int, int] | None = None
        self._miner: FoldMiner | None = None

    def __call__(self, batch: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Run the searches whose units are given as lists; return their results, JSON-able."""
        return [result_to_json(self._search(SearchUnit(*unit))) for unit in batch]

    def _search(self, unit: SearchUnit) -> UnitResult:
        fold = (unit.task, unit.repeat, unit.fold)
        if self._miner is None or self._fold != fold:
            self._fold, self._miner = (
                fold,
                FoldMiner(
                    self._examples[unit.task],
                    unit.repeat,
                    unit.fold,
                    self._settings,
                    seed=self._seed,
                    names=self._names[unit.task],
                    proposer=self._proposer,
                ),
            )
        return self._miner.run(unit)


def mine(
    context: JobContext,
    examples: Mapping[str, Sequence[IntentExample]],
    names: Mapping[str, NameVectors],
    *,
    run_name: str,
    sweep: SweepRun | None = None,
) -> tuple[list[MinedTask], dict[str, Any]]:
    """Search with Ray Tune and assemble; return each task's rules and the metrics of the artefact."""
    config = context.config
    units = [unit for rows in examples.values() for unit in plan_units(rows, config.intent)]
    batches = [
        [[u.task, u.repeat, u.fold, u.label] for u in b] for b in batch_units(units, config.tune.searches_per_trial)
    ]
    if sweep:
        sweep.expect(len(units))
    started = time.perf_counter()
    with ray_cluster(config.cluster):
        outcome = tune_batches(
            BatchSearcher,
            (dict(examples), dict(names), config.intent, config.models, config.seed),
            batches,
            storage=context.scratch(".tune"),
            name=run_name,
            max_concurrent=config.tune.max_concurrent,
            title="searches",
            force=context.force,
            tell=sweep.tell if sweep else None,
        )
        if sweep:  # those that an interrupted run had finished are not told as they end
            sweep.tell(outcome)
    seconds = time.perf_counter() - started
    results = [result_from_json(value) for value in outcome]
    proposer = config.models.proposer or MinedProposer.name
    mined = []
    for task, rows in examples.items():
        own = [r for r in results if r.unit.task == task]
        mined.append(assemble(rows, own, config.intent, names=names[task], proposer=proposer))
    metrics: dict[str, Any] = {f"{m.task} {key}": value for m in mined for key, value in m.metrics.items()}
    evaluations = sum(r.evaluations for r in results)
    metrics |= {"search_s": seconds, "evaluations_per_s": evaluations / seconds if seconds else 0.0}
    metrics["kinds"] = dict(Counter(p.kind for m in mined for rule in m.rules for p in rule.predicates))
    return mined, metrics


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the search space."""
    add_space(parser)


def searches_of(result: Mapping[str, Any]) -> list[Trial]:
    """Return what is recorded of one search: rules of a label compete with each other, whatever was held out."""
    unit = result_from_json(result).unit
    rewards = [float(rule["reward"]) for rule in result["rules"]]
    metrics = {"reward": max(rewards, default=0.0), "rules": len(rewards)}
    metrics |= {name: float(result[name]) for name in ("rollouts", "evaluations")}
    setting = {"task": unit.task, "label": unit.label, "partition": unit.repeat, "fold": unit.fold}
    return [Trial(setting=setting, group=f"{unit.task}: {unit.label}", metrics=metrics)]


if __name__ == "__main__":
    sys.exit(main("mine_rules", __doc__, run, add_options=add_options))
