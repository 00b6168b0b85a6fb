"""What mmd asks of a language model that runs elsewhere: the next token's log-probabilities, over HTTP.

The API is OpenAI's with three fields of vLLM's (0.29 and later): ``logprob_token_ids`` (log-probabilities of chosen
tokens, of the softmax over the whole vocabulary), ``return_tokens_as_token_ids`` and ``return_token_ids``. Requests of
this kind read vLLM's prefix cache; those with ``prompt_logprobs`` do not (vllm/sampling_params.py,
``skip_reading_prefix_cache``), which is why label tokens are asked as *next* tokens wherever they can be.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError, ServerUnavailableError

if TYPE_CHECKING:
    from mmd.models.settings import ModelSettings

T = TypeVar("T")
R = TypeVar("R")

_TOKENS_AT_ONCE = 128
"""vLLM's MAX_LOGPROB_TOKEN_IDS."""
_CONNECT_S = 2.0
_KEEPALIVE_S = 3.0
"""Shorter than the 5 s after which vLLM's server closes an idle connection: else requests meet it while it closes."""
_REST_S, _LONGEST_REST_S = 1.0, 30.0
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_QUOTED_CHARS = 200
_WHO = "the server of models.mllm_url"
"""Named so, not by its address: messages reach whoever asked the assistant."""


