"""The report on recommending: what is measured, by hand; and a page that is complete, self-contained and discreet."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from mmd.evaluation.metrics import Confusion
from mmd.evaluation.recommend_findings import (
    REFERENCES,
    RecommendFindings,
    headline,
    hits_of,
    module_rows,
    part_words,
    speaker_row,
    to_json,
)
from mmd.evaluation.recommend_report import (
    RecommendContent,
    masses_by_place,
    module_table,
    outcome_of,
    pick_examples,
    pieces,
    render_recommend,
    speaker_table,
)
from mmd.evaluation.recommend_systems import (
    Speaker,
    after_mode,
    by_item_head,
    listen,
    rank_mentions,
    read_responses,
    token_words,
)
from mmd.recommend.generate import Generator
from mmd.recommend.graph import ItemGraph
from mmd.recommend.kgsf import KgsfBackbone
from mmd.recommend.replies import Emission, Reply, put_titles_in
from mmd.recommend.samples import mention_samples, response_samples
from mmd.recommend.settings import BackboneSettings, ConversationSettings, GenerationSettings
from mmd.recommend.types import Context, LinkedDialogue, LinkedTurn, Mode, Part
from mmd.recommend.words import WordTokenizer
from mmd.retrieval.ranks import MISS

TITLES = ("Alien <1979>", "Heat", "Up", "Jaws", "Big", "Ran")
SETTINGS = ConversationSettings(response_tokens=6, min_word_count=1)
TOKENIZER = WordTokenizer(("you", "should", "see", "i", "liked", "it", "yes", "hello", "great"), list("abcdef"))


def item_graph() -> ItemGraph:
    n = len(TITLES)
    return ItemGraph(
        entity_ids=tuple("abcdef"),
        entity_labels=TITLES,
        relations=("r",),
        edges=np.array([(0, 0, 1), (1, 0, 2)], dtype=np.int32),
        item_ids=tuple("abcdef"),
        item_titles=TITLES,
        item_entities=np.arange(n, dtype=np.int32),
    )


def user(*parts: Part) -> LinkedTurn:
    return LinkedTurn("user", parts, tuple(part for part in parts if isinstance(part, int)))


def agent(*parts: Part) -> LinkedTurn:
    return LinkedTurn("agent", parts, tuple(part for part in parts if isinstance(part, int)))


DIALOGUES = (
    LinkedDialogue("d1", "test", (user("i liked ", 0), agent("you should see ", 1), user("hello"), agent("great"))),
    LinkedDialogue("d2", "test", (user("hello"), agent("see ", 2, " yes ", 3), user("it"), agent("see ", 2))),
    LinkedDialogue("d3", "test", (user("i liked ", 4), agent("yes you should see it it it it it ", 5))),
)
SAMPLES = [sample for dialogue in DIALOGUES for sample in response_samples(dialogue, SETTINGS)]
MENTIONS = [m for dialogue in DIALOGUES for m in mention_samples(dialogue, SETTINGS, ("agent",))]


def reply(mode: Mode, *parts: Part, tops: Sequence[Sequence[int]] = ()) -> Reply:
    items = [part for part in parts if isinstance(part, int)]
    lists = [tuple(top) for top in tops] or [(item,) for item in items]
    text, spans = put_titles_in(parts, TITLES)
    return Reply(
        mode=mode,
        parts=parts,
        emissions=tuple(
            Emission(item, top, tuple(math.log(1 / len(top)) for _ in top))
            for item, top in zip(items, lists, strict=True)
        ),
        text=text,
        spans=spans,
        token_ids=(TOKENIZER.space.rec, TOKENIZER.space.eos),
        ms=4.0,
        item_mass=(0.0, 0.25),
        mode_probability=0.75,
    )


REPLIES = (
    reply("rec", "see ", 1),  # d1#1: right
    reply("gen", "great"),  # d1#3: talk, rightly
    reply("rec", 4, " yes ", 5, tops=((4, 3, 0), (5, 1))),  # d2#1: 3 is second at the first place
    reply("gen", "yes"),  # d2#3: nothing named; 2 would be right, and was mentioned before
    reply("rec", 4, tops=((4, 5),)),  # d3#1: names what the context mentions; 5 comes second
)
STUDENT = Speaker("student", REPLIES, ms_alone=(3.0, 5.0, 9.0))


def kgsf() -> KgsfBackbone:
    return KgsfBackbone(TOKENIZER.space, item_graph(), BackboneSettings(dim=16, hidden=32), seed=0).eval()


def generator() -> Generator:
    return Generator(kgsf(), TOKENIZER, item_graph(), GenerationSettings(batch=2), SETTINGS)


# ---------------------------------------------------------------- rankers


def test_mentions_are_ranked_among_all_items_and_among_those_not_mentioned():
    """Scores fall with the item's number: item i has rank i + 1; d1 mentions 0 before 1, so 1 is first among the rest.

    d2 mentions 2 before its second 2, which has no rank among the others.
    """
    ranked = rank_mentions("falling", lambda contexts: np.tile(-np.arange(6.0), (len(contexts), 1)), MENTIONS)
    assert [mention.item for mention in MENTIONS] == [1, 2, 3, 2, 5]
    assert ranked.ranks.tolist() == [2, 3, 4, 3, 6]
    assert ranked.open_ranks.tolist() == [1, 3, 4, MISS, 5]


def test_module_rows_by_hand():
    """Of five mentions none is first and all are within ten; of the four novel ones one is first among the rest."""
    ranked = rank_mentions("falling", lambda contexts: np.tile(-np.arange(6.0), (len(contexts), 1)), MENTIONS)
    rows = {row.subset: row for row in module_rows(MENTIONS, [ranked], 20, 0)}
    assert {subset: row.n for subset, row in rows.items()} == {"all": 5, "novel": 4, "novel, open": 4}
    assert (rows["all"].recall[1].value, rows["all"].recall[10].value) == (0.0, 1.0)
    assert rows["novel, open"].recall[1].value == 1 / 4


def test_no_mentions_no_ranks():
    ranked = rank_mentions("none", lambda contexts: np.zeros((len(contexts), 6)), [])
    assert module_rows([], [ranked], 10, 0)[0].recall[1].value == 0.0


def test_scorers_of_a_speaker_score_every_item_by_context():
    contexts = [sample.context for sample in SAMPLES]
    for scorer in (after_mode(generator()), by_item_head(generator())):
        scores = scorer(contexts)
        assert scores.shape == (len(contexts), len(TITLES))
        np.testing.assert_allclose(scores[1:2], scorer(contexts[1:2]), atol=1e-4)


def test_what_is_named_first_is_what_the_scorer_after_the_mode_ranks_first():
    """A reply that begins with an item names the one that stands first after the token of recommendation."""
    model = generator()
    with_items = model.backbone
    with_items.bias.data[with_items.space.items] += 50.0  # items alone are worth saying
    replies = model.replies(SAMPLES, ["rec"] * len(SAMPLES))
    scores = after_mode(model)([sample.context for sample in SAMPLES])
    assert [reply.items[0] for reply in replies] == scores.argmax(1).tolist()


# ---------------------------------------------------------------- readings


def test_a_reading_is_the_backbones_own_likelihood_and_does_not_depend_on_batches():
    model = generator()
    reading = read_responses(model.backbone, model.maker, SAMPLES, batch=2)
    whole = read_responses(model.backbone, model.maker, SAMPLES, batch=99)
    for some, all_ in zip(reading.likelihoods, whole.likelihoods, strict=True):
        assert (some.nll, some.tokens) == (pytest.approx(all_.nll, rel=1e-4), all_.tokens)
    assert reading.places == whole.places
    batch = model.maker(SAMPLES[:1])
    log_probs = model.backbone.logits(batch).log_softmax(-1)[0]
    expected = -log_probs.gather(1, batch.target[0][:, None]).sum()
    assert reading.likelihoods[0].nll == pytest.approx(expected.item(), rel=1e-4)


def test_a_reading_tells_words_items_and_what_was_cut():
    """d1#1 is [REC] you should see @1 [end]: six tokens, three words, one item."""
    model = generator()
    reading = read_responses(model.backbone, model.maker, SAMPLES)
    assert (reading.likelihoods[0].tokens, reading.of_words[0].tokens) == (6, 3)
    assert reading.traces[0].tokens == ("you", "should", "see", "@1", "")
    assert reading.traces[0].is_item == (False, False, False, True, False)
    # d3#1 is cut before its item, which is a miss; the other mentions have ranks.
    assert set(reading.places) == {"d1#1.1", "d2#1.1", "d2#1.2", "d2#3.1"}
    assert reading.ranked("place", MENTIONS).ranks.tolist()[-1] == MISS
    assert reading.places["d2#3.1"][1] == MISS


