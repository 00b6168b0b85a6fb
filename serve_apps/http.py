"""The HTTP application: routes over a backend, the pages, and errors in one shape.

The backend is Serve deployments in production and the engines themselves in tests; nothing here knows Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

import mmd
from mmd.config import ServeSettings
from mmd.schema import Image
from serve_apps.answers import (
    IMAGES_PATH,
    to_response,
    to_retrieve_response,
)
from serve_apps.api import (
    ApiError,
    ExamplesResponse,
    HealthResponse,
    IntentRequest,
    IntentResponse,
    ReadyResponse,
    RetrieveRequest,
    RetrieveResponse,
    TasksResponse,
)
from serve_apps.asking import ERRORS, MAY_FAIL, Asked
from serve_apps.chat_routes import Chatting, add_chat
from serve_apps.congestion import Congestion
from serve_apps.examples import media_type
from serve_apps.guard import Guard, error_response
from serve_apps.keys import IMAGE_ID, admission
from serve_apps.limits import most_commas, read_intent_query, read_retrieval_query
from serve_apps.pages import add_pages
from serve_apps.recommend_routes import add_recommend
from serve_apps.sweeps import SweepDesk
from serve_apps.sweeps_routes import add_sweeps
from serve_apps.telemetry import MEDIA_TYPE, Telemetry

_CODES = {404: "not_found", 405: "method_not_allowed"}
_QUOTED = 200  # characters of what a client wrote that a refusal repeats


class Backend(Chatting, Protocol):
    """What answers; every method may raise :class:`~serve_apps.api.ApiError`."""

    async def picture(self, image_id: str) -> Image:
        """Return the picture of a response or a product."""
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


def create_app(backend: Backend, settings: ServeSettings, sweeps: SweepDesk | None = None) -> FastAPI:
    """Return the application, its guard around it.

    Args:
        backend: what answers.
        settings: limits.
        sweeps: lists and launches sweeps; without it there are no such routes.
    """
    app = FastAPI(
        title="mmd",
        version=mmd.__version__,
        description="Recognises what a customer wants from a dialogue with pictures, finds the best answer, and "
        "recommends products: each by itself, and all together as a conversation that OpenAI's clients can hold.",
        docs_url=None,  # the ready-made pages load scripts from other hosts; /docs is our own
        redoc_url=None,
        redirect_slashes=False,  # where to would be the Host header's word
        responses={code: ERRORS[code] for code in (401, 500, 503)},
    )
    telemetry, asked = Telemetry(), Asked(settings)
    _add_errors(app)
    _add_api(app, backend, asked)
    add_chat(app, backend, asked, settings, telemetry.turn)
    if sweeps is not None:
        add_sweeps(app, sweeps)
    _add_metrics(app, telemetry)
    add_pages(app, settings)
    limit, body_timeout_s = int(settings.max_body_mb * 2**20), settings.request_timeout_s
    app.add_middleware(
        Guard,
        max_body_bytes=limit,
        body_timeout_s=body_timeout_s,
        max_commas=most_commas(settings),
        observe=telemetry.request,
        admit=admission(settings),
        congestion=congestion_of(settings),
    )
    if settings.cors_origins:  # outermost, so that refusals can be read, too; a preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # OpenAI's clients send some of their own; there are no cookies to protect
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    describe = app.openapi
    app.openapi = lambda: drop_unused_errors(describe())  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def congestion_of(settings: ServeSettings) -> Congestion | None:
    """Return what lets requests in, if anything does.

    Where there may be more replicas, autoscaling must see that they are needed: more requests a replica than are aimed
    at. A replica that answers one after the other is then as many times slower than alone.
    """
    if not settings.slowdown:
        return None
    aim, least = settings.target_ongoing_requests, settings.target_ongoing_requests * settings.min_replicas
    if settings.max_replicas > settings.min_replicas:
        return Congestion(max(settings.slowdown, aim + 0.5), least + 1)
    return Congestion(settings.slowdown, least)


def drop_unused_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Take the framework's own 422 out of an OpenAPI document: malformed requests get 400 here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    return document


def _add_api(app: FastAPI, backend: Backend, asked: Asked) -> None:
    @app.post("/v1/intent", summary="Recognise the intent", tags=["intent"], responses=MAY_FAIL)
    async def intent(body: IntentRequest, request: Request) -> IntentResponse:
        """Answer what the customer wants, who decided, and the rules that fired, in words.

        Over the limits, without anything to read, or with a picture that cannot be decoded: a clear error.
        """
        answer, decoded_ms, total_ms = await asked(body, request, read_intent_query, backend.answer)
        return to_response(request.state.request_id, answer, decoded_ms, total_ms)

    @app.post("/v1/retrieve", summary="Find the best answer", tags=["retrieval"], responses=MAY_FAIL)
    async def retrieve(body: RetrieveRequest, request: Request) -> RetrieveResponse:
        """Rank texts, pictures and products as the dialogue's next turn, best first.

        Over the limits, without anything to go by, or with a picture that cannot be decoded: a clear error.
        """
        result, decoded_ms, total_ms = await asked(body, request, read_retrieval_query, backend.retrieve)
        root = request.scope.get("root_path", "")
        return to_retrieve_response(request.state.request_id, result, decoded_ms, total_ms, root)

    add_recommend(app, backend, asked)

    @app.get(
        f"{IMAGES_PATH}/{{image_id}}",
        summary="A picture",
        tags=["retrieval", "recommendation"],
        response_class=Response,
        responses={200: {"description": "The picture's file.", "content": {"image/*": {}}}, 404: ERRORS[404]},
    )
    async def images(image_id: str, request: Request) -> Response:
        """Return the picture of a hit of /v1/retrieve or a product of /v1/recommend, by the id of its bytes."""
        if not IMAGE_ID.fullmatch(image_id):  # before any model is asked
            raise ApiError(404, "unknown_image", f"{image_id[:80]!r}: not a picture's id; take one from an answer.")
        headers = {"ETag": f'"{image_id}"', "Cache-Control": "private, max-age=31536000, immutable"}
        image = await backend.picture(image_id)
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(image.data, media_type=media_type(image), headers=headers)

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


def _add_metrics(app: FastAPI, telemetry: Telemetry) -> None:
    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        tags=["operation"],
        response_class=Response,
        responses={200: {"description": "Prometheus' text form.", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        """Count requests, latencies and turns of this process since it began; the models' own counts Ray exports."""
        return Response(telemetry.text(), media_type=MEDIA_TYPE)


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
        what = {404: "there is nothing here", 405: f"{request.method[:_QUOTED]} is not taken here"}
        message = f"{request.url.path[:_QUOTED]}: {what.get(err.status_code, str(err.detail))}. See /docs."
        return error_response(ApiError(err.status_code, _CODES.get(err.status_code, "http_error"), message))


def explain_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Turn pydantic's complaints into one error about the most specific of them."""
    first = max(errors, key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it breaks off")
        return ApiError(400, "invalid_json", f"the body is not valid JSON: {reason}. See /docs for its shape.")
    path = field_path(first["loc"][1:])[:_QUOTED]
    message = str(first["msg"]).removeprefix("Value error, ")[:_QUOTED]
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
