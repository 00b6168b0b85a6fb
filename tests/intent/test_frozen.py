"""The head on a frozen model's hidden states: what is read, what is fitted, what is held out, what is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from mmd.artifacts import ArtifactStore
from mmd.errors import ArtifactError, ModelError
from mmd.intent.frozen import (
    SPANS,
    FrozenHead,
    FrozenMllmClassifier,
    FrozenTask,
    columns_of,
    dialogue_pieces,
    fit_blocks,
    fit_frozen,
    fit_head,
    plain_words,
    read_samples,
    save_heads,
)
from mmd.intent.mllm import MllmIndex, MllmTask, load_held_out, load_mllm_classifiers, save_held_out, save_mllm_index
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.settings import FrozenSettings, PromptSettings, SpanWeights
from mmd.intent.types import ImageFacts, IntentExample
from mmd.models.hidden import Piece, SpanStates
from mmd.models.mllm import Mllm, load_mllm
from mmd.schema import OcrLine, Turn

LABELS = ("refund", "season", "which size fits")
SAYINGS = {"refund": "i want my money back", "season": "can i wear this in summer", "which size fits": "i am tall"}
SETTINGS = FrozenSettings()
TASK = FrozenTask("intent", LABELS, SETTINGS)
BASE = "tiny-llama"
ASKED = [
    IntentExample("a", "intent", None, (Turn("user", "give me my money back please"),)),
    IntentExample("b", "intent", None, (Turn("user", "in summer?"), Turn("agent", "in spring"))),
    IntentExample("c", "intent", None, (Turn("user", ""),)),
]
HINTS = ["refund (5 of 6): the customer's last message contains money", "", ""]


def picture(*lines: str) -> ImageFacts:
    return ImageFacts("p", 9, 9, ocr=tuple(OcrLine(line, 1.0, (0.0, 0.0, 1.0, 1.0)) for line in lines))


def make_samples(n: int = 24) -> list[Sample]:
    out = []
    for i in range(n):
        label = LABELS[i % 3]
        turns = [Turn("user", "hello"), Turn("agent", "welcome"), Turn("user", f"{SAYINGS[label]} {'!' * (i % 5)}")]
        if i % 2:
            turns.append(Turn("agent", f"about {label}: one moment"))
        hint = f"{label} (5 of 6)" if i % 4 == 0 else ""
        example = IntentExample(f"d{i:02d}", "intent", label, tuple(turns))
        out.append(Sample(f"d{i:02d}", f"d{i:02d}", ORIGINAL, i // 3 % 4, hint, example))
    return out


@pytest.fixture(scope="module")
def states() -> SpanStates:
    return SpanStates(load_mllm(BASE), 0.5)


# ---------------------------------------------------------------- hidden states


def test_states_are_those_of_the_whole_model_after_the_layer(states: SpanStates):
    """Spans begin and end where their pieces do; the forward pass is congruent with output_hidden_states."""
    encoder, model = states.mllm.encoder, states.mllm.model
    first, second = encoder.text_ids("User: "), encoder.text_ids("is it warm")
    ids = torch.tensor([encoder.start_ids() + first + second])
    with torch.no_grad():
        full = model(input_ids=ids, output_hidden_states=True).hidden_states[states.layer]
    start = ids.shape[1] - len(second)
    found = states.means([[Piece("User: "), Piece("is it warm", "said")]])[0]
    assert states.layer < model.config.num_hidden_layers
    assert found.keys() == {"said"}
    np.testing.assert_allclose(found["said"], full[0, start:].mean(0), atol=1e-6)


def test_states_do_not_depend_on_neighbours_in_the_batch(states: SpanStates):
    texts = [[Piece("word " * n, "said")] for n in (1, 40, 7, 300, 2)]
    together = states.means(texts)
    for text, found in zip(texts, together, strict=True):
        np.testing.assert_allclose(found["said"], states.means([text])[0]["said"], atol=1e-5)


def test_upper_layers_are_not_run(states: SpanStates):
    def refuse(*_: object) -> None:
        raise AssertionError

    handle = states.mllm.core.get_decoder().layers[states.layer].register_forward_hook(refuse)
    try:
        assert states.means([[Piece("hello", "said")]])
    finally:
        handle.remove()
    assert states.mllm.hidden(states.mllm.to_device({"input_ids": torch.tensor([[1, 2]])})).shape[:2] == (1, 2)


def test_a_piece_keeps_its_first_tokens_and_empty_spans_are_left_out(states: SpanStates):
    first = states.mllm.encoder.text_ids("money back")[:2]
    assert len(first) == 2
    cut, whole = states.means([[Piece("money back", "a", 2)], [Piece("money back", "a"), Piece("", "b")]])
    assert whole.keys() == {"a"}
    assert not np.allclose(cut["a"], whole["a"])


def test_text_that_is_cut_here_is_not_warned_of(states: SpanStates, caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        states.means([[Piece("word " * states.mllm.encoder.tokenizer.model_max_length, "said", 8)]])
    finally:
        logger.removeHandler(caplog.handler)
    assert "longer than the specified" not in caplog.text


def test_text_that_people_wrote_holds_no_control_token(states: SpanStates):
    encoder = states.mllm.encoder
    special = {token.content for token in encoder.tokenizer.added_tokens_decoder.values()}
    ids = encoder.text_ids(" ".join(special))
    assert not set(ids) & set(encoder.tokenizer.all_special_ids)


def test_pictures_models_read_the_text_alone():
    seen = SpanStates(load_mllm("tiny-qwen2-vl"), 0.5).means([[Piece("hello", "said")]])
    assert np.isfinite(seen[0]["said"]).all()


# ---------------------------------------------------------------- what is read


def spelled(example: IntentExample, hint: str = "") -> str:
    return "".join(piece.text for piece in dialogue_pieces(example, SETTINGS, labels=LABELS, hint=hint))


def test_a_hint_and_printed_text_come_before_the_last_turn():
    turns = (Turn("user", "hi"), Turn("agent", "hello"), Turn("user", "too big"), Turn("agent", "how tall?"))
    text = spelled(IntentExample("x", "intent", None, turns, (picture("SIZE 42", "x"),)), "refund (5 of 6)")
    order = ["User: hi", "Agent: hello", "refund (5 of 6)", "Printed text: SIZE 0", "User: too big", "Agent: how tall?"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_printed_text_is_the_message_where_the_user_says_nothing():
    pieces = dialogue_pieces(
        IntentExample("x", "scene", None, (Turn("user", "<image>"),), (picture("订单已发货", "退款"),)),
        SETTINGS,
        labels=("图片",),
    )
    assert [(p.text, p.span) for p in pieces][-1] == ("订单已发货|退款", "shown")
    assert not {"last_user", "reply", "printed"} & {p.span for p in pieces}


def test_numbers_and_tags_are_taken_out():
    assert plain_words("see <http>  it costs ¥12.50\nor 3") == "see it costs 0 or 0"


# ---------------------------------------------------------------- the head


def random_rows(rng: np.random.Generator, n: int, dim: int = 40) -> dict[str, np.ndarray]:
    rows = {span: rng.normal(size=(n, dim)).astype(np.float32) for span in SPANS}
    rows["reply"][::3] = 0
    rows["hint"][:] = 0
    return rows


@pytest.mark.parametrize("name_weight", [0.0, 1.0, 2.5])
def test_head_is_the_class_balanced_kernel_ridge(name_weight: float):
    """Dual form by scikit-learn's KernelRidge, where a row's weight divides its part of the regularisation."""
    rng = np.random.default_rng(0)
    settings = FrozenSettings(name_weight=name_weight, ridge=0.3)
    rows, names, new = random_rows(rng, 17), random_rows(rng, 3), random_rows(rng, 5)
    targets = np.array([0] * 9 + [1] * 5 + [2] * 3)
    blocks = fit_blocks(rows, settings)
    x, y, weights = columns_of(blocks, rows), targets, np.ones(17)
    if name_weight:
        x, y = np.vstack([x, columns_of(blocks, names)]), np.concatenate([y, np.arange(3)])
        weights = np.concatenate([weights, np.full(3, name_weight)])
    totals = np.array([weights[y == k].sum() for k in range(3)])
    weights = weights / totals[y]
    goals = np.eye(3)[y]
    wanted = KernelRidge(alpha=0.3).fit(x, goals - goals.mean(0), sample_weight=weights / weights.mean())
    found = fit_head(rows, targets, names, settings).scores(new)
    np.testing.assert_allclose(found, 10 * wanted.predict(columns_of(blocks, new)), atol=1e-6)


def test_blocks_are_standardised_over_rows_that_have_the_span():
    rows = random_rows(np.random.default_rng(1), 12)
    blocks = {block.span: block for block in fit_blocks(rows, SETTINGS)}
    assert blocks.keys() == {"last_user", "reply", "shown"}  # printed has no weight, nobody has a hint
    there = np.any(rows["reply"] != 0, axis=1)
    np.testing.assert_allclose(blocks["reply"].mean, rows["reply"][there].mean(0), atol=1e-6)
    columns = blocks["reply"].columns(rows["reply"])
    np.testing.assert_allclose(np.linalg.norm(columns, axis=1), np.where(there, 0.7, 0.0), atol=1e-9)


def test_a_label_without_example_is_known_by_its_name(states: SpanStates):
    samples = [sample for sample in make_samples() if sample.example.label != "season"]
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    asked = [replace(ASKED[0], turns=(Turn("user", "season"),))]
    found = FrozenMllmClassifier(TASK, states, fitted.plain, fitted.hinted).predict(asked)[0]
    assert found.best[0] == "season"


def test_without_weights_every_label_is_alike():
    rows = random_rows(np.random.default_rng(2), 6)
    off = FrozenSettings(weights=SpanWeights(last_user=0, reply=0, shown=0, hint=0))
    head = fit_head(rows, np.array([0, 1, 2, 0, 1, 2]), random_rows(np.random.default_rng(3), 3), off)
    np.testing.assert_allclose(np.exp(head.log_likelihoods(rows)), 1 / 3)


# ---------------------------------------------------------------- held out


def test_an_example_s_own_label_changes_nothing_in_what_is_said_of_it(states: SpanStates):
    """Only the temperature, one number for the whole task, may look at it: orders and ratios of scores stay."""
    samples = make_samples()
    rows = read_samples(states.means, states.dim, samples, TASK)
    place = 5
    turned = [*samples]
    turned[place] = replace(samples[place], example=replace(samples[place].example, label="refund"))
    assert samples[place].example.label != "refund"
    before, after = fit_frozen(samples, rows, TASK), fit_frozen(turned, rows, TASK)
    own = samples[place].id
    ratio = before.plain.temperature / after.plain.temperature
    first, second = (np.array(fitted.held_out[own].plain) for fitted in (before, after))
    np.testing.assert_allclose((first - first[0]) * ratio, second - second[0], atol=1e-9)
    other = next(s.id for s in samples if s.fold != samples[place].fold)
    gaps = [np.diff(f.held_out[other].plain) * f.plain.temperature for f in (before, after)]
    assert not np.allclose(gaps[0], gaps[1], atol=1e-6)


def test_every_original_is_held_out_once_and_an_empty_hint_changes_nothing(states: SpanStates):
    samples = make_samples()
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    assert {(key, score.fold) for key, score in fitted.held_out.items()} == {(s.id, s.fold) for s in samples}
    for sample in samples:
        score = fitted.held_out[sample.id]
        assert (score.plain == score.hinted) == (not sample.hint)
        assert np.isclose(np.exp(score.plain).sum(), 1)


def test_one_fold_alone_holds_nothing_out(states: SpanStates):
    samples = [replace(sample, fold=0) for sample in make_samples(6)]
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    assert not fitted.held_out
    assert fitted.plain.temperature == 1.0


def test_fitting_twice_gives_the_same_numbers(states: SpanStates):
    samples = make_samples()
    first, second = (fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK) for _ in "12")
    assert first.held_out == second.held_out
    np.testing.assert_array_equal(first.hinted.coef, second.hinted.coef)


# ---------------------------------------------------------------- the classifier and its artefact


@pytest.fixture(scope="module")
def classifier(states: SpanStates) -> FrozenMllmClassifier:
    samples = make_samples()
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    return FrozenMllmClassifier(TASK, states, fitted.plain, fitted.hinted)


def test_an_empty_hint_asks_what_predict_asks(classifier: FrozenMllmClassifier):
    assert classifier.predict_hinted(ASKED, ["", "", ""]) == classifier.predict(ASKED)
    told, plain = classifier.log_likelihoods(ASKED, HINTS), classifier.log_likelihoods(ASKED)
    assert not np.allclose(told[0], plain[0], atol=0.1)
    np.testing.assert_allclose(told[1:], plain[1:], atol=1e-2)  # temperatures of clear-cut examples are tiny
    assert classifier.predict([]) == []


def test_hints_and_examples_must_be_as_many(classifier: FrozenMllmClassifier):
    with pytest.raises(ValueError, match="argument"):
        classifier.predict_hinted(ASKED, ["one"])


def write_artifact(folder: Path, mllm: Mllm, head_layer: int | None = None) -> ArtifactStore:
    store, samples = ArtifactStore(str(folder)), make_samples()
    states = SpanStates(mllm, SETTINGS.layer)
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    with store.write("adapter", "words", settings={}) as writer:
        save_heads(writer, "intent", fitted, TASK, head_layer or states.layer)
        save_held_out(writer, {"intent": fitted.held_out})
        entries: Mapping[str, MllmTask] = {"intent": MllmTask(folder="intent", labels=LABELS, temperature=1.0)}
        save_mllm_index(writer, MllmIndex(base=BASE, method="frozen", prompt=PromptSettings(), tasks=dict(entries)))
    return store


def test_a_stored_head_answers_as_the_one_that_was_stored(tmp_path: Path):
    mllm = load_mllm(BASE)
    samples = make_samples()
    states = SpanStates(mllm, SETTINGS.layer)
    fitted = fit_frozen(samples, read_samples(states.means, states.dim, samples, TASK), TASK)
    artifact = write_artifact(tmp_path, mllm).open("adapter/words")
    loaded = load_mllm_classifiers(artifact)["intent"]
    assert not loaded.needs_pictures
    own = FrozenMllmClassifier(TASK, states, fitted.plain, fitted.hinted)
    for found, wanted in zip(loaded.predict_hinted(ASKED, HINTS), own.predict_hinted(ASKED, HINTS), strict=True):
        np.testing.assert_allclose(found.values, wanted.values, atol=1e-9)
    held_out = load_held_out(artifact, "intent")
    assert held_out is not None
    for key, score in fitted.held_out.items():
        np.testing.assert_allclose(held_out.plain[key].values, np.exp(score.plain), atol=1e-9)
        np.testing.assert_allclose(held_out.hinted[key].values, np.exp(score.hinted), atol=1e-9)


def test_a_head_of_another_layer_is_refused(tmp_path: Path):
    artifact = write_artifact(tmp_path, load_mllm(BASE), head_layer=99).open("adapter/words")
    with pytest.raises(ArtifactError, match="run `mmd finetune_mllm` again"):
        load_mllm_classifiers(artifact)


def test_a_model_without_stacked_layers_is_refused():
    class Bare:
        name = "bare"

        class core:  # noqa: N801 (stands for an attribute)
            @staticmethod
            def get_decoder() -> None:
                return None

    with pytest.raises(ModelError, match="stacked layers"):
        SpanStates(Bare(), 0.5)  # type: ignore[arg-type]


def test_scores_of_a_head_are_divided_by_its_temperature():
    rows = random_rows(np.random.default_rng(4), 3)
    head = FrozenHead((), np.zeros((2, 0)), 2.0)
    np.testing.assert_allclose(head.log_likelihoods(rows), np.log(0.5))
