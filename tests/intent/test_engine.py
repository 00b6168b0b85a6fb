"""The engine in process: the same answers as the offline way, and answers even when a part is missing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, ModelError, RequestError
from mmd.features.extract import ExtractorInfo
from mmd.features.store import Features
from mmd.features.vision import Descriptor
from mmd.intent.engine import IntentEngine, IntentQuery, shape_of, training_shapes
from mmd.intent.examples import load_examples
from mmd.intent.loading import load_engine_parts, load_extractors, open_parts
from mmd.intent.online import CachedExtractor, LruCache, OnlineExtractors, OnlineFeatures, OnlineSettings
from mmd.schema import Dialogue, Image, Turn


@pytest.fixture(scope="module")
def engine(tiny_store: Path) -> IntentEngine:
    return IntentEngine.from_store(ArtifactStore(str(tiny_store)), "tiny")


@pytest.fixture(scope="module")
def corpus(tiny_store: Path) -> Corpus:
    return Corpus(ArtifactStore(str(tiny_store)).open("corpus/tiny"))


@pytest.fixture
def store_copy(tiny_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store, tmp_path / "store")
    return tmp_path / "store"


def queries_of(corpus: Corpus, task: str, dialogues: Sequence[Dialogue]) -> list[IntentQuery]:
    images = {image.id: image for image in corpus.images()}
    return [
        IntentQuery(d, task, {i: images[i] for turn in d.turns for i in turn.image_ids})
        for d in dialogues
        if task in d.labels
    ]


def ask(*texts: str, task: str | None = None) -> IntentQuery:
    turns = tuple(Turn("user", text) for text in texts)
    return IntentQuery(Dialogue("q", "test", "test", turns), task)


@pytest.mark.parametrize("task", ["dialogue_intent", "image_scene"])
def test_online_predictions_equal_offline_ones(engine: IntentEngine, corpus: Corpus, tiny_store: Path, task: str):
    """Offline reads stored features; online computes them from the pictures: label, confidence and rules agree."""
    features = Features(ArtifactStore(str(tiny_store)).open("features/tiny"))
    offline = engine.model.gate.predict(load_examples(corpus, features, task, "test"))
    online = engine.predict(queries_of(corpus, task, corpus.dialogues("test")))
    assert len(offline) > 3
    assert [(p.dialogue_id, p.label, p.arm, p.fired) for p in online] == [
        (p.dialogue_id, p.label, p.arm, p.fired) for p in offline
    ]
    np.testing.assert_allclose([p.confidence for p in online], [p.confidence for p in offline], atol=1e-5)


def test_a_batch_answers_like_its_members_alone(engine: IntentEngine, corpus: Corpus):
    queries = queries_of(corpus, "dialogue_intent", corpus.dialogues("test"))
    alone = [engine.predict([query])[0] for query in queries]
    assert [p.label for p in engine.predict(queries)] == [p.label for p in alone]


def test_labels_of_the_query_do_not_reach_the_model(engine: IntentEngine, corpus: Corpus):
    query = queries_of(corpus, "dialogue_intent", corpus.dialogues("test"))[0]
    lied = replace(query, dialogue=replace(query.dialogue, labels={"dialogue_intent": "other"}))
    assert engine.predict([lied])[0].label == engine.predict([query])[0].label


def test_a_fired_rule_decides_and_is_told_in_both_languages(engine: IntentEngine):
    answer = engine.answer([ask("Where is my refund?")])[0]
    (prediction,) = answer.predictions
    assert (prediction.arm, prediction.label) == ("rules", "refund_status")
    words = answer.words["r-refund"]
    assert "refund" in words["en"]
    assert "对话里有" in words["zh"]


def test_without_a_task_the_dialogues_shape_chooses(engine: IntentEngine, corpus: Corpus):
    """The shop's scenes come as a picture alone, its intents with text."""
    picture = next(iter(corpus.images()))
    scene = Dialogue("q", "test", "test", (Turn("user", "", (picture.id,)),))
    assert engine.tasks_for(IntentQuery(scene, None, {picture.id: picture})) == ("image_scene",)
    assert engine.tasks_for(ask("hello")) == ("dialogue_intent",)


