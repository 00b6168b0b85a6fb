"""The whole assistant under load: steady, overloaded, with replicas killed, with a part down, and swapped meanwhile.

Requests are conversations' turns (``/v1/chat/completions``) of the corpus's training dialogues, each of a new text, in
an open loop (:mod:`mmd.loadtest.generator`). The service runs on a local cluster of this machine, whose processes'
memory is summed up every second, without the generator's. Each scenario is told apart:

* ``steady``: intent and retrieval, no student, ``--rate`` a second; memory's slope over the second half;
* ``turn``: the whole turn with the student, a request after the other on one connection, and streamed; the same asked
  in this process;
* ``proxies``: the same with each of Serve's ways to take and route requests;
* ``overload``: the rate that the service holds is looked for, then three times as much is sent;
* ``kill``: a model's replica is killed (SIGKILL) every ten seconds, each model in turn; clients ask again once;
* ``down``: retrieval, then the student are not served at all;
* ``swap``: rule base, index and student are deployed anew, one after the other, in turn with older versions.

    mmd bench service --corpus shop                    all of them, about forty minutes
    mmd bench service --scenarios steady --seconds 300 --rate 20
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from jobs.bench.harness import WARMUP, WITHOUT, Bench, Memory, Service, meanwhile, ways
from jobs.glue.entry import console
from mmd.errors import ConfigError
from mmd.loadtest.generator import Load
from mmd.loadtest.report import percentiles, summarise

MODELS = ("intent", "retrieval", "recommendation")
OVER = 3.0
"""Times the rate that the service holds."""
KILL_EVERY_S = 10.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--store", default="artifacts", help="artefact store (default: %(default)s)")
    parser.add_argument("--corpus", default="shop", help="trained corpus (default: %(default)s)")
    parser.add_argument("--scenarios", nargs="+", choices=tuple(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--rate", type=float, default=20.0, help="of steady and swap, requests a second")
    parser.add_argument("--seconds", type=float, help="of a load (default: 300 of steady, 120 of the others)")
    parser.add_argument("--turns", type=int, default=100, help="turns asked one by one (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Run the scenarios, each with a service of its own."""
    bench = Bench(options)
    found = {}
    for name in options["scenarios"]:
        console.print(f"{name} …", markup=False)
        found[name] = SCENARIOS[name](bench)
    return {"config": {k: v for k, v in options.items() if k != "store"}, "repeats": 1, **found}


# ---------------------------------------------------------------- scenarios


def steady(bench: Bench) -> dict[str, Any]:
    """Ask for turns of intent and retrieval at a fixed rate."""
    memory = Memory()
    with bench.without("recommendation") as store, bench.service(store) as service, meanwhile(memory.watch):
        found = summarise(bench.load(service, rate=bench.rate, seconds=bench.seconds or 300.0))
    wanted = {"p50": 40.0, "p99": 200.0}
    reached = found["answered"] == found["requests"] and all(found["latency_ms"][k] <= ms for k, ms in wanted.items())
    return {**found, "memory": memory.told(), "target_ms": wanted, "reached": reached}


def turn(bench: Bench) -> dict[str, Any]:
    """Ask for whole turns one by one: whole, streamed, and of the same objects in this process."""
    direct = _direct(bench)
    with bench.service() as service:
        found = _one_by_one(bench, service)
    whole, first_words = found["whole"]["latency_ms"]["p50"], found["streamed"]["first_words_ms"]["p50"]
    overhead = round(whole - direct["p50"], 2)
    return {
        **found,
        "direct_ms": direct,
        "overhead_p50_ms": overhead,
        "targets_ms": {"whole p50": 400.0, "first words p50": 150.0, "overhead p50": 20.0},
        "reached": {
            "whole p50": whole <= 400.0,
            "first words p50": first_words <= 150.0,
            "overhead p50": overhead <= 20.0,
        },
    }


def proxies(bench: Bench) -> dict[str, Any]:
    """Ask for whole turns one by one with each of Ray's ways to take and route requests."""
    before, found = _direct(bench), {}
    for name, variables in ways().items():
        with bench.service(variables=variables) as service:
            told = _one_by_one(bench, service)
            empty = _no_work(service, bench.turns)
        found[name] = {
            "healthz_ms": empty,
            "whole_ms": told["whole"]["latency_ms"],
            "first_words_ms": told["streamed"]["first_words_ms"],
        }
    after = _direct(bench)
    return {"direct_ms": [before, after], "ways": found}


def _one_by_one(bench: Bench, service: Service) -> dict[str, Any]:
    """Ask for whole turns on one connection, whole and streamed."""
    return {
        name: summarise(Load(service.url).one_by_one(bench.requests(bench.turns, stream=stream)))
        for name, stream in (("whole", False), ("streamed", True))
    }


def _no_work(service: Service, count: int) -> dict[str, float]:
    """Return the milliseconds of requests that ask no model."""
    times = []
    with httpx.Client(base_url=service.url) as client:
        for _ in range(count):
            started = time.perf_counter()
            client.get("/healthz").raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
    return percentiles(times)


def _direct(bench: Bench) -> dict[str, float]:
    """Return the milliseconds of whole turns by the same objects in this process."""
    from mmd.assistant.loading import load_assistant
    from mmd.assistant.types import AssistantQuery
    from mmd.intent.online import OnlineSettings

    config = bench.config
    online = OnlineSettings(features=config.features, models=config.models)
    assistant = load_assistant(
        bench.store, bench.corpus, settings=config.assistant, online=online, generation=config.recommend.generation
    )
    times = []
    for number, asked in enumerate(bench.questions(WARMUP + bench.turns)):
        started = time.perf_counter()
        assistant.answer(AssistantQuery(str(number), asked))
        times.append((time.perf_counter() - started) * 1000)
    return percentiles(times[WARMUP:])


