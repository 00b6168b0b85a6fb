"""The engine with a large model: it answers where the gate asks it, and where it cannot, the others do."""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, ModelError
from mmd.features.vision import Descriptor
from mmd.intent.engine import IntentAnswer, IntentEngine, IntentModel, IntentQuery, without_mllm
from mmd.intent.examples import image_facts, make_example
from mmd.intent.gate import NEVER, TaskGate, pool
from mmd.intent.loading import load_engine_parts, open_parts
from mmd.intent.mllm import load_mllm_classifiers
from mmd.intent.online import OnlineExtractors, OnlineFeatures, OnlineSettings
from mmd.intent.showcase import picture_ids, query_of
from mmd.intent.timed import TimedCalls
from mmd.intent.types import IntentExample, Probabilities
from mmd.schema import Dialogue, Turn

MakeAdapter = Callable[..., Artifact]
INTENT, SCENE = "dialogue_intent", "image_scene"


@pytest.fixture(scope="module")
def store(mllm_store: Path) -> ArtifactStore:
    return ArtifactStore(str(mllm_store))


@pytest.fixture(scope="module")
def engine(store: ArtifactStore) -> IntentEngine:
    return IntentEngine.from_store(store, "tiny")


@pytest.fixture(scope="module")
def corpus(store: ArtifactStore) -> Corpus:
    return Corpus(store.open("corpus/tiny"))


