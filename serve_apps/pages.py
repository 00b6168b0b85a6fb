"""The pages: files beside the code, each with a validator so that browsers ask before they reuse one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mmd.config import ServeSettings
from serve_apps.limits import MEDIA_TYPES

_PAGES = {"/": "index.html", "/try": "try.html", "/sweeps": "sweeps.html", "/docs": "docs.html"}
_LIMITS = {
    "max_turns",
    "max_text_chars",
    "max_images",
    "max_image_mb",
    "max_image_megapixels",
    "max_request_megapixels",
    "max_body_mb",
}
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """A file of the pages."""

    body: bytes
    media_type: str
    etag: str

    def respond(self, request: Request) -> Response:
        """Return it, or 304 where the browser has it already."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def _file(body: bytes, media_type: str) -> StaticFile:
    return StaticFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')


def _read_static() -> dict[str, StaticFile]:
    files = {}
    for entry in (resources.files("serve_apps") / "static").iterdir():
        media = _MEDIA.get("." + entry.name.rsplit(".", 1)[-1])
        if media:
            files[entry.name] = _file(entry.read_bytes(), media)
    return files


def page_limits(settings: ServeSettings) -> dict[str, object]:
    """Return what a page has to know before it sends: the limits of a request, and which pictures are read."""
    return {**settings.model_dump(include=_LIMITS), "media_types": list(MEDIA_TYPES)}


def add_pages(app: FastAPI, settings: ServeSettings) -> None:
    """Add the chat page, the page to try each part, that of sweeps, the API document and their files.

    Args:
        app: gets the routes.
        settings: whose limits the pages tell, as ``static/limits.json``.
    """
    files = _read_static()
    files["limits.json"] = _file(json.dumps(page_limits(settings)).encode(), "application/json")

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
