"""Choose settings of gates on held-out training data with Ray Tune: KDSL's, or with --method conkd ConKD's.

kdsl: how each task joins rules, probe and fine-tuned MLLM. Makes gate/NAME from adapter/NAME and what it was made from,
and classifier/NAME. Every setting of arm, τ, weight of the vote and share of the MLLM is scored by weighted F1 on those
training examples that rules, probe and MLLM all had held out; no test example is looked at. gate.json keeps the whole
table, F1 over τ by arm, and of what was chosen both the in-sample and the cross-fitted score (mmd.intent.choice says
how the choice is kept from flattering itself). A trial scores a few slices of the grid; the same sweep in one process
gives the same gate.

conkd: gate, η, γ and temperature of the distillation. Makes gate/NAME-conkd from teacher/NAME: a student a setting, the
worse ones ended early (ASHA), judged by F1 of its replies to held-out contexts, its perplexity at most its dialogue
teacher's and a margin (`recommend.sweep`). On these contexts weights were chosen and three numbers of the
recommendation teacher fitted, too: the winner's numbers are for choosing, not for telling. Prints what to give to
`mmd distill`.

Interrupted, the same command goes on where it stopped; with --force it starts anew.

    mmd sweep_gates                                                the built-in shop corpus
    mmd sweep_gates --set intent.gate.arm=auto
    mmd sweep_gates --set intent.gate.arm=prompt --set intent.gate.mllm_shares=[1]
    mmd sweep_gates --method conkd --corpus redial
    mmd sweep_gates --method conkd --set recommend.sweep.gates=[soft] --set recommend.sweep.gammas=[0.5,0.8]
    mmd sweep_gates --method conkd --space cluster/sweeps/conkd.yaml
"""

from __future__ import annotations

import argparse
import base64
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jobs.fit_intent import choice_metrics, hold_out, print_choices
from jobs.glue.cluster import ray_cluster
from jobs.glue.entry import JobContext, main
from jobs.glue.sweeping import SweepRun, add_space, record_found, recorded, with_space
from jobs.glue.tune import tune_batches
from mmd.artifacts import Artifact, version_for
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.evaluation.metrics import Codes, weighted_f1_codes
from mmd.features.store import Features
from mmd.intent.choice import Choice, HeldOutTask, choose_gate, deal_parts, plan_slices, slice_answers, working_point
from mmd.intent.examples import load_examples
from mmd.intent.firings import load_firings
from mmd.intent.gate import save_gates
from mmd.intent.mllm import HeldOut, load_held_out
from mmd.intent.rulebase import RuleBase
from mmd.intent.settings import GateSettings, ProbeSettings
from mmd.sweeps.types import Trial

_SLICES_A_TRIAL = 16  # a trial costs about 0.15 s, a slice of a few hundred examples less


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add whose gates."""
    parser.add_argument("--method", choices=("kdsl", "conkd"), default="kdsl", help="whose gates (default: kdsl)")
    add_space(parser)


def run(context: JobContext) -> Artifact:
    """Write gate/NAME, or of ConKD gate/NAME-conkd, unless the same was swept before."""
    if context.options.get("method") == "conkd":
        from jobs import sweep_conkd

        return sweep_conkd.run(context)
    context = with_space(context, "gates")
    inputs = lineage_of_adapter(context)
    settings, seeds = sweep_settings(context), {"parts": context.config.seed}
    version = version_for("gate", settings, inputs, seeds)
    if found := context.existing("gate", settings, inputs, seeds):
        record_found(context, "gates", version, found)
        return found
    held_out, alone, about = hold_out_tasks(context, inputs)
    with recorded(context, "gates", version, partial(slices_of, held_out, context.config.intent.gate)) as record:
        choices = sweep(context, held_out, run_name=f"sweep_gates-{context.name}-{version}", record=record)
        artifact = write_gates(context, choices, alone, about, settings, inputs, seeds)
        record.made(artifact.ref)
    return artifact


def write_gates(
    context: JobContext,
    choices: Mapping[str, Choice],
    alone: Mapping[str, HeldOutTask],
    about: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    seeds: Mapping[str, int],
) -> Artifact:
    """Settle the choices, write and print them."""
    choices = settle(choices, alone, context.config.intent.gate)
    with context.store.write(
        "gate", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        save_gates(
            writer,
            {task: choice.chosen.gate for task, choice in choices.items()},
            {task: {**choice.to_json(), **about[task]} for task, choice in choices.items()},
        )
        writer.metrics = choice_metrics(choices)
    print_choices(choices)
    return context.store.open(f"gate/{context.name}@{version_for('gate', settings, inputs, seeds)}")


def sweep_settings(context: JobContext) -> dict[str, Any]:
    """Return the settings that the gate depends on; the probe's are those of the classifier artefact."""
    return {"gate": context.config.intent.gate.model_dump(mode="json"), "folds": context.config.intent.folds}


