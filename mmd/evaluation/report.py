"""The report: one self-contained HTML page and a printed table, made of what was measured.

The page loads nothing from anywhere (its own policy forbids it). Words and pictures of dialogues go in only when
the caller says so, since reports travel further than corpora may.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from mmd.evaluation import plots
from mmd.evaluation.intent import (
    CLASSIFIER,
    JOINED,
    MLLM,
    POOLED,
    RULES,
    Summary,
    TaskResult,
    WorkedExample,
    calibrated,
    unruled,
)
from mmd.evaluation.metrics import Interval
from mmd.evaluation.pictures import PictureEffect
from mmd.intent.gate import THRESHOLD_ARMS, TaskGate
from mmd.tables import plain_table

PictureSource = Callable[[Sequence[str]], Mapping[str, bytes]]
_RULES_SHOWN = 4
_THUMBNAIL_PX = (220, 280)
_ARM_WORDS = {
    "rules": "rules",
    "vote": "rules and the classifier together",
    "prompt": "MLLM, told the rules",
    "mllm": "MLLM",
    "classifier": "classifier",
    "default": "default label",
}
_NAMES = {RULES: "rules", CLASSIFIER: "probe", MLLM: "MLLM", POOLED: "probe + MLLM", JOINED: "gated"}
"""What systems are called where there is an MLLM; without one they go by their keys."""


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of.

    ``working_points``: task → τ at which rules alone are reported; ``latency``: stage → percentiles in ms;
    ``provenance``: role → artefact, settings, code; ``resamples``: of the intervals; ``arm_latency``: gate → the
    same of whole predictions; ``validation``: task → what the gate artefact keeps of its choice; ``pictures``: task →
    what its pictures are worth to the MLLM.
    """

    name: str
    results: Sequence[TaskResult]
    summary: Summary
    working_points: Mapping[str, float]
    latency: Mapping[str, Mapping[str, float]]
    worked: Sequence[WorkedExample]
    provenance: Mapping[str, str]
    resamples: int
    arm_latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    validation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: Mapping[str, PictureEffect] = field(default_factory=dict)


def render(content: ReportContent, pictures: PictureSource | None = None) -> str:
    """Return the report as an HTML page.

    Args:
        content: what was measured.
        pictures: image ids → encoded pictures; None leaves dialogues' words and pictures out of the page.
    """
    page = page_template("intent.html.j2")
    thumbnails = _thumbnails(content.worked, pictures) if pictures else {}
    summary, results = content.summary, content.results
    names = system_names(summary)
    rows = {**summary.tasks, "overall": summary.overall} if len(results) > 1 else summary.tasks
    rendered: str = page.render(
        name=content.name,
        names=names,
        headline=_headline(summary),
        gains=_gains(summary, names),
        has_mllm=MLLM in summary.systems,
        bars=plots.score_bars(rows, names),
        results=[_task_view(r, content, names) for r in results],
        ablations=summary.ablations,
        latency=content.latency,
        arm_latency=content.arm_latency,
        pictures=content.pictures,
        worked=[_worked_view(w, thumbnails) for w in content.worked],
        show_dialogues=pictures is not None,
        provenance=content.provenance,
        resamples=content.resamples,
    )
    return rendered


