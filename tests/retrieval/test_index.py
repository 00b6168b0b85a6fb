"""The index of responses against plain numpy: same answers, whatever was added, deleted, saved or spread before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmd.artifacts import Artifact, ArtifactStore
from mmd.errors import ArtifactError, ConfigError, RequestError
from mmd.retrieval.gpu import GpuCopy, gpus
from mmd.retrieval.index import Found, ResponseIndex
from mmd.retrieval.sharded import ShardedIndex, load_index, merge_top_k, shard_folder
from mmd.retrieval.structures import KINDS, Choice, Vectors, choose_kind, describe_kind
from mmd.retrieval.tuning import Truth, build_index

DIM = 16


def unit(n: int, dim: int = DIM, seed: int = 0) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def names(n: int) -> list[str]:
    return [f"text:{i:05d}" for i in range(n)]


def brute_force(known: dict[str, Vectors], queries: Vectors, k: int) -> list[list[str]]:
    """Rank by falling score, ties by id."""
    out = []
    for query in queries:
        ranked = sorted((-float(np.float32(vector @ query)), name) for name, vector in known.items())
        out.append([name for _, name in ranked[:k]])
    return out


def built(kind: str, n: int = 2000, recall: float = 0.95) -> ResponseIndex:
    return build_index(names(n), unit(n), describe_kind(kind, n, DIM), recall=recall, threads=1)  # type: ignore[arg-type]


def saved(tmp_path: Path, index: ResponseIndex, folder: str = "text") -> Artifact:
    store = ArtifactStore(str(tmp_path / "store"))
    with store.write("index", "x", settings={"folder": folder, "ids": len(index)}) as writer:
        index.save(writer, folder)
    return store.open("index/x")


def test_the_three_nearest_of_six_vectors():
    """Cosines with (1, 0): 1, 0.8, 0.6, 0, −0.6, −1."""
    index = ResponseIndex(2)
    index.add(list("abcdef"), [[-1, 0], [0.6, 0.8], [1, 0], [0, 1], [0.8, -0.6], [-0.6, 0.8]])
    ids, scores = index.search([[1, 0]], 3)
    assert ids == [["c", "e", "b"]]
    np.testing.assert_allclose(scores, [[1, 0.8, 0.6]], rtol=1e-6)


def test_ties_go_by_id_even_where_only_some_of_them_fit():
    index = ResponseIndex(2)
    order = [f"{i:02d}" for i in np.random.default_rng(0).permutation(60)]
    index.add(order, [[1, 0]] * 60)
    index.add(["first", "last"], [[1.0, 0.1], [0, 1]])
    assert index.search([[1, 0.1]], 4).ids == [["first", "00", "01", "02"]]
    assert index.search([[1, 0]], 70).ids[0][:3] == ["00", "01", "02"]


def test_thousands_of_ties_are_settled_by_id(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmd.retrieval.index._BLOCK_SLOTS", 10_000)  # fewer queries at a time, as with millions
    index = ResponseIndex(2)
    order = np.random.default_rng(0).permutation(2000)
    index.add([f"{i:05d}" for i in order], [[1, 0]] * 2000)
    assert index.search([[1, 0]] * 50, 2).ids == [["00000", "00001"]] * 50


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_gives_all_there_are(kind: str):
    index = built(kind, 400)
    ids, scores = index.search(unit(3, seed=1), 1000)
    assert [len(row) for row in ids] == [400, 400, 400]
    assert set(ids[0]) == set(names(400))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_an_empty_index_finds_nothing():
    index = ResponseIndex(DIM)
    ids, scores = index.search(unit(2), 5)
    assert ids == [[], []]
    assert scores.shape == (2, 0)
    assert index.search(np.empty((0, DIM)), 5).ids == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_deleted_never_comes_back(kind: str):
    index = built(kind)
    queries = unit(20, seed=1)
    gone = {row[0] for row in index.search(queries, 1).ids}
    index.delete(sorted(gone))
    for k in (1, 10, 2000):
        assert not gone & {name for row in index.search(queries, k).ids for name in row}
    assert len(index) == 2000 - len(gone)
    assert not any(name in index for name in gone)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_added_is_found_without_rebuilding(kind: str):
    index = built(kind)
    new = unit(5, seed=9)
    index.add(["a", "b", "c", "d", "e"], new)
    assert [row[0] for row in index.search(new, 1).ids] == ["a", "b", "c", "d", "e"]


def test_a_deleted_id_may_be_added_again_with_another_vector():
    index = ResponseIndex(2)
    index.add(["a", "b"], [[1, 0], [0, 1]])
    index.delete(["a"])
    index.add(["a"], [[-1, 0]])
    np.testing.assert_array_equal(index.search([[1, 0]], 2).scores, [[0, -1]])
    np.testing.assert_array_equal(index.vectors(["a"]), [[-1, 0]])


def test_many_deleted_ask_for_a_rebuild():
    index = built("hnsw", 400)
    index.delete(names(80))
    assert (index.deleted, index.wants_rebuild) == (80, False)
    index.delete(names(81)[80:])
    assert index.wants_rebuild


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_as_it_did(kind: str, tmp_path: Path):
    index, queries = built(kind), unit(30, seed=1)
    index.delete(names(2000)[::7])
    before = index.search(queries, 10)
    after = ResponseIndex.load(saved(tmp_path, index), "text", threads=1)
    assert after.search(queries, 10).ids == before.ids
    np.testing.assert_array_equal(after.search(queries, 10).scores, before.scores)
    assert (len(after), after.kind, after.tuned) == (len(index), index.kind, index.tuned)
    after.add(["new"], queries[:1])
    assert after.search(queries[:1], 1).ids == [["new"]]


def test_an_empty_index_can_be_saved(tmp_path: Path):
    again = ResponseIndex.load(saved(tmp_path, ResponseIndex(DIM)), "text")
    again.add(["a"], unit(1))
    assert again.search(unit(1), 1).ids == [["a"]]


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.95), ("ivf_flat", 0.95), ("sq8", 0.95), ("ivf_pq", 0.4)])
def test_recall_of_tuned_structures_against_exact_search(kind: str, least: float):
    """Uniform vectors are the worst case: product codes of 5 bytes a vector of 16 numbers keep little of them."""
    vectors, queries = unit(5000), unit(300, seed=1)
    index = build_index(names(5000), vectors, describe_kind(kind, 5000, DIM), recall=least, threads=1)  # type: ignore[arg-type]
    truth = Truth.of(queries, vectors)
    rows = np.array([[int(name[5:]) for name in row] for row in index.search(queries, 10).ids])
    assert truth.recalls(rows).mean() >= least - 0.02
    assert index.tuned.recall >= least - 0.02
    assert index.tuned.queries == 500


def test_recall_counts_ties_as_right():
    """Of three equal vectors two are wanted: any two are right. Of one found and one wrong, half is."""
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    truth = Truth.of(np.array([[1, 0]], np.float32), vectors, depth=2)
    assert truth.recalls(np.array([[1, 2]])).tolist() == [1.0]
    assert truth.recalls(np.array([[0, 3]])).tolist() == [0.5]
    assert truth.recalls(np.array([[0, -1]])).tolist() == [0.5]


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30), st.integers(0, 6)),
        st.tuples(st.just("delete"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("search"), st.integers(1, 12), st.integers(0, 6)),
    ),
    max_size=40,
)
GRID = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0.6, 0.8], [0.8, 0.6], [-0.6, 0.8]], np.float32)
"""Few vectors, so that ties abound."""


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES, shards=st.integers(1, 3))
def test_any_sequence_of_changes_answers_as_a_dictionary_does(changes: list[tuple[str, int, int]], shards: int):
    index = ShardedIndex([ResponseIndex(2, threads=1) for _ in range(shards)])
    known: dict[str, Vectors] = {}
    for what, number, vector in changes:
        name = f"{number:02d}"
        if what == "search":
            assert index.search(GRID[[vector]], number).ids == brute_force(known, GRID[[vector]], number)
        elif what == "add" and name not in known:
            index.add([name], GRID[[vector]])
            known[name] = GRID[vector]
        elif what == "delete" and name in known:
            index.delete([name])
            del known[name]
        assert len(index) == len(known)


def test_flat_equals_brute_force_on_random_vectors():
    vectors, queries = unit(500), unit(50, seed=1)
    index = built("flat", 500)
    assert index.search(queries, 10).ids == brute_force(dict(zip(names(500), vectors, strict=True)), queries, 10)


# ---------------------------------------------------------------- copies on GPUs


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "sq8", "ivf_pq"])
def test_a_copy_that_knows_no_selectors_answers_as_the_structure(kind: str):
    """The copy is FAISS's own clone, on the CPU: what is under test is how deleted and added vectors are met."""
    import faiss

    index, queries = built(kind), unit(40, seed=1)
    copied = GpuCopy(index.kind, faiss.clone_index)
    for step in ("as built", "deleted", "added"):
        index.gpu = None
        if step == "deleted":
            index.delete(names(500)[100:])
        if step == "added":
            index.add(["new"], queries[:1])
        plain = index.search(queries, 10)
        index.gpu = copied
        assert index.search(queries, 10).ids == plain.ids, step
    assert index.search(queries[:1], 1).ids == [["new"]]


