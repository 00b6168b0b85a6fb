"""The HTTP application: routes over an intent backend, the pages, and errors in one shape.

The backend is a Serve deployment in production and the engine itself in tests; nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import mmd
from mmd.config import ServeSettings
from mmd.intent.engine import IntentAnswer, IntentQuery
from mmd.intent.types import IntentPrediction
from serve_apps.api import (
    Alternative,
    ApiError,
    ErrorResponse,
    ExamplesResponse,
    FiredRuleOut,
    HealthResponse,
    IntentRequest,
    IntentResponse,
    PredictionOut,
    ReadyResponse,
    TasksResponse,
    Words,
)
from serve_apps.guard import Guard, error_response
from serve_apps.limits import has_pictures, read_query

DECODERS = 2
"""Threads that decode pictures. Pillow lets go of the interpreter meanwhile; more would only hold more memory."""
_PAGES = {"/": "index.html", "/docs": "docs.html"}
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "Malformed, or over a limit."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "Too many bytes."},
    415: {"model": ErrorResponse, "description": "Not JSON."},
    429: {"model": ErrorResponse, "description": "Overloaded; come back after Retry-After seconds."},
    500: {"model": ErrorResponse, "description": "The service failed."},
    503: {"model": ErrorResponse, "description": "Not ready."},
    504: {"model": ErrorResponse, "description": "No answer in time."},
}


class IntentBackend(Protocol):
    """What answers; every method may raise :class:`~serve_apps.api.ApiError`."""

    async def answer(self, query: IntentQuery) -> IntentAnswer:
        """Answer one query."""
        ...

    async def tasks(self) -> TasksResponse:
        """Return the tasks."""
        ...

    async def examples(self) -> ExamplesResponse:
        """Return dialogues to try."""
        ...

    async def ready(self) -> ReadyResponse:
        """Return what is serving."""
        ...


def create_app(backend: IntentBackend, settings: ServeSettings) -> FastAPI:
    """Return the application, its guard around it.

    Args:
        backend: what answers.
        settings: limits.
    """
    app = FastAPI(
        title="mmd",
        version=mmd.__version__,
        description="Recognises what a customer wants from a dialogue with pictures, and says why.",
        docs_url=None,  # the ready-made pages load scripts from other hosts; /docs is our own
        redoc_url=None,
        responses={code: _ERRORS[code] for code in (500, 503)},
    )
    _add_errors(app)
    _add_api(app, backend, settings)
    _add_pages(app)
    limit = int(settings.max_body_mb * 2**20)
    app.add_middleware(Guard, max_body_bytes=limit, body_timeout_s=settings.request_timeout_s)
    describe = app.openapi
    app.openapi = lambda: drop_unused_errors(describe())  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def drop_unused_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Take the framework's own 422 out of an OpenAPI document: malformed requests get 400 here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    return document


def _add_api(app: FastAPI, backend: IntentBackend, settings: ServeSettings) -> None:
    # Not asyncio's own pool: its many threads would decode as many requests' pictures at a time.
    decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")

    @app.post(
        "/v1/intent",
        summary="Recognise the intent",
        tags=["intent"],
        responses={code: _ERRORS[code] for code in (400, 408, 413, 415, 429, 504)},
    )
    async def intent(body: IntentRequest, request: Request) -> IntentResponse:
        """Answer what the customer wants, who decided, and the rules that fired, in words.

        Over the limits, without anything to read, or with a picture that cannot be decoded: a clear error.
        """
        request_id = request.state.request_id
        left_s = settings.request_timeout_s - (time.perf_counter() - request.state.started)
        try:
            async with asyncio.timeout(left_s):
                if has_pictures(body):
                    loop = asyncio.get_running_loop()
                    query, decoded_ms = await loop.run_in_executor(decoders, _timed_read, body, request_id, settings)
                else:  # words alone need not wait behind other people's pictures
                    query, decoded_ms = _timed_read(body, request_id, settings)
                answer = await backend.answer(query)
        except TimeoutError:
            raise late_answer(settings.request_timeout_s) from None
        total_ms = (time.perf_counter() - request.state.started) * 1000
        return to_response(request_id, answer, decoded_ms, total_ms)

    @app.get("/v1/tasks", summary="What can be asked", tags=["intent"])
    async def tasks() -> TasksResponse:
        """Return every task with its labels."""
        return await backend.tasks()

    @app.get("/v1/examples", summary="Dialogues to try", tags=["intent"])
    async def examples() -> ExamplesResponse:
        """Return a few training dialogues of the simulated shop; other corpora are not shown unless switched on."""
        return await backend.examples()

    @app.get("/healthz", summary="Is the process alive?", tags=["operation"])
    async def healthz() -> HealthResponse:
        """Answer without touching a model."""
        return HealthResponse(status="ok")

    @app.get("/readyz", summary="Can it answer, and with what?", tags=["operation"])
    async def readyz() -> ReadyResponse:
        """Name the artefacts that answer and the parts that are missing; 503 while there are none."""
        return await backend.ready()


def _timed_read(body: IntentRequest, request_id: str, settings: ServeSettings) -> tuple[IntentQuery, float]:
    """Return the query and the milliseconds that reading took, waiting for a thread not counted."""
    started = time.perf_counter()
    query = read_query(body, request_id, settings)
    return query, (time.perf_counter() - started) * 1000


def late_answer(timeout_s: float) -> ApiError:
    """Return the error of an answer that did not come in time."""
    message = f"no answer within {timeout_s:g} s; send fewer or smaller pictures, or try again."
    return ApiError(504, "timeout", message)


def to_response(request_id: str, answer: IntentAnswer, decoded_ms: float, total_ms: float) -> IntentResponse:
    """Put an answer into its wire form; what the stages do not account for is waiting: queues, batching, hops."""
    stages = {"decode": decoded_ms, **answer.timings_ms}
    timings = {**stages, "wait": max(0.0, total_ms - sum(stages.values())), "total": total_ms}
    return IntentResponse(
        id=request_id,
        predictions=tuple(_prediction(p, answer) for p in answer.predictions),
        degraded=answer.degraded,
        timings_ms={stage: round(ms, 2) for stage, ms in timings.items()},
        artifacts=dict(answer.artifacts),
    )


def _prediction(prediction: IntentPrediction, answer: IntentAnswer) -> PredictionOut:
    return PredictionOut(
        task=prediction.task,
        label=prediction.label,
        confidence=_unit(prediction.confidence),
        arm=prediction.arm,
        mllm_share=_unit(answer.mllm_shares[prediction.task]),
        fired=tuple(
            FiredRuleOut(
                id=rule.rule_id,
                label=rule.label,
                words=Words(**answer.words[rule.rule_id]),
                precision=_unit(rule.precision),
                wilson_lower=_unit(rule.wilson_lower),
                support=rule.support,
            )
            for rule in prediction.fired
        ),
        alternatives=tuple(Alternative(label=label, probability=_unit(p)) for label, p in prediction.alternatives),
    )


def _unit(value: float) -> float:
    """Return a probability without rounding noise beyond [0, 1]."""
    return min(1.0, max(0.0, value))


# ---------------------------------------------------------------- errors


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, err: ApiError) -> JSONResponse:
        return error_response(err)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, err: RequestValidationError) -> JSONResponse:
        return error_response(explain_validation(err.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, err: HTTPException) -> JSONResponse:
        if err.status_code == 400:  # the framework's own words for a body that no parser takes
            return error_response(ApiError(400, "invalid_json", "the body is not valid JSON in UTF-8. See /docs."))
        what = {404: "there is nothing here", 405: f"{request.method} is not taken here"}
        message = f"{request.url.path[:200]}: {what.get(err.status_code, str(err.detail))}. See /docs."
        return error_response(ApiError(err.status_code, _CODES.get(err.status_code, "http_error"), message))


def explain_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Turn pydantic's complaints into one error about the most specific of them."""
    first = max(errors, key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it breaks off")
        return ApiError(400, "invalid_json", f"the body is not valid JSON: {reason}. See /docs for its shape.")
    path = field_path(first["loc"][1:])
    message = str(first["msg"]).removeprefix("Value error, ")
    kinds = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
    where = f"{path}: " if path else ""
    return ApiError(400, kinds.get(first["type"], "invalid_value"), f"{where}{message}. See /docs.", path or None)


def field_path(loc: Sequence[int | str]) -> str:
    """Write ``("turns", 0, "text")`` as ``turns[0].text``, without the names of union members."""
    path, after_part = "", False
    for place in loc:
        if isinstance(place, int):
            path += f"[{place}]"
            after_part = ".content[" in path
        elif after_part and place in ("text", "image_url"):
            after_part = False  # which member of the union; its own fields follow
        elif place != "str" and "[" not in place:
            path += f".{place}" if path else place
    return path


# ---------------------------------------------------------------- pages


@dataclass(frozen=True)
class _StaticFile:
    body: bytes
    media_type: str
    etag: str

    def respond(self, request: Request) -> Response:
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def _read_static() -> dict[str, _StaticFile]:
    files = {}
    for entry in (resources.files("serve_apps") / "static").iterdir():
        media = _MEDIA.get("." + entry.name.rsplit(".", 1)[-1])
        if media:
            body = entry.read_bytes()
            files[entry.name] = _StaticFile(body, media, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return files


def _add_pages(app: FastAPI) -> None:
    files = _read_static()

    def page(name: str) -> Any:  # noqa: ANN401 (FastAPI reads the inner function's own signature)
        async def serve_page(request: Request) -> Response:
            return files[name].respond(request)

        return serve_page

    for path, name in _PAGES.items():
        app.get(path, include_in_schema=False)(page(name))

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].respond(request)
