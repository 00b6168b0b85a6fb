"""The simulated shop: any record alone and alike everywhere, labels and answers true to the catalogue."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmd.corpora.base import CorpusReader, ParsedRecord, Part, RawRecord
from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop import ShopReader
from mmd.corpora.shop.intents import INTENT_KINDS
from mmd.corpora.shop.recommending import suggestion
from mmd.corpora.shop.records import write_record
from mmd.corpora.shop.specs import INTENTS, SCENES
from mmd.corpora.shop.wording import phrases
from mmd.errors import BadRecordError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ShopSettings(dialogues=240, items=60, image_side_px=64)


def raw_records(reader: ShopReader) -> list[RawRecord]:
    return [record for part in reader.plan() for record in reader.read(part)]


def bodies(reader: ShopReader) -> list[dict[str, Any]]:
    return [json.loads(record.raw) for record in raw_records(reader)]


def digest(reader: ShopReader) -> str:
    """Hash of everything that a reader yields, pictures included."""
    total = hashlib.sha256()
    for record in raw_records(reader):
        total.update(record.raw)
        for _, source in sorted(reader.parse(record).images.items()):
            total.update(source.data or b"")
    return total.hexdigest()


@pytest.fixture(scope="module")
def reader() -> ShopReader:
    return ShopReader(SMALL, seed=3)


@pytest.fixture(scope="module")
def parsed(reader: ShopReader) -> list[ParsedRecord]:
    return [reader.parse(record) for record in raw_records(reader)]


@pytest.fixture(scope="module")
def many() -> list[dict[str, Any]]:
    """Records of a larger corpus, pictures not drawn."""
    return bodies(ShopReader(ShopSettings(dialogues=3000), seed=0))


def test_it_is_a_corpus_reader(reader: ShopReader):
    assert isinstance(reader, CorpusReader)
    assert reader.root is None


def test_equal_seeds_give_equal_bytes_in_another_process_with_another_hash_seed():
    code = (
        "from mmd.corpora.settings import ShopSettings\n"
        "from mmd.corpora.shop import ShopReader\n"
        "import hashlib\n"
        "r = ShopReader(ShopSettings(dialogues=30, items=20, image_side_px=48), 5)\n"
        "h = hashlib.sha256()\n"
        "for part in r.plan():\n"
        "    for record in r.read(part):\n"
        "        h.update(record.raw)\n"
        "        for _, source in sorted(r.parse(record).images.items()): h.update(source.data)\n"
        "print(h.hexdigest())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    here = digest(ShopReader(ShopSettings(dialogues=30, items=20, image_side_px=48), 5))
    assert there.stdout.strip() == here


def test_another_seed_gives_another_corpus():
    assert bodies(ShopReader(SMALL, 1)) != bodies(ShopReader(SMALL, 2))


def test_parts_can_be_read_in_any_order_and_after_a_trip_between_processes(reader: ShopReader):
    parts = reader.plan()
    travelled = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own object, as Ray ships it
    forward = {(p.source, p.start): list(reader.read(p)) for p in parts}
    backward = {(p.source, p.start): list(travelled.read(p)) for p in reversed(parts)}
    assert forward == backward


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**6 - 1))
def test_any_record_can_be_written_alone(seed: int, index: int):
    """A record of a corpus of a million is the same whether its neighbours were written or not."""
    shop = ShopReader(ShopSettings(dialogues=10**6, items=12), seed)
    part = Part("train", "train", max(0, index - 1), index + 1)
    alone = [r for p in (part, Part("test", "test", index, index + 1)) for r in shop.read(p) if r.position == index]
    assert len(alone) == 1
    body = json.loads(alone[0].raw)
    again = write_record(shop.catalogue, ShopSettings(dialogues=10**6, items=12), seed, index, alone[0].split)
    assert body == json.loads(json.dumps(again))
    assert body["id"] == f"shop-{index:07d}"
    assert all(t["speaker"] in ("user", "agent") and not set("{}|") & set(t["text"]) for t in body["turns"])


def test_every_position_is_read_once_and_the_test_share_is_exact(reader: ShopReader):
    records = raw_records(reader)
    assert sorted(r.position for r in records) == list(range(240))
    assert sum(r.split == "test" for r in records) == 60
    assert len({json.loads(r.raw)["id"] for r in records}) == 240


@pytest.mark.parametrize("seed", range(5))
def test_even_the_smallest_corpus_has_both_splits(seed: int):
    splits = Counter(r.split for r in raw_records(ShopReader(ShopSettings(dialogues=10), seed)))
    assert splits["test"] in (2, 3)  # a quarter of ten


def test_labels_stay_inside_their_task_and_all_occur(many: list[dict[str, Any]]):
    tasks = ShopReader(ShopSettings(), 0).tasks()
    assert tasks == {"dialogue_intent": INTENTS, "image_scene": SCENES}
    assert not set(INTENTS) & set(SCENES)
    seen = {(task, label) for body in many for task, label in body["labels"].items()}
    assert seen == {(task, label) for task, labels in tasks.items() for label in labels}


def test_shares_of_kinds_languages_and_noise(many: list[dict[str, Any]]):
    count = len(many)
    assert sum("image_scene" in b["labels"] for b in many) / count == pytest.approx(0.22, abs=0.03)
    assert sum("dialogue_intent" in b["labels"] for b in many) / count == pytest.approx(0.70, abs=0.03)
    assert sum(b["meta"]["language"] == "zh" for b in many) / count == pytest.approx(0.5, abs=0.03)
    assert sum("label_noise" in b["meta"] for b in many) / count == pytest.approx(0.014, abs=0.008)
    intents = [b for b in many if "dialogue_intent" in b["labels"]]
    assert sum(b["meta"]["decided_by"] == "picture" for b in intents) / len(intents) == pytest.approx(0.32, abs=0.05)


def test_the_share_of_pictures_without_a_word_can_be_set():
    reader = ShopReader(SMALL.model_copy(update={"picture_share": 0.6}), seed=3)
    scenes = sum("image_scene" in body["labels"] for body in bodies(reader))
    assert 0.5 < scenes / SMALL.dialogues < 0.7


def test_gold_answers_come_in_all_modalities(many: list[dict[str, Any]]):
    modalities = Counter(v for b in many for k, v in b["meta"].items() if k.startswith("response_modality."))
    assert set(modalities) == {"text", "image", "product"}
    assert min(modalities.values()) / sum(modalities.values()) > 0.2


def test_held_out_phrases_never_occur_in_training():
    shop = ShopReader(ShopSettings(dialogues=3000), 0)
    by_split = {split: Counter[str]() for split in ("train", "test")}
    for record in raw_records(shop):
        by_split[record.split][json.loads(record.raw)["meta"].get("phrase", "none")] += 1
    assert by_split["train"]["held_out"] == 0
    assert by_split["test"]["held_out"] > 20


def test_labelled_conversations_end_with_the_customer(many: list[dict[str, Any]]):
    """An answer after the labelled request would give the label away."""
    for body in many:
        last = body["turns"][-1]["speaker"]
        assert last == ("user" if body["labels"] else "agent")


def test_what_a_picture_decides_is_in_the_picture(many: list[dict[str, Any]]):
    """The last turn's picture shows the scene of the intent; the words come from phrases that fit several intents."""
    for body in many:
        meta = body["meta"]
        if meta.get("decided_by") != "picture" or "label_noise" in meta:
            continue
        spec = body["pictures"][body["turns"][-1]["pictures"][-1]]
        assert spec["scene"] == INTENT_KINDS[body["labels"]["dialogue_intent"]].scene


