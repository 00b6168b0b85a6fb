"""What is logged and told of a part that fails: never its words, which may quote the dialogue."""

from __future__ import annotations

from typing import Any

from mmd.log import place_of


def note_failure(log: Any, part: str, err: Exception, request_id: str) -> str:  # noqa: ANN401 (a structlog logger)
    """Log type and place of what a part failed of; return what the caller is told."""
    log.error("part_failed", request_id=request_id, part=part, error=type(err).__name__, where=place_of(err))
    return f"it failed ({type(err).__name__}); the log has the reason under request id {request_id}."
