"""Measure the intent model on the test split, which is read here and nowhere else, and write the report.

Makes the artefact report/NAME with report.html (self-contained) and metrics.json: rules, the probe, the fine-tuned
MLLM (if the gate was chosen with one) and the gate that joins them, by task and overall, with intervals; other gates;
how the gate was chosen; by class; confusion; precision and coverage of rules; calibration; what pictures are worth to
the MLLM; latency by stage and arm; worked examples with the fired rules in words.

    mmd evaluate                                            the built-in shop corpus
    mmd evaluate --corpus taobao=../shared/data/taobao
    mmd evaluate --set evaluation.show_dialogues=always     the examples' words and pictures, too
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from jobs.glue.entry import JobContext, console, main
from mmd.artifacts import Artifact, version_for
from mmd.corpora.store import Corpus
from mmd.errors import CorpusError
from mmd.evaluation.intent import (
    TaskResult,
    evaluate_task,
    pick_examples,
    summarise,
    to_json,
)
from mmd.evaluation.latency import time_arms, time_mllm, time_stages
from mmd.evaluation.pictures import PictureEffect, picture_effect
from mmd.evaluation.report import PictureSource, ReportContent, gate_words, render, summary_table
from mmd.features.store import Features
from mmd.intent.examples import load_examples, with_pictures
from mmd.intent.gate import GATE_FILE, Gate, TaskGate, load_gates
from mmd.intent.probe import load_probes
from mmd.intent.rulebase import RuleBase
from mmd.intent.types import IntentExample, PromptedClassifier


def run(context: JobContext) -> Artifact:
    """Write report/NAME unless the same model was reported before."""
    inputs = context.lineage("gate")
    settings = context.config.evaluation.model_dump(mode="json")
    seeds = {"bootstrap": context.config.seed}
    if found := context.existing("report", settings, inputs, seeds):
        return found
    with context.store.write(
        "report", context.name, settings=settings, inputs=inputs, seeds=seeds, replace=context.force
    ) as writer:
        page, metrics = evaluate(context, inputs)
        writer.write_bytes("report.html", page.encode())
        writer.write_json("metrics.json", metrics)
        writer.metrics = headline_metrics(metrics)
    version = version_for("report", settings, inputs, seeds)
    report = context.store.open(f"report/{context.name}@{version}")
    console.print(report.path("report.html"), markup=False, soft_wrap=True)
    return report


def evaluate(context: JobContext, inputs: Mapping[str, Artifact]) -> tuple[str, dict[str, Any]]:
    """Return the page and the metrics.

    Raises:
        CorpusError: the test split has no labelled example of any task.
        ModelError: the MLLM that the gate was chosen with cannot be loaded.
    """
    corpus, settings = Corpus(inputs["corpus"]), context.config.evaluation
    gate, validation = load_gate(context, inputs), inputs["gate"].read_json(GATE_FILE)["validation"]
    examples = load_test_examples(gate, corpus, Features(inputs["features"]))
    arms = {task: other_arms(validation[task]) for task in examples}
    results = [evaluate_task(gate, task, corpus.tasks[task], rows, arms[task]) for task, rows in examples.items()]
    summary = summarise(results, resamples=settings.bootstrap_resamples, seed=context.config.seed)
    effects = picture_effects(gate, results)
    mixed = _mixed(results)
    latency = time_stages(gate, mixed, settings.latency_samples) | time_mllm(gate, mixed, settings.latency_samples)
    arm_latency = time_arms(gate, _by_arm(arms), mixed, settings.latency_samples) if gate.mllms else {}
    points = {task: float(value["rule_tau"]) for task, value in validation.items()}
    content = ReportContent(
        name=context.name,
        results=results,
        summary=summary,
        working_points=points,
        latency=latency,
        worked=pick_examples(results, settings.examples),
        provenance=provenance(inputs, gate, validation),
        resamples=settings.bootstrap_resamples,
        arm_latency=arm_latency,
        validation=validation,
        pictures=effects,
    )
    page = render(content, pictures_of(context, corpus))
    console.print(summary_table(summary))
    metrics = to_json(summary, results, points) | {"latency": latency, "arm_latency": arm_latency}
    metrics["pictures"] = {task: asdict(effect) for task, effect in effects.items()}
    return page, metrics | {"made_from": {role: a.ref for role, a in inputs.items()}}


def load_gate(context: JobContext, inputs: Mapping[str, Artifact]) -> Gate:
    """Return the gate over all that it was chosen with; an MLLM that cannot be loaded is an error here."""
    mllms: dict[str, PromptedClassifier] = {}
    if "adapter" in inputs:
        from mmd.intent.mllm import load_mllm_classifiers  # (torch and transformers, only where there is one)

        mllms = dict(load_mllm_classifiers(inputs["adapter"], context.config.models))
    probes = load_probes(inputs["classifier"])
    return Gate(RuleBase.load(inputs["rulebase"]), probes, load_gates(inputs["gate"]), mllms=mllms)


def load_test_examples(gate: Gate, corpus: Corpus, features: Features) -> dict[str, list[IntentExample]]:
    """Return task → labelled test examples, with their pictures' bytes where its MLLM looks at them.

    Raises:
        CorpusError: there are none.
    """
    found: dict[str, list[IntentExample]] = {}
    for task in gate.tasks:
        rows = load_examples(corpus, features, task, "test")
        sees = task in gate.mllms and gate.mllms[task].needs_pictures
        if rows:
            found[task] = with_pictures(rows, corpus) if sees else rows
    if not found:
        raise CorpusError(
            f"{corpus.artifact.ref}: its test split has no labelled example of {', '.join(gate.tasks)}; "
            "evaluation needs some that training has not seen. Give some records the split `test` (docs/data.md), "
            "or stop before with `mmd pipeline --until fit_intent`."
        )
    return found


def picture_effects(gate: Gate, results: Sequence[TaskResult]) -> dict[str, PictureEffect]:
    """Return task → what pictures are worth to its MLLM, for tasks with examples that have nothing else."""
    found = {
        r.task: picture_effect(gate.mllms[r.task], r.examples, [said.mllm or said.probe for said in r.opinions])
        for r in results
        if r.has_mllm
    }
    return {task: effect for task, effect in found.items() if effect}


def other_arms(validation: Mapping[str, Any]) -> dict[str, TaskGate]:
    """Return the best setting of each arm, as validated on the training part, by name."""
    known = {f.name for f in fields(TaskGate)}
    gates = [TaskGate(**{key: v for key, v in arm.items() if key in known}) for arm in validation["arms"]]
    return {f"{_arm_name(gate)}, as validated": gate for gate in gates}


def _arm_name(gate: TaskGate) -> str:
    return "no rule" if gate.arm == "vote" and gate.weight == 0.0 else gate.arm


def _by_arm(arms: Mapping[str, Mapping[str, TaskGate]]) -> dict[str, dict[str, TaskGate]]:
    """Turn task → name → gate round."""
    names = dict.fromkeys(name for gates in arms.values() for name in gates)
    return {name: {task: gates[name] for task, gates in arms.items() if name in gates} for name in names}


def _mixed(results: Sequence[TaskResult]) -> list[Any]:
    """Return the tasks' examples in turn, so that few timings cover all."""
    longest = max(len(r.examples) for r in results)
    return [r.examples[i] for i in range(longest) for r in results if i < len(r.examples)]