def lineage_of_adapter(context: JobContext) -> dict[str, Artifact]:
    """Open the adapter, the corpus, features and rules it goes back to, and the classifier of the same features.

    Raises:
        ArtifactError: the adapter goes back to none of them, or the classifier was fitted on others, or not by
            fit_intent.
    """
    adapter = context.open("adapter")
    found = ancestors(context, adapter)
    roles = ("corpus", "features", "rulebase")
    if missing := [role for role in roles if role not in found]:
        raise ArtifactError(f"{adapter.ref}: was made from no {missing[0]}; run `mmd finetune_mllm` again.")
    classifier = context.open("classifier")
    for role in ("corpus", "features"):
        fitted_on = classifier.manifest.inputs.get(role, "nothing").split()[0]
        if fitted_on != found[role].ref:
            raise ArtifactError(
                f"{classifier.ref} was fitted on {fitted_on}, but {adapter.ref} goes back to {found[role].ref}; "
                "run `mmd fit_intent` and `mmd finetune_mllm` on the same corpus and features."
            )
    if "probe" not in classifier.manifest.settings:
        raise ArtifactError(f"{classifier.ref}: does not tell how its probe was fitted; run `mmd fit_intent` again.")
    return {role: found[role] for role in roles} | {"classifier": classifier, "adapter": adapter}


def ancestors(context: JobContext, artifact: Artifact) -> dict[str, Artifact]:
    """Return role → artefact of everything an artefact was made from, directly or not; the nearest of a role."""
    found: dict[str, Artifact] = {}
    generation = [artifact]
    while generation:
        parents = [item for child in generation for item in context.made_from(child).items()]
        generation = [parent for role, parent in parents if role not in found]
        found = dict(parents) | found
    return found


# ---------------------------------------------------------------- what was held out


def hold_out_tasks(
    context: JobContext, inputs: Mapping[str, Artifact]
) -> tuple[dict[str, HeldOutTask], dict[str, HeldOutTask], dict[str, dict[str, Any]]]:
    """Return, by task, what was said of the examples that the MLLM had held out, and of all without the MLLM.

    Third is what the report says about the validation. Tasks that the adapter has no held-out predictions of go without
    MLLM.
    """
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    classifier, rulebase = inputs["classifier"], inputs["rulebase"]
    probe_settings = ProbeSettings.model_validate(classifier.manifest.settings["probe"])
    folds, seed = int(classifier.manifest.settings["folds"]), classifier.manifest.seeds["folds"]
    base = RuleBase.load(rulebase)
    held_out: dict[str, HeldOutTask] = {}
    alone: dict[str, HeldOutTask] = {}
    about: dict[str, dict[str, Any]] = {}
    for task in corpus.tasks:
        examples = load_examples(corpus, features, task, "train")
        if not examples:
            continue
        probe, found = hold_out(examples, corpus, features, base, rulebase, probe_settings, folds=folds, seed=seed)
        about[task] = {
            "rule_tau": working_point(
                found.fired, len(found.probes[0].labels), context.config.intent.gate.rule_coverage
            ),
            "held_out_rules": load_firings(rulebase, task) is not None,
            "temperature": probe.classifier.temperature,
        }
        alone[task] = found
        held_out[task] = join_mllm(found, load_held_out(inputs["adapter"], task), folds, seed)
    return held_out, alone, about


