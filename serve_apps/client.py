"""A client of a running service."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mmd.config import ServeSettings
from mmd.errors import RequestError

KEY_VARIABLE = "MMD_API_KEY"

M = TypeVar("M", bound=BaseModel)


class ServiceClient:
    """A client of a running service, one connection a request.

    Sends the API key of the environment's ``MMD_API_KEY``, where there is one.

    Args:
        settings: where it listens, and how long it may take.
    """

    def __init__(self, settings: ServeSettings) -> None:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what it listens on; asked on the loopback)
        self._host = everywhere.get(settings.host, settings.host)
        self._port = settings.port
        self._timeout_s = settings.request_timeout_s + 5
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def get(self, path: str) -> str:
        """Return the body of a page.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        return self._exchange("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> str:
        """Return the body of the answer to a JSON body.

        Raises:
            RequestError: the service cannot be reached, or refuses.
        """
        return self._exchange("POST", path, json.dumps(body))

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

    def _exchange(self, method: str, path: str, body: str | None) -> str:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as err:
            raise RequestError(f"{self._host}:{self._port}{path}: no answer ({type(err).__name__}: {err}).") from err
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RequestError(f"{self._host}:{self._port}{path}: HTTP {response.status}: {text[:300]}")
        return text