def test_a_copy_leaves_to_the_structure_what_it_cannot_do():
    def no_memory(index: object) -> object:
        raise RuntimeError("out of memory")

    index = built("flat", 3000)
    expected = index.search(unit(2, seed=1), 2900).ids
    index.gpu = GpuCopy("flat", no_memory)
    assert index.search(unit(2, seed=1), 2900).ids == expected
    assert index.search(unit(2, seed=1), 5).ids == [row[:5] for row in expected]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "sq8"])
def test_a_gpu_answers_as_the_structure(kind: str):
    assert gpus() > 0, "needs faiss-gpu and a device"
    index, queries = built(kind), unit(40, seed=1)
    on_gpu = index.search(queries, 10)
    index.gpu = None
    assert on_gpu.ids == index.search(queries, 10).ids


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_parts_together_answer_as_the_whole(shards: int):
    vectors, queries = unit(700), unit(40, seed=1)
    vectors[::3] = vectors[0]  # ties across parts
    whole, parts = ResponseIndex(DIM), ShardedIndex([ResponseIndex(DIM) for _ in range(shards)])
    for index in (whole, parts):
        index.add(names(700), vectors)
        index.delete(names(700)[5:50])
    for k in (1, 10, 900):
        one, many = whole.search(queries, k), parts.search(queries, k)
        assert many.ids == one.ids
        np.testing.assert_array_equal(many.scores, one.scores)


