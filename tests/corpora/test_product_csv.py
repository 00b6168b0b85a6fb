"""A catalogue as CSV, and the graph of what its products have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmd.corpora.base import Graph
from mmd.corpora.product_csv import attribute_graph, read_products
from mmd.errors import CorpusError
from mmd.schema import Entity, Item, ItemLink, Triple


def test_rows_are_read_by_the_names_of_their_columns(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_text("\ufeffID,Colour , Name,note\nr1, green,Rake,\nr2,red,Hoe,old\n", encoding="utf-8")
    table = read_products(path, "a setting")
    assert table.ids == ["r1", "r2"]
    assert [row[table.title_column] for row in table.rows] == ["Rake", "Hoe"]
    assert [table.attributes(row) for row in table.rows] == [{"colour": "green"}, {"colour": "red", "note": "old"}]


def test_a_file_that_cannot_be_read_names_who_asked_for_it(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"p\.csv: cannot read the catalogue .*; see a setting"):
        read_products(tmp_path / "p.csv", "a setting")


def test_values_that_repeat_join_products():
    rake = Item("r", "Rake", {"colour": "green", "price": "9", "brand": "Ohm"})
    hoe = Item("h", "Hoe", {"colour": "green", "price": "8", "brand": "Ohm"})
    spade = Item("s", "Spade", {"colour": "red", "price": "7"})
    saw = Item("w", "Saw", {"colour": "red", "price": "7"})
    graph = attribute_graph([rake, hoe, spade, saw])
    assert set(graph.entities) == {
        *(Entity(f"item:{item.id}", item.title, "item") for item in (rake, hoe, spade, saw)),
        Entity("colour:green", "green", "colour"),
        Entity("colour:red", "red", "colour"),
        Entity("brand:Ohm", "Ohm", "brand"),  # two products have one, and it is the same; prices: three among four
    }
    assert set(graph.triples) == {
        Triple("item:r", "has_colour", "colour:green"),
        Triple("item:h", "has_colour", "colour:green"),
        Triple("item:s", "has_colour", "colour:red"),
        Triple("item:w", "has_colour", "colour:red"),
        Triple("item:r", "has_brand", "brand:Ohm"),
        Triple("item:h", "has_brand", "brand:Ohm"),
    }
    assert graph.links == tuple(ItemLink(item_id, f"item:{item_id}") for item_id in "rhsw")


def test_no_products_are_no_graph():
    assert attribute_graph([]) == Graph()
