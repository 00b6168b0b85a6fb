"""``redial``: conversational movie recommendation, ReDial (Li et al. 2018), with the DBpedia subgraph of KBRD.

The seeker (``initiatorWorkerId``) is the user, the recommender (``respondentWorkerId``) the agent; consecutive
messages of one sender are one turn, joined by line feeds. A mention ``@movieId`` stays in the text as it is, so that
later stages know where the item stands, and its id is added to the turn's ``item_ids``, repeats included.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from mmd.corpora.base import CatalogueItem, Graph, ParsedRecord, RawRecord
from mmd.corpora.drafts import Draft, drop_empty
from mmd.corpora.folder import CorpusFile, FolderReader
from mmd.corpora.json_records import JsonNode, decode_record
from mmd.errors import BadRecordError, CorpusError
from mmd.schema import Dialogue, Entity, Item, ItemLink, Speaker, Triple

_MENTION = re.compile(r"@(\d+)")
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_DBPEDIA = "http://dbpedia.org/resource/"


class RedialReader(FolderReader):
    """Reads the official conversation files, the movie list and the knowledge graph."""

    name = "redial"
    layout = (
        "train.jsonl and/or test.jsonl (or the official names train_data.jsonl, test_data.jsonl), and optionally "
        "movies.tsv, kg_entities.tsv and kg_triples.tsv"
    )
    marks = frozenset({"messages"})

    def files(self) -> list[CorpusFile]:
        """Return the conversation files under either name."""
        return self._named(
            {"train.jsonl": "train", "train_data.jsonl": "train", "test.jsonl": "test", "test_data.jsonl": "test"}
        )

    def parse(self, record: RawRecord) -> ParsedRecord:
        """Turn a conversation into a dialogue."""
        node = decode_record(record.raw)
        speakers = _speakers(node)
        mentioned = node.get("movieMentions")
        # The official files write an empty mapping as [].
        movies = set(mentioned.mapping()) if mentioned is not None and mentioned.value != [] else set()
        drafts: list[Draft] = []
        for message in node.field("messages").elements():
            self._add(drafts, message, speakers, movies)
        kept, meta = drop_empty(drafts)
        dialogue = Dialogue(
            id=node.field("conversationId").identifier(),
            source=self.name,
            split=record.split,
            turns=tuple(draft.turn() for draft in kept),
            meta=meta,
        )
        return ParsedRecord(dialogue)

    def items(self) -> Iterator[CatalogueItem]:
        """Yield the movies; a title is empty where the corpus never shows one, the year stands in the attributes."""
        for item_id, title in self._titles.items():
            year = _YEAR.search(title)
            yield CatalogueItem(Item(item_id, title, {"year": year.group(1)} if year else {}))

    def graph(self) -> Graph:
        """Return entities (kind ``movie`` where an item links, else ``entity``), triples and movie ↔ entity links."""
        links = tuple(
            ItemLink(row["movie_id"], row["entity_id"])
            for row in _rows(self._folder / "movies.tsv", "movie_id", "entity_id")
        )
        item_of = {link.entity_id: link.item_id for link in links}
        entities = tuple(
            self._entity(row["entity_id"], row["uri"], item_of)
            for row in _rows(self._folder / "kg_entities.tsv", "entity_id", "uri")
        )
        triples = tuple(
            Triple(row["head_id"], row["relation_id"], row["tail_id"])
            for row in _rows(self._folder / "kg_triples.tsv", "head_id", "relation_id", "tail_id")
        )
        return Graph(entities, triples, links)

    @cached_property
    def _titles(self) -> dict[str, str]:
        rows = _rows(self._folder / "movies.tsv", "movie_id", "title")
        return {row["movie_id"]: row["title"].strip() for row in rows}

    def _entity(self, entity_id: str, uri: str, item_of: Mapping[str, str]) -> Entity:
        item_id = item_of.get(entity_id)
        label = unquote(uri.removeprefix(_DBPEDIA)).replace("_", " ") if uri.startswith(_DBPEDIA) else uri
        if item_id is None:
            return Entity(entity_id, label, "entity")
        return Entity(entity_id, self._titles[item_id] or label, "movie")

    def _add(
        self, drafts: list[Draft], message: JsonNode, speakers: Mapping[object, Speaker], movies: set[str]
    ) -> None:
        """Append a message to the last turn if its sender holds it, else as a new turn."""
        sender = message.field("senderWorkerId")
        speaker = speakers.get(sender.identifier())
        if speaker is None:
            raise BadRecordError(
                "unknown_speaker", f"{sender.path}: {sender.value} is neither initiatorWorkerId nor respondentWorkerId"
            )
        text = message.field("text").text().strip()
        mentions = [item for item in _MENTION.findall(text) if item in movies or item in self._titles]
        if drafts and drafts[-1].speaker == speaker:
            drafts[-1].text = f"{drafts[-1].text}\n{text}".strip()
            drafts[-1].item_ids.extend(mentions)
        else:
            drafts.append(Draft(speaker, text, item_ids=mentions))


def _speakers(node: JsonNode) -> dict[object, Speaker]:
    seeker = node.field("initiatorWorkerId").identifier()
    recommender = node.field("respondentWorkerId").identifier()
    if seeker == recommender:
        raise BadRecordError("unknown_speaker", f"initiatorWorkerId and respondentWorkerId are both {seeker}")
    return {seeker: "user", recommender: "agent"}


def _rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a tab-separated file with a header; nothing when the file does not exist.

    Raises:
        CorpusError: a column is missing, or a row has too few cells.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            for row in reader:
                if any(row.get(column) is None for column in columns):
                    raise CorpusError(
                        f"{path}:{reader.line_num}: needs the tab-separated columns {', '.join(columns)}."
                    )
                yield row
        except (UnicodeDecodeError, csv.Error) as err:
            raise CorpusError(f"{path}: after line {reader.line_num}: {err}; save it as tab-separated UTF-8.") from err
