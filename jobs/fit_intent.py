"""Fit the intent classifier and the gate that joins it with the rules.

Makes two artefacts: classifier/NAME (one probe a task) and gate/NAME (how each task joins rules and classifier),
from the training split of corpus/NAME, features/NAME and rulebase/NAME. The gate is chosen on predictions and
firings that were both held out fold by fold (of the rules' discovery, not of which rules are kept, so the estimates
flatter a little); no test example is looked at. With a fine-tuned MLLM, sweep_gates chooses the gate anew.

    mmd fit_intent                                            the built-in shop corpus
    mmd fit_intent --corpus taobao=../shared/data/taobao
    mmd fit_intent --set intent.gate.arm=override
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.glue.entry import JobContext, console, main
from mmd.artifacts import Artifact, version_for
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, CorpusError
from mmd.features.store import Features
from mmd.intent.choice import Choice, HeldOutTask, choose_gate, deal_parts, working_point
from mmd.intent.examples import label_vectors, load_examples
from mmd.intent.firings import load_firings
from mmd.intent.folds import assign_folds
from mmd.intent.gate import Firing, TaskGate, save_gates
from mmd.intent.matcher import CompiledRules
from mmd.intent.probe import FittedProbe, fit_probe, save_probes
from mmd.intent.rulebase import RuleBase
from mmd.intent.settings import ProbeSettings
from mmd.intent.types import IntentExample, Probabilities
from mmd.tables import plain_table


@dataclass(frozen=True)
class Fitted:
    """One task's fitted probe, and the gate chosen on what was held out."""

    probe: FittedProbe
    choice: Choice
    rule_tau: float
    held_out_rules: bool

    @property
    def classifier_f1(self) -> float:
        """Held-out weighted F1 of the probe alone."""
        return self.choice.alone["probe"]

    def to_json(self) -> dict[str, Any]:
        """Return what the gate artefact keeps of the validation."""
        return {
            **self.choice.to_json(),
            "rule_tau": self.rule_tau,
            "held_out_rules": self.held_out_rules,
            "temperature": self.probe.classifier.temperature,
        }