def pictures_of(context: JobContext, corpus: Corpus) -> PictureSource | None:
    """Return where the report's pictures come from; None when the settings keep dialogues out of it."""
    choice = context.config.evaluation.show_dialogues
    if choice == "never" or (choice == "auto" and not corpus.simulated):
        return None
    return lambda ids: {image.id: image.data for image in corpus.images(ids)}


def provenance(inputs: Mapping[str, Artifact], gate: Gate, validation: Mapping[str, Any]) -> dict[str, str]:
    """Return what the report says about where its numbers come from."""
    lines = {role: a.ref for role, a in inputs.items()}
    for task, chosen in gate.tasks.items():
        told = validation[task]
        alone = told.get("alone", {"classifier": told["classifier_weighted_f1"]})
        crossed = told.get("chosen", {}).get("cross_fitted_f1")
        best = max((arm["weighted_f1"] for arm in told["arms"]), default=0.0)  # of gates chosen before there was more
        lines[f"{task}: gate"] = (
            f"{gate_words(chosen)}; held-out weighted F1 on the training part "
            f"{told.get('chosen', {}).get('weighted_f1', best):.3f}"
            + (f", cross-fitted {crossed:.3f}" if crossed is not None else "")
            + f"; alone: {', '.join(f'{system} {score:.3f}' for system, score in alone.items())}"
            + ("" if told["held_out_rules"] else "; the rule base came without held-out firings: optimistic")
        )
    lines["code"] = inputs["gate"].manifest.code
    return lines


def headline_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalars that the manifest and the summary show."""
    scalars = {f"overall, {system}": v["value"] for system, v in metrics["overall"].items()}
    for task, told in metrics["tasks"].items():
        scalars |= {f"{task}, {system}": v["value"] for system, v in told["weighted_f1"].items()}
        point = told["rules"]["working_point"]
        for measure in ("precision", "coverage"):
            share = point[measure]
            scalars[f"{task}, rules' {measure} at τ"] = share["numerator"] / max(share["denominator"], 1)
    for task, effect in metrics["pictures"].items():
        for what, share in (("MLLM on pictures alone", effect["seen"]), ("the same, blank", effect["blank"])):
            scalars[f"{task}, {what}"] = share["numerator"] / max(share["denominator"], 1)
    return scalars


if __name__ == "__main__":
    sys.exit(main("evaluate", __doc__, run))
