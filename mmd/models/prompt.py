"""What a multimodal model is asked: an instruction, and words and pictures in their order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. ``parts`` are the user's message: a ``str`` is words, ``bytes`` an encoded picture (PNG, JPEG…)."""

    system: str
    parts: tuple[str | bytes, ...]

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, bytes))
