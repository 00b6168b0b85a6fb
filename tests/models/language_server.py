"""A real HTTP server of the part of vLLM's API that mmd uses, over the tiny models.

Prompts are rendered, tokenized and read by transformers alone: no code of mmd's encoder or scorer takes part, so that
equal log-likelihoods are no tautology. Field names and answers are those of vLLM 0.29 to 0.33
(``vllm/entrypoints/openai``).
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from PIL import Image

from mmd.models.mllm import Mllm


class LanguageServer:
    """Serves models by name; what it was asked is kept.

    Attributes:
        url: root of its API.
        asked: the bodies of all requests, in order.
        key: wanted as bearer token, if any.
        fails_with: status of every answer from now on, if any: "html" stands for a page of something before the server.
        waits_s: before every answer.
        spoils: change of the rendered prompt, as another chat template would make.
        forgets: whether it leaves out ``top_logprobs``, as a server that does not know ``logprob_token_ids``.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.key: str | None = None
        self.fails_with: int | str | None = None
        self.waits_s = 0.0
        self.spoils = ""
        self.forgets = False
        self._models: dict[str, tuple[Mllm, str | None]] = {}
        self._lock = threading.Lock()

    def serve(self, name: str, mllm: Mllm, adapter: str | None = None) -> None:
        """Make a model known by a name, an adapter on it being on."""
        self._models[name] = (mllm, adapter)

    def answer(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
        self.asked.append(dict(body))
        time.sleep(self.waits_s)
        if self.fails_with == "html":
            return PlainTextResponse("<h1>nothing here</h1>", 404)
        if isinstance(self.fails_with, int):
            return _error(self.fails_with, "as the test wants it")
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if body["model"] not in self._models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if not 0 < len(body.get("logprob_token_ids", [0])) <= 128:
            return _error(400, "too many logprob_token_ids")
        read = self._complete if path == "completions" else self._chat
        with self._lock, torch.no_grad():
            mllm, adapter = self._models[body["model"]]
            if adapter is not None:
                mllm.use(adapter)
            return JSONResponse(read(mllm, body))

    def _complete(self, mllm: Mllm, body: Mapping[str, Any]) -> dict[str, Any]:
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            found = _next(mllm, {"input_ids": torch.tensor([prompt])}, body["logprob_token_ids"])
            choices.append({"index": index, "text": "", "logprobs": {"top_logprobs": [found]}})
        return {"choices": choices[::-1]}  # in any order, each with its index

    def _chat(self, mllm: Mllm, body: Mapping[str, Any]) -> dict[str, Any]:
        pictures = []
        messages = []
        for message in body["messages"]:
            parts = message["content"]
            if isinstance(parts, str):  # vLLM's content format "openai" wraps them, the assistant's too
                parts = [{"type": "text", "text": parts}]
            pictures += [_picture(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            shown = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            messages.append({**message, "content": shown})
        text = mllm.processor.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
        )
        batch = mllm.processor(
            text=[text + self.spoils], images=[pictures] if pictures else None, add_special_tokens=False,
            return_tensors="pt",
        )  # fmt: skip
        ids = batch["input_ids"][0].tolist()
        if "prompt_logprobs" in body:
            return {"prompt_token_ids": ids, "prompt_logprobs": _of_prompt(mllm, dict(batch)), "choices": []}
        found = _next(mllm, dict(batch), body["logprob_token_ids"])
        entries = [] if self.forgets else [{"token": token, "logprob": value} for token, value in found.items()]
        return {
            "prompt_token_ids": ids,
            "choices": [{"index": 0, "logprobs": {"content": [{"top_logprobs": entries}]}}],
        }


def _next(mllm: Mllm, batch: dict[str, Any], tokens: list[int]) -> dict[str, float]:
    """The next token's log-probabilities: those asked for and, first, the likeliest, as vLLM tells them."""
    logits = mllm.model(**batch).logits[0, -1].float()
    values = logits.log_softmax(dim=-1)
    return {f"token_id:{token}": float(values[token]) for token in (int(values.argmax()), *tokens)}


def _of_prompt(mllm: Mllm, batch: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The log-probability of each token of the prompt after those before it; of the first there is none."""
    values = mllm.model(**batch).logits[0].float().log_softmax(dim=-1)
    pairs = enumerate(batch["input_ids"][0].tolist())
    return [{str(token): {"logprob": float(values[i - 1, token]), "rank": 1}} if i else None for i, token in pairs]


def _picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "Error", "code": status}}, status)


@contextmanager
def language_server() -> Iterator[LanguageServer]:
    """Run a server at a free port."""
    served = LanguageServer()
    app = FastAPI()

    def completions(body: dict[str, Any], request: Request) -> Response:
        return served.answer("completions", body, request.headers)

    def chat(body: dict[str, Any], request: Request) -> Response:
        return served.answer("chat", body, request.headers)

    app.post("/v1/completions", response_model=None)(completions)
    app.post("/v1/chat/completions", response_model=None)(chat)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield served
    finally:
        served.waits_s = 0.0
        server.should_exit = True
        thread.join(10)
