"""The report on recommending in conversations: one self-contained HTML page, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.table import Table

from mmd.evaluation import plots
from mmd.evaluation.metrics import Interval
from mmd.evaluation.recommend_findings import SUBSETS, ModuleRow, RecommendFindings, SpeakerRow, Subset
from mmd.evaluation.recommend_systems import Speaker, token_words
from mmd.evaluation.recommending import CUTOFFS, DENOMINATORS, GRAMS, RATES, GateTrace
from mmd.evaluation.report import page_template
from mmd.recommend.replies import Emission, Reply, cut, put_titles_in
from mmd.recommend.types import Part, ResponseSample
from mmd.tables import plain_table

if TYPE_CHECKING:
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.vocabulary import Tokenizer

Outcome = Literal["named", "among ten", "another", "none named", "unasked", "talk"]
_OUTCOMES: Mapping[Outcome, str] = {
    "named": "right item named",
    "among ten": "right item among the first ten",
    "another": "another item named",
    "none named": "no item where one is right",
    "unasked": "an item where none is right",
    "talk": "talk, rightly",
}
_SUBSET_WORDS: Mapping[Subset, str] = {
    "all": "all mentions",
    "novel": "novel: not mentioned before",
    "novel, open": "novel, ranked among items that were not mentioned before",
}
_SHOWN, _LISTS = 5, 3
_COLOURS = (plots.GREEN, plots.BLUE, plots.PURPLE, plots.PINK, plots.AMBER, plots.TEAL, plots.RED, plots.INK)


@dataclass(frozen=True)
class Example:
    """One answered sample."""

    sample: ResponseSample
    reply: Reply
    others: Mapping[str, Reply]
    outcome: Outcome


@dataclass(frozen=True)
class RecommendContent:
    """What a report is made of.

    Attributes:
        name: of the corpus.
        student: in words, such as its gate.
        findings: what was measured.
        examples: of the student's replies.
        masses: item mass by place, of the speaker that the gate listens to; None: there is no such speaker.
        provenance: role → artefact, settings, code.
        resamples: of the intervals.
        notes: sentences under the title.
    """

    name: str
    student: str
    findings: RecommendFindings
    examples: Sequence[Example]
    masses: Mapping[str, Sequence[float]] | None
    provenance: Mapping[str, str]
    resamples: int
    notes: Sequence[str] = field(default=())


def pick_examples(
    samples: Sequence[ResponseSample], student: Speaker, others: Sequence[Speaker], count: int, seed: int
) -> list[Example]:
    """Return examples of every outcome in turn, drawn by seed."""
    replies = student.replies or ()
    groups: dict[Outcome, list[int]] = {outcome: [] for outcome in _OUTCOMES}
    for row in np.random.default_rng(seed).permutation(len(replies)).tolist():
        groups[outcome_of(samples[row], replies[row])].append(row)
    longest = max(map(len, groups.values()), default=0)
    rows = [group[i] for i in range(longest) for group in groups.values() if i < len(group)][:count]
    return [
        Example(
            sample=samples[row],
            reply=replies[row],
            others={other.name: other.replies[row] for other in others if other.replies},
            outcome=outcome_of(samples[row], replies[row]),
        )
        for row in rows
    ]


def outcome_of(sample: ResponseSample, reply: Reply) -> Outcome:
    """Say how a reply's items compare with the right ones."""
    golds = set(sample.response.items)
    if not golds:
        return "unasked" if reply.items else "talk"
    if not reply.items:
        return "none named"
    if golds.intersection(reply.items):
        return "named"
    return "among ten" if any(golds.intersection(e.first(10)) for e in reply.emissions) else "another"


def masses_by_place(traces: Sequence[GateTrace]) -> dict[str, list[float]]:
    """Return item mass at items, at other tokens of responses that name one, and at tokens of other responses."""
    found: dict[str, list[float]] = {"items": [], "words beside items": [], "talk": []}
    for trace in traces:
        for mass, is_item in zip(trace.masses, trace.is_item, strict=True):
            kind = "items" if is_item else "words beside items" if trace.mode == "rec" else "talk"
            found[kind].append(mass)
    return {kind: masses for kind, masses in found.items() if masses}


# ---------------------------------------------------------------- page


