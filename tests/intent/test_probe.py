"""The probe learns, keeps held-out predictions apart, and predicts the same after a trip to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError
from mmd.intent.folds import assign_folds
from mmd.intent.probe import (
    FittedProbe,
    Rows,
    block_text,
    fit_head,
    fit_probe,
    fit_temperature,
    load_probes,
    save_probes,
)
from mmd.intent.settings import BlockWeights, ProbeSettings
from mmd.intent.types import ImageFacts, IntentExample
from mmd.schema import OcrLine, Turn

LABELS = ("refund", "colour", "delivery")
ASKED = {"refund": "give me my money back", "colour": "does it come in green", "delivery": "when will it arrive"}


def example(number: int, label: str | None, text: str, *, dim: int = 4) -> IntentExample:
    vector = np.random.default_rng(number).normal(size=dim).astype(np.float32)
    picture = ImageFacts(f"i{number}", 100, 100, (OcrLine(f"order {number}", 1.0, (0, 0, 9, 9)),), vector)
    turns = (Turn("user", f"hello <http> {text}", (f"i{number}",)), Turn("agent", "let me see"))
    return IntentExample(f"d{number}", "intent", label, turns, (picture,), last_user_vector=vector)


def training(n: int = 30) -> list[IntentExample]:
    return [example(i, LABELS[i % 3], f"{ASKED[LABELS[i % 3]]} please {i}") for i in range(n)]


def fitted(settings: ProbeSettings | None = None, labels: tuple[str, ...] = LABELS) -> FittedProbe:
    rows = training()
    folds = assign_folds([e.dialogue_id for e in rows], [str(e.label) for e in rows], 3, seed=0)
    return fit_probe("intent", rows, labels, settings or ProbeSettings(), folds)


def test_it_learns_what_users_ask():
    unseen = [example(100 + i, None, ASKED[label]) for i, label in enumerate(LABELS)]
    assert [p.best[0] for p in fitted().classifier.predict(unseen)] == list(LABELS)


def test_distributions_sum_to_one_and_follow_the_label_order():
    [found] = fitted().classifier.predict([example(1, None, "??")])
    assert found.labels == LABELS
    assert sum(found.values) == pytest.approx(1.0)


def test_a_loaded_probe_predicts_the_same(tmp_path: Path):
    probe = fitted().classifier
    store = ArtifactStore(str(tmp_path))
    with store.write("classifier", "tiny", settings={}) as writer:
        save_probes(writer, {"intent": probe})
    loaded = load_probes(store.open("classifier/tiny"))["intent"]
    rows = [example(200 + i, None, text) for i, text in enumerate(["when?", "money back", "", "GREEN １２"])]
    np.testing.assert_allclose(loaded.probabilities(rows), probe.probabilities(rows), atol=1e-12)
    assert (loaded.labels, loaded.task, loaded.needs) == (probe.labels, probe.task, probe.needs)


def test_batches_and_single_predictions_agree():
    probe, rows = fitted().classifier, training(9)
    single = np.concatenate([probe.probabilities([row]) for row in rows])
    np.testing.assert_allclose(single, probe.probabilities(rows), atol=1e-12)


def test_held_out_predictions_do_not_see_their_example():
    """A word that only one example has cannot help that example when it is held out."""
    rows = training()
    rows[0] = example(0, "refund", "zzzz qqqq")
    folds = assign_folds([e.dialogue_id for e in rows], [str(e.label) for e in rows], 3, seed=0)
    changed = [*rows]
    changed[0] = example(0, "delivery", "zzzz qqqq")
    before = fit_probe("intent", rows, LABELS, ProbeSettings(), folds)
    after = fit_probe("intent", changed, LABELS, ProbeSettings(), folds)
    scale = after.classifier.temperature / before.classifier.temperature
    gap = np.diff(np.log(after.held_out[0])) * scale - np.diff(np.log(before.held_out[0]))
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)


def test_a_label_without_examples_is_known_by_its_name():
    probe = fitted(ProbeSettings(min_df=1), labels=(*LABELS, "warranty card")).classifier
    assert probe.predict([example(1, None, "warranty card")])[0].best[0] == "warranty card"


def test_without_names_a_label_without_examples_is_never_answered():
    probe = fitted(ProbeSettings(label_name_weight=0.0), (*LABELS, "warranty card")).classifier
    assert probe.predict([example(1, None, "warranty card")])[0].values[3] < 1e-6


@pytest.mark.parametrize("labels", [("refund",), ("refund", "colour")])
def test_one_and_two_labels_work(labels: tuple[str, ...]):
    rows = [e for e in training() if e.label in labels]
    folds = assign_folds([e.dialogue_id for e in rows], [str(e.label) for e in rows], 2, seed=0)
    probe = fit_probe("intent", rows, labels, ProbeSettings(), folds).classifier
    assert [p.best[0] for p in probe.predict(rows[:4])] == [e.label for e in rows[:4]]


def test_without_any_feature_the_answer_is_still_a_distribution():
    weights = BlockWeights(**dict.fromkeys(BlockWeights.model_fields, 0.0))
    [found] = fitted(ProbeSettings(weights=weights)).classifier.predict([example(1, None, "hi")])
    assert sum(found.values) == pytest.approx(1.0)


def test_solving_in_the_span_of_the_rows_equals_solving_directly():
    rng = np.random.default_rng(0)
    rows = sp.csr_matrix(rng.normal(size=(12, 40)))
    targets = np.arange(12) % 3
    head = fit_head(rows, targets, np.ones(12), 3, c=1.0)
    plain = LogisticRegression(C=1.0, max_iter=5_000, tol=1e-8, class_weight="balanced").fit(rows, targets)
    np.testing.assert_allclose(head.coef, plain.coef_, atol=2e-3)


def test_temperature_restores_confidence():
    """Logits ten times too large: dividing by ten is the maximum-likelihood repair."""
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(4_000, 3))
    weights = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    targets = (weights.cumsum(axis=1) > rng.random((4_000, 1))).argmax(axis=1)
    assert fit_temperature(honest * 10, targets) == pytest.approx(10, rel=0.1)


def test_text_blocks_drop_links_and_digits():
    assert block_text(example(1, None, "ORDER １２3"), "last_user") == "hello order 000"


def test_names_fill_only_what_users_and_pictures_say():
    rows = Rows.of_names(["refund"], {})
    assert rows.texts["last_user"] == ["refund"]
    assert rows.texts["reply"] == [""]


def test_a_label_outside_the_set_is_refused():
    rows = [*training(3), example(9, "weather", "is it sunny")]
    with pytest.raises(ValueError, match="d9: label 'weather'"):
        fit_probe("intent", rows, LABELS, ProbeSettings(), np.zeros(4, dtype=np.int64))


def test_vectors_of_another_encoder_are_refused_with_the_way_out():
    with pytest.raises(ArtifactError, match="run fit_intent again"):
        fitted().classifier.predict([example(1, None, "hi", dim=5)])
