"""The pages: files beside the code, each with a validator so that browsers ask before they reuse one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

_PAGES = {"/": "index.html", "/docs": "docs.html"}
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


def _read_static() -> dict[str, StaticFile]:
    files = {}
    for entry in (resources.files("serve_apps") / "static").iterdir():
        media = _MEDIA.get("." + entry.name.rsplit(".", 1)[-1])
        if media:
            body = entry.read_bytes()
            files[entry.name] = StaticFile(body, media, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return files


def add_pages(app: FastAPI) -> None:
    """Add the page, the API document and their files."""
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
