"""A catalogue as a CSV file: a column of ids, one of titles, and whatever else is known of a product.

Read by the simulated shop, which writes dialogues over it, and by ``chat``, whose dialogues name its products.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmd.corpora.base import Graph
from mmd.errors import CorpusError
from mmd.schema import Entity, Item, ItemLink, Triple

TITLE_COLUMNS = ("productdisplayname", "title", "name")  # lower case; the first is what the Kaggle fashion set has
_SAFE_ID = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class ProductTable:
    """The rows of a catalogue, checked: ids are unique and fit for file names.

    Attributes:
        rows: column → cell, cells stripped, missing cells empty.
        columns: lower-case name → name as the header has it.
        id_column: the header's name of the ids.
        title_column: of the titles.
    """

    rows: tuple[Mapping[str, str], ...]
    columns: Mapping[str, str]
    id_column: str
    title_column: str

    @property
    def ids(self) -> list[str]:
        """The products' ids, in the file's order."""
        return [row[self.id_column] for row in self.rows]

    def attributes(self, row: Mapping[str, str]) -> dict[str, str]:
        """Return what a row says beside id and title: lower-case column → value, empty cells left out."""
        named = {name: row[column] for name, column in self.columns.items()}
        taken = {self.id_column.strip().lower(), self.title_column.strip().lower()}
        return {name: value for name, value in named.items() if value and name not in taken}


def read_products(path: Path, told_by: str) -> ProductTable:
    """Read a catalogue.

    Args:
        path: UTF-8 CSV with a header: ``id``, ``title`` (or ``name``, ``productDisplayName``), any others.
        told_by: what names the file, for the message when it cannot be read.

    Raises:
        CorpusError: the file cannot be read, has no id or title column, or an id is unfit or repeated.
    """
    rows = _rows(path, told_by)
    columns = {name.strip().lower(): name for name in rows[0]}
    if "id" not in columns:
        raise CorpusError(f"{path}: no 'id' column; it has {', '.join(rows[0])}. Name the column of product ids 'id'.")
    title = next((columns[name] for name in TITLE_COLUMNS if name in columns), None)
    if title is None:
        raise CorpusError(
            f"{path}: no title column; it has {', '.join(rows[0])}. Name the column of product names 'title' or 'name'."
        )
    table = ProductTable(tuple(rows), columns, columns["id"], title)
    _check_ids(path, table.ids)
    return table


def attribute_graph(items: Sequence[Item]) -> Graph:
    """Return items and what they have in common as a graph: ``has_NAME`` joins an item to its attribute's value.

    An attribute is a relation where its values repeat, by at most half as many values as items that have it: colour
    and brand do, price and description do not.
    """
    values: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in items:
        for name, value in item.attributes.items():
            values[name].append((item.id, value))
    shared = {name: pairs for name, pairs in values.items() if 2 * len({v for _, v in pairs}) <= len(pairs)}
    here = {item.id: Entity(f"item:{item.id}", item.title, "item") for item in items}
    named = {
        f"{name}:{value}": Entity(f"{name}:{value}", value, name) for name, ps in shared.items() for _, value in ps
    }
    triples = (
        Triple(here[item_id].id, f"has_{name}", f"{name}:{value}")
        for name, pairs in shared.items()
        for item_id, value in pairs
    )
    links = (ItemLink(item_id, entity.id) for item_id, entity in here.items())
    return Graph((*here.values(), *named.values()), tuple(triples), tuple(links))


def _rows(path: Path, told_by: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{k: (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
    except OSError as error:
        raise CorpusError(f"{path}: cannot read the catalogue ({error.strerror}); see {told_by}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not a UTF-8 CSV file ({error}).") from None
    if len(rows) < 2:
        raise CorpusError(f"{path}: {len(rows)} products; a catalogue needs a header and at least two rows.")
    return rows


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for row, item_id in enumerate(ids, start=2):
        if not _SAFE_ID.fullmatch(item_id):
            raise CorpusError(f"{path}, row {row}: id {item_id!r}; use letters, digits, '_', '-' and '.' only.")
        if item_id in seen:
            raise CorpusError(f"{path}, row {row}: id {item_id!r} was row {seen[item_id]}'s already; ids are unique.")
        seen[item_id] = row