def overload(bench: Bench) -> dict[str, Any]:
    """Look for the rate that is held, and send three times as much."""
    with bench.service() as service:
        capacity, tried = _capacity(bench, service)
        unloaded = summarise(bench.load(service, rate=max(1.0, capacity / 4), seconds=10.0))
        sent_at, seconds = time.monotonic(), bench.seconds or 120.0
        outcomes = bench.load(service, rate=OVER * capacity, seconds=seconds)
        over_at = sent_at + seconds  # the last was due; those that still wait for their answers are part of recovering
        recovered = _recovery_s(bench, service, over_at, limit_ms=2 * unloaded["latency_ms"]["p99"])
    found = summarise(outcomes)
    accepted_p99 = found["latency_ms"].get("p99", float("inf"))
    return {
        "held_per_s": capacity,
        "tried_per_s": tried,
        "unloaded": unloaded,
        "overloaded": found,
        "recovered_s": recovered,
        "targets": {"statuses": ["200", "429"], "accepted p99 over unloaded p99": 3.0, "recovered_s": 10.0},
        "reached": {
            "statuses": set(found["status"]) <= {"200", "429"} and not found["errors"],
            "accepted p99": accepted_p99 <= 3 * unloaded["latency_ms"]["p99"],
            "recovered": recovered <= 10.0,
        },
    }


def _capacity(bench: Bench, service: Service) -> tuple[float, dict[str, float]]:
    """Return the largest tried rate of which nothing is refused and p90 stays below a second, and p90 by rate."""
    held, tried = 1.0, {}
    for rate in (2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0):
        found = summarise(bench.load(service, rate=rate, seconds=8.0))
        p90 = found["latency_ms"].get("p90", float("inf"))
        tried[f"{rate:g}"] = p90
        if found["refused"] or found["failed"] or p90 > 1000.0:
            break
        held = rate
    time.sleep(5.0)  # what is queued is answered before anything else is measured
    return held, tried


def _recovery_s(bench: Bench, service: Service, since: float, limit_ms: float) -> float:
    """Return the seconds after which a request is answered as fast as without load, 60 at most."""
    while time.monotonic() - since < 60.0:
        [one] = bench.load(service, rate=1.0, seconds=1.0)
        if one.answered and one.ms <= limit_ms:
            return round(time.monotonic() - since, 1)
    return 60.0


def kill(bench: Bench) -> dict[str, Any]:
    """Kill models' replicas while clients ask."""
    killed: list[str] = []

    def killer(service: Service) -> Callable[[threading.Event], None]:
        def work(over: threading.Event) -> None:
            for deployment in itertools.cycle(MODELS):
                if over.wait(KILL_EVERY_S):
                    return
                for pid in service.pids(deployment)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(deployment)

        return work

    with bench.service() as service, meanwhile(killer(service)):
        outcomes = bench.load(service, rate=10.0, seconds=bench.seconds or 120.0, retries=1)
    found = summarise(outcomes)
    share = found["answered"] / found["requests"]
    reached = {"answered": share >= 0.999, "nothing hangs": not found["hung"]}
    return {**found, "killed": killed, "answered_share": share, "target_share": 0.999, "reached": reached}


def down(bench: Bench) -> dict[str, Any]:
    """Ask while a part is not served."""
    found = {}
    for part in WITHOUT:
        with bench.without(part) as store, bench.service(store) as service:
            told = summarise(bench.load(service, rate=5.0, seconds=10.0))
        found[part] = {**told, "reached": told["answered"] == told["degraded"] == told["requests"]}
    return found


def swap(bench: Bench) -> dict[str, Any]:
    """Deploy other artefacts while clients ask: rule bases and indices at the full rate, students at a quarter."""
    with bench.without("recommendation") as store, bench.service(store) as service:
        models = _swapped(bench, service, ("rulebase", "index"), bench.rate)
    with bench.service() as service:
        student = _swapped(bench, service, ("student",), bench.rate / 4)
    return {"models": models, "student": student}


def _swapped(bench: Bench, service: Service, kinds: Sequence[str], rate: float) -> dict[str, Any]:
    """Load a service while each kind goes to its oldest version and back, in turn.

    Raises:
        ConfigError: there is one version of each only.
    """
    versions = {kind: refs for kind in kinds if len(refs := service.versions(kind)) > 1}
    if not versions:
        raise ConfigError(
            f"swap: the store has one version of {' and '.join(kinds)}; make another, as by "
            "`mmd pipeline --set seed=1`, or leave the scenario out."
        )
    done: list[str] = []

    def work(over: threading.Event) -> None:
        now = {kind: refs[-1] for kind, refs in versions.items()}
        for place in itertools.cycle((0, -1)):
            for kind, refs in versions.items():
                if over.wait(2.0):
                    return
                now[kind] = refs[place]
                service.deploy(**now)
                done.append(now[kind])

    with meanwhile(work):
        found = summarise(bench.load(service, rate=rate, seconds=bench.seconds or 120.0))
    return {**found, "swaps": len(done), "kinds": list(versions), "reached": found["answered"] == found["requests"]}


SCENARIOS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "steady": steady,
    "turn": turn,
    "proxies": proxies,
    "overload": overload,
    "kill": kill,
    "down": down,
    "swap": swap,
}