def test_tokens_as_words():
    space = TOKENIZER.space
    ids = [space.rec, *TOKENIZER.encode_text("you liked"), space.token_of(3), space.eos]
    assert token_words(ids, TOKENIZER) == ["", "you", "liked", "@3", ""]


# ---------------------------------------------------------------- speakers


def test_a_speakers_row_by_hand():
    """Golds: 1 | – | 2, 3 | 2 | 5: five; named: 1 | – | 4, 5 | – | 4: four, one of them right at k = 1.

    At k = 10 the lists 4 3 0 and 4 5 hold 3 and 5: three golds found, three lists right.
    """
    row = speaker_row(STUDENT, SAMPLES, 20, 0)
    micro, response = row.items[1]["micro"], row.items[1]["response"]
    assert (micro["ReR"].value, micro["PrR"].value) == (1 / 5, 1 / 4)
    assert micro["F1"].value == pytest.approx(2 * (1 / 20) / (9 / 20))
    assert (response["ReR"].value, response["PrR"].value) == (1 / 4, 1 / 3)
    assert (row.items[10]["micro"]["ReR"].value, row.items[10]["micro"]["PrR"].value) == (3 / 5, 3 / 4)
    assert row.item_ratio.value == 3 / 5
    assert row.modes == Confusion.of(["rec", "gen", "rec", "rec", "rec"], ["rec", "gen", "rec", "gen", "rec"])
    assert row.ms_per_token == (2.0, 5.0)
    # see @1 | great | @4 yes @5 | yes | @4: bigrams see-@1, @4-yes, yes-@5
    assert row.distinct[2] == (3 / 5, 3 / 3)
    assert row.words == (2 + 1 + 3 + 1 + 1) / 5
    assert (row.perplexity, row.gate_auc) == (None, None)


