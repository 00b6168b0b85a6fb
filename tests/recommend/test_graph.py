"""The item graph: pruning strictly above the limit, an entity for every item, nothing dropped without a count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmd.artifacts import ArtifactStore
from mmd.corpora.base import Graph
from mmd.errors import ArtifactError, CorpusError
from mmd.recommend.graph import ItemGraph, build_counted, build_item_graph, load_graph, save_graph
from mmd.recommend.settings import GraphSettings
from mmd.schema import Entity, Item, ItemLink, Triple

ALL = GraphSettings(min_relation_edges=0)


def entities(*ids: str) -> tuple[Entity, ...]:
    return tuple(Entity(entity_id, f"label of {entity_id}", "thing") for entity_id in ids)


def items(*ids: str) -> dict[str, Item]:
    return {item_id: Item(item_id, f"title of {item_id}") for item_id in ids}


def star(relation: str, edges: int) -> tuple[Triple, ...]:
    """``edges`` edges of one relation from e0."""
    return tuple(Triple("e0", relation, f"e{number}") for number in range(1, edges + 1))


def graph_of(*triples: Triple, links: tuple[ItemLink, ...] = (), count: int = 12) -> Graph:
    return Graph(entities(*(f"e{number}" for number in range(count))), triples, links)


def test_a_relation_is_kept_only_with_more_edges_than_the_limit():
    """3 edges of a, 4 of b: with a limit of 3, b alone is kept."""
    given = graph_of(*star("a", 3), *star("b", 4))
    settings = GraphSettings(min_relation_edges=3, min_relation_share=1.0)
    graph = build_item_graph(given, items("i"), settings)
    assert graph.relations == ("b",)
    assert graph.edges.tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4]]


def test_in_a_large_graph_a_relation_needs_more_than_a_thousand_edges():
    """101,001 edges, of which a hundredth is 1,010: with the defaults 1,001 edges are kept, 1,000 are not."""
    at_most, above = star("a", 1_000), star("b", 1_001)
    rest = tuple(Triple(f"e{head}", "c", f"e{tail}") for head in range(1, 100) for tail in range(100, 1_100))
    graph, counts = build_counted(graph_of(*at_most, *above, *rest, count=1_101), items("i"), GraphSettings())
    assert counts.edges_given == 101_001
    assert graph.relations == ("b", "c")
    assert counts.edges_kept == 100_001


def test_in_a_small_graph_a_relation_is_kept_by_its_share():
    """3 of 12 edges are more than a fifth, 1 of 12 is not; nothing has 1,000 edges."""
    given = graph_of(*star("a", 3), *star("b", 8), *star("c", 1))
    graph = build_item_graph(given, items("i"), GraphSettings(min_relation_edges=1_000, min_relation_share=0.2))
    assert graph.relations == ("a", "b")


def test_edges_are_sorted_and_unique_and_what_goes_is_counted():
    given = graph_of(
        Triple("e2", "a", "e1"),
        Triple("e0", "a", "e1"),
        Triple("e0", "a", "e1"),  # repeated
        Triple("e3", "a", "e3"),  # an entity with itself
        Triple("e3", "a", "nobody"),  # unknown
    )
    graph, counts = build_counted(given, items("i"), ALL)
    assert graph.edges.tolist() == [[0, 0, 1], [2, 0, 1]]
    assert graph.edges.dtype == np.int32
    assert (counts.edges_given, counts.edges_repeated, counts.edges_to_self, counts.edges_to_unknown) == (5, 1, 1, 1)
    assert counts.edges_kept == 2


def test_the_order_in_which_the_corpus_gives_edges_does_not_matter():
    triples = [*star("a", 4), *star("b", 3)]
    forward, backward = (build_item_graph(graph_of(*order), items("i"), ALL) for order in (triples, triples[::-1]))
    assert forward.relations == backward.relations
    np.testing.assert_array_equal(forward.edges, backward.edges)


def test_an_item_without_a_link_gets_an_entity_of_its_own_behind_the_others():
    given = graph_of(links=(ItemLink("linked", "e1"),), count=3)
    graph, counts = build_counted(given, items("alone", "linked"), ALL)
    assert graph.entity_ids == ("e0", "e1", "e2", "item:alone")
    assert graph.item_entities.tolist() == [3, 1]
    assert graph.item_of_entity.tolist() == [-1, 1, -1, 0]
    assert counts.items_without_link == 1


def test_an_own_entity_never_takes_an_id_that_the_corpus_uses():
    given = Graph(entities("item:i"))
    graph = build_item_graph(given, items("i"), ALL)
    assert graph.entity_ids == ("item:i", "item:item:i")
    assert graph.item_entities.tolist() == [1]


def test_links_that_name_nothing_known_or_an_item_again_are_counted_and_not_taken():
    links = (ItemLink("i", "nobody"), ItemLink("j", "e0"), ItemLink("i", "e1"), ItemLink("i", "e2"))
    graph, counts = build_counted(graph_of(links=links), items("i"), ALL)
    assert graph.item_entities.tolist() == [1]
    assert counts.links_unusable == 3


def test_items_that_share_an_entity_are_told_apart_by_item():
    graph = build_item_graph(graph_of(links=(ItemLink("i", "e1"), ItemLink("j", "e1"))), items("i", "j"), ALL)
    assert graph.item_entities.tolist() == [1, 1]
    assert graph.item_of_entity[1] == 0  # the first of them


def test_a_catalogue_without_a_graph_is_a_graph_without_edges():
    graph = build_item_graph(Graph(), items("i", "j"), GraphSettings())
    assert (graph.n_entities, graph.n_items, graph.n_relations) == (2, 2, 0)
    assert graph.edges.shape == (0, 3)


def test_a_corpus_without_items_is_refused_with_the_way_out():
    with pytest.raises(CorpusError, match=r"no items.*docs/data\.md.*recommend\.enabled=false"):
        build_item_graph(graph_of(*star("a", 3)), {}, GraphSettings())


def test_an_item_without_a_title_is_called_by_its_entity_or_its_id():
    given = graph_of(links=(ItemLink("i", "e1"),), count=2)
    graph, counts = build_counted(given, {"i": Item("i", " "), "j": Item("j", "")}, ALL)
    assert [graph.title(0), graph.title(1)] == ["label of e1", "j"]
    assert counts.items_without_title == 2


def test_without_edges_everything_else_stays():
    graph = build_item_graph(graph_of(*star("a", 4), links=(ItemLink("i", "e1"),)), items("i"), ALL)
    bare = graph.without_edges()
    assert (bare.n_relations, bare.edges.shape) == (0, (0, 3))
    assert (bare.entity_ids, bare.item_ids) == (graph.entity_ids, graph.item_ids)


def assert_equal(a: ItemGraph, b: ItemGraph) -> None:
    np.testing.assert_array_equal(a.edges, b.edges)
    np.testing.assert_array_equal(a.item_entities, b.item_entities)
    assert (a.entity_ids, a.entity_labels, a.relations) == (b.entity_ids, b.entity_labels, b.relations)
    assert (a.item_ids, a.item_titles, a.item_aliases) == (b.item_ids, b.item_titles, b.item_aliases)


@pytest.mark.parametrize("triples", [star("a", 4), ()])
def test_a_saved_graph_loads_equal(tmp_path: Path, triples: tuple[Triple, ...]):
    store = ArtifactStore(str(tmp_path))
    known = {"i": Item("i", "Mug", {"title_zh": "马克杯"}), "j": Item("j", "")}
    graph = build_item_graph(graph_of(*triples), known, ALL)
    with store.write("graph", "g", settings={}) as writer:
        save_graph(writer, graph)
    assert_equal(load_graph(store.open("graph/g")), graph)
    assert load_graph(store.open("graph/g")).fingerprint() == graph.fingerprint()
    assert graph.item_aliases == (("马克杯",), ())


def test_an_artefact_of_another_kind_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("corpus", "c", settings={}) as writer:
        writer.write_json("x.json", {})
    with pytest.raises(ArtifactError, match="mmd build_graph"):
        load_graph(store.open("corpus/c"))


def test_graphs_that_differ_in_anything_have_other_fingerprints():
    given = graph_of(*star("a", 2), links=(ItemLink("i", "e1"), ItemLink("j", "e2")))
    graph = build_item_graph(given, items("i", "j"), ALL)
    again = build_item_graph(given, items("i", "j"), ALL)
    assert again.fingerprint() == graph.fingerprint()
    others = [
        replace(graph, entity_ids=graph.entity_ids[::-1]),
        replace(graph, entity_labels=graph.entity_labels[::-1]),
        replace(graph, relations=("b",)),
        replace(graph, edges=graph.edges[:1]),
        replace(graph, edges=graph.edges[:, ::-1].copy()),
        replace(graph, item_ids=("j", "i")),
        replace(graph, item_titles=("", "")),
        replace(graph, item_entities=graph.item_entities[::-1].copy()),
        replace(graph, item_aliases=(("another name",), ())),
    ]
    assert len({graph.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)
