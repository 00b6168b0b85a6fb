"""Every field of every endpoint in turn, as the API document describes them, with something else in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from tests.serve_apps.hostile_case import ASKING, CHAT, EITHER, HALF, INTENT, PICTURE, RECOMMEND, TAKEN, Case, sent

_WRONG: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": -7,
    "huge": 10**400,
    "float": 1.5,
    "list": [[]],
    "object": {"a": {"b": 1}},
    "long": "x" * 60_000,
    "half": HALF,
}
_GIVEN: dict[str, Any] = {
    "url": PICTURE,
    "images": [PICTURE],
    "item_ids": ["item-0"],
    "model": "mmd/tiny",
    "task": "dialogue_intent",
    "modality": "text",
    "text": "Where is my refund?",
    "stream": False,
}


def fields(document: Any) -> Iterator[Case]:
    """Every property that the API document describes, one at a time in place of a sound one."""
    for path in ASKING:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        whole = _instance(body, document)
        for other in ("turns", "messages") if "turns" in whole else ("",):
            base = {key: value for key, value in whole.items() if key != other}
            fine = EITHER if path == RECOMMEND else TAKEN  # there is no such product
            yield sent(f"{path}_without_{other}", base, fine, path)
            # The parts of a dialogue are the same everywhere: one path tries them all, the others their own fields.
            deep = path == (CHAT if other != "messages" else INTENT)
            for place in _places(base):
                if place and (deep or place[0] not in ("turns", "messages")):
                    where = ".".join(map(str, place))
                    for kind, value in _WRONG.items():
                        changed = _replaced(base, place, value)
                        yield sent(f"{path}_without_{other}_{where}_{kind}", changed, frozenset({200, 400, 404}), path)


def _instance(schema: dict[str, Any], document: Any) -> Any:
    """Return a value with every property of a schema."""
    if "$ref" in schema:
        return _instance(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    if "oneOf" in schema:  # parts of a message: one of each
        return [_instance(option, document) for option in schema["oneOf"]]
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return _instance(next((option for option in options if "items" in option), options[0]), document)
    if schema.get("type") in ("array", "object"):
        return _inside(schema, document)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    return {"integer": 1, "number": 0.5, "boolean": True, "string": "x"}[schema["type"]]


def _inside(schema: dict[str, Any], document: Any) -> Any:
    """Return a list of one value, or an object with all properties."""
    if "items" in schema:
        found = _instance(schema["items"], document)
        return found if isinstance(found, list) else [found]
    if "properties" not in schema:
        return {"1": _instance(schema["additionalProperties"], document)}
    properties = schema["properties"].items()
    return {key: _GIVEN[key] if key in _GIVEN else _instance(value, document) for key, value in properties}


def _places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value within a value, its own first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from _places(child, (*at, key))


def _replaced(value: Any, place: tuple[str | int, ...], by: Any) -> Any:
    changed = copy.deepcopy(value)
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = by
    return changed