class Rest:
    """A while in which a server that did not answer is not asked, twice as long each time; threads may share it.

    A server that accepts and is silent would else cost every question its whole time limit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._next_s = _REST_S

    def check(self) -> None:
        """Refuse to ask.

        Raises:
            ServerUnavailableError: it is not to be asked yet.
        """
        if (left_s := self._until - time.monotonic()) > 0:
            raise ServerUnavailableError(f"{_WHO} did not answer a moment ago; it is asked again in {left_s:.0f} s.")

    def begin(self) -> None:
        """Note that it did not answer; of several questions that were under way, the first counts."""
        with self._lock:
            if self._until <= time.monotonic():
                self._until = time.monotonic() + self._next_s
                self._next_s = min(2 * self._next_s, _LONGEST_REST_S)

    def end(self) -> None:
        """Note that it answered."""
        with self._lock:
            self._until, self._next_s = 0.0, _REST_S


class RemoteServer:
    """A server of large models; safe to call from several threads.

    Args:
        url: its OpenAI-compatible root, as ``http://host:8000/v1``.
        key: sent as bearer token; None: no authorization.
        timeout_s: longest wait for one request.
        requests: requests under way at once.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 10.0, requests: int = 16) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            trust_env=False,  # dialogues go to the server that was named, and not through a proxy that was not
            limits=httpx.Limits(
                max_connections=requests, max_keepalive_connections=requests, keepalive_expiry=_KEEPALIVE_S
            ),
        )
        self._threads = ThreadPoolExecutor(requests, thread_name_prefix="remote-model")
        self._rest = Rest()
        weakref.finalize(self, _close, self._client, self._threads)

    @classmethod
    def of(cls, settings: ModelSettings) -> RemoteServer:
        """Return the server that the settings name.

        Raises:
            ModelError: none is named, or the environment variable of its key is not set.
        """
        if settings.mllm_url is None:
            raise ModelError("models.mllm_url: names no server; set it to one, as http://host:8000/v1.")
        key = None
        if settings.mllm_key_env is not None:
            key = os.environ.get(settings.mllm_key_env)
            if not key:
                raise ModelError(
                    f"models.mllm_key_env: the environment variable {settings.mllm_key_env} is not set in this "
                    "process; set it to the server's key, or the setting to null for a server without one."
                )
        return cls(settings.mllm_url, key=key, timeout_s=settings.mllm_request_s, requests=settings.mllm_requests)

    def each(self, function: Callable[[T], R], values: Iterable[T]) -> list[R]:
        """Call a function on every value at once, as many as requests may be under way; results are in order."""
        return list(self._threads.map(function, values))

    def after_tokens(self, model: str, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return log P(token | prompt) by the completions API, to which prompts go as tokens.

        Args:
            model: the name that the server knows the weights by.
            prompts: as tokens, each with at least one.
            tokens: those whose log-probability is asked.

        Returns:
            Natural logarithms, float64 of shape (n_prompts, n_tokens).

        Raises:
            ServerUnavailableError: the server cannot be reached, is late, overloaded or broken.
            ModelError: it does not know the model, refuses the request, or answers something else.
        """
        asked = {"model": model, "prompt": [list(prompt) for prompt in prompts], "logprobs": 0}
        parts = []
        for some in _pieces(tokens):
            answer = self._ask("/completions", asked, some)
            with _reading("/completions"):
                choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
                rows = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
                parts.append(np.array([_chosen(row, some) for row in rows], dtype=np.float64))
                if len(rows) != len(prompts):
                    raise ValueError(f"{len(rows)} choices for {len(prompts)} prompts")
        return np.concatenate(parts, axis=1)

    def after_chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], said: str, tokens: Sequence[int]
    ) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Return log P(token | conversation) by the chat API, to which prompts go as messages.

        Args:
            model: the name that the server knows the weights by.
            messages: the conversation up to the model's turn.
            said: what the model's turn begins with; may be empty.
            tokens: those whose log-probability is asked.

        Returns:
            The prompt's tokens as the server made them of the messages, pictures expanded to their placeholders; and
            natural logarithms, float64 of shape (n_tokens,).

        Raises:
            ServerUnavailableError, ModelError: as :meth:`after_tokens`.
        """
        asked: dict[str, Any] = {"model": model, "messages": list(messages), "logprobs": True, "return_token_ids": True}
        if said:
            asked["messages"] = [*messages, {"role": "assistant", "content": said}]
            asked |= {"add_generation_prompt": False, "continue_final_message": True}
        prompt: tuple[int, ...] = ()
        parts = []
        for some in _pieces(tokens):
            answer = self._ask("/chat/completions", asked, some)
            with _reading("/chat/completions"):
                prompt = tuple(int(token) for token in answer["prompt_token_ids"])
                entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                row = {entry["token"]: entry["logprob"] for entry in entries}
                parts.append(np.array(_chosen(row, some), dtype=np.float64))
        return prompt, np.concatenate(parts)

    def of_chat(self, model: str, messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Return log P(token | tokens before it) of a whole conversation, the model's own turn being its last.

        vLLM reads it without its prefix cache, and computes the whole vocabulary at every token.

        Args:
            model: the name that the server knows the weights by.
            messages: the conversation.

        Returns:
            Its tokens as the server made them of the messages, and natural logarithms, float64 of shape (n_tokens,);
            the first token has none (NaN).

        Raises:
            ServerUnavailableError, ModelError: as :meth:`after_tokens`.
        """
        path = "/chat/completions"
        body = {"model": model, "messages": list(messages), "add_generation_prompt": False, "return_token_ids": True}
        answer = self._post(path, {**body, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1})
        with _reading(path):
            tokens = tuple(int(token) for token in answer["prompt_token_ids"])
            known = zip(tokens[1:], answer["prompt_logprobs"][1:], strict=True)
            values = [float(row[str(token)]["logprob"]) for token, row in known]
        return tokens, np.array([np.nan, *values])

    def _ask(self, path: str, asked: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
        """Ask for the next token; nothing but the log-probabilities of ``tokens`` is of use."""
        return self._post(
            path,
            {
                **asked,
                "max_tokens": 1,
                "temperature": 0.0,
                "logprob_token_ids": list(tokens),
                "return_tokens_as_token_ids": True,
            },
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, twice where the connection was closed under it: asking changes nothing."""
        self._rest.check()
        try:
            try:
                response = self._client.post(self.url + path, json=body)
            except _CLOSED:
                response = self._client.post(self.url + path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            self._rest.begin()
            raise ServerUnavailableError(
                f"{_WHO} does not answer ({type(err).__name__}: {str(err)[:_QUOTED_CHARS] or 'no reason given'}); "
                "start it, or correct the setting."
            ) from err
        self._rest.end()
        return self._content(path, body, response)

    def _content(self, path: str, body: Mapping[str, Any], response: httpx.Response) -> dict[str, Any]:
        """Return a response's JSON object, or raise what its status means."""
        try:
            content = response.json()
        except ValueError:
            content = None
        status = response.status_code
        if status == httpx.codes.OK and isinstance(content, dict):
            return content
        told, known = f"{_WHO}: {path} has status {status}", _is_error(content)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ModelError(f"{told}; set models.mllm_key_env to the environment variable that holds its key.")
        if status == httpx.codes.NOT_FOUND and known:
            raise ModelError(
                f"{told}: it knows no model {body.get('model')!r}; serve these weights under that name, or set "
                "models.mllm_name to theirs."
            )
        if httpx.codes.is_client_error(status) and known and status != httpx.codes.TOO_MANY_REQUESTS:
            # Its own words may quote the dialogue.
            raise ModelError(f"{told}: it refuses the request, of which its log has the reason; too long a prompt?")
        raise ServerUnavailableError(f"{told}; it may be starting or overloaded, or models.mllm_url lacks its path.")


def _pieces(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield as many tokens as one request may ask."""
    return (tokens[start : start + _TOKENS_AT_ONCE] for start in range(0, len(tokens), _TOKENS_AT_ONCE))


def _chosen(row: Mapping[str, Any], tokens: Sequence[int]) -> list[float]:
    """Return the log-probabilities of tokens, in their order."""
    return [float(row[_spelled(token)]) for token in tokens]


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Say what an answer of another form means."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise ModelError(
            f"{_WHO}: the answer of {path} is not that of vLLM 0.29 or later ({type(err).__name__}: "
            f"{str(err)[:_QUOTED_CHARS]}); labels are scored by its field logprob_token_ids, which others lack."
        ) from err


def _spelled(token: int) -> str:
    """Return a token as the server writes it under ``return_tokens_as_token_ids``."""
    return f"token_id:{token}"


def _is_error(content: Any) -> bool:  # noqa: ANN401 (any JSON)
    """Say whether a body is an error in OpenAI's shape: the server itself speaks, not something before it."""
    return isinstance(content, dict) and isinstance(content.get("error"), dict)


def _close(client: httpx.Client, threads: ThreadPoolExecutor) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    client.close()
