"""Retrieval online: what a query brings is seen only while it is ranked."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mmd.errors import RequestError
from mmd.intent.online import OnlineExtractors, OnlineFeatures
from mmd.retrieval.facts import Facts
from mmd.retrieval.online import OnlineRetrieval, OnlineSources
from mmd.retrieval.settings import SampleSettings
from mmd.retrieval.types import Query
from mmd.schema import Image, OcrLine, Turn


class Refusing:
    """An engine that looks at the pictures on show, and refuses."""

    def __init__(self, sources: OnlineSources) -> None:
        self._sources = sources
        self.seen: dict[str, str] = {}

    def retrieve(self, *_: object, **__: object) -> list[Any]:
        self.seen = dict(self._sources.pictures)
        raise RequestError("nothing to go by")


def test_a_picture_is_gone_even_where_its_query_was_refused():
    sources = OnlineSources(OnlineFeatures(OnlineExtractors()), Facts(SampleSettings(), {}, {}, {}), {})
    engine = Refusing(sources)
    online = OnlineRetrieval(cast("Any", engine), sources, cast("Any", {}), context_turns=8)
    image = Image("shot", "PNG", 8, 8, b"", ocr=(OcrLine("order 4711", 1.0, (0, 0, 1, 1)),))
    prepared = online.prepare(Query((Turn("user", "", ("shot",)),)), {"shot": image})
    with pytest.raises(RequestError):
        online.rank([prepared], 3)
    assert engine.seen == {"shot": "order 4711"}
    assert dict(sources.pictures) == {}