def test_novel_items_leave_out_what_the_context_mentions_on_both_sides():
    """d2#3's gold 2 and d3#1's named 4 were mentioned before: golds 1 | 2, 3 | 5, named 1 | 4, 5."""
    total = sum(hits_of(STUDENT, SAMPLES, 1, novel=True)[1:], hits_of(STUDENT, SAMPLES, 1, novel=True)[0])
    assert (total.golds, total.lists, total.found) == (4, 3, 1)


def test_right_responses_have_words_and_items_but_no_score():
    row = speaker_row(Speaker(REFERENCES, None), SAMPLES, 20, 0)
    assert (row.items, row.modes, row.ms_per_token) == ({}, None, None)
    assert row.item_ratio.value == 4 / 5


def test_given_modes_are_no_decisions():
    model = generator()
    speaker = listen("given", model, SAMPLES, gold_modes=True)
    row = speaker_row(speaker, SAMPLES, 20, 0)
    assert [reply.mode for reply in speaker.replies or ()] == [sample.mode for sample in SAMPLES]
    assert (row.modes, row.perplexity) == (None, None)


def test_listening_measures_time_and_reads():
    row = speaker_row(listen("student", generator(), SAMPLES, timed=3), SAMPLES, 20, 0)
    assert row.ms_per_token is not None
    assert row.ms_per_token[0] > 0
    assert (row.ms_per_token[1] or 0) > 0
    assert row.perplexity is not None
    assert row.perplexity.value > 1
    assert 0 <= (row.gate_auc or 0) <= 1


def test_words_of_parts_are_lower_cased_and_an_item_is_one():
    assert part_words(("See it, ", 3, "!")) == ["see", "it", ",", "@3", "!"]


# ---------------------------------------------------------------- report