def test_merging_orders_by_score_then_id():
    parts = [
        Found([["b", "d"]], np.array([[0.9, 0.1]], np.float32)),
        Found([["a", "c"]], np.array([[0.9, 0.5]], np.float32)),
        Found([[]], np.empty((1, 0), np.float32)),
    ]
    ids, scores = merge_top_k(parts, 3)
    assert ids == [["a", "b", "c"]]
    np.testing.assert_array_equal(scores, np.array([[0.9, 0.9, 0.5]], np.float32))
    assert merge_top_k(parts, 10).ids == [["a", "b", "c", "d"]]
    assert merge_top_k([], 3).ids == []


def test_merging_different_questions_is_refused():
    one, two = (Found([[]] * n, np.empty((n, 0), np.float32)) for n in (1, 2))
    with pytest.raises(RequestError, match=r"answered \[1, 2\] queries"):
        merge_top_k([one, two], 3)


def test_parts_are_loaded_from_an_artefact(tmp_path: Path):
    vectors, queries = unit(60), unit(5, seed=1)
    parts = ShardedIndex([ResponseIndex(DIM, encoder="e") for _ in range(3)])
    parts.add(names(60), vectors)
    store = ArtifactStore(str(tmp_path))
    with store.write("index", "x", settings={}) as writer:
        writer.write_json("text/shards.json", {"shards": 3})
        for shard, part in enumerate(parts.parts):
            part.save(writer, shard_folder("text", shard))
    loaded = load_index(store.open("index/x"), "text", encoder="e")
    assert loaded.search(queries, 7).ids == parts.search(queries, 7).ids
    with pytest.raises(ArtifactError, match="no index of modality 'image'"):
        load_index(store.open("index/x"), "image")


# ---------------------------------------------------------------- what is refused