@pytest.fixture
def store_copy(mllm_store: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(mllm_store, tmp_path / "store")
    return ArtifactStore(str(tmp_path / "store"))


def queries_of(corpus: Corpus, task: str, count: int = 4) -> list[IntentQuery]:
    dialogues = [d for d in corpus.dialogues("test") if task in d.labels][:count]
    images = {image.id: image for image in corpus.images(picture_ids(dialogues))}
    return [query_of(d, task, images) for d in dialogues]


def ask(text: str, task: str = INTENT) -> IntentQuery:
    return IntentQuery(Dialogue("q", "test", "test", (Turn("user", text),)), task)


# ---------------------------------------------------------------- answering


def test_the_large_model_answers_as_it_does_offline(engine: IntentEngine, store: ArtifactStore, corpus: Corpus):
    """Scenes are its alone: the served label is the likeliest of the classifier that the artefact holds."""
    classifier = load_mllm_classifiers(store.open("adapter/tiny"))[SCENE]
    queries = queries_of(corpus, SCENE)
    facts = image_facts(corpus, None)
    for query, answer in zip(queries, engine.answer(queries), strict=True):
        images = {i: replace(facts[i], data=image.data) for i, image in query.images.items()}
        (expected,) = classifier.predict([make_example(query.dialogue, SCENE, images=images)])
        (prediction,) = answer.predictions
        assert (prediction.label, prediction.arm) == (expected.best[0], "mllm")
        assert prediction.confidence == pytest.approx(expected.best[1], abs=1e-4)
        assert answer.mllm_shares == {SCENE: 1.0}
        assert answer.degraded == ()


def test_a_pool_is_of_probe_and_large_model(engine: IntentEngine):
    """No rule fires: the answer is the pool of what the two say, with the gate's share of 0.4."""
    example = IntentExample("q", INTENT, None, (Turn("user", "hello there"),))
    probe = engine.model.gate.classifiers[INTENT].predict([example])[0]
    mllm = engine.model.gate.mllms[INTENT].predict([example])[0]
    label, confidence = pool(probe, mllm, 0.4).best
    answer = engine.answer([ask("hello there")])[0]
    assert answer.mllm_shares == {INTENT: 0.4}
    assert (answer.predictions[0].label, answer.predictions[0].arm) == (label, "classifier")
    assert answer.predictions[0].confidence == pytest.approx(confidence, abs=1e-4)


def test_the_adapter_that_answers_is_named(engine: IntentEngine, store: ArtifactStore):
    assert engine.answer([ask("hello")])[0].artifacts["adapter"] == store.open("adapter/tiny").ref


def test_pixels_are_kept_only_for_a_model_that_looks_at_them(engine: IntentEngine, corpus: Corpus, tiny_store: Path):
    (query,) = queries_of(corpus, SCENE, 1)
    seen = engine.prepare(query).images
    assert {key: facts.data for key, facts in seen.items()} == {k: image.data for k, image in query.images.items()}
    plain = IntentEngine.from_store(ArtifactStore(str(tiny_store)), "tiny")
    assert [facts.data for facts in plain.prepare(query).images.values()] == [None]


def test_a_text_only_model_is_given_no_pixels(
    store_copy: ArtifactStore, make_adapter: MakeAdapter, make_mllm_gate: MakeAdapter, corpus: Corpus
):
    make_mllm_gate(store_copy, make_adapter(store_copy, seed=3, base="tiny-llama"))
    engine = IntentEngine.from_store(store_copy, "tiny")
    (query,) = queries_of(corpus, SCENE, 1)
    assert [facts.data for facts in engine.prepare(query).images.values()] == [None]
    answer = engine.answer([query])[0]
    assert (answer.predictions[0].arm, answer.degraded) == ("mllm", ())


def test_a_whole_model_answers_without_the_base_it_came_from(store_copy: ArtifactStore, make_adapter: MakeAdapter):
    whole = make_adapter(store_copy, seed=4, method="full", saved_as="no-such-model")
    engine = IntentEngine.from_store(store_copy, "tiny", refs={"adapter": whole.ref})
    answer = engine.answer([ask("hello")])[0]
    assert (answer.mllm_shares, answer.degraded) == ({INTENT: 0.4}, ())


# ---------------------------------------------------------------- which adapter


def test_the_gate_names_the_adapter(store_copy: ArtifactStore, make_adapter: MakeAdapter):
    """A newer adapter does not slip under an older gate; it answers when it is asked for."""
    old = store_copy.open("adapter/tiny")
    newer = make_adapter(store_copy, seed=2)
    assert open_parts(store_copy, "tiny", {})[0]["adapter"].ref == old.ref
    assert open_parts(store_copy, "tiny", {"adapter": newer.ref})[0]["adapter"].ref == newer.ref


def first_gate(store: ArtifactStore) -> Artifact:
    """Return the gate that was made before there was a large model."""
    return store.find("gate")[0]


def test_a_gate_without_an_adapter_asks_none(store: ArtifactStore):
    first = first_gate(store)
    found, missing = open_parts(store, "tiny", {"gate": first.ref})
    assert "adapter" not in found
    assert missing == []


def test_an_adapter_that_the_gate_does_not_ask_is_refused_with_the_way_out(store: ArtifactStore):
    first = first_gate(store)
    refs = {"gate": first.ref, "adapter": store.open("adapter/tiny").ref}
    model, _ = load_engine_parts(store, "tiny", refs, OnlineSettings())
    assert "adapter" not in model.artifacts
    assert "is not asked by the gate; run sweep_gates with it" in model.degraded[0]


# ---------------------------------------------------------------- without it


def degradation(answer: IntentAnswer) -> str:
    """Return the one reason why the model had no say in an answer."""
    (problem,) = answer.degraded
    assert set(answer.mllm_shares.values()) == {0.0}
    return problem


def test_without_the_base_weights_rules_and_probe_answer(
    store_copy: ArtifactStore, make_adapter: MakeAdapter, make_mllm_gate: MakeAdapter, corpus: Corpus
):
    adapter = make_adapter(store_copy, seed=1, saved_as="no-such-model")
    make_mllm_gate(store_copy, adapter)
    engine = IntentEngine.from_store(store_copy, "tiny")
    fired, scene = engine.answer([ask("Where is my refund?"), *queries_of(corpus, SCENE, 1)])
    problem = degradation(fired)
    assert all(reason in problem for reason in ("adapter: ", "'no-such-model'", "Until then: rules and probe"))
    assert fired.predictions[0].arm == "vote"
    assert scene.predictions[0].arm == "classifier"
    assert "adapter" not in fired.artifacts
    with pytest.raises(ModelError, match="no-such-model"):  # asked for by name it must be there
        IntentEngine.from_store(store_copy, "tiny", refs={"adapter": adapter.ref})


def test_too_little_memory_is_told_before_the_model_is_loaded(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    gc.collect()
    monkeypatch.setattr("mmd.models.memory.free_bytes", lambda _: 1 << 20)
    monkeypatch.setattr("mmd.models.shared._loaded", weakref.WeakValueDictionary())
    answer = IntentEngine.from_store(store, "tiny").answer([ask("hello")])[0]
    problem = degradation(answer)
    assert all(reason in problem for reason in ("its weights need", "GiB are free"))


def test_a_damaged_adapter_degrades_the_gates_and_refuses_a_wanted_one(store_copy: ArtifactStore):
    adapter = store_copy.open("adapter/tiny")
    weights = Path(adapter.path("joint/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    answer = IntentEngine.from_store(store_copy, "tiny").answer([ask("hello")])[0]
    problem = degradation(answer)
    assert all(reason in problem for reason in ("adapter: ", "differs from its manifest"))
    with pytest.raises(ArtifactError, match="adapter_model"):
        IntentEngine.from_store(store_copy, "tiny", refs={"adapter": adapter.ref})


class Mischief:
    """A classifier that fails on some texts and waits on others."""

    needs_pictures = False

    def __init__(self, task: str, labels: tuple[str, ...]) -> None:
        self.task, self.labels = task, labels
        self.released = threading.Event()

    def predict(self, examples: Sequence[IntentExample]) -> list[Probabilities]:
        return self.predict_hinted(examples, [""] * len(examples))

    def predict_hinted(
        self,
        examples: Sequence[IntentExample],
        hints: Sequence[str],  # noqa: ARG002 (the protocol's)
    ) -> list[Probabilities]:
        for example in examples:
            text = example.text("user")
            if "fail" in text:
                raise RuntimeError(f"cannot read {text}")
            if "slow" in text:
                self.released.wait(30)
        if any("overflow" in example.text("user") for example in examples):
            return [Probabilities(self.labels, (float("nan"),) * len(self.labels))] * len(examples)
        sure = tuple(float(i == 2) for i in range(len(self.labels)))
        return [Probabilities(self.labels, sure)] * len(examples)


@pytest.fixture
def mischief(tiny_store: Path) -> tuple[IntentEngine, Mischief]:
    model, _ = load_engine_parts(ArtifactStore(str(tiny_store)), "tiny", {}, OnlineSettings())
    mllm = Mischief(INTENT, model.tasks[INTENT])
    gates = {**model.gate.tasks, INTENT: TaskGate(INTENT, "mllm_only", mllm=1.0)}
    model = replace(model, gate=replace(model.gate, mllms={INTENT: mllm}, tasks=gates))
    return with_limit(model, 20.0), mllm


def with_limit(model: IntentModel, seconds: float) -> IntentEngine:
    features = OnlineFeatures(OnlineExtractors(vision=Descriptor()))
    return IntentEngine(model, features, OnlineSettings(mllm_timeout_s=seconds))


def test_a_question_that_the_model_fails_on_spoils_no_other(mischief: tuple[IntentEngine, Mischief]):
    engine, mllm = mischief
    with structlog.testing.capture_logs() as logs:
        fine, failed, scene = engine.answer([ask("hello"), ask("fail"), ask("hello", SCENE)])
    assert (fine.predictions[0].label, fine.predictions[0].arm, fine.degraded) == (mllm.labels[2], "mllm", ())
    assert "mllm: failed (RuntimeError; the log has where); rules and probe answered" in degradation(failed)
    assert failed.predictions[0].arm == "classifier"
    assert [entry["event"] for entry in logs] == ["mllm_failed"]
    assert "cannot read fail" not in str([logs, failed.degraded])  # an error may quote the dialogue
    assert scene.degraded == ()


def test_probabilities_that_are_no_numbers_have_no_say(mischief: tuple[IntentEngine, Mischief]):
    engine, _ = mischief
    assert "mllm: failed (its probabilities are not numbers" in degradation(engine.answer([ask("overflow")])[0])


def test_weights_that_are_no_numbers_are_found_when_loading(store_copy: ArtifactStore, make_adapter: MakeAdapter):
    adapter = make_adapter(store_copy, seed=7, std=float("inf"))
    with pytest.raises(ModelError, match="its probabilities are not numbers"):
        IntentEngine.from_store(store_copy, "tiny", refs={"adapter": adapter.ref})


def test_a_late_model_does_not_hold_up_the_turn_nor_the_next(mischief: tuple[IntentEngine, Mischief]):
    patient, mllm = mischief
    engine = with_limit(patient.model, 1.0)
    started = time.perf_counter()
    assert "mllm: no answer within 1 s; rules and probe answered" in degradation(engine.answer([ask("slow")])[0])
    waited_s = time.perf_counter() - started
    assert 0.9 <= waited_s < 10
    assert "mllm: still busy with an earlier question" in degradation(engine.answer([ask("hello")])[0])
    mllm.released.set()
    for _ in range(200):
        answer = engine.answer([ask("hello")])[0]
        if answer.degraded == ():
            break
        time.sleep(0.02)
    assert answer.predictions[0].arm == "mllm"


def test_a_question_that_waited_long_for_others_does_not_ask_the_model(mischief: tuple[IntentEngine, Mischief]):
    """More than half of 20 s: asking would likely end late."""
    engine, _ = mischief
    fresh, stale = engine.prepare(ask("hello")), engine.prepare(ask("hello"))
    stale = replace(stale, asked_s=stale.asked_s - 11.0)
    first, second = engine.decide([fresh, stale])
    assert (first.predictions[0].arm, first.degraded) == ("mllm", ())
    assert "mllm: too many questions are waiting; rules and probe answered" in degradation(second)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (TaskGate("t", "override", tau=0.8, mllm=0.5), TaskGate("t", "override", tau=0.8)),
        (TaskGate("t", "vote", tau=0.0, weight=2.0, mllm=1.0), TaskGate("t", "vote", tau=0.0, weight=2.0)),
        (TaskGate("t", "rules_only"), TaskGate("t", "rules_only")),
        (TaskGate("t", "mllm_only", mllm=1.0), TaskGate("t", "vote", tau=0.0, weight=3.0)),
        (TaskGate("t", "prompt", tau=0.5, mllm=0.5), TaskGate("t", "vote", tau=0.0, weight=3.0)),
        (TaskGate("t", "prompt", tau=NEVER, mllm=0.5), TaskGate("t", "vote", tau=NEVER, weight=3.0)),
    ],
)
def test_what_remains_of_a_gate_without_its_large_model(gate: TaskGate, expected: TaskGate):
    assert without_mllm(gate) == expected


# ---------------------------------------------------------------- calls in time


def test_calls_give_back_what_they_return_or_raise():
    calls = TimedCalls(5.0)
    assert calls(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        calls(lambda: 1 // 0)


def test_a_call_that_waits_for_another_in_vain_is_never_made():
    calls, begun, release, made = TimedCalls(0.1), threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        release.wait(30)

    def call_first() -> None:
        with contextlib.suppress(TimeoutError):
            calls(first)

    caller = threading.Thread(target=call_first)
    caller.start()
    begun.wait(30)
    with pytest.raises(TimeoutError):
        calls(lambda: made.append(1))
    caller.join()
    release.set()
    while True:
        with contextlib.suppress(TimeoutError):  # until the first has ended
            assert calls(lambda: made) == []
            break


# ---------------------------------------------------------------- one base in memory


def test_two_adapters_share_the_bases_weights_and_nothing_else(store_copy: ArtifactStore, make_adapter: MakeAdapter):
    old, new = store_copy.open("adapter/tiny"), make_adapter(store_copy, seed=2)
    engines = [IntentEngine.from_store(store_copy, "tiny", refs={"adapter": a.ref}) for a in (old, new)]
    weights = [dict(e.model.gate.mllms[SCENE].mllm.core.named_parameters()) for e in engines]  # type: ignore[attr-defined]
    assert weights[0].keys() == weights[1].keys()
    shared = {name for name in weights[0] if weights[0][name] is weights[1][name]}
    assert {name for name in weights[0] if "lora_" not in name} == shared
    example = IntentExample("q", INTENT, None, (Turn("user", "hello"),))
    before = engines[0].model.gate.mllms[INTENT].predict([example])[0].values
    after = engines[1].model.gate.mllms[INTENT].predict([example])[0].values
    assert not np.allclose(before, after, atol=1e-3)
    np.testing.assert_allclose(engines[0].model.gate.mllms[INTENT].predict([example])[0].values, before)


def test_a_replaced_model_is_released(store_copy: ArtifactStore, make_adapter: MakeAdapter):
    """Its own layers go at once; the base's weights with their last user."""
    engine = IntentEngine.from_store(store_copy, "tiny")
    engine.answer([ask("hello")])
    gone = weakref.ref(engine.model.gate.mllms[SCENE].mllm.model)  # type: ignore[attr-defined]
    base = weakref.ref(engine.model.gate.mllms[SCENE].mllm.core.get_input_embeddings().weight)  # type: ignore[attr-defined]
    other = IntentEngine.from_store(store_copy, "tiny", refs={"adapter": make_adapter(store_copy, seed=2).ref})
    del engine
    gc.collect()
    assert gone() is None
    assert base() is other.model.gate.mllms[SCENE].mllm.core.get_input_embeddings().weight  # type: ignore[attr-defined]