def test_outcomes():
    expected = ["named", "talk", "among ten", "none named", "among ten"]
    assert [outcome_of(s, r) for s, r in zip(SAMPLES, REPLIES, strict=True)] == expected
    assert outcome_of(SAMPLES[1], REPLIES[0]) == "unasked"
    assert outcome_of(SAMPLES[0], reply("rec", 5)) == "another"


def test_examples_take_outcomes_in_turn():
    found = pick_examples(SAMPLES, STUDENT, [STUDENT], 4, seed=0)
    assert {example.outcome for example in found} == {"named", "among ten", "none named", "talk"}
    assert found[0].others["student"] == found[0].reply
    assert len(pick_examples(SAMPLES, STUDENT, [], 99, seed=0)) == len(SAMPLES)
    assert pick_examples([], Speaker("student", ()), [], 3, seed=0) == []


def content() -> RecommendContent:
    model = generator()
    read = listen("dialogue teacher", model, SAMPLES)
    ranked = rank_mentions("student", after_mode(model), MENTIONS)
    speakers = [STUDENT, read, Speaker(REFERENCES, None)]
    findings = RecommendFindings(
        split="test",
        mentions=MENTIONS,
        responses=SAMPLES,
        modules=module_rows(MENTIONS, [ranked], 20, 0),
        speakers=[speaker_row(speaker, SAMPLES, 20, 0) for speaker in speakers],
        parameters={"student": 12_345},
    )
    return RecommendContent(
        name="films",
        student="kgsf, soft gate",
        findings=findings,
        examples=pick_examples(SAMPLES, STUDENT, [read], 5, seed=0),
        masses=masses_by_place(read.reading.traces if read.reading else ()),
        provenance={"student": "student/films@1"},
        resamples=20,
        notes=["A note."],
    )


def test_the_page_shows_everything_and_loads_nothing():
    page = render_recommend(content(), item_graph(), TOKENIZER, show=True)
    for words in (
        "Recommending in conversation",
        "films",
        "kgsf, soft gate",
        "12,345",
        "F1@1",
        "right item named",
        "A note.",
    ):
        assert words in page
    assert "Alien &lt;1979&gt;" in page
    assert "<1979>" not in page, "titles are data, never markup"
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "default-src 'none'" in page


def test_words_of_dialogues_stay_out_unless_they_may_be_shown():
    page = render_recommend(content(), item_graph(), TOKENIZER, show=False)
    assert "Alien" not in page
    assert "you should see" not in page
    assert "evaluation.show_dialogues" in page


def test_pieces_join_to_the_text_and_know_the_right_items():
    found = pieces(("see ", 1, " or ", 2), TITLES, frozenset({2}))
    assert [(p["text"], p["item"], p["right"]) for p in found] == [
        ("see ", False, False),
        ("Heat", True, False),
        (" or ", False, False),
        ("Up", True, True),
    ]


def test_numbers_are_plain_json_and_tables_have_a_row_a_system():
    findings = content().findings
    metrics = json.loads(json.dumps(to_json(findings), allow_nan=False))
    assert metrics["mentions"] == {"all": 5, "novel": 4}
    assert metrics["responses"] == {"all": 5, "that name an item": 4}
    student = metrics["speakers"][0]
    assert student["items"]["micro"]["ReR@1"]["value"] == 1 / 5
    assert student["novel_items"]["micro"]["ReR@1"]["value"] == 1 / 4
    assert student["mode_accuracy"] == 4 / 5
    assert headline(findings)["student, F1@1"] == student["items"]["micro"]["F1@1"]["value"]
    assert len(speaker_table(findings).columns) == 1 + 3
    assert module_table(findings).row_count == 1


def test_a_corpus_that_never_recommends_can_be_rendered():
    """No mention, no item: zeros and dashes, no division by zero."""
    silent = [s for s in SAMPLES if s.mode == "gen"]
    speaker = Speaker("student", (reply("gen", "great"),))
    findings = RecommendFindings("test", [], silent, module_rows([], [], 10, 0), [speaker_row(speaker, silent, 10, 0)])
    page = render_recommend(
        RecommendContent("quiet", "kgsf", findings, (), None, {}, 10), item_graph(), TOKENIZER, show=True
    )
    assert "quiet" in page


def test_a_context_without_turns_is_no_obstacle():
    assert generator().answer([Context((user("hello"),), (), ())])[0].parts
