"""How fast an intent model is: single predictions, features given, by stage and by arm."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from mmd.evaluation.metrics import percentiles
from mmd.intent.gate import Gate, TaskGate
from mmd.intent.types import IntentExample

STAGES = ("matching", "classifier", "mllm", "gate")
MLLM_SAMPLES = 20
"""A large model takes hundreds of times as long as the rest; so few timings tell."""
Percentiles = Mapping[str, float]
T = TypeVar("T")


def time_stages(gate: Gate, examples: Sequence[IntentExample], samples: int) -> dict[str, Percentiles]:
    """Time single predictions as the gate makes them: stage → p50, p90, p99 in ms; the first one only warms up.

    The stage ``mllm`` is there where the gate asks one; an example that it is not asked about counts as it is.
    """
    asks = any(gate.setting(task).asks_mllm for task in gate.mllms)
    stages = [stage for stage in STAGES if asks or stage != "mllm"]
    taken: dict[str, list[float]] = {stage: [] for stage in (*stages, "total")}
    for number, example in enumerate(_round(examples, _fewer(samples, asks=asks))):
        marks = [time.perf_counter()]
        fired = gate.rules(example.task).fired(example)
        marks.append(time.perf_counter())
        probes = gate.distributions(example.task, [example])
        marks.append(time.perf_counter())
        [said] = gate.opinions(example.task, [example], [fired], probes)
        if asks:
            marks.append(time.perf_counter())
        gate.answer(example, fired, said)
        marks.append(time.perf_counter())
        if number:
            spent = [(b - a) * 1000 for a, b in itertools.pairwise(marks)]
            for stage, ms in zip(stages, spent, strict=True):
                taken[stage].append(ms)
            taken["total"].append(sum(spent))
    return {stage: percentiles(ms) for stage, ms in taken.items()} if examples else {}


def time_mllm(gate: Gate, examples: Sequence[IntentExample], samples: int) -> dict[str, Percentiles]:
    """Time the MLLM's own answers, plain and with the fired rules told (where some fire); empty without one."""
    asked = [e for e in examples if e.task in gate.mllms]
    ruled = [(e, gate.hint(e.task, fired)) for e in asked if (fired := gate.rules(e.task).fired(e))]
    fewer = _fewer(samples, asks=True)
    found = {
        "mllm, plain": _timed(lambda e: gate.mllms[e.task].predict([e]), asked, fewer),
        "mllm, rules told": _timed(
            lambda pair: gate.mllms[pair[0].task].predict_hinted([pair[0]], [pair[1]]), ruled, fewer
        ),
    }
    return {stage: taken for stage, taken in found.items() if taken}


def time_arms(
    gate: Gate, arms: Mapping[str, Mapping[str, TaskGate]], examples: Sequence[IntentExample], samples: int
) -> dict[str, Percentiles]:
    """Time whole predictions of other gates over the same parts.

    Args:
        gate: the parts.
        arms: name → task → gate setting; examples of other tasks are left out.
        examples: to predict.
        samples: timings an arm; a few where the MLLM is asked.
    """
    found: dict[str, Percentiles] = {}
    for name, settings in arms.items():
        other = replace(gate, tasks=settings)
        asks = any(other.setting(task).asks_mllm for task in settings if task in gate.mllms)
        own = [e for e in examples if e.task in settings]
        found[name] = _timed(lambda e, other=other: other.predict([e]), own, _fewer(samples, asks=asks))  # type: ignore[misc]
    return {name: taken for name, taken in found.items() if taken}


def _fewer(samples: int, *, asks: bool) -> int:
    return min(samples, MLLM_SAMPLES) if asks else samples


def _round(examples: Sequence[T], samples: int) -> list[T]:
    """Return one example to warm up and ``samples`` to time, going round."""
    return [examples[i % len(examples)] for i in range(samples + 1)] if examples else []


def _timed(call: Callable[[T], object], examples: Sequence[T], samples: int) -> Percentiles:
    taken = []
    for example in _round(examples, samples):
        started = time.perf_counter()
        call(example)
        taken.append((time.perf_counter() - started) * 1000)
    return percentiles(taken[1:])