def join_mllm(found: HeldOutTask, mllm: HeldOut | None, folds: int, seed: int) -> HeldOutTask:
    """Return the examples that the MLLM had held out, too, with what it said; all of them, without MLLM, if none."""
    rows = [] if mllm is None else [i for i, key in enumerate(found.ids) if key in mllm.plain]
    if mllm is None or not rows:
        return found
    ids, golds = [found.ids[i] for i in rows], [found.golds[i] for i in rows]
    return replace(
        found,
        ids=ids,
        golds=golds,
        fired=[found.fired[i] for i in rows],
        probes=[found.probes[i] for i in rows],
        parts=deal_parts(ids, golds, found.parts[rows], folds, seed),
        mllm=[mllm.plain[key] for key in ids],
        hinted=[mllm.hinted.get(key, mllm.plain[key]) for key in ids],
    )


# ---------------------------------------------------------------- the sweep


class SliceScorer:
    """Works slices of the grid out in one worker process.

    Args:
        held_out: task → what was said of its held-out examples.
        settings: of the gate.
    """

    def __init__(self, held_out: Mapping[str, HeldOutTask], settings: GateSettings) -> None:
        self._held_out = held_out
        self._slices = {task: plan_slices(found, settings) for task, found in held_out.items()}

    def __call__(self, batch: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return the answers of the slices given as [task, number], packed."""
        return [
            {"slice": [t, n], "answers": pack(slice_answers(self._held_out[t], self._slices[t][n]))} for t, n in batch
        ]


def sweep(
    context: JobContext, held_out: Mapping[str, HeldOutTask], *, run_name: str, record: SweepRun | None = None
) -> dict[str, Choice]:
    """Work the grid out with Ray Tune; return each task's choice."""
    config = context.config
    settings = config.intent.gate
    units = [[task, n] for task, found in held_out.items() for n in range(len(plan_slices(found, settings)))]
    batches = [units[i : i + _SLICES_A_TRIAL] for i in range(0, len(units), _SLICES_A_TRIAL)]
    if record:
        record.expect(len(units))
    with ray_cluster(config.cluster):
        outcome = tune_batches(
            SliceScorer,
            (dict(held_out), settings),
            batches,
            storage=context.scratch(".tune"),
            name=run_name,
            max_concurrent=config.tune.max_concurrent,
            title="gates",
            force=context.force,
            tell=record.tell if record else None,
        )
        if record:  # those that an interrupted run had finished are not told as they end
            record.tell(outcome)
    answers: dict[str, list[Codes]] = {task: [] for task in held_out}
    for (task, _), value in zip(units, outcome, strict=True):
        answers[str(task)].append(unpack(value["answers"], len(held_out[str(task)].golds)))
    return {task: choose_gate(found, settings, answers[task]) for task, found in held_out.items()}


def slices_of(held_out: Mapping[str, HeldOutTask], settings: GateSettings, result: Mapping[str, Any]) -> list[Trial]:
    """Return what is recorded of one slice: weighted F1 over τ, and the τ that has the best."""
    task, number = result["slice"]
    found = held_out[task]
    plan = plan_slices(found, settings)[number]
    answers = unpack(result["answers"], len(found.golds))
    scores = [weighted_f1_codes(found.gold_codes, row, len(found.vocabulary)) for row in answers]
    best = int(np.argmax(scores))
    return [
        Trial(
            setting={"task": task, "arm": plan.family, "vote_weight": plan.weight, "mllm_share": plan.mllm},
            group=task,
            metrics={"weighted_f1": scores[best], "tau": plan.taus[best]},
            curve=tuple(zip(plan.taus, scores, strict=True)),
        )
    ]


def settle(
    choices: Mapping[str, Choice], alone: Mapping[str, HeldOutTask], settings: GateSettings
) -> dict[str, Choice]:
    """Choose anew, on all examples, where the choice leaves the MLLM out.

    The MLLM may have held out a fifth of the examples only; rules and probe have been validated on every one, and what
    is theirs alone to decide is not left to the fifth.
    """
    return {
        task: choice if choice.chosen.gate.asks_mllm else choose_gate(alone[task], settings)
        for task, choice in choices.items()
    }


def pack(answers: Codes) -> str:
    """Return answers as text: neighbouring settings answer alike, so that they shrink to almost nothing."""
    return base64.b64encode(zlib.compress(answers.astype("<i4").tobytes())).decode()


def unpack(text: str, n_examples: int) -> Codes:
    """Invert :func:`pack`; int64 of shape (n_settings, n_examples)."""
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4")
    return flat.reshape(-1, n_examples).astype(np.int64)


if __name__ == "__main__":
    sys.exit(main("sweep_gates", __doc__, run, add_options=add_options))