def render_recommend(content: RecommendContent, graph: ItemGraph, tokenizer: Tokenizer, *, show: bool) -> str:
    """Return the report as an HTML page.

    Args:
        content: what was measured.
        graph: names the items.
        tokenizer: of the student.
        show: whether words of dialogues may be on the page.
    """
    findings = content.findings
    titles = [graph.title(item) for item in range(graph.n_items)]
    page: str = page_template("recommend.html.j2").render(
        name=content.name,
        student=content.student,
        findings=findings,
        novel=sum(mention.novel for mention in findings.mentions),
        recommending=sum(response.mode == "rec" for response in findings.responses),
        cutoffs=CUTOFFS,
        grams=GRAMS,
        rates=RATES,
        denominators=DENOMINATORS,
        modules=[_module_view(findings, subset) for subset in SUBSETS],
        module_bars=_module_bars(findings),
        speaker_bars=_speaker_bars(findings),
        speakers=[_speaker_view(row) for row in findings.speakers],
        masses=_masses_view(content.masses),
        costs=_costs_view(findings),
        examples=[_example_view(example, titles, tokenizer) for example in content.examples] if show else [],
        has_examples=bool(content.examples),
        provenance=content.provenance,
        resamples=content.resamples,
        notes=content.notes,
    )
    return page


def _module_view(findings: RecommendFindings, subset: Subset) -> dict[str, Any]:
    rows = [row for row in findings.modules if row.subset == subset]
    best = {k: max((row.recall[k].value for row in rows), default=0.0) for k in CUTOFFS}
    lines = [
        {"name": row.system, "recall": [(row.recall[k], row.recall[k].value >= best[k] > 0) for k in CUTOFFS]}
        for row in rows
    ]
    return {"words": _SUBSET_WORDS[subset], "n": rows[0].n if rows else 0, "rows": lines}


def _module_bars(findings: RecommendFindings) -> str:
    """Draw the rankers; nothing without any."""
    shown: list[ModuleRow] = [row for row in findings.modules if row.subset != "novel, open"]
    names = list(dict.fromkeys(row.system for row in shown))
    if not names:
        return ""
    rows: dict[str, dict[str, Interval]] = {}
    for row in shown:
        rows.setdefault(row.subset, {})[row.system] = row.recall[10]
    return plots.score_bars(
        rows, {name: name for name in names}, measure="R@10", colours=_colours(names), limit=_limit(rows)
    )


def _speaker_bars(findings: RecommendFindings) -> str:
    shown = [row for row in findings.speakers if row.items]
    names = [row.system for row in shown]
    rows = {
        f"{what}@1": {row.system: row.items[1]["micro"][what] for row in shown} for what in RATES
    }  # micro, as most of the field reports it
    return plots.score_bars(
        rows, {name: name for name in names}, measure="replies, micro", colours=_colours(names), limit=_limit(rows)
    )


def _colours(names: Sequence[str]) -> dict[str, str]:
    return {name: _COLOURS[min(number, len(_COLOURS) - 1)] for number, name in enumerate(names)}


def _limit(rows: Mapping[str, Mapping[str, Interval]]) -> float:
    """Return a round end of the axis above every interval."""
    largest = max((value.high for row in rows.values() for value in row.values()), default=1.0)
    return min(1.0, max(0.1, math.ceil(largest * 11) / 10))


def _speaker_view(row: SpeakerRow) -> dict[str, Any]:
    modes = row.modes.score("rec") if row.modes is not None else None
    return {"row": row, "modes": modes, "accuracy": row.modes.accuracy.value if row.modes is not None else None}


def _costs_view(findings: RecommendFindings) -> list[dict[str, Any]]:
    """Return one row a model: weights, and the time of its tokens where it was measured."""
    times = {row.system: row.ms_per_token for row in findings.speakers if row.ms_per_token}
    return [
        {"name": name, "weights": weights, "together": times[name][0], "alone": times[name][1]}
        if name in times
        else {"name": name, "weights": weights, "together": None, "alone": None}
        for name, weights in findings.parameters.items()
    ]