def test_an_unknown_task_is_refused_with_the_known_ones(engine: IntentEngine):
    with pytest.raises(RequestError, match="'mood' is unknown; this service answers dialogue_intent, image_scene"):
        engine.predict([ask("hello", task="mood")])


def test_a_task_that_nothing_was_trained_for_is_not_offered(store_copy: Path):
    """Asking it would fail, and with it every other question of the batch."""
    store = ArtifactStore(str(store_copy))
    old = store.open("corpus/tiny")
    with store.write("corpus", "tiny", settings={"moods": True}) as writer:
        for name in old.manifest.files.keys() - {"tasks.json"}:
            writer.write_bytes(name, old.read_bytes(name))
        writer.write_json("tasks.json", {**old.read_json("tasks.json"), "mood": ["glad", "sad"]})
    engine = IntentEngine.from_store(store, "tiny", refs={"corpus": store.open("corpus/tiny").ref})
    assert set(engine.model.tasks) == {"dialogue_intent", "image_scene"}
    with pytest.raises(RequestError, match="'mood' is unknown"):
        engine.predict([ask("hello", task="mood")])


def test_a_shape_without_a_task_asks_for_its_name(engine: IntentEngine):
    only_pictures = replace(engine.model, shapes={"image_scene": frozenset({"picture"})})
    with pytest.raises(RequestError, match="no task was trained on dialogues of text alone"):
        IntentEngine(only_pictures, OnlineFeatures(OnlineExtractors())).tasks_for(ask("hello"))


def test_rare_shapes_are_accidents():
    """199 of 200 dialogues are text; the odd picture is half a percent."""
    text = Dialogue("d", "s", "train", (Turn("user", "hi"),), {"t": "a"})
    picture = replace(text, turns=(Turn("user", "", ("p",)),))
    assert training_shapes([text] * 199 + [picture], ["t"]) == {"t": frozenset({"text"})}


def test_the_agents_words_alone_are_no_text():
    dialogue = Dialogue("d", "s", "train", (Turn("agent", "How can I help?"), Turn("user", "", ("p",))))
    assert shape_of(dialogue) == "picture"


# ---------------------------------------------------------------- missing parts


def test_without_a_classifier_the_rules_answer_and_the_answer_says_so(store_copy: Path):
    shutil.rmtree(store_copy / "classifier")
    shutil.rmtree(store_copy / "gate")
    engine = IntentEngine.from_store(ArtifactStore(str(store_copy)), "tiny")
    fired, silent = engine.answer([ask("Where is my refund?"), ask("zzz")])
    assert (fired.predictions[0].arm, fired.predictions[0].label) == ("rules", "refund_status")
    assert (silent.predictions[0].arm, silent.predictions[0].label) == (
        "default",
        engine.model.tasks["dialogue_intent"][0],
    )
    assert any(part.startswith("classifier: ") for part in fired.degraded)


def test_without_rules_there_is_nothing_to_serve(store_copy: Path):
    for kind in ("rulebase", "classifier", "gate"):
        shutil.rmtree(store_copy / kind)
    with pytest.raises(ArtifactError, match="rulebase/tiny"):
        IntentEngine.from_store(ArtifactStore(str(store_copy)), "tiny")


def test_a_version_asked_for_by_name_must_be_there(tiny_store: Path):
    with pytest.raises(ArtifactError, match="gate/tiny@0123"):
        open_parts(ArtifactStore(str(tiny_store)), "tiny", {"gate": "gate/tiny@0123"})


def test_the_gate_leads_to_what_it_was_made_from(store_copy: Path):
    """A newer rule base does not slip under an older gate; it answers when it is asked for."""
    store = ArtifactStore(str(store_copy))
    old = store.open("rulebase/tiny")
    with store.write("rulebase", "tiny", settings={"newer": True}) as writer:
        for name in old.manifest.files:
            writer.write_bytes(name, old.read_bytes(name))
    newest = store.open("rulebase/tiny")
    assert newest.ref != old.ref
    assert open_parts(store, "tiny", {})[0]["rulebase"].ref == old.ref
    assert open_parts(store, "tiny", {"rulebase": newest.ref})[0]["rulebase"].ref == newest.ref


