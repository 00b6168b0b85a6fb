"""The online service under a steady load, against the same engine called directly.

Text-only requests arrive at a fixed rate whatever the answers take (an open loop), so that a slow answer delays
no later request and waiting is counted. Texts are the training dialogues', each made new by a number, so that no
answer comes from a cache; a second pass repeats known texts. The direct calls are the engine's own, one request at a
time, in the measuring process.

The service is started here on a local cluster: ``--corpus NAME`` must have been trained (``mmd pipeline``). This
benchmark asks /v1/intent; ``serving_retrieval`` and ``serving_recommend`` ask the other parts in the same way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.harness import served
from mmd.artifacts import ArtifactStore
from mmd.config import load_config
from mmd.corpora.store import Corpus
from mmd.intent.engine import IntentEngine, IntentQuery
from mmd.loadtest.generator import Load
from mmd.loadtest.questions import renewed, request_of, text_dialogues
from mmd.loadtest.report import percentiles, summarise
from mmd.schema import Dialogue

WARMUP_REQUESTS = 40
DIRECT_CALLS = 200

Answer = Callable[[Dialogue], object]


@dataclass(frozen=True)
class ServedPart:
    """A part of the service.

    Attributes:
        path: where it is asked.
        load: makes a call that answers a dialogue in this process, from a store and the corpus's name.
        labelled: whether it answers only what dialogues with labels look like.
    """

    path: str
    load: Callable[[ArtifactStore, str], Answer]
    labelled: bool = False


def load_intent(store: ArtifactStore, corpus: str) -> Answer:
    """Return the intent engine's predict."""
    engine = IntentEngine.from_store(store, corpus)
    return lambda dialogue: engine.predict([IntentQuery(dialogue)])


INTENT = ServedPart("/v1/intent", load_intent, labelled=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--store", default="artifacts", help="artefact store (default: %(default)s)")
    parser.add_argument("--corpus", default="shop", help="trained corpus (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each pass (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure /v1/intent."""
    return measure_part(INTENT, options)


def measure_part(part: ServedPart, options: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a part's latencies over HTTP and in process.

    Raises:
        CorpusError: the corpus has no text-only training dialogue.
    """
    store = ArtifactStore(str(Path(options["store"]).resolve()))
    dialogues = text_dialogues(Corpus(store.open(f"corpus/{options['corpus']}")), labelled=part.labelled)
    rate, seconds = float(options["rate"]), float(options["seconds"])
    answer = part.load(store, options["corpus"])
    fresh = [another(dialogues[n % len(dialogues)], n) for n in range(DIRECT_CALLS + WARMUP_REQUESTS)]
    direct_fresh = measure_direct(answer, fresh)
    direct_known = measure_direct(answer, fresh)
    with served(load_config(), store, options["corpus"]) as service:
        load(service.url, part.path, fresh[:WARMUP_REQUESTS], rate)
        count = int(rate * seconds)
        first = 10_000  # numbers that no earlier text carries
        distinct = [another(dialogues[n % len(dialogues)], first + n) for n in range(count)]
        served_fresh = load(service.url, part.path, distinct, rate)
        served_known = load(service.url, part.path, distinct, rate)
    return {
        "config": {
            "path": part.path,
            "corpus": options["corpus"],
            "requests_per_s": rate,
            "seconds": seconds,
            "requests": count,
        },
        "warmup": {"requests": WARMUP_REQUESTS},
        "repeats": 1,
        "http_new_texts": served_fresh,
        "http_known_texts": served_known,
        "direct_new_texts_ms": direct_fresh,
        "direct_known_texts_ms": direct_known,
        "overhead_ms": {
            "new_texts_p50": round(served_fresh["latency_ms"]["p50"] - direct_fresh["p50"], 2),
            "known_texts_p50": round(served_known["latency_ms"]["p50"] - direct_known["p50"], 2),
        },
    }


def another(dialogue: Dialogue, number: int) -> Dialogue:
    """Return the dialogue with a number in its last turn, so that its text is new."""
    return replace(dialogue, id=f"{dialogue.id}-{number}", turns=renewed(dialogue.turns, number), labels={})


def measure_direct(answer: Answer, dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Time the answers one dialogue at a time, the warm-up left out."""
    times = []
    for dialogue in dialogues:
        started = time.perf_counter()
        answer(dialogue)
        times.append((time.perf_counter() - started) * 1000)
    return percentiles(times[WARMUP_REQUESTS:])


def load(url: str, path: str, dialogues: Sequence[Dialogue], rate: float) -> dict[str, Any]:
    """Send one request a dialogue at a fixed rate, none of them twice; return what came of them."""
    return summarise(Load(url, rate, retries=0).run([request_of(one.turns, path) for one in dialogues]))