def page_template(name: str) -> Any:  # noqa: ANN401 (a template of Jinja, imported where it is used)
    """Return one of the project's pages, to be rendered with what it shows."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 (only reports need it)

    return Environment(
        loader=PackageLoader("mmd.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template(name)


def system_names(summary: Summary) -> dict[str, str]:
    """Return system → what the report calls it, in order."""
    return {s: _NAMES[s] if MLLM in summary.systems else s for s in summary.systems}


def gate_words(gate: TaskGate) -> str:
    """Say in words what a gate does."""
    models = _pool_words(gate.mllm)
    silent = gate.tau > 1 or (gate.arm == "vote" and gate.weight == 0)
    if gate.arm in THRESHOLD_ARMS and silent:
        return f"{models} answers; rules are not heard"
    return {
        "override": f"override: the best rule answers from τ = {gate.tau:.2f}, else {models}",
        "verdict": f"verdict: the fired rules together answer from confidence {gate.tau:.2f}, else {models}",
        "vote": f"vote: rules shift {models}, weight {gate.weight:g}",
        "prompt": f"prompt: {models} answers, the MLLM being told the rules where the best reaches τ = {gate.tau:.2f}",
        "rules_only": "rules alone answer, else the commonest label",
        "mllm_only": "the MLLM answers; rules are not heard",
    }[gate.arm]


def _pool_words(share: float) -> str:
    if share <= 0.0:
        return "the classifier"
    return "the MLLM" if share >= 1.0 else f"the pool of probe and MLLM (its share {share:g})"


def summary_table(summary: Summary) -> Table:
    """Return the headline for the terminal: a row a system, a column a task; below, what the gate gained."""
    names, rows = system_names(summary), {**summary.tasks, "overall": summary.overall}
    table = plain_table("weighted F1", *rows, title="test split")
    for system, name in names.items():
        table.add_row(name, *(_score(scores.get(system)) for scores in rows.values()))
    table.add_section()
    for base in _compared(summary):
        gained = (summary.gains[base].get(row) for row in rows)
        table.add_row(f"gain over {names[base]}", *(_score(gain, signed=True) for gain in gained))
    return table


def _score(value: Interval | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    form = "{:+.3f}" if signed else "{:.3f}"
    return f"{form.format(value.value)} ({form.format(value.low)}…{form.format(value.high)})"


def _compared(summary: Summary) -> list[str]:
    """Return the systems that the gate's gain is told over."""
    return [base for base in (MLLM, POOLED, CLASSIFIER) if base in summary.gains]


def _headline(summary: Summary) -> list[dict[str, Any]]:
    """Return one row a task, and one overall; a system that a row lacks is None there."""
    rows = {**summary.tasks, "overall": summary.overall}
    return [
        {
            "name": name,
            "scores": [scores.get(s) for s in summary.systems],
            "gain": summary.gains[CLASSIFIER][name],
        }
        for name, scores in rows.items()
    ]