def test_a_damaged_artefact_is_refused(store_copy: Path):
    shard = next((store_copy / "rulebase").rglob("rules.yaml"))
    shard.write_text(shard.read_text(encoding="utf-8") + "\n# edited in place\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"rules\.yaml"):
        IntentEngine.from_store(ArtifactStore(str(store_copy)), "tiny")


def test_another_version_of_an_extractor_is_refused(tiny_store: Path, corpus: Corpus):
    features = Features(ArtifactStore(str(tiny_store)).open("features/tiny"))
    features.__dict__["extractors"] = {"ocr": None, "vision": ExtractorInfo("descriptor-0", 9), "text": None}
    with pytest.raises(ModelError, match="trained with descriptor-0"):
        load_extractors(features.extractors, corpus, OnlineSettings())


def test_ocr_that_is_switched_off_is_told(tiny_store: Path, corpus: Corpus):
    features = Features(ArtifactStore(str(tiny_store)).open("features/tiny"))
    vision = features.extractors["vision"]
    features.__dict__["extractors"] = {"ocr": ExtractorInfo("rapidocr-3-960px", 0), "vision": vision, "text": None}
    extractors = load_extractors(features.extractors, corpus, OnlineSettings(run_ocr=False))
    picture = next(iter(corpus.images()))
    _, problems = OnlineFeatures(extractors).look({picture.id: picture})
    assert problems == ("ocr: switched off (serve.run_ocr); text in pictures is not read",)


class BrokenOcr:
    name = "broken"

    def recognise(self, images: Sequence[bytes]) -> list[tuple[()]]:  # noqa: ARG002 (the protocol's)
        raise OSError("the model file is gone")


def test_a_failing_part_degrades_the_answer(tiny_store: Path, corpus: Corpus):
    model, _ = load_engine_parts(ArtifactStore(str(tiny_store)), "tiny", {}, OnlineSettings())
    engine = IntentEngine(model, OnlineFeatures(OnlineExtractors(ocr=BrokenOcr(), vision=Descriptor())))
    answer = engine.answer(queries_of(corpus, "image_scene", corpus.dialogues("test"))[:1])[0]
    assert answer.degraded == ("ocr: failed (OSError: the model file is gone)",)
    assert answer.predictions[0].task == "image_scene"


def test_a_failing_part_does_not_touch_requests_without_pictures(tiny_store: Path):
    model, _ = load_engine_parts(ArtifactStore(str(tiny_store)), "tiny", {}, OnlineSettings())
    engine = IntentEngine(model, OnlineFeatures(OnlineExtractors(ocr=BrokenOcr(), vision=Descriptor())))
    assert engine.answer([ask("hello")])[0].degraded == ()


# ---------------------------------------------------------------- caches


def test_the_least_recently_used_value_goes_first():
    cache: LruCache[int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)


def test_a_cache_of_size_zero_keeps_nothing():
    cache: LruCache[int] = LruCache(0)
    cache.put("a", 1)
    assert (cache.get("a"), len(cache)) == (None, 0)


def test_equal_content_is_extracted_once():
    seen: list[str] = []

    def lengths(texts: Sequence[str]) -> list[int]:
        seen.extend(texts)
        return [len(text) for text in texts]

    extractor = CachedExtractor("text", lengths, LruCache(8))
    assert extractor({"k1": "one", "k2": "three"}) == ({"k1": 3, "k2": 5}, None)
    assert extractor({"k2": "three", "k3": ""}) == ({"k2": 5, "k3": 0}, None)
    assert seen == ["one", "three", ""]


def test_one_unreadable_input_spoils_no_other():
    def strict(texts: Sequence[str]) -> list[int]:
        return [int(text) for text in texts]

    found, problem = CachedExtractor("text", strict, LruCache(8))({"a": "1", "b": "x", "c": "3"})
    assert found == {"a": 1, "c": 3}
    assert problem is not None
    assert problem.startswith("text: failed (ValueError")


def test_given_ocr_is_kept(corpus: Corpus):
    picture = next(iter(corpus.images()))
    given = replace(picture, ocr=())
    facts, problems = OnlineFeatures(OnlineExtractors(ocr=BrokenOcr())).look({picture.id: given})
    assert problems == ()
    assert facts[picture.id].ocr == ()
    assert isinstance(picture, Image)
