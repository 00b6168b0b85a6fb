"""Errors that users can meet. Each message says what is wrong, where, and the way out.

Command-line entry points print the message of an :class:`MmdError` without a traceback and exit with 2;
any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Literal, get_args


class MmdError(Exception):
    """Base of every error that is the input's or the environment's fault, not the code's."""


class ConfigError(MmdError):
    """A setting is unknown, ill-typed or out of range."""


class CorpusError(MmdError):
    """A corpus as a whole cannot be read (missing folder, no records, too many bad records)."""


class ArtifactError(MmdError):
    """An artefact is missing, incomplete, corrupt or of another schema version."""


class ModelError(MmdError):
    """A model name does not resolve, or its package is not installed."""


class ServerUnavailableError(ModelError):
    """A server that runs a model cannot be reached, is late, overloaded or broken; it may be there again later."""


class ClusterError(MmdError):
    """A Ray cluster does not answer, refuses a request, or lacks what a job needs, as storage that all nodes share."""


class RuleError(MmdError):
    """A rule or rule base is malformed; the message names the file, rule and field."""


class RequestError(MmdError):
    """A request to an online endpoint is malformed or over a limit."""


class UnavailableError(MmdError):
    """Nothing that could answer a request is there, or works."""


QuarantineReason = Literal[
    "broken_json",
    "missing_field",
    "wrong_type",
    "unknown_speaker",
    "unknown_label",
    "image_missing",
    "image_truncated",
    "not_an_image",
    "image_bomb",
    "image_empty",
    "image_too_large",
    "path_escape",
    "duplicate_id",
    "empty_dialogue",
    "invalid_utf8",
    "text_too_long",
    "too_many_turns",
    "remote_image",
]
QUARANTINE_REASONS: tuple[QuarantineReason, ...] = get_args(QuarantineReason)


class BadRecordError(MmdError):
    """One record is unusable; it goes to quarantine with ``reason`` while the job goes on.

    Args:
        reason: the machine-readable reason, one of :data:`QUARANTINE_REASONS`.
        detail: what exactly is wrong, in words a data owner can act on.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: QuarantineReason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRecordError], tuple[QuarantineReason, str]]:
        """Pickle by both arguments, so that the error survives a trip between processes."""
        return (type(self), (self.reason, self.detail))
