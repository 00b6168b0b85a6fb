"""Try retrieval out: ask a running service for turns of test dialogues that are known, and see where they rank."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import RequestError
from mmd.features.store import Features
from mmd.retrieval.facts import Facts
from mmd.retrieval.samples import find_samples
from mmd.retrieval.saving import load_spec
from mmd.retrieval.types import Sample
from mmd.schema import Dialogue, Image
from serve_apps.api import ReadyResponse, RetrieveResponse
from serve_apps.client import ServiceClient
from serve_apps.examples import turns_in
from serve_apps.trial_parts import Trial

K = 10
"""Answers that are asked for."""
_HITS_SHOWN = 3
_WORDS_SHOWN = 100


def find_questions(
    dialogues: Sequence[Dialogue], corpus: Corpus, store: ArtifactStore, ready: ReadyResponse
) -> dict[str, Sample]:
    """Return dialogue id → its last sample: what was known before a turn, and what that turn was."""
    settings = load_spec(store.open(ready.artifacts["retriever"], verify=False)).samples
    found = ready.artifacts.get("features")
    features = Features(store.open(found, verify=False)) if found else None
    samples = find_samples(dialogues, Facts.load(corpus, features, settings), settings).samples
    return {sample.dialogue_id: sample for sample in samples}


def try_retrieval(client: ServiceClient, sample: Sample, images: Mapping[str, Image], console: Console) -> Trial:
    """Ask for the turn of one sample, and print the first of what was found."""
    known = [turn.model_dump() for turn in turns_in(sample.query.turns, images)]
    started = time.perf_counter()
    try:
        answer = client.ask("/v1/retrieve", {"turns": known, "k": K}, RetrieveResponse)
    except RequestError as err:
        console.print(f"  → nothing found: {err}", style="red", markup=False, soft_wrap=True)
        return Trial(asked=1)
    latency_ms = (time.perf_counter() - started) * 1000
    ranks = [n for n, hit in enumerate(answer.hits, 1) if hit.id in (sample.response_id, *sample.also)]
    rank = f"right one at rank {ranks[0]}" if ranks else f"right one not in the first {K}"
    console.print(
        f"  → after {len(sample.query.turns)} turns, {sample.modality} wanted  ([bold]{rank}[/]; {latency_ms:.0f} ms)"
    )
    for hit in answer.hits[:_HITS_SHOWN]:
        title = escape((hit.title or hit.text).replace("\n", " ")[:_WORDS_SHOWN])
        console.print(Padding(f"{hit.score:.3f} {hit.modality}: {title}", (0, 0, 0, 6)), style="green")
    return Trial(1, int(bool(ranks)), int(bool(answer.degraded)), (latency_ms,))