def run(context: JobContext) -> Artifact:
    """Write classifier/NAME and gate/NAME unless the same was fitted before; return the gate."""
    inputs = lineage_of_rules(context)
    corpus = Corpus(inputs["corpus"])
    intent = context.config.intent
    seeds = {"folds": context.config.seed}
    settings = {"folds": intent.folds, "probe": intent.probe.model_dump(mode="json")}
    gate_settings = settings | {"gate": intent.gate.model_dump(mode="json"), "min_precision": intent.min_precision}
    trained_on = {"corpus": inputs["corpus"], "features": inputs["features"]}
    version = version_for("classifier", settings, trained_on, seeds)
    if context.store.exists("classifier", context.name, version):
        before = context.store.open(f"classifier/{context.name}@{version}")
        if found := context.existing("gate", gate_settings, inputs | {"classifier": before}, seeds):
            return found
    fitted = fit_tasks(context, corpus, Features(inputs["features"]), inputs["rulebase"])
    with context.store.write(
        "classifier", context.name, settings=settings, inputs=trained_on, seeds=seeds, replace=context.force
    ) as writer:
        save_probes(writer, {task: f.probe.classifier for task, f in fitted.items()})
        writer.metrics = {f"{task} held-out weighted F1": f.classifier_f1 for task, f in fitted.items()}
    classifier = context.store.open(f"classifier/{context.name}@{version}")
    inputs = inputs | {"classifier": classifier}
    with context.store.write(
        "gate", context.name, settings=gate_settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        save_gates(
            writer,
            {task: f.choice.chosen.gate for task, f in fitted.items()},
            {task: f.to_json() for task, f in fitted.items()},
        )
        writer.metrics = choice_metrics({task: f.choice for task, f in fitted.items()})
    print_choices({task: f.choice for task, f in fitted.items()})
    return context.store.open(f"gate/{context.name}@{version_for('gate', gate_settings, inputs, seeds)}")


def lineage_of_rules(context: JobContext) -> dict[str, Artifact]:
    """Open the rule base and what it was made from; a base edited by hand takes the newest features of its corpus.

    Raises:
        ArtifactError: those features were made from another corpus.
    """
    inputs = context.lineage("rulebase")
    if "features" not in inputs:
        inputs["features"] = context.open("features")
    features, corpus = inputs["features"], inputs["corpus"]
    if not features.manifest.inputs["corpus"].startswith(f"{corpus.ref} "):
        raise ArtifactError(
            f"{features.ref} was made from {features.manifest.inputs['corpus'].split()[0]}, but "
            f"{inputs['rulebase'].ref} belongs to {corpus.ref}; run `mmd featurize` for that corpus, or mine again."
        )
    return inputs


def fit_tasks(context: JobContext, corpus: Corpus, features: Features, rulebase: Artifact) -> dict[str, Fitted]:
    """Fit every task of the corpus that has labelled training examples.

    Raises:
        CorpusError: there is none.
    """
    examples = {task: load_examples(corpus, features, task, "train") for task in corpus.tasks}
    labelled = {task: rows for task, rows in examples.items() if rows}
    if not labelled:
        raise CorpusError(
            f"{corpus.artifact.ref}: no training dialogue has an intent label; its tasks: "
            f"{', '.join(corpus.tasks) or 'none'}. Label some dialogues, or work on a corpus such as shop or taobao."
        )
    base = RuleBase.load(rulebase)
    return {task: fit_task(context, corpus, features, base, rulebase, rows) for task, rows in labelled.items()}


def fit_task(
    context: JobContext,
    corpus: Corpus,
    features: Features,
    base: RuleBase,
    rulebase: Artifact,
    examples: Sequence[IntentExample],
) -> Fitted:
    """Fit one task's probe, then choose its gate on held-out predictions."""
    intent, seed = context.config.intent, context.config.seed
    probe, held_out = hold_out(examples, corpus, features, base, rulebase, intent.probe, folds=intent.folds, seed=seed)
    return Fitted(
        probe,
        choose_gate(held_out, intent.gate),
        rule_tau=working_point(held_out.fired, len(probe.classifier.labels), intent.gate.rule_coverage),
        held_out_rules=load_firings(rulebase, held_out.task) is not None,
    )


def hold_out(
    examples: Sequence[IntentExample],
    corpus: Corpus,
    features: Features,
    base: RuleBase,
    rulebase: Artifact,
    settings: ProbeSettings,
    *,
    folds: int,
    seed: int,
) -> tuple[FittedProbe, HeldOutTask]:
    """Fit one task's probe; return it and what probe and rules say of its examples while these are held out."""
    task = examples[0].task
    labels, golds, ids = corpus.tasks[task], [str(e.label) for e in examples], [e.dialogue_id for e in examples]
    dealt = assign_folds(ids, golds, folds, seed)
    probe = fit_probe(task, examples, labels, settings, dealt, label_vectors=label_vectors(features, labels))
    held_out = HeldOutTask(
        task=task,
        ids=ids,
        golds=golds,
        fired=_fired(load_firings(rulebase, task), base, examples),
        probes=[Probabilities(labels, tuple(map(float, row))) for row in probe.held_out],
        parts=deal_parts(ids, golds, dealt, folds, seed),
        default=base.defaults.get(task),
    )
    return probe, held_out


def _fired(
    firings: Mapping[str, Sequence[Firing]] | None, base: RuleBase, examples: Sequence[IntentExample]
) -> list[Sequence[Firing]]:
    """Return the rules to validate with; a base that came without held-out firings is taken at its word."""
    if firings is None:
        return list(CompiledRules(base, examples[0].task).fired_batch(examples))
    return [firings.get(example.dialogue_id, ()) for example in examples]


def choice_metrics(choices: Mapping[str, Choice]) -> dict[str, float]:
    """Return what the manifest and the summary show of the gates."""
    metrics: dict[str, float] = {}
    for task, choice in choices.items():
        metrics[f"{task} held-out weighted F1"] = choice.chosen.weighted_f1
        metrics[f"{task} cross-fitted weighted F1"] = choice.chosen.cross_fitted_f1
    return metrics


def print_choices(choices: Mapping[str, Choice]) -> None:
    """Print each task's held-out scores and the gate that was chosen."""
    systems = list(dict.fromkeys(system for choice in choices.values() for system in choice.alone))
    columns = ("gate", "cross-fitted", "how")
    table = plain_table("task", *systems, *columns, title="held-out weighted F1 (training part)")
    for task, choice in choices.items():
        found = choice.chosen
        alone = [f"{choice.alone[s]:.3f}" if s in choice.alone else "–" for s in systems]
        table.add_row(task, *alone, f"{found.weighted_f1:.3f}", f"{found.cross_fitted_f1:.3f}", _how(found.gate))
    console.print(table)


def _how(gate: TaskGate) -> str:
    """Return a gate's settings in short."""
    told = {"weight": gate.weight if gate.arm == "vote" else 0.0, "MLLM": gate.mllm}
    heard = "no rule heard" if gate.tau > 1 else f"{gate.arm}, τ {gate.tau:.2f}"
    return ", ".join([heard, *(f"{name} {value:g}" for name, value in told.items() if value > 0)])


if __name__ == "__main__":
    sys.exit(main("fit_intent", __doc__, run))
