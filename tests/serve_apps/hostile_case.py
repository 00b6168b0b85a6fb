"""One hostile request, and short ways to write one down."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image

Header = tuple[bytes, bytes]
Service = Literal["open", "keyed", "cors", "fetching", "hurried"]

INTENT, RETRIEVE, RECOMMEND, CHAT = "/v1/intent", "/v1/retrieve", "/v1/recommend", "/v1/chat/completions"
ASKING = (INTENT, RETRIEVE, RECOMMEND, CHAT)
LOOKING = (INTENT, RETRIEVE, CHAT)  # at pictures
JSON: tuple[Header, ...] = ((b"content-type", b"application/json"),)
HALF = "\ud800"  # of a surrogate pair: no character
TAKEN, REFUSED, EITHER = frozenset({200}), frozenset({400}), frozenset({200, 400})


@dataclass(frozen=True)
class Case:
    """A request as an ASGI server would hand it on.

    Attributes:
        name: unique within its family.
        path: as sent, percent-encoded, with its query.
        pieces: the body as it arrives; ``ends`` False: more is announced and never comes; ``leaves``: the client goes
            away behind the last piece.
        statuses: those that are right.
        service: which application is asked: everything open, one that wants keys, one that lets another origin in, one
            that fetches pictures of a host, or one that waits a tenth of a second for a body.
        shaped: whether a refusal has the API's body.
        secret: must not come back.
    """

    name: str
    path: str = INTENT
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    statuses: frozenset[int] = REFUSED
    method: str = "POST"
    headers: tuple[Header, ...] = JSON
    service: Service = "open"
    ends: bool = True
    leaves: bool = False
    shaped: bool = True
    secret: bytes = b""


def raw(name: str, body: bytes, statuses: frozenset[int] = REFUSED, path: str = INTENT, **more: Any) -> Case:
    """Send bytes as JSON."""
    return Case(name, path, (body,), statuses, **more)


def sent(name: str, value: Any, statuses: frozenset[int] = REFUSED, path: str = INTENT, **more: Any) -> Case:
    """Send a value as JSON; lone surrogates go as escapes, NaN and infinity by their names."""
    return raw(name, json.dumps(value).encode(), statuses, path, **more)


def got(name: str, path: str, statuses: frozenset[int], **more: Any) -> Case:
    """Get a path."""
    return Case(name, path, statuses=statuses, **{"method": "GET", "headers": (), **more})


def data_url(data: bytes, kind: str = "png") -> str:
    """Return bytes as a picture is sent."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(kind: str, size: tuple[int, int] = (16, 12), mode: str = "RGB", **options: Any) -> bytes:
    """Return a sound file."""
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def says(path: str, text: str, *images: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a dialogue of one turn, in the shape that the path takes."""
    if path == CHAT:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}], **fields}
    return {"turns": [{"speaker": "user", "text": text, "images": list(images)}], **fields}


def around() -> Iterator[str]:
    """Yield the paths that take a dialogue, round and round."""
    return itertools.cycle(ASKING)


PICTURE = data_url(picture("PNG"))
