"""Generation: nothing is invented, a batch is its rows alone, a stream is its reply, beams find what search finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.recommend.backbone import Backbone, DecoderState
from mmd.recommend.backbones import build_backbone, build_tokenizer
from mmd.recommend.batches import DialogueBatch
from mmd.recommend.drafts import draw, emission_of
from mmd.recommend.generate import Generator
from mmd.recommend.graph import ItemGraph
from mmd.recommend.kgsf import KgsfBackbone
from mmd.recommend.lm_tokens import LmTokenizer
from mmd.recommend.replies import Reply
from mmd.recommend.settings import BackboneSettings, ConversationSettings, GenerationSettings
from mmd.recommend.types import Context, LinkedTurn, Mode, Part, ResponseSample
from mmd.recommend.words import WordTokenizer

TITLES = ("Alien", "Heat", "花样年华", "", "Up", "Jaws")
WORDS = ("you", "should", "see", "it", ".", "!", "片", "子")
TOKENIZER = WordTokenizer(WORDS, [f"m{i}" for i in range(len(TITLES))])
SPACE = TOKENIZER.space
METHODS = ("greedy", "beam", "sample")


def item_graph() -> ItemGraph:
    """Six films, one without a title, in a ring of two relations."""
    n = len(TITLES)
    edges = np.array(sorted((i, i % 2, (i + 1) % n) for i in range(n)), dtype=np.int32)
    ids = tuple(f"m{i}" for i in range(n))
    return ItemGraph(
        entity_ids=ids,
        entity_labels=TITLES,
        relations=("r0", "r1"),
        edges=edges,
        item_ids=ids,
        item_titles=TITLES,
        item_entities=np.arange(n, dtype=np.int32),
    )


@dataclass(frozen=True)
class Last(DecoderState):
    """Remembers nothing: the next token depends on the last one and on the context's length."""

    tables: torch.Tensor

    def select(self, rows: torch.Tensor) -> Last:
        return Last(self.tables[rows])


