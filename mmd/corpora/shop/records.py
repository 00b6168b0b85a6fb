"""Writes the shop's records: a conversation or a picture with its labels, as a JSON object.

A record depends on nothing but settings, seed and its position.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmd.corpora.settings import ShopSettings
from mmd.corpora.shop.catalogue import Catalogue
from mmd.corpora.shop.chance import pick, stream
from mmd.corpora.shop.dialogues import Writer
from mmd.corpora.shop.intents import possible_intents
from mmd.corpora.shop.pictures import possible_scenes
from mmd.corpora.shop.specs import PictureSpec
from mmd.schema import Split

SERVICE_SHARE = 0.08
"""Conversations without label that end with the shop's answer; many of them are recommendations."""
LABEL_NOISE = 0.015
"""Labels that are wrong, as they are in real annotations."""


def write_record(catalogue: Catalogue, settings: ShopSettings, seed: int, index: int, split: Split) -> dict[str, Any]:
    """Write record ``index``; it depends on nothing but the arguments, so any worker can write it alone.

    Returns:
        A JSON object: id, turns (speaker, text, pictures by key, items), pictures (key → specification), labels, meta.
    """
    rng = stream(seed, "record", index)
    language = settings.languages[pick(seed, len(settings.languages), "language", index)]
    writer = Writer(catalogue, language, split, rng)
    role = rng.random()
    if role < settings.picture_share:
        labels = _picture_record(writer, possible_scenes(catalogue), rng)
    elif role < settings.picture_share + SERVICE_SHARE:
        labels = _service_record(writer, possible_intents(catalogue), rng)
    else:
        labels = _intent_record(writer, possible_intents(catalogue), rng)
    return _record(f"shop-{index:07d}", writer, labels)


def _picture_record(writer: Writer, scenes: Sequence[str], rng: random.Random) -> dict[str, str]:
    scene = rng.choice(scenes)
    writer.picture(scene)
    return {"image_scene": _noisy(scene, scenes, writer, rng)}


def _service_record(writer: Writer, intents: Sequence[str], rng: random.Random) -> dict[str, str]:
    if rng.random() < 0.5:
        writer.recommendation()
    else:
        writer.conversation(rng.choice(intents), answered=True)
    return {}


def _intent_record(writer: Writer, intents: Sequence[str], rng: random.Random) -> dict[str, str]:
    topic = writer.conversation(rng.choice(intents), answered=False)
    writer.meta["decided_by"] = "picture" if topic.by_picture else "text"
    writer.meta["phrase"] = "held_out" if topic.held_out else "shared"
    return {"dialogue_intent": _noisy(topic.intent, intents, writer, rng)}


def _noisy(label: str, labels: Sequence[str], writer: Writer, rng: random.Random) -> str:
    if rng.random() >= LABEL_NOISE:
        return label
    writer.meta["label_noise"] = "yes"
    return rng.choice([name for name in labels if name != label])


def _record(record_id: str, writer: Writer, labels: Mapping[str, str]) -> dict[str, Any]:
    pictures: dict[str, PictureSpec] = {}
    turns = []
    for message in writer.messages:
        keys = list(_keyed(message.pictures, pictures))
        turns.append({"speaker": message.speaker, "text": message.text, "pictures": keys, "items": message.items})
    return {"id": record_id, "turns": turns, "pictures": pictures, "labels": dict(labels), "meta": writer.meta}


def _keyed(specs: Iterable[PictureSpec], pictures: dict[str, PictureSpec]) -> Iterable[str]:
    """Yield the key of each specification, adding new ones to ``pictures``."""
    for spec in specs:
        key = next((known for known, other in pictures.items() if other == spec), f"picture-{len(pictures)}")
        pictures[key] = spec
        yield key
