"""Vectors come from the artefact where it has them, and are otherwise what featurize would have computed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmd.artifacts import ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ModelError
from mmd.features.settings import FeatureSettings
from mmd.features.store import Features
from mmd.models.settings import ModelSettings
from mmd.retrieval.settings import TowerSettings
from mmd.retrieval.sources import Encoders, StoredSources, training_sources

DESCRIPTOR = FeatureSettings(vision="descriptor", text="none", ocr="none")


@pytest.fixture
def parts(tiny_store: Path) -> tuple[Corpus, Features, list[str]]:
    store = ArtifactStore(str(tiny_store))
    corpus, features = Corpus(store.open("corpus/tiny")), Features(store.open("features/tiny"))
    return corpus, features, sorted(features.image_vectors)[:4]


def sources(corpus: Corpus | None, features: Features | None, **towers: Any) -> StoredSources:
    chosen = TowerSettings(**({"text": "tiny-bert"} | towers))
    return training_sources(corpus, features, chosen, DESCRIPTOR, ModelSettings())


def test_stored_vectors_equal_computed_ones(parts: tuple[Corpus, Features, list[str]]):
    corpus, features, ids = parts
    stored, known = sources(None, features).picture_vectors(ids)  # without the pictures themselves
    computed, also_known = sources(corpus, None).picture_vectors(ids)
    assert known.all()
    assert also_known.all()
    np.testing.assert_array_equal(stored, computed)
    np.testing.assert_array_equal(stored, np.stack([features.image_vectors[i] for i in ids]))


def test_vectors_of_another_extractor_are_not_taken(parts: tuple[Corpus, Features, list[str]]):
    corpus, features, ids = parts
    vectors, known = sources(corpus, features, vision="tiny-vit").picture_vectors(ids)
    assert known.all()
    assert vectors.shape == (4, 64)


def test_what_a_tower_trains_itself_has_no_vectors(parts: tuple[Corpus, Features, list[str]]):
    found = sources(parts[0], parts[1], vision="tiny-vit", train_vision="full")
    assert (found.text_dim, found.picture_dim) == (0, 0)
    assert found.extractors == {"text": None, "vision": None}


def test_a_text_s_vector_does_not_depend_on_what_else_is_asked():
    frozen = {"train_text": "frozen", "vision": "none"}
    texts = ["a jacket", "", "有没有更薄的外套？我想要一件夏天穿的", "a jacket", "  "]
    together = sources(None, None, **frozen).text_vectors(texts)
    alone = np.concatenate([sources(None, None, **frozen).text_vectors([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1, 0], atol=1e-6)


def test_pickled_sources_leave_models_behind_and_go_on_where_they_were(parts: tuple[Corpus, Features, list[str]]):
    found = sources(parts[0], None, train_text="frozen", vision="tiny-vit")
    before = found.text_vectors(["a jacket"]), found.picture_vectors(parts[2])[0]
    data = pickle.dumps(found)
    again = pickle.loads(data)  # noqa: S301 (what a worker is sent)
    assert len(data) < 1_000_000
    np.testing.assert_array_equal(again.text_vectors(["a jacket"]), before[0])
    np.testing.assert_array_equal(again.picture_vectors(parts[2])[0], before[1])


def test_features_without_a_sentence_encoder_name_the_way_out():
    with pytest.raises(ModelError, match=r"features\.text=auto.*minilm-l6-v2"):
        _ = Encoders(TowerSettings(), DESCRIPTOR, ModelSettings()).text


def test_a_name_that_is_no_encoder_is_refused():
    with pytest.raises(ModelError, match="not an encoder"):
        _ = Encoders(
            TowerSettings(vision="efficientnet-lite0"), FeatureSettings(vision="descriptor"), ModelSettings()
        ).vision
