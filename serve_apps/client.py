"""A client of a running service."""

from __future__ import annotations

import argparse
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from mmd.config import ServeSettings, add_settings_options
from mmd.errors import RequestError

KEY_VARIABLE = "MMD_API_KEY"
_EVENT = "data: "

M = TypeVar("M", bound=BaseModel)


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Add which service is asked: settings, and an address instead of theirs."""
    add_settings_options(parser)
    parser.add_argument("--url", help="address of the service (default: that of the settings)")


class ServiceClient:
    """A client of a running service, one connection a request.

    Sends the API key of the environment's ``MMD_API_KEY``, where there is one.

    Args:
        settings: where it listens, and how long it may take.
        url: where it listens instead: http://HOST:PORT or https://HOST, with the path that it is mounted at, if any.

    Raises:
        RequestError: ``url`` is none.
    """

    def __init__(self, settings: ServeSettings, url: str | None = None) -> None:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what it listens on; asked on the loopback)
        host = everywhere.get(settings.host, settings.host)
        self.url = (url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}").rstrip("/")
        try:
            self._parts = urlsplit(self.url)
            self._port = self._parts.port
        except ValueError as err:
            raise RequestError(f"{self.url}: not an address ({err}); give one like http://127.0.0.1:8000.") from err
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise RequestError(f"{self.url}: not an address of a service; give one like http://127.0.0.1:8000.")
        self._timeout_s = settings.request_timeout_s + 5
        key = os.environ.get(KEY_VARIABLE)
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def get(self, path: str) -> str:
        """Return the body of a page.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        with self._exchange("GET", path, None) as response:
            return response.read().decode()

    def post(self, path: str, body: Mapping[str, Any]) -> str:
        """Return the body of the answer to a JSON body.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        with self._exchange("POST", path, json.dumps(body)) as response:
            return response.read().decode()

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """Yield the data of each server-sent event of the answer to a JSON body, as it comes.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        with self._exchange("POST", path, json.dumps(body)) as response:
            for line in response:
                text = line.decode().rstrip("\r\n")
                if text.startswith(_EVENT):
                    yield text.removeprefix(_EVENT)

    def ask(self, path: str, body: Mapping[str, Any], answer: type[M]) -> M:
        """Return the answer to a JSON body, validated.

        Raises:
            RequestError: the service cannot be reached, refuses, or answers something else.
        """
        text = self.post(path, body)
        try:
            return answer.model_validate_json(text)
        except ValidationError as err:
            raise RequestError(f"{path}: not an answer ({err.error_count()} fields are wrong): {text[:300]}") from err

    @contextmanager
    def _exchange(self, method: str, path: str, body: str | None) -> Iterator[http.client.HTTPResponse]:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._port, timeout=self._timeout_s)
        try:
            connection.request(method, f"{self._parts.path}{path}", body, self.headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                told = response.read().decode(errors="replace")
                raise RequestError(f"{self.url}{path}: HTTP {response.status}: {told[:300]}")
            yield response
        except (OSError, http.client.HTTPException) as err:
            raise RequestError(f"{self.url}{path}: no answer ({type(err).__name__}: {err}).") from err
        finally:
            connection.close()
