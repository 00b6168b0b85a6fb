"""A corpus artefact gives back the records it was written from."""

import io
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pytest

from mmd import schema
from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.base import Graph
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.schema import Dialogue, Entity, Image, Item, ItemLink, OcrLine, Triple, Turn, image_id


def picture(shade: int) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 2), shade).save(buffer, "PNG")
    data = buffer.getvalue()
    ocr = (OcrLine("SALE", 0.5, (0, 0, 2, 1)),) if shade else None
    return Image(image_id(data), "PNG", 2, 2, data, ocr, None)


PICTURES = [picture(shade) for shade in range(5)]
DIALOGUES = [
    Dialogue("d1", "test", "train", (Turn("user", "你好", (PICTURES[0].id,), ("p1",)),), {"intent": "hi"}, {"k": "v"}),
    Dialogue("d2", "test", "test", (Turn("agent", "bye"),)),
]
ITEMS = [Item("p1", "Cup", {"colour": "red"}, (PICTURES[1].id,))]
GRAPH = Graph((Entity("e1", "Cup", "item"),), (Triple("e1", "is_a", "e1"),), (ItemLink("p1", "e1"),))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    store = ArtifactStore(str(tmp_path))
    tables = {
        "dialogues": ([schema.dialogue_to_row(d) for d in DIALOGUES], schema.DIALOGUES),
        "images": ([schema.image_to_row(i) for i in PICTURES], schema.IMAGES),
        "items": ([schema.item_to_row(i) for i in ITEMS], schema.ITEMS),
        "entities": ([{"id": "e1", "label": "Cup", "kind": "item"}], schema.ENTITIES),
        "triples": ([{"head": "e1", "relation": "is_a", "tail": "e1"}], schema.TRIPLES),
        "item_links": ([{"item_id": "p1", "entity_id": "e1"}], schema.ITEM_LINKS),
    }
    with store.write("corpus", "test", settings={}) as writer:
        for name, (rows, columns) in tables.items():
            writer.write_table(name, pa.Table.from_pylist(rows, columns), rows_per_shard=2)
        writer.write_json("tasks.json", {"intent": ["hi", "bye"]})
        writer.write_json("summary.json", {"dialogues": {"read": 2}})
    return Corpus(store.open("corpus/test"))


def test_records_come_back_as_they_were(corpus: Corpus):
    assert corpus.dialogues() == DIALOGUES
    assert list(corpus.images()) == PICTURES
    assert corpus.items() == {"p1": ITEMS[0]}
    assert corpus.graph() == GRAPH
    assert corpus.tasks == {"intent": ("hi", "bye")}
    assert corpus.summary["dialogues"] == {"read": 2}


def test_a_split_is_chosen(corpus: Corpus):
    assert [d.id for d in corpus.dialogues("test")] == ["d2"]
    assert [d.id for d in corpus.dialogues("train")] == ["d1"]


def test_chosen_pictures_come_in_stored_order(corpus: Corpus):
    assert list(corpus.images([PICTURES[4].id, PICTURES[1].id])) == [PICTURES[1], PICTURES[4]]
    assert list(corpus.images([])) == []


def test_a_picture_of_another_corpus_is_an_error(corpus: Corpus):
    with pytest.raises(ArtifactError, match="has no picture ffff"):
        list(corpus.images(["ffff", PICTURES[0].id]))


def test_image_columns_are_read_without_the_bytes(corpus: Corpus):
    assert corpus.image_table(["id", "width"]).column_names == ["id", "width"]
    assert corpus.image_table().num_rows == 5


def test_tables_without_rows_are_empty(corpus: Corpus):
    assert corpus.quarantine().num_rows == 0


def test_another_kind_of_artefact_is_refused(tmp_path: Path):
    store = ArtifactStore(str(tmp_path))
    with store.write("report", "test", settings={}) as writer:
        writer.write_json("report.json", {})
    report: Artifact = store.open("report/test")
    with pytest.raises(ArtifactError, match="is no artefact of kind corpus; open corpus/NAME"):
        Corpus(report)
