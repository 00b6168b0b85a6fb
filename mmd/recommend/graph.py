"""The item graph: entities, the typed edges among them, and which entity stands for which item.

Everything is a position here: entity ``e`` is ``entity_ids[e]``, relation ``r`` is ``relations[r]``, item ``i`` is
``item_ids[i]``. Every item has an entity; those that the corpus links to none get one of their own behind the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmd.artifacts import Artifact, ArtifactWriter, fingerprint
from mmd.corpora.base import Graph
from mmd.errors import CorpusError
from mmd.recommend.settings import GraphSettings
from mmd.schema import Item, ItemLink

Edges = NDArray[np.int32]
"""Shape (n_edges, 3): head, relation, tail; sorted, each once."""

ENTITIES = pa.schema([("id", pa.string()), ("label", pa.string())])
RELATIONS = pa.schema([("id", pa.string())])
EDGES = pa.schema([("head", pa.int32()), ("relation", pa.int32()), ("tail", pa.int32())])
ITEMS = pa.schema(
    [("id", pa.string()), ("title", pa.string()), ("entity", pa.int32()), ("aliases", pa.list_(pa.string()))]
)
OWN_ENTITY = "item:"
"""Prefix of the id of an entity that was made for an item without a link."""


@dataclass(frozen=True)
class ItemGraph:
    """An item graph.

    Attributes:
        entity_ids: of the corpus, then of items without a link.
        entity_labels: names, one an entity; may repeat.
        relations: ids of the kept relations.
        edges: (n_edges, 3) int32: head, relation, tail; as given, not doubled; sorted, unique, no entity with itself.
        item_ids: in catalogue order.
        item_titles: one an item; empty where the catalogue has none.
        item_entities: (n_items,) int32, the entity of each item; several items may share one.
        item_aliases: further names of each item.
    """

    entity_ids: tuple[str, ...]
    entity_labels: tuple[str, ...]
    relations: tuple[str, ...]
    edges: Edges
    item_ids: tuple[str, ...]
    item_titles: tuple[str, ...]
    item_entities: NDArray[np.int32]
    item_aliases: tuple[tuple[str, ...], ...] = ()

    @property
    def n_entities(self) -> int:
        """Number of entities."""
        return len(self.entity_ids)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @property
    def n_relations(self) -> int:
        """Number of kept relations."""
        return len(self.relations)

    @cached_property
    def item_at(self) -> Mapping[str, int]:
        """Item id → position."""
        return {item_id: position for position, item_id in enumerate(self.item_ids)}

    @cached_property
    def item_of_entity(self) -> NDArray[np.int32]:
        """(n_entities,) int32: the first item that each entity stands for, -1 for none."""
        out = np.full(self.n_entities, -1, np.int32)
        out[self.item_entities[::-1]] = np.arange(self.n_items, dtype=np.int32)[::-1]
        return out

    def title(self, item: int) -> str:
        """Return what an item is called: its title, else its entity's label, else its id."""
        return self.item_titles[item] or self.entity_labels[self.item_entities[item]] or self.item_ids[item]

    def fingerprint(self) -> str:
        """Return what equal graphs have in common, and only they; what was trained over one fits no other."""
        arrays = [array.astype(np.int32).tobytes().hex() for array in (self.edges, self.item_entities)]
        aliases = self.item_aliases if any(self.item_aliases) else ()
        names = [self.entity_ids, self.entity_labels, self.relations, self.item_ids, self.item_titles, aliases]
        return fingerprint([*names, *arrays])

    def without_edges(self) -> ItemGraph:
        """Return the same entities and items, unconnected."""
        return replace(self, relations=(), edges=np.empty((0, 3), np.int32))


@dataclass(frozen=True)
class GraphCounts:
    """What became of the corpus's graph and catalogue; all are counts."""

    entities: int = 0
    items: int = 0
    items_without_link: int = 0
    items_without_title: int = 0
    links_unusable: int = 0
    edges_given: int = 0
    edges_repeated: int = 0
    edges_to_self: int = 0
    edges_to_unknown: int = 0
    relations_given: int = 0
    relations_kept: int = 0
    edges_kept: int = 0


_Tally = dict[str, int]
"""Fields of :class:`GraphCounts` while the graph is built."""


def build_item_graph(graph: Graph, items: Mapping[str, Item], settings: GraphSettings) -> ItemGraph:
    """Return the item graph of a corpus; see :func:`build_counted`."""
    return build_counted(graph, items, settings)[0]


