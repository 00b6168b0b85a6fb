"""Structured logs: events with context and units. Configured in an entry point, never at import."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog


def place_of(err: BaseException) -> str:
    """Return where an error happened, without what it says, which may quote a dialogue."""
    return "".join(traceback.format_tb(err.__traceback__))


def configure_logging(level: str = "INFO", *, json_lines: bool = False) -> None:
    """Send events to standard error, readable or as JSON lines.

    Args:
        level: a name of the logging module's levels.
        json_lines: one JSON object a line, for services whose logs are collected.
    """
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