def test_languages_are_obeyed():
    only = bodies(ShopReader(ShopSettings(dialogues=60, languages=("zh",)), 0))
    assert {b["meta"]["language"] for b in only} == {"zh"}


def gold_answers(shop: ShopReader) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield (record, answering turn, id of the product it is about)."""
    for body in bodies(shop):
        for number, turn in enumerate(body["turns"]):
            if about := body["meta"].get(f"response_about.{number}"):
                yield body, turn, about


def test_gold_answers_follow_from_the_catalogue():
    """Image answers picture the asked product (or its sibling); product answers name products that exist."""
    shop = ShopReader(ShopSettings(dialogues=1500), 4)
    by_id = shop.catalogue.by_id
    kinds = Counter[str]()
    for body, turn, about in gold_answers(shop):
        number = body["turns"].index(turn)
        modality = body["meta"][f"response_modality.{number}"]
        kinds[modality] += 1
        assert bool(turn["pictures"]) == (modality == "image")
        assert bool(turn["items"]) == (modality == "product")
        assert all(item in by_id for item in turn["items"])
        for key in turn["pictures"]:
            spec = body["pictures"][key]
            assert by_id[spec["item"]].family == by_id[about].family
            assert (spec["item"] == about) == (spec["scene"] != "product_photo")
    assert min(kinds[m] for m in ("text", "image", "product")) > 50


def test_a_suggestion_prefers_what_is_bought_together_and_repeats_nothing():
    catalogue = ShopReader(ShopSettings(items=200), 0).catalogue
    liked = catalogue.products[0]
    friend = catalogue.bought_with(liked)[0]
    first = suggestion(catalogue, liked, friend.category, "", exclude=())
    assert first in catalogue.bought_with(liked)
    assert suggestion(catalogue, liked, friend.category, "", exclude=[first.id]).id != first.id


def test_every_picture_decodes_and_repeats_are_shared(parsed: list[ParsedRecord]):
    pictures = [source.data for record in parsed for source in record.images.values()]
    for data in set(pictures):
        assert data is not None
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            assert picture.width == 64
    assert len(set(pictures)) < len(pictures)


def test_turns_name_the_pictures_that_came_with_the_record(parsed: list[ParsedRecord]):
    for record in parsed:
        named = {key for turn in record.dialogue.turns for key in turn.image_ids}
        assert named == set(record.images)
        assert all(turn.text or turn.image_ids for turn in record.dialogue.turns)


def test_items_carry_their_attributes_and_a_picture(reader: ShopReader):
    items = list(reader.items())
    assert len(items) == 60
    assert len({entry.item.id for entry in items}) == 60
    for entry in items:
        assert set(entry.images) == set(entry.item.image_ids)
        assert {"category", "colour", "material", "price"} <= set(entry.item.attributes)


def test_the_graph_is_closed_and_links_every_item(reader: ShopReader):
    graph = reader.graph()
    ids = {entity.id for entity in graph.entities}
    assert len(ids) == len(graph.entities)
    assert {end for triple in graph.triples for end in (triple.head, triple.tail)} <= ids
    assert {link.item_id for link in graph.links} == set(reader.catalogue.by_id)
    assert {link.entity_id for link in graph.links} <= ids
    assert "bought_with" in {triple.relation for triple in graph.triples}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "broken_json"),
        (b"[]", "wrong_type"),
        (b"{}", "missing_field"),
        (b'{"id": "x", "turns": 3, "pictures": {}, "labels": {}, "meta": {}}', "wrong_type"),
        (
            b'{"id":"x","turns":[],"pictures":{"a":{"scene":"cart_page","item":"no","variant":0}},"labels":{},"meta":{}}',
            "missing_field",
        ),
    ],
)
def test_a_foreign_record_is_refused_with_its_reason(reader: ShopReader, raw: bytes, reason: str):
    with pytest.raises(BadRecordError) as caught:
        reader.parse(RawRecord("train", 7, "train", raw))
    assert caught.value.reason == reason


def test_both_languages_have_the_same_families():
    english, chinese = phrases("en"), phrases("zh")
    for section in ("ask", "point", "answer", "usage", "care", "naming"):
        assert set(english[section]) == set(chinese[section])
    assert set(english) == set(chinese)
    assert set(INTENTS) <= set(english["ask"])