def test_another_encoders_index_is_refused(tmp_path: Path):
    index = ResponseIndex(DIM, encoder="0123456789abcdef")
    artifact = saved(tmp_path, index)
    assert ResponseIndex.load(artifact, "text", encoder="0123456789abcdef").encoder == index.encoder
    with pytest.raises(ArtifactError, match=r"'0123456789ab', not of 'ffff'; run `mmd build_index`"):
        ResponseIndex.load(artifact, "text", encoder="ffff")


def test_vectors_of_another_size_or_not_finite_are_refused():
    index = ResponseIndex(DIM)
    with pytest.raises(RequestError, match=r"vectors of shape \(2, 3\); this index takes \(n, 16\)"):
        index.add(["a", "b"], np.ones((2, 3)))
    with pytest.raises(RequestError, match="queries of shape"):
        index.search(np.ones(DIM), 1)
    broken = np.ones((3, DIM))
    broken[1, 4] = np.nan
    with pytest.raises(RequestError, match="row 1 of the vectors holds NaN"):
        index.add(["a", "b", "c"], broken)
    assert len(index) == 0


def test_ids_must_be_new_and_one_a_vector():
    index = ResponseIndex(DIM)
    index.add(["a"], unit(1))
    with pytest.raises(RequestError, match="'a' is there already"):
        index.add(["b", "a"], unit(2))
    with pytest.raises(RequestError, match="'c' is there already or given twice"):
        index.add(["c", "c"], unit(2))
    with pytest.raises(RequestError, match="1 ids for 2 vectors"):
        index.add(["d"], unit(2))
    assert index.ids() == ["a"]


def test_deleting_what_is_not_there_deletes_nothing():
    index = ResponseIndex(DIM)
    index.add(["a", "b"], unit(2))
    with pytest.raises(RequestError, match="the first is 'x'"):
        index.delete(["a", "x"])
    assert len(index) == 2
    with pytest.raises(RequestError, match="no response 'x'"):
        index.vectors(["x"])


def test_asking_for_none_is_refused():
    with pytest.raises(RequestError, match="at least 1"):
        ResponseIndex(DIM).search(unit(1), 0)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("n", "memory_mb", "recall", "kind"),
    [
        (1_000, 2048, 0.95, "flat"),
        (1_000_000, 2048, 0.95, "hnsw"),
        (1_000_000, 1500, 0.95, "ivf_flat"),
        (1_000_000, 1000, 0.95, "sq8"),
        (1_000_000, 200, 0.95, "ivf_pq"),
        (1_000_000, 2048, 1.0, "flat"),
    ],
)
def test_structures_are_chosen_by_size_and_memory(n: int, memory_mb: int, recall: float, kind: str):
    choice = choose_kind(n, 384, memory_mb, recall)
    assert choice.kind == kind
    assert choice.bytes <= memory_mb * 2**20
    assert f"{n:,} vectors" in choice.reason or recall == 1.0


def test_a_gpu_makes_exact_search_of_a_million_the_choice():
    assert choose_kind(1_000_000, 384, 2048, 0.95, gpus=1).kind == "flat"
    assert choose_kind(1_000_000, 384, 1000, 0.95, gpus=1).kind == "sq8"


def test_what_fits_nowhere_is_refused_with_the_ways_out():
    with pytest.raises(ConfigError, match=r"raise it or spread the index over more processes with index\.shards"):
        choose_kind(1_000_000, 384, 100, 0.95)
    with pytest.raises(ConfigError, match=r"index\.recall=1 asks for"):
        choose_kind(1_000_000, 384, 1000, 1.0)


def test_product_codes_take_no_more_than_an_eighth_of_the_floats():
    choice = describe_kind("ivf_pq", 1_000_000, 384)
    assert choice.bytes / (1_000_000 * 384 * 4) <= 1 / 8


def test_structures_that_learn_refuse_too_few_vectors():
    with pytest.raises(ConfigError, match="at least 256 vectors, there are 100; take flat, hnsw or auto"):
        describe_kind("ivf_pq", 100, DIM)
    index = ResponseIndex(DIM, Choice("ivf_flat", {"lists": 64}))
    with pytest.raises(ConfigError, match="planned for more than the 10 vectors"):
        index.add(names(10), unit(10))
