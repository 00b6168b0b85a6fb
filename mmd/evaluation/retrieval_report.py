"""The report on retrieval: one self-contained HTML page and a printed table, in the manner of the report on intent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from mmd.evaluation import plots
from mmd.evaluation.metrics import Confusion
from mmd.evaluation.ranking import CORPUS
from mmd.evaluation.report import PictureSource, page_template, thumbnail
from mmd.evaluation.retrieval import CURVE_CUTOFFS, Findings, Row
from mmd.evaluation.retrieval_systems import LAST_TURN, Retrieved
from mmd.retrieval.ranks import CUTOFFS, MISS
from mmd.retrieval.types import Hit, Response
from mmd.tables import plain_table

if TYPE_CHECKING:
    from mmd.retrieval.rerank import Reranked

ORACLE = ", oracle intent"
_COLOURS = (plots.GREEN, plots.AMBER, plots.BLUE, plots.PURPLE, plots.PINK, plots.INK)
_POOL_WORDS = {
    "union": "Pools of {size} responses",
    "half": "Pools of {size} responses, half as many a modality",
    CORPUS: "The whole corpus: {size} responses",
}


@dataclass(frozen=True)
class RetrievalContent:
    """What a report is made of.

    Attributes:
        name: of the corpus.
        findings: what was measured.
        retrieved: examples of the retriever's.
        provenance: role → artefact, settings, code.
        parameters: part of the retriever → its weights, ``total`` among them.
        resamples: of the intervals.
        reranked: what the retriever's re-ranker is worth, where it has one.
    """

    name: str
    findings: Findings
    retrieved: Sequence[Retrieved]
    provenance: Mapping[str, str]
    parameters: Mapping[str, int]
    resamples: int
    reranked: Reranked | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader must have seen before the numbers."""
        drawn = self.findings.questions.drawn
        return [drawn.shortfall] if drawn and drawn.shortfall else []


def render_retrieval(content: RetrievalContent, pictures: PictureSource | None = None) -> str:
    """Return the report as an HTML page.

    Args:
        content: what was measured.
        pictures: image ids → encoded pictures; None leaves words and pictures of dialogues out of the page.
    """
    findings = content.findings
    thumbnails = _thumbnails(content.retrieved, pictures) if pictures else {}
    colours = system_colours(findings)
    page: str = page_template("retrieval.html.j2").render(
        name=content.name,
        retriever=findings.systems[0].name,
        two_step=findings.systems[0].predicted is not None,
        counts={s: findings.score(findings.systems[0].name, CORPUS, s).n for s in findings.subsets},
        dialogues=len({sample.conversation for sample in findings.questions.samples}),
        modalities=findings.modalities,
        cutoffs=CUTOFFS,
        pools=[_pool_view(findings, pool) for pool in findings.pool_sizes],
        bars=_bars(findings, colours),
        curves=[_curve(findings, k, colours) for k in CURVE_CUTOFFS],
        intents=[_intent_view(s, c) for s, c in findings.intents.items()] if len(findings.modalities) > 1 else [],
        parameters=content.parameters,
        retrieved=[_retrieved_view(r, thumbnails) for r in content.retrieved],
        show_dialogues=pictures is not None,
        provenance=content.provenance,
        resamples=content.resamples,
        notes=content.notes,
        reranked=content.reranked,
    )
    return page


def retrieval_table(findings: Findings, pool: str = "union") -> Table:
    """Return recall of all systems in one pool for the terminal; names break between words, numbers never."""
    rows = _rows(findings, pool)
    longest = max(len(word) for row in rows for word in row_name(row).split())
    columns = [Column(subset, no_wrap=True) for subset in findings.subsets]
    name = Column("R@1/R@10", min_width=longest)
    table = plain_table(name, *columns, title=pool_words(findings, pool))
    for row in rows:
        cells = [row.scores[subset].recall for subset in findings.subsets]
        table.add_row(row_name(row), *(f"{recall[1].value:.3f}/{recall[10].value:.3f}" for recall in cells))
    return table


def rerank_words(reranked: Reranked) -> str:
    """Say in a line what the second look is worth."""
    return (
        f"re-ranking the first {reranked.depth} of the whole corpus: R@1 {reranked.before:.3f} before, "
        f"{reranked.after:.3f} after, {reranked.within:.3f} at most"
    )


def pool_words(findings: Findings, pool: str) -> str:
    """Say in words what a kind of pool holds."""
    return _POOL_WORDS[pool].format(size=findings.pool_sizes[pool])


def row_name(row: Row) -> str:
    """Return what a row of the table is called."""
    return row.system + (ORACLE if row.oracle else "")


def system_colours(findings: Findings) -> dict[str, str]:
    """Return system → colour; green is the trained retriever's."""
    return {system.name: _COLOURS[min(number, len(_COLOURS) - 1)] for number, system in enumerate(findings.systems)}