class Chain(Backbone[Any]):
    """A Markov chain over tokens: logits[length of the context % tables, last token]."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(SPACE)
        self.table = torch.nn.Parameter(logits)

    def start(self, batch: DialogueBatch) -> Last:
        return Last(batch.context_mask.sum(1) % len(self.table))

    def step(self, state: Last, tokens: torch.Tensor) -> tuple[torch.Tensor, Last]:
        return self.table[state.tables, tokens], state

    def _not_asked(self, *_: Any) -> Any:
        raise AssertionError

    states = head = item_head = memory = _not_asked


def chain(seed: int = 0, scale: float = 2.0, tables: int = 3) -> Chain:
    generator = torch.Generator().manual_seed(seed)
    return Chain(torch.randn(tables, SPACE.size, SPACE.size, generator=generator) * scale)


def kgsf(seed: int = 0) -> KgsfBackbone:
    shape = BackboneSettings(dim=16, hidden=32, heads=2, layers=2)
    backbone = KgsfBackbone(SPACE, item_graph(), shape, seed)
    with torch.no_grad():  # fresh weights say the same whatever the context
        for weight in backbone.parameters():
            if weight.dim() > 1:
                weight.mul_(3.0)
    return backbone


def generator(
    backbone: Backbone[Any],
    method: Literal["greedy", "beam", "sample"] = "greedy",
    *,
    most: int = 8,
    mode_tokens: bool = True,
    **changes: Any,
) -> Generator:
    conversations = ConversationSettings(response_tokens=most, mode_tokens=mode_tokens)
    decoding = GenerationSettings(method=method, **{"batch": 4, "beams": 3, **changes})
    return Generator(backbone, TOKENIZER, item_graph(), decoding, conversations)


@lru_cache
def language_model() -> tuple[LmTokenizer, Backbone[Any]]:
    """A causal language model of random weights, which says whatever bytes come."""
    shape = BackboneSettings(kind="lm", model="tiny-llama")
    tokenizer = build_tokenizer(shape, ConversationSettings(), (), item_graph())
    backbone = build_backbone(shape, tokenizer, item_graph(), seed=3)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.dim() > 1:
                weight.mul_(4.0)
    assert isinstance(tokenizer, LmTokenizer)
    return tokenizer, backbone


def lm_generator(method: Literal["greedy", "beam", "sample"], batch: int = 4) -> Generator:
    tokenizer, backbone = language_model()
    decoding = GenerationSettings(method=method, batch=batch, beams=2)
    return Generator(backbone, tokenizer, item_graph(), decoding, ConversationSettings(response_tokens=8))


def contexts(count: int) -> list[Context]:
    """Contexts of different lengths, each with an item."""
    made = []
    for number in range(count):
        words: tuple[Part, ...] = (" ".join(WORDS[: 1 + number % 4]), number % len(TITLES), "see" * (number % 2))
        entity = number % len(TITLES)
        made.append(Context((LinkedTurn("user", words, (entity,)),) * (1 + number % 3), (entity,), (entity,)))
    return made


def samples(count: int) -> list[ResponseSample]:
    return [
        ResponseSample(f"d{n}#1", f"d{n}", "test", context, LinkedTurn("agent", ("it",), ()))
        for n, context in enumerate(contexts(count))
    ]


def without_time(replies: Sequence[Reply]) -> list[tuple[Any, ...]]:
    return [(r.mode, r.parts, r.items, [e.top for e in r.emissions], r.text, r.spans, r.tokens) for r in replies]


def broken_rules(reply: Reply, most: int = 8) -> list[str]:
    """Return the rules of every reply that this one breaks."""
    items = [part for part in reply.parts if isinstance(part, int)]
    masses, emissions = reply.item_mass, reply.emissions
    sums = [sum(map(math.exp, emission.log_probs)) for emission in emissions]  # all six items fit into the list
    rules = {
        "it says something": bool(reply.parts),
        "its items are those of its parts": tuple(items) == reply.items,
        "no item comes twice": len(set(items)) == len(items),
        "no item is invented": all(0 <= item < len(TITLES) for item in items),
        "talk names no item": reply.mode != "gen" or not items,
        "no control token and no unknown word is said": "[" not in reply.text,
        "it ends in time": reply.tokens <= most + 2,
        "each token has an item mass in [0, 1]": len(masses) == reply.tokens and all(0.0 <= m <= 1.0 for m in masses),
        "what is named was among the likeliest": all(emission.item in emission.top for emission in emissions),
        "probabilities of items sum to 1": sums == pytest.approx([1.0] * len(sums), abs=1e-4),
        "likelier items come first": all(list(e.log_probs) == sorted(e.log_probs, reverse=True) for e in emissions),
    }
    return [rule for rule, holds in rules.items() if not holds]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.booleans())
def test_whatever_the_model_wants_no_reply_breaks_the_rules(seed: int, method: Any, mode_tokens: bool):  # noqa: FBT001 (hypothesis gives it)
    model = generator(chain(seed, scale=4.0), method, mode_tokens=mode_tokens)
    assert [broken_rules(reply) for reply in model.replies(samples(5))] == [[]] * 5


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_wants_items_names_none_in_gen_mode_and_each_once_in_rec_mode(method: Any):
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, :, SPACE.items] = 9.0
    model = generator(Chain(logits), method, most=10)
    talk = model.replies(samples(3), gold_modes=["gen"] * 3)
    assert [(reply.mode, reply.items) for reply in talk] == [("gen", ())] * 3
    named = model.replies(samples(3), gold_modes=["rec"] * 3)
    assert all(reply.mode == "rec" and sorted(reply.items) == list(range(len(TITLES))) for reply in named)
    # Each place still has the items that are left in mind.
    assert [len(emission.top) for emission in named[0].emissions] == [6, 5, 4, 3, 2, 1]


def test_a_circle_is_left_where_no_sequence_may_come_twice():
    """The likeliest word after "see" is "it", after "it" "see"; "." comes next, and the end after that."""
    see, it, stop = (TOKENIZER.encode_text(word)[0] for word in ("see", "it", "."))
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[0, :, see] = 2.0
    logits[0, see, it], logits[0, see, stop], logits[0, it, see], logits[0, it, stop] = 9.0, 5.0, 9.0, 5.0
    logits[0, stop, SPACE.eos] = 9.0
    said = {
        length: generator(Chain(logits), no_repeat=length).replies(samples(1), gold_modes=["gen"])[0].text
        for length in (0, 1, 2, 3)
    }
    assert said == {0: "See it see it see it see it", 1: "See it.", 2: "See it see.", 3: "See it see it."}


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.integers(1, 4))
def test_no_sequence_of_the_forbidden_length_comes_twice(seed: int, method: Any, length: int):
    model = generator(chain(seed, scale=4.0), method, most=12, no_repeat=length)
    for reply in model.replies(samples(4)):
        assert broken_rules(reply, most=12) == []
        tokens = reply.token_ids
        sequences = [tokens[at : at + length] for at in range(len(tokens) - length + 1)]
        assert len(set(sequences)) == len(sequences)


def test_the_likelier_mode_is_decoded_and_gold_modes_replace_it():
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, SPACE.bos, SPACE.rec], logits[:, SPACE.bos, SPACE.gen] = 1.0, 0.5
    logits[:, :, SPACE.eos] = 5.0  # also wanted first; the mode comes first all the same
    model = generator(Chain(logits))
    said = model.replies(samples(3))
    assert [reply.mode for reply in said] == ["rec"] * 3
    assert said[0].mode_probability == pytest.approx(1 / (1 + math.exp(-0.5)))  # whatever the end would like
    modes: list[Mode] = ["gen", "rec", "gen"]
    assert [reply.mode for reply in model.replies(samples(3), gold_modes=modes)] == modes


def test_without_mode_tokens_a_reply_that_names_an_item_recommends():
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, SPACE.bos, SPACE.first_item + 4] = 5.0
    logits[:, SPACE.first_item + 4, SPACE.eos] = 5.0
    reply = generator(Chain(logits), mode_tokens=False).replies(samples(1))[0]
    assert (reply.mode, reply.parts, reply.text, reply.tokens) == ("rec", (4,), "Up", 2)
    assert reply.mode_probability is None


@pytest.mark.parametrize("method", METHODS)
def test_a_given_mode_holds_without_mode_tokens(method: Any):
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, :, SPACE.items] = 9.0
    model = generator(Chain(logits), method, mode_tokens=False)
    assert all(reply.items for reply in model.replies(samples(3)))
    modes: list[Mode] = ["gen", "rec", "gen"]
    told = model.replies(samples(3), gold_modes=modes)
    assert [(reply.mode, bool(reply.items)) for reply in told] == [("gen", False), ("rec", True), ("gen", False)]
    assert all(reply.mode_probability is None and reply.tokens <= 8 for reply in told), "no token says the mode"
    assert not {SPACE.rec, SPACE.gen}.intersection(token for reply in told for token in reply.token_ids)
    first, *_, last = model.stream(contexts(1)[0], gold_mode="gen")
    assert (first.kind, first.mode) == ("mode", "gen")
    assert last.reply is not None
    assert last.reply.items == ()


def test_an_item_without_a_title_is_called_by_its_id():
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, SPACE.rec, SPACE.first_item + 3] = 5.0
    logits[:, SPACE.first_item + 3, SPACE.eos] = 5.0
    assert generator(Chain(logits)).replies(samples(1), gold_modes=["rec"])[0].text == "m3"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [chain, kgsf])
def test_a_batch_of_replies_is_every_reply_alone(method: Any, make: Any):
    given = samples(7)
    together = generator(make(1), method, batch=4).replies(given)
    alone = [reply for sample in given for reply in generator(make(1), method, batch=1).replies([sample])]
    assert without_time(together) == without_time(alone)
    assert len({reply.text for reply in together}) > 1, "replies differ, so the test sees something"


@pytest.mark.parametrize("make", [chain, kgsf])
def test_one_beam_is_greedy(make: Any):
    given = samples(6)
    assert without_time(generator(make(2), "beam", beams=1).replies(given)) == without_time(
        generator(make(2)).replies(given)
    )


def exhaustive(table: torch.Tensor, spoken: Sequence[int], most: int, start: int) -> tuple[int, ...]:
    """Return the tokens of the best reply after a token, by mean log-probability among what the rules allow."""
    best, found = -math.inf, ()
    for length in range(1, most + 1):
        for said in itertools.product(spoken, repeat=length):
            tokens = said if length == most else (*said, SPACE.eos)
            score, before = 0.0, start
            for place, token in enumerate(tokens):
                allowed = [*spoken] if place == 0 else [*spoken, SPACE.eos]
                score += float(table[before, token] - table[before, allowed].logsumexp(0))
                before = token
            if score / len(tokens) > best:
                best, found = score / len(tokens), tokens
    return found


@pytest.mark.parametrize("mode_tokens", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_beams_enough_for_everything_find_the_best_of_all_replies(seed: int, mode_tokens: bool):  # noqa: FBT001 (pytest gives it)
    model = chain(seed, scale=1.0, tables=1)
    spoken = TOKENIZER.encode_text("you should see it")
    with torch.no_grad():
        unsaid = [token for token in range(SPACE.n_words) if token not in {*spoken, *TOKENIZER.control}]
        model.table[:, :, unsaid] = -math.inf
    wide = generator(model, "beam", most=4, beams=1_000, mode_tokens=mode_tokens)
    [reply] = wide.answer(contexts(1), gold_modes=["gen"])
    expected = exhaustive(model.table[0].detach(), spoken, 4, SPACE.gen if mode_tokens else SPACE.bos)
    assert reply.parts == tuple(TOKENIZER.decode(expected))
    assert reply.tokens == len(expected) + mode_tokens


def test_fifty_items_are_left_of_a_place_without_fifty_that_were_mentioned():
    emission = emission_of(0, -torch.arange(200.0))
    mentioned = set(emission.top[:50])
    assert len([item for item in emission.top if item not in mentioned]) == 50


def test_draws_follow_the_shares_within_the_nucleus():
    """Shares .5 .3 .15 .05 and top_p .8: the first two alone, at 5/8 and 3/8."""
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(8_000, 4)
    uniforms = ((np.arange(8_000) + 0.5) / 8_000).tolist()
    drawn = torch.bincount(draw(logits, 0.8, 1.0, uniforms), minlength=4) / 8_000
    assert drawn.tolist() == pytest.approx([3 / 8, 0, 5 / 8, 0], abs=1e-3)
    whole = torch.bincount(draw(logits, 1.0, 1.0, uniforms), minlength=4) / 8_000
    assert whole.tolist() == pytest.approx([0.3, 0.05, 0.5, 0.15], abs=1e-3)


def test_a_nucleus_of_nothing_and_no_heat_are_greedy():
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    uniforms = np.random.default_rng(0).random(20).tolist()
    assert draw(logits, 1e-9, 1.0, uniforms).tolist() == logits.argmax(1).tolist()
    assert draw(logits, 1.0, 1e-3, uniforms).tolist() == logits.argmax(1).tolist()


def test_samples_depend_on_seed_and_key_alone():
    model = chain(3)
    first = without_time(generator(model, "sample").replies(samples(6)))
    assert first == without_time(generator(model, "sample").replies(samples(6)))
    other = Generator(
        model, TOKENIZER, item_graph(), GenerationSettings(method="sample"), ConversationSettings(), seed=1
    )
    assert first != without_time(other.replies(samples(6)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [chain, kgsf])
def test_a_stream_tells_the_reply_piece_by_piece(method: Any, make: Any):
    model = generator(make(4), method)
    for sample, whole in zip(samples(6), model.replies(samples(6)), strict=True):
        events = list(model.stream(sample.context, sample.id))
        assert events[0].kind == "mode"
        assert events[0].mode == whole.mode
        assert events[0].mode_probability == pytest.approx(whole.mode_probability)
        assert events[-1].kind == "end"
        assert without_time([events[-1].reply]) == without_time([whole])  # type: ignore[list-item]
        assert "".join(event.text for event in events) == whole.text
        named = [event for event in events if event.kind == "item"]
        assert [event.emission for event in named] == list(events[-1].reply.emissions)  # type: ignore[union-attr]
        assert [event.text for event in named] == [whole.text[span.start : span.end] for span in whole.spans]


def test_a_stream_speaks_before_it_has_ended():
    logits = torch.zeros(1, SPACE.size, SPACE.size)
    logits[:, :, SPACE.first_item - 1] = 3.0  # one character of Chinese over and over
    stream = generator(Chain(logits)).stream(contexts(1)[0])
    assert [next(stream).kind for _ in range(3)] == ["mode", "text", "text"]


@pytest.mark.parametrize("method", METHODS)
def test_a_language_model_keeps_the_same_rules_in_batches_and_in_streams(method: Any):
    given = samples(5)
    together = lm_generator(method).replies(given)
    assert [broken_rules(reply) for reply in together] == [[]] * 5
    assert len({reply.text for reply in together}) > 1
    alone = lm_generator(method, batch=1)
    assert without_time(together) == without_time([alone.replies([sample])[0] for sample in given])
    for sample, whole in zip(given, together, strict=True):
        events = list(alone.stream(sample.context, sample.id))
        assert "".join(event.text for event in events) == whole.text
        assert [event.emission.item for event in events if event.emission] == list(whole.items)


def test_no_contexts_no_replies():
    assert generator(chain()).replies([]) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_pads_with_its_end_can_end(method: Any):
    """As GPT-2 and SmolLM2, which have no padding of their own."""
    backbone = chain()
    backbone.space = replace(SPACE, pad=SPACE.eos, silent=tuple(t for t in SPACE.silent if t != SPACE.eos))
    with torch.no_grad():
        backbone.table[..., SPACE.eos] = 50.0
    replies = generator(backbone, method).replies(samples(6))
    assert {len(reply.token_ids) for reply in replies} == {3}  # the mode, a word or an item, the end