def _masses_view(masses: Mapping[str, Sequence[float]] | None) -> dict[str, Any] | None:
    if not masses:
        return None
    colours = {"items": plots.GREEN, "words beside items": plots.AMBER, "talk": plots.BLUE}
    return {
        "svg": plots.mass_histogram(masses, measure="item mass of the dialogue teacher", colours=colours),
        "kinds": [
            {"kind": kind, "n": len(values), "mean": float(np.mean(values)), "median": float(np.median(values))}
            for kind, values in masses.items()
        ],
    }


# ---------------------------------------------------------------- examples


def _example_view(example: Example, titles: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    sample, reply = example.sample, example.reply
    golds = frozenset(sample.response.items)
    return {
        "id": sample.id,
        "outcome": _OUTCOMES[example.outcome],
        "good": example.outcome in ("named", "among ten", "talk"),
        "mode": reply.mode,
        "right_mode": sample.mode,
        "sure": reply.mode_probability,
        "turns": [
            {"speaker": turn.speaker, "pieces": pieces(turn.parts, titles, golds)} for turn in sample.context.turns
        ],
        "right": pieces(sample.response.parts, titles, golds),
        "said": pieces(reply.parts, titles, golds),
        "others": {name: pieces(other.parts, titles, golds) for name, other in example.others.items()},
        "lists": [_list_view(emission, titles, golds) for emission in reply.emissions[:_LISTS]],
        "trace": [{"word": word, "mass": mass} for word, mass in _trace(reply, tokenizer, titles) if word],
    }


def pieces(parts: Sequence[Part], titles: Sequence[str], golds: frozenset[int]) -> list[dict[str, Any]]:
    """Return an utterance as pieces of text; those of items say whether they are right ones."""
    text, spans = put_titles_in(parts, titles)
    return [
        {"text": text[start:end], "item": item is not None, "right": item in golds}
        for start, end, item in cut(text, spans)
    ]


def _list_view(emission: Emission, titles: Sequence[str], golds: frozenset[int]) -> list[dict[str, Any]]:
    shares = dict(zip(emission.top, np.exp(emission.log_probs).tolist(), strict=True))
    return [
        {"title": titles[item], "share": shares.get(item), "right": item in golds, "named": item == emission.item}
        for item in emission.first(_SHOWN)
    ]


def _trace(reply: Reply, tokenizer: Tokenizer, titles: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield each token in words with the student's own item mass there."""
    for word, mass in zip(token_words(reply.token_ids, tokenizer), reply.item_mass, strict=True):
        yield (titles[int(word[1:])] if word[:1] == "@" and word[1:].isdigit() else word), mass


# ---------------------------------------------------------------- terminal


def module_table(findings: RecommendFindings) -> Table:
    """Return recall of the rankers for the terminal."""
    shown: tuple[Subset, ...] = ("all", "novel")
    counts = {subset: next((r.n for r in findings.modules if r.subset == subset), 0) for subset in shown}
    heads = [f"{subset} ({counts[subset]:,})" for subset in shown]
    table = plain_table("R@1 / R@10 / R@50", *heads, title=f"{findings.split}: mentions")
    for system in dict.fromkeys(row.system for row in findings.modules):
        cells = [" / ".join(f"{findings.module(system, s).recall[k].value:.3f}" for k in CUTOFFS) for s in shown]
        table.add_row(system, *cells)
    return table


def speaker_table(findings: RecommendFindings) -> Table:
    """Return what replies are worth for the terminal, a column a speaker."""
    rows = findings.speakers
    title = f"{findings.split}: {len(findings.responses):,} replies, micro"
    table = plain_table("", *(row.system for row in rows), title=title)
    for name, k in (("F1", 1), ("ReR", 1), ("PrR", 1), ("ReR", 10), ("ReR", 50)):
        values = [row.items[k]["micro"][name].value if row.items else None for row in rows]
        table.add_row(f"{name}@{k}", *(_number(value, 3) for value in values))
    table.add_row("perplexity", *(_number(row.perplexity.value if row.perplexity else None, 1) for row in rows))
    for n in GRAMS:
        table.add_row(f"DIST-{n}", *(_number(row.distinct[n][0], 2) for row in rows))
    table.add_row("item ratio", *(_number(row.item_ratio.value, 2) for row in rows))
    table.add_row("mode right", *(_number(row.modes.accuracy.value if row.modes else None, 2) for row in rows))
    table.add_row("ms/token", *(_number(row.ms_per_token and row.ms_per_token[0], 2) for row in rows))
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
