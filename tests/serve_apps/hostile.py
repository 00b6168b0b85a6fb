"""The hostile corpus: requests that mean harm, made by families, each case with the statuses that are right for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.serve_apps import (
    hostile_addresses,
    hostile_bodies,
    hostile_fields,
    hostile_headers,
    hostile_http,
    hostile_pictures,
    hostile_words,
)
from tests.serve_apps.hostile_case import Case

FAMILIES: Mapping[str, Callable[[Any], Iterator[Case]]] = {
    family.__name__: family
    for family in (
        hostile_bodies.not_json,
        hostile_bodies.odd_json,
        hostile_bodies.odd_names,
        hostile_fields.fields,
        hostile_bodies.roles,
        hostile_bodies.limits,
        hostile_words.words,
        hostile_words.streams,
        hostile_addresses.addresses,
        hostile_addresses.fetching,
        hostile_addresses.data_urls,
        hostile_pictures.files,
        hostile_http.paths,
        hostile_http.queries,
        hostile_http.methods,
        hostile_http.bodies,
        hostile_headers.headers,
        hostile_headers.keys,
        hostile_headers.origins,
    )
}
"""Name → makes the cases of a family from the API document."""