def build_counted(graph: Graph, items: Mapping[str, Item], settings: GraphSettings) -> tuple[ItemGraph, GraphCounts]:
    """Return the item graph of a corpus, and what became of what the corpus gives.

    Edges that repeat, join an entity with itself (the network has its own self-loop) or name an unknown entity go; then
    a relation stays when it has more than ``min_relation_edges`` edges, or more than ``min_relation_share`` of all. Of
    links that name an unknown item or entity, or an item a second time, nothing is taken.

    Raises:
        CorpusError: there are no items.
    """
    if not items:
        raise CorpusError(
            "the corpus has no items, so there is nothing to recommend; give a catalogue (docs/data.md says which "
            "readers have one) or switch this part off with --set recommend.enabled=false."
        )
    tally: _Tally = {}
    labels = {entity.id: entity.label for entity in graph.entities}
    entity_of = _links(graph.links, items, labels, tally)
    unlinked = [item for item in items.values() if item.id not in entity_of]
    for item in unlinked:
        own = _free_id(f"{OWN_ENTITY}{item.id}", labels)
        labels[own] = item.title
        entity_of[item.id] = own
    entity_at = {entity_id: position for position, entity_id in enumerate(labels)}
    relations, edges = _edges(graph, entity_at, settings, tally)
    tally["entities"], tally["items"], tally["items_without_link"] = len(labels), len(items), len(unlinked)
    tally["items_without_title"] = sum(not item.title.strip() for item in items.values())
    built = ItemGraph(
        entity_ids=tuple(labels),
        entity_labels=tuple(labels.values()),
        relations=relations,
        edges=edges,
        item_ids=tuple(items),
        item_titles=tuple(item.title.strip() for item in items.values()),
        item_entities=np.array([entity_at[entity_of[item_id]] for item_id in items], np.int32),
        item_aliases=tuple(tuple(_aliases(item)) for item in items.values()),
    )
    return built, GraphCounts(**tally)


def _links(
    links: Iterable[ItemLink], items: Mapping[str, Item], known: Mapping[str, str], tally: _Tally
) -> dict[str, str]:
    """Return item id → entity id of the first usable link."""
    entity_of: dict[str, str] = {}
    unusable = 0
    for link in links:
        if link.item_id in items and link.entity_id in known and link.item_id not in entity_of:
            entity_of[link.item_id] = link.entity_id
        else:
            unusable += 1
    tally["links_unusable"] = unusable
    return entity_of


def _free_id(wanted: str, taken: Mapping[str, str]) -> str:
    while wanted in taken:
        wanted = f"{OWN_ENTITY}{wanted}"
    return wanted


def _edges(
    graph: Graph, entity_at: Mapping[str, int], settings: GraphSettings, tally: _Tally
) -> tuple[tuple[str, ...], Edges]:
    """Return the kept relations, sorted, and their edges."""
    distinct = {(t.head, t.relation, t.tail) for t in graph.triples}
    known = [edge for edge in distinct if edge[0] in entity_at and edge[2] in entity_at]
    usable = [edge for edge in known if edge[0] != edge[2]]
    sizes = Counter(relation for _, relation, _ in usable)
    least = min(float(settings.min_relation_edges), settings.min_relation_share * len(usable))
    relations = tuple(sorted(relation for relation, size in sizes.items() if size > least))
    at = {relation: position for position, relation in enumerate(relations)}
    rows = sorted((entity_at[head], at[relation], entity_at[tail]) for head, relation, tail in usable if relation in at)
    tally["edges_given"], tally["edges_repeated"] = len(graph.triples), len(graph.triples) - len(distinct)
    tally["edges_to_unknown"], tally["edges_to_self"] = len(distinct) - len(known), len(known) - len(usable)
    tally["relations_given"], tally["relations_kept"] = len({relation for _, relation, _ in distinct}), len(relations)
    tally["edges_kept"] = len(rows)
    return relations, np.array(rows, np.int32).reshape(-1, 3)


def _aliases(item: Item) -> Iterator[str]:
    """Yield an item's further titles: its attributes ``title_zh`` and the like."""
    for name, value in sorted(item.attributes.items()):
        if name.startswith("title_") and value.strip():
            yield value.strip()


def save_graph(writer: ArtifactWriter, graph: ItemGraph) -> None:
    """Write the tables ``entities``, ``relations``, ``edges`` and ``items``."""
    columns: Sequence[tuple[str, pa.Schema, Mapping[str, object]]] = (
        ("entities", ENTITIES, {"id": graph.entity_ids, "label": graph.entity_labels}),
        ("relations", RELATIONS, {"id": graph.relations}),
        ("edges", EDGES, {name: graph.edges[:, column] for column, name in enumerate(EDGES.names)}),
        (
            "items",
            ITEMS,
            {
                "id": graph.item_ids,
                "title": graph.item_titles,
                "entity": graph.item_entities,
                "aliases": [list(names) for names in graph.item_aliases] or [[]] * graph.n_items,
            },
        ),
    )
    for folder, schema, values in columns:
        arrays = [pa.array(values[name], schema.field(name).type) for name in schema.names]
        writer.write_table(folder, pa.Table.from_arrays(arrays, schema=schema), rows_per_shard=100_000)


def load_graph(artifact: Artifact) -> ItemGraph:
    """Read the item graph of an artefact.

    Raises:
        ArtifactError: it is of another kind.
    """
    artifact = artifact.of_kind("graph", "open graph/NAME, which `mmd build_graph` writes.")
    entities, items = artifact.read_table("entities", ENTITIES), artifact.read_table("items", ITEMS)
    edges = artifact.read_table("edges", EDGES)
    return ItemGraph(
        entity_ids=tuple(entities["id"].to_pylist()),
        entity_labels=tuple(entities["label"].to_pylist()),
        relations=tuple(artifact.read_table("relations", RELATIONS)["id"].to_pylist()),
        edges=np.stack([edges[name].to_numpy() for name in EDGES.names], axis=1).astype(np.int32),
        item_ids=tuple(items["id"].to_pylist()),
        item_titles=tuple(items["title"].to_pylist()),
        item_entities=items["entity"].to_numpy().astype(np.int32),
        item_aliases=tuple(tuple(names) for names in items["aliases"].to_pylist()),
    )