def _rows(findings: Findings, pool: str) -> list[Row]:
    return [row for row in findings.rows if row.pool == pool]


def _pool_view(findings: Findings, pool: str) -> dict[str, Any]:
    """Return one pool's tables, a group of rows a subset, the best of a group marked."""
    rows = _rows(findings, pool)
    groups = []
    for subset in findings.subsets:
        best = {k: max(r.scores[subset].recall[k].value for r in rows if not r.oracle) for k in CUTOFFS}
        lines = [
            {
                "name": row_name(row),
                "oracle": row.oracle,
                "recall": [row.scores[subset].recall[k] for k in CUTOFFS],
                "best": [not row.oracle and row.scores[subset].recall[k].value >= best[k] for k in CUTOFFS],
                "mrr": row.scores[subset].mrr,
            }
            for row in rows
        ]
        groups.append({"subset": subset, "n": rows[0].scores[subset].n, "rows": lines, "chance": _chance(rows, subset)})
    return {"name": pool, "words": pool_words(findings, pool), "groups": groups}


def _chance(rows: Sequence[Row], subset: str) -> list[dict[str, Any]]:
    """Return what guessing reaches among all candidates, and among those of the right modality."""
    widest = sorted({tuple(row.scores[subset].chance[k] for k in CUTOFFS) for row in rows}, key=sum)
    names = ["chance"] if len(widest) == 1 else ["chance", "chance" + ORACLE]
    return [{"name": name, "recall": recall} for name, recall in zip(names, (widest[0], widest[-1]), strict=False)]


def _bars(findings: Findings, colours: Mapping[str, str]) -> str:
    shown = {s.name: s.name for s in findings.systems if not s.name.endswith(LAST_TURN)}
    pool = next(iter(findings.pool_sizes))
    rows = {
        subset: {name: findings.score(name, pool, subset).recall[1] for name in shown} for subset in findings.subsets
    }
    return plots.score_bars(rows, shown, measure="R@1", colours=colours)


def _curve(findings: Findings, k: int, colours: Mapping[str, str]) -> dict[str, Any]:
    curves = {name: (curve.sizes, curve.recall[k]) for name, curve in findings.curves.items()}
    return {"k": k, "svg": plots.size_curves(curves, measure=f"expected R@{k}", colours=colours)}


def _intent_view(system: str, confusion: Confusion) -> dict[str, Any]:
    return {
        "system": system,
        "weighted_f1": confusion.weighted_f1,
        "accuracy": confusion.accuracy.value,
        "classes": confusion.per_class,
    }


def _retrieved_view(found: Retrieved, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": found.sample.id,
        "modality": found.sample.modality,
        "rank": None if found.rank == MISS else found.rank,
        "corpus_rank": None if found.corpus_rank == MISS else found.corpus_rank,
        "intent": found.intent,
        "gold": _response_view(found.gold, thumbnails),
        "hits": [_hit_view(hit, found, thumbnails) for hit in found.hits],
        "turns": [
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "images": [thumbnails[i] for i in turn.image_ids if i in thumbnails],
                "items": turn.item_ids,
            }
            for turn in found.sample.query.turns
        ],
    }


def _hit_view(hit: Hit, found: Retrieved, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    right = hit.response.id == found.gold.id
    return _response_view(hit.response, thumbnails) | {
        "score": hit.score,
        "right": right,
        "also": not right and hit.response.id in found.sample.also,
    }


def _response_view(response: Response, thumbnails: Mapping[str, str]) -> dict[str, Any]:
    return {
        "modality": response.modality,
        "title": response.title or response.text or "(no words)",
        "image": thumbnails.get(response.image_id or ""),
    }


def _thumbnails(found: Sequence[Retrieved], pictures: PictureSource) -> dict[str, str]:
    """Return image id → data URL of every picture that the examples show."""
    responses = [r for f in found for r in (f.gold, *(hit.response for hit in f.hits))]
    ids = {r.image_id for r in responses if r.image_id}
    ids |= {i for f in found for turn in f.sample.query.turns for i in turn.image_ids}
    return {image_id: thumbnail(data) for image_id, data in pictures(sorted(ids)).items()}


def headline(content: RetrievalContent) -> dict[str, float]:
    """Return the retriever's own scalars for the manifest and the summary; metrics.json and the table have the rest."""
    findings = content.findings
    name, pool = findings.systems[0].name, next(iter(findings.pool_sizes))
    scalars = {f"{name} R@{k}": findings.score(name, pool).recall[k].value for k in (1, 10)}
    scalars[f"{name} R@1, whole corpus"] = findings.score(name, CORPUS).recall[1].value
    if content.reranked:
        scalars[f"{name} R@1, whole corpus, re-ranked"] = content.reranked.after
    if len(findings.modalities) > 1:
        scalars[f"{name} intent, weighted F1"] = findings.intents[name].weighted_f1
    return scalars
