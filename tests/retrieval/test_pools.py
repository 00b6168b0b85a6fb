"""Pools: the right response exactly once, distractors that are wrong, and nothing that depends on order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.errors import ConfigError, CorpusError
from mmd.retrieval.pools import PoolKind, make_pools, no_distractors
from mmd.retrieval.ranks import RankCounts, rank_of_gold
from mmd.retrieval.types import Query, Response, Sample, SampleSet
from mmd.schema import Split, Turn

QUERY = Query((Turn("user", "hi"),))
MODALITIES = ("text", "image", "product")


def sample(number: int, modality: str, split: Split = "test", also: tuple[str, ...] = ()) -> Sample:
    return Sample(f"{split}{modality}{number}", f"d{number}", split, QUERY, modality, f"{modality}:{number}", also)


def response(number: int, modality: str, text: str | None = None) -> Response:
    words = f"{modality} {number}" if text is None else text
    return Response(f"{modality}:{number}", modality, words, words, "p" if modality == "image" else None)


def sample_set(test: int = 20, train: int = 10, catalogue: int = 40) -> SampleSet:
    """``test`` + ``train`` samples of each modality, numbered on; the catalogue has further products."""
    samples = [sample(i, m, "test" if i < test else "train") for i in range(test + train) for m in MODALITIES]
    responses = [response(i, m) for i in range(test + train) for m in MODALITIES]
    responses += [response(i, "product") for i in range(test + train, catalogue)]
    return SampleSet(tuple(samples), {r.id: r for r in responses}, MODALITIES)


def of_test(given: SampleSet) -> list[Sample]:
    return [s for s in given.samples if s.split == "test"]


def changed(given: SampleSet, *responses: Response) -> SampleSet:
    return replace(given, responses={**given.responses, **{r.id: r for r in responses}})


@pytest.mark.parametrize(("kind", "each"), [("union", 8), ("half", 4)])
def test_every_modality_has_its_share_and_the_right_response_is_there_once(kind: PoolKind, each: int):
    given = sample_set()
    for asked, pool in zip(of_test(given), make_pools(of_test(given), given, kind, 8, seed=0), strict=True):
        assert (pool.sample_id, pool.gold) == (asked.id, asked.response_id)
        assert Counter(c.partition(":")[0] for c in pool.candidates) == dict.fromkeys(MODALITIES, each)
        assert len(set(pool.candidates)) == 3 * each
        assert pool.candidates.count(pool.gold) == 1


def test_the_order_of_candidates_tells_nothing():
    given = sample_set()
    for pool in make_pools(of_test(given), given, "union", 8, seed=0):
        assert list(pool.candidates) == sorted(pool.candidates, key=lambda c: (c.partition(":")[0], c))


def test_the_whole_corpus_is_all_of_the_split_and_the_whole_catalogue():
    given = sample_set(test=20, train=10, catalogue=40)
    (pool,) = make_pools(of_test(given)[:1], given, "corpus", 2, seed=0)
    assert Counter(c.partition(":")[0] for c in pool.candidates) == {"text": 20, "image": 20, "product": 40}


def test_distractors_come_from_the_split_asked_for():
    given = sample_set()
    held = of_test(given)[:1]
    numbers = {
        split: {
            int(c.partition(":")[2]) for c in make_pools(held, given, "corpus", 2, 0, ["text"], split)[0].candidates
        }
        for split in ("test", "train", "all")
    }
    assert numbers == {"test": set(range(20)), "train": {0, *range(20, 30)}, "all": set(range(30))}


@given(st.randoms(), st.integers(0, 5))
def test_pools_depend_on_the_sample_not_on_the_order_or_company_of_samples(random: Random, seed: int):
    whole = sample_set(test=12, train=2, catalogue=20)
    straight = {p.sample_id: p for p in make_pools(of_test(whole), whole, "union", 6, seed)}
    order, ids = list(whole.samples), list(whole.responses)
    random.shuffle(order)
    random.shuffle(ids)
    shuffled = SampleSet(tuple(order), {r: whole.responses[r] for r in ids}, whole.modalities)
    some = of_test(shuffled)[:5]
    assert make_pools(some, shuffled, "union", 6, seed) == [straight[s.id] for s in some]


def test_another_seed_draws_otherwise():
    given = sample_set()
    assert make_pools(of_test(given), given, "union", 8, 0) != make_pools(of_test(given), given, "union", 8, 1)
    assert make_pools(of_test(given), given, "corpus", 8, 0) == make_pools(of_test(given), given, "corpus", 8, 1)


def test_larger_pools_hold_the_smaller_ones():
    given = sample_set()
    pools = [make_pools(of_test(given), given, "union", size, 0) for size in (2, 4, 8, 20)]
    pools.append(make_pools(of_test(given), given, "corpus", 2, 0))
    for smaller, larger in pairwise(pools):
        assert all(set(a.candidates) <= set(b.candidates) for a, b in zip(smaller, larger, strict=True))


def test_one_modality_is_drawn_alike_alone_and_among_others():
    given = sample_set()
    texts = [s for s in of_test(given) if s.modality == "text"]
    alone = make_pools(texts, given, "union", 8, 0, modalities=["text"])
    mixed = make_pools(texts, given, "union", 8, 0)
    assert [pool.candidates for pool in alone] == [
        tuple(c for c in pool.candidates if given.responses[c].modality == "text") for pool in mixed
    ]


def test_further_right_responses_and_what_looks_like_one_are_no_distractors():
    """Of 20 test texts number 1 is right, too, and 2 and 3 say the same as 0 and 1 in other letters."""
    same = (response(0, "text", "A red  mug"), response(1, "text", "blue"))
    alike = (response(2, "text", "a RED mug"), response(3, "text", "Blue"))
    given = changed(sample_set(), *same, *alike)
    asked = sample(0, "text", also=("text:1",))
    (pool,) = make_pools([asked], given, "corpus", 2, 0, ["text"])
    assert set(pool.candidates) == {"text:0"} | {f"text:{i}" for i in range(4, 20)}
    assert no_distractors([asked], given) == [{"text:0", "text:1", "text:2", "text:3"}]


def test_pictures_are_told_apart_by_their_description_whatever_encoders_may_read():
    described = [Response(f"image:{i}", "image", "a mug" if i < 2 else "", "", "p") for i in range(20)]
    given = changed(sample_set(), *described)
    pools = make_pools([sample(0, "image"), sample(5, "image")], given, "corpus", 2, 0, ["image"])
    assert [len(pool.candidates) for pool in pools] == [19, 20]


def test_a_text_and_a_product_of_the_same_words_are_two():
    given = changed(sample_set(), response(0, "text", "mug"), response(3, "product", "mug"))
    (pool,) = make_pools([sample(0, "text")], given, "corpus", 2, 0)
    assert "product:3" in pool.candidates


def test_random_scores_find_one_in_pool_size():
    given = sample_set(test=60, train=0, catalogue=60)
    rng = np.random.default_rng(0)
    pools = [pool for seed in range(20) for pool in make_pools(given.samples, given, "union", 10, seed)]
    ranks = [rank_of_gold(rng.normal(size=30), pool.candidates.index(pool.gold)) for pool in pools]
    assert RankCounts.of(ranks).recall(1).value == pytest.approx(1 / 30, abs=0.012)  # four standard deviations


# ---------------------------------------------------------------- bad input


def test_too_few_distractors_are_refused_with_the_way_out():
    given = sample_set(test=20)
    with pytest.raises(CorpusError, match=r"needs 29 distractors of modality text.*19 of 20.*pools\.size"):
        make_pools([sample(0, "text")], given, "union", 30, 0, ["text"])


def test_exactly_enough_distractors_are_enough():
    given = sample_set(test=20)
    (pool,) = make_pools([sample(0, "text")], given, "union", 20, 0, ["text"])
    assert len(pool.candidates) == 20


def test_a_sample_without_its_right_response_is_refused():
    with pytest.raises(CorpusError, match=r"testtext99.*text:99 is not among the responses"):
        make_pools([sample(99, "text")], sample_set(), "union", 4, 0)


def test_a_sample_of_a_modality_that_pools_leave_out_is_refused():
    with pytest.raises(ConfigError, match=r"of modality image, and pools mix text"):
        make_pools([sample(0, "image")], sample_set(), "union", 4, 0, ["text"])


def test_an_unknown_modality_is_refused():
    with pytest.raises(ConfigError, match=r"'smell'.*choose from"):
        make_pools([], sample_set(), "union", 4, 0, ["smell"])


@pytest.mark.parametrize(("kind", "size"), [("half", 1), ("union", 0)])
def test_a_size_without_room_is_refused(kind: PoolKind, size: int):
    with pytest.raises(ConfigError, match=f"pools.size={size}"):
        make_pools([], sample_set(), kind, size, 0)
