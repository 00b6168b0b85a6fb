"""The report on the assistant: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmd.assistant.turns import AskedTurn
from mmd.evaluation.assistant import ANSWERED, METRICS, WORDS, AssistantFindings, Told
from mmd.evaluation.metrics import overall
from mmd.evaluation.report import page_template
from mmd.retrieval.types import Response

Outcome = Literal["right", "right modality", "wrong modality"]
OUTCOMES: Mapping[Outcome, str] = {
    "right": "the agent's answer",
    "right modality": "right modality, another answer",
    "wrong modality": "another modality than the agent's",
}
_COLUMNS = (*METRICS, WORDS, ANSWERED)
_TURNS = 6  # of a dialogue at most, its last ones


@dataclass(frozen=True)
class AssistantContent:
    """What a report is made of.

    Attributes:
        name: of the corpus.
        findings: what was measured.
        turns: that were asked, in the findings' order.
        chosen: how the policy decides, in words: choice → what.
        provenance: role → artefact.
        resamples: of the intervals.
        examples: turns to show.
        show: whether words of dialogues may be on the page.
    """

    name: str
    findings: AssistantFindings
    turns: Sequence[AskedTurn]
    chosen: Mapping[str, str]
    provenance: Mapping[str, str]
    resamples: int
    examples: int
    show: bool


def outcome_of(told: Told) -> Outcome:
    """Say how a reply compares with the agent's."""
    if told.verdict.response:
        return "right"
    return "right modality" if told.verdict.modality else "wrong modality"


def pick_examples(told: Sequence[Told], count: int, seed: int) -> list[int]:
    """Return the places of turns of every outcome in turn, drawn by seed."""
    groups: dict[Outcome, list[int]] = {outcome: [] for outcome in OUTCOMES}
    for place in np.random.default_rng(seed).permutation(len(told)).tolist():
        groups[outcome_of(told[place])].append(place)
    longest = max(map(len, groups.values()), default=0)
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)][:count]


def render_assistant(content: AssistantContent, seed: int) -> str:
    """Return the report as an HTML page.

    Args:
        content: what was measured.
        seed: draws the examples.
    """
    findings = content.findings
    columns = [name for name in _COLUMNS if any(name in row.shares for row in findings.rows)]
    best = {
        name: max(row.shares[name].value for row in findings.rows if name in row.shares and name != ANSWERED)
        for name in columns
        if name != ANSWERED
    }
    whole = findings.systems[0].told
    places = pick_examples(whole, content.examples, seed) if content.show else []
    page: str = page_template("assistant.html.j2").render(
        name=content.name,
        findings=findings,
        dialogues=len({turn.dialogue_id for turn in content.turns}),
        columns=columns,
        best=best,
        modalities=_modalities(findings),
        intents={task: (found.weighted_f1, found.total) for task, found in findings.intents.items()},
        overall=overall(findings.intents) if findings.intents else None,
        chosen=content.chosen,
        examples=[_example(content.turns[place], whole[place]) for place in places],
        show=content.show,
        provenance=content.provenance,
        resamples=content.resamples,
    )
    return page


def _modalities(findings: AssistantFindings) -> dict[str, Any]:
    """Return the counts of right against chosen modalities, as a table."""
    counts = findings.modalities.counts
    golds = sorted({gold for gold, _ in counts})
    told = sorted({chosen for _, chosen in counts} | set(golds))
    return {"told": told, "rows": {gold: [counts.get((gold, chosen), 0) for chosen in told] for gold in golds}}


def _example(turn: AskedTurn, told: Told) -> dict[str, Any]:
    return {
        "outcome": OUTCOMES[outcome_of(told)],
        "before": len(turn.query.turns) - _TURNS,
        "turns": [(one.speaker, one.text, len(one.image_ids), len(one.item_ids)) for one in turn.query.turns[-_TURNS:]],
        "right": [_words_of(response) for response in turn.right],
        "said": [(part.kind, part.text) for part in told.parts],
        "decisions": [(one.step, one.choice, one.reason["en"], one.confidence) for one in told.choice.decisions],
    }


def _words_of(response: Response) -> tuple[str, str]:
    return response.modality, response.title
