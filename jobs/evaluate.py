"""Measure the intent model on the test split, which is read here and nowhere else, and write the report.

Makes the artefact report/NAME with report.html (self-contained) and metrics.json: rules alone, the classifier
alone and both together, by task and overall, with intervals; other gates; by class; confusion; precision and
coverage of rules; calibration; latency; worked examples with the fired rules in words.

    mmd evaluate                                            the built-in shop corpus
    mmd evaluate --corpus taobao=../shared/data/taobao
    mmd evaluate --set evaluation.show_dialogues=always     the examples' words and pictures, too
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
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
    time_stages,
    to_json,
)
from mmd.evaluation.report import PictureSource, ReportContent, gate_words, render, summary_table
from mmd.features.store import Features
from mmd.intent.examples import load_examples
from mmd.intent.gate import GATE_FILE, Gate, TaskGate, load_gates
from mmd.intent.probe import load_probes
from mmd.intent.rulebase import RuleBase


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
    """
    corpus, features = Corpus(inputs["corpus"]), Features(inputs["features"])
    gate = Gate(RuleBase.load(inputs["rulebase"]), load_probes(inputs["classifier"]), load_gates(inputs["gate"]))
    validation = inputs["gate"].read_json(GATE_FILE)["validation"]
    settings = context.config.evaluation
    results = [
        evaluate_task(gate, task, corpus.tasks[task], examples, other_arms(validation[task]))
        for task in gate.tasks
        if (examples := load_examples(corpus, features, task, "test"))
    ]
    if not results:
        raise CorpusError(
            f"{corpus.artifact.ref}: its test split has no labelled example of {', '.join(gate.tasks)}; "
            "evaluation needs some that training has not seen. Give some records the split `test` (docs/data.md), "
            "or stop before with `mmd pipeline --until fit_intent`."
        )
    summary = summarise(results, resamples=settings.bootstrap_resamples, seed=context.config.seed)
    latency = time_stages(gate, _mixed(results), settings.latency_samples)
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
    )
    page = render(content, pictures_of(context, corpus))
    console.print(summary_table(summary))
    metrics = to_json(summary, results, points)
    return page, {**metrics, "latency": latency, "made_from": {role: a.ref for role, a in inputs.items()}}


def other_arms(validation: Mapping[str, Any]) -> dict[str, TaskGate]:
    """Return the best setting of each arm, as validated on the training part, by name."""
    known = {f.name for f in fields(TaskGate)}
    gates = [TaskGate(**{key: v for key, v in arm.items() if key in known}) for arm in validation["arms"]]
    return {f"{gate.arm}, as validated": gate for gate in gates}


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
        held_out = max((arm["weighted_f1"] for arm in told["arms"]), default=0.0)
        lines[f"{task}: gate"] = (
            f"{gate_words(chosen)}; held-out weighted F1 on the training part {held_out:.3f}, "
            f"classifier alone {told['classifier_weighted_f1']:.3f}"
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
    return scalars


if __name__ == "__main__":
    sys.exit(main("evaluate", __doc__, run))
