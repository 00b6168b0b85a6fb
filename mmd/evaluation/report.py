"""The report: one self-contained HTML page and a printed table, made of what was measured.

The page loads nothing from anywhere (its own policy forbids it). Words and pictures of dialogues go in only when
the caller says so, since reports travel further than corpora may.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from mmd.evaluation import plots
from mmd.evaluation.intent import CLASSIFIER, JOINED, RULES, SYSTEMS, Summary, TaskResult, WorkedExample
from mmd.intent.gate import TaskGate

PictureSource = Callable[[Sequence[str]], Mapping[str, bytes]]
_RULES_SHOWN = 4
_THUMBNAIL_PX = (220, 280)
_ARM_WORDS = {
    "rules": "rules",
    "vote": "rules and the classifier together",
    "classifier": "classifier",
    "default": "default label",
}


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of.

    ``working_points``: task → τ at which rules alone are reported; ``latency``: stage → percentiles in ms;
    ``provenance``: role → artefact, settings, code; ``resamples``: of the intervals.
    """

    name: str
    results: Sequence[TaskResult]
    summary: Summary
    working_points: Mapping[str, float]
    latency: Mapping[str, Mapping[str, float]]
    worked: Sequence[WorkedExample]
    provenance: Mapping[str, str]
    resamples: int


def render(content: ReportContent, pictures: PictureSource | None = None) -> str:
    """Return the report as an HTML page.

    Args:
        content: what was measured.
        pictures: image ids → encoded pictures; None leaves dialogues' words and pictures out of the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 (only reports need it)

    page = Environment(
        loader=PackageLoader("mmd.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template("intent.html.j2")
    thumbnails = _thumbnails(content.worked, pictures) if pictures else {}
    summary, results = content.summary, content.results
    rows = {**summary.tasks, "overall": summary.overall} if len(results) > 1 else summary.tasks
    return page.render(
        name=content.name,
        systems=SYSTEMS,
        headline=_headline(summary),
        bars=plots.score_bars(rows),
        results=[_task_view(r, summary, content.working_points.get(r.task, 0.0)) for r in results],
        ablations=summary.ablations,
        latency=content.latency,
        worked=[_worked_view(w, thumbnails) for w in content.worked],
        show_dialogues=pictures is not None,
        provenance=content.provenance,
        resamples=content.resamples,
    )


def gate_words(gate: TaskGate) -> str:
    """Say in words what a gate does."""
    if gate.tau > 1 or (gate.arm == "vote" and gate.weight == 0):
        return "the classifier answers; rules are not heard"
    if gate.arm == "vote":
        return f"vote: rules shift the classifier, weight {gate.weight:g}"
    if gate.arm == "verdict":
        return f"verdict: the fired rules together answer from confidence {gate.tau:.2f}, else the classifier"
    return f"override: the best rule answers from τ = {gate.tau:.2f}, else the classifier"


def summary_table(summary: Summary) -> Table:
    """Return the headline for the terminal."""
    table = Table("weighted F1", *SYSTEMS, "gain", title="test split", title_justify="left")
    for row in _headline(summary):
        scores = [f"{v.value:.3f} ({v.low:.3f}–{v.high:.3f})" for v in row["scores"]]
        table.add_row(row["name"], *scores, f"{row['gain']:+.3f}")
    return table


def _headline(summary: Summary) -> list[dict[str, Any]]:
    rows = [
        {
            "name": task,
            "scores": [scores[s] for s in SYSTEMS],
            "gain": scores[JOINED].value - scores[CLASSIFIER].value,
            "gain_interval": None,
        }
        for task, scores in summary.tasks.items()
    ]
    total = {
        "name": "overall",
        "scores": [summary.overall[s] for s in SYSTEMS],
        "gain": summary.gain.value,
        "gain_interval": summary.gain,
    }
    return [*rows, total]


def _task_view(result: TaskResult, summary: Summary, tau: float) -> dict[str, Any]:
    record = result.rule_record
    classes = _classes(result)
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
        "reliability": plots.reliability({s: result.calibration(s) for s in (CLASSIFIER, JOINED)}),
        "classes": classes,
        "class_bars": plots.class_bars([c["f1_classifier"] for c in classes], [c["f1"] for c in classes]),
        **_heat(result),
    }


def _numbers(result: TaskResult) -> dict[str, int]:
    """Return label → its number in the report: the task's order, then answers from outside of it."""
    strays = sorted({a for a in result.systems[JOINED] if a not in result.labels})
    return {label: number for number, label in enumerate((*result.labels, *strays), start=1)}


def _classes(result: TaskResult) -> list[dict[str, Any]]:
    """Return one row a class that occurs, numbered from 1 as in the confusion."""
    numbers = _numbers(result)
    by_system = {s: result.confusion(s) for s in SYSTEMS}
    rows = sorted(by_system[JOINED].per_class, key=lambda score: numbers.get(score.label, 0))
    return [
        {
            "number": numbers.get(score.label, 0),
            "label": score.label,
            "support": score.support,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "f1_classifier": by_system[CLASSIFIER].score(score.label).f1,
            "f1_rules": by_system[RULES].score(score.label).f1,
        }
        for score in rows
    ]


def _heat(result: TaskResult) -> dict[str, Any]:
    """Return the confusion of rules + classifier as rows of cells; a cell's share is of its row."""
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
    label, confidence = worked.classifier
    return {
        "shows": worked.shows,
        "task": example.task,
        "id": example.dialogue_id,
        "gold": example.label,
        "label": prediction.label,
        "right": prediction.label == example.label,
        "confidence": prediction.confidence,
        "arm_words": _ARM_WORDS.get(prediction.arm, prediction.arm),
        "classifier_label": label,
        "classifier_confidence": confidence,
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