def _gains(summary: Summary, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what the gate gained over its MLLM alone, over its pool and over its probe, by task and overall."""
    bases = _compared(summary)
    rows = [
        {"name": name, "gains": [summary.gains[base].get(name) for base in bases]}
        for name in (*summary.tasks, "overall")
    ]
    return {"columns": [names[base] for base in bases], "rows": rows}


def _task_view(result: TaskResult, content: ReportContent, names: Mapping[str, str]) -> dict[str, Any]:
    record, summary = result.rule_record, content.summary
    tau, validation = content.working_points.get(result.task, 0.0), content.validation.get(result.task, {})
    classes, before = _classes(result), names[unruled(result)]
    return {
        "task": result.task,
        "count": len(result.examples),
        "gate_words": gate_words(result.gate),
        "test": summary.tests[result.task],
        "arms": result.arms,
        "tau": tau,
        "coverage": record.coverage(),
        "precision": record.precision(),
        "point_coverage": record.coverage(tau),
        "point_precision": record.precision(tau),
        "curve": plots.rule_curve(record, tau),
        "reliability": plots.reliability({names[s]: result.calibration(s) for s in calibrated(result)}),
        "before": before,
        "after": names[JOINED],
        "classes": classes,
        "class_bars": plots.class_bars(
            [c["f1_classifier"] for c in classes], [c["f1"] for c in classes], before, names[JOINED]
        ),
        "validation": _validation_view(validation, result.gate) if validation.get("curves") else None,
        **_heat(result),
    }


def _validation_view(validation: Mapping[str, Any], gate: TaskGate) -> dict[str, Any]:
    """Return how the gate was chosen: F1 over τ by arm, and each arm's best setting, the chosen one first."""
    return {
        "curve": plots.tau_curves(validation["curves"], gate.arm, gate.tau),
        "examples": validation["examples"],
        "parts": validation["parts"],
        "alone": {_NAMES.get(system, system): score for system, score in validation["alone"].items()},
        "chosen": validation["chosen"],
        "arms": [
            {
                "arm": "no rule" if arm["arm"] == "vote" and arm["weight"] == 0 else arm["arm"].replace("_", " "),
                "tau": None if arm["arm"] not in THRESHOLD_ARMS else "never" if arm["tau"] > 1 else f"{arm['tau']:.2f}",
                "weight": f"{arm['weight']:g}" if arm["weight"] else None,
                "mllm": f"{arm['mllm']:g}",
                "weighted_f1": arm["weighted_f1"],
                "cross_fitted_f1": arm["cross_fitted_f1"],
            }
            for arm in validation["arms"]
        ],
    }


def _numbers(result: TaskResult) -> dict[str, int]:
    """Return label → its number in the report: the task's order, then answers from outside of it."""
    strays = sorted({a for a in result.systems[JOINED] if a not in result.labels})
    return {label: number for number, label in enumerate((*result.labels, *strays), start=1)}


def _classes(result: TaskResult) -> list[dict[str, Any]]:
    """Return one row a class that occurs, numbered from 1 as in the confusion."""
    numbers = _numbers(result)
    by_system = {s: result.confusion(s) for s in (RULES, unruled(result), JOINED)}
    rows = sorted(by_system[JOINED].per_class, key=lambda score: numbers.get(score.label, 0))
    return [
        {
            "number": numbers.get(score.label, 0),
            "label": score.label,
            "support": score.support,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "f1_classifier": by_system[unruled(result)].score(score.label).f1,
            "f1_rules": by_system[RULES].score(score.label).f1,
        }
        for score in rows
    ]


def _heat(result: TaskResult) -> dict[str, Any]:
    """Return the confusion of the gate as rows of cells; a cell's share is of its row."""
    numbers, counts = _numbers(result), result.confusion(JOINED).counts
    golds = [label for label in numbers if any(gold == label for gold, _ in counts)]
    answers = [label for label in numbers if label in golds or any(a == label for _, a in counts)]
    rows = []
    for gold in golds:
        total = sum(n for (g, _), n in counts.items() if g == gold)
        cells = [
            {"count": n, "answer": answer, "right": answer == gold, "share": n / total}
            for answer in answers
            for n in (counts.get((gold, answer), 0),)
        ]
        rows.append({"number": numbers[gold], "label": gold, "cells": cells})
    return {"heat": rows, "heat_columns": [{"number": numbers[a], "label": a} for a in answers]}


def _worked_view(worked: WorkedExample, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    example, prediction = worked.example, worked.prediction
    return {
        "shows": worked.shows,
        "task": example.task,
        "id": example.dialogue_id,
        "gold": example.label,
        "label": prediction.label,
        "right": prediction.label == example.label,
        "confidence": prediction.confidence,
        "arm_words": _ARM_WORDS.get(prediction.arm, prediction.arm),
        "models": _models_view(worked),
        "fired": prediction.fired[:_RULES_SHOWN],
        "more": max(0, len(prediction.fired) - _RULES_SHOWN),
        "turns": [
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "images": [thumbnails[i] for i in turn.image_ids if i in thumbnails],
            }
            for turn in example.turns
        ],
    }


def _models_view(worked: WorkedExample) -> list[tuple[str, str, float]]:
    """Return (name, answer, confidence) of each model by itself."""
    if worked.mllm is None:
        return [("classifier", *worked.classifier)]
    return [("probe", *worked.classifier), ("MLLM", *worked.mllm)]


def _thumbnails(worked: Sequence[WorkedExample], pictures: PictureSource) -> dict[str, str]:
    """Return image id → data URL of a small JPEG, for every picture that the examples show."""
    ids = sorted({i for w in worked for turn in w.example.turns for i in turn.image_ids})
    return {image_id: thumbnail(data) for image_id, data in pictures(ids).items()}


def thumbnail(data: bytes) -> str:
    """Return a picture as the data URL of a small JPEG; the picture passed the corpus's checks before."""
    from PIL import Image  # noqa: PLC0415 (only reports with pictures need it)

    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail(_THUMBNAIL_PX)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
