"""What a load asks: words of a corpus's training dialogues, or of a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmd.corpora.store import Corpus
from mmd.errors import CorpusError, RequestError
from mmd.intent.engine import shape_of
from mmd.loadtest.generator import Request
from mmd.schema import Dialogue, Turn

CHAT = "/v1/chat/completions"
_ROLES = {"user": "user", "agent": "assistant"}


def text_dialogues(corpus: Corpus, *, labelled: bool = False) -> list[Dialogue]:
    """Return the training dialogues without pictures; only those with labels where these are asked for.

    Raises:
        CorpusError: there is none.
    """
    found = [d for d in corpus.dialogues("train") if shape_of(d) == "text" and (d.labels or not labelled)]
    if not found:
        raise CorpusError(f"{corpus.artifact.ref}: no training dialogue is text only; ask another corpus, or a file.")
    return found


def read_questions(path: Path) -> list[tuple[Turn, ...]]:
    """Return the lines of a file, each a customer's only turn.

    Raises:
        RequestError: it cannot be read, or says nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise RequestError(f"{path}: cannot be read ({err}); give a UTF-8 text with a question a line.") from err
    if not any(lines):
        raise RequestError(f"{path}: has no question; give one a line.")
    return [(Turn("user", line),) for line in lines if line]


def asked_of(dialogue: Dialogue) -> tuple[Turn, ...]:
    """Return a dialogue up to its customer's last words."""
    turns = dialogue.turns
    last = max((place for place, turn in enumerate(turns) if turn.speaker == "user"), default=len(turns) - 1)
    return turns[: last + 1]


def endless(questions: Sequence[tuple[Turn, ...]], path: str, *, stream: bool = False) -> Iterator[Request]:
    """Yield requests for ever, each of a new text, so that no answer comes from a cache."""
    for number in itertools.count():
        yield request_of(renewed(questions[number % len(questions)], number), path, stream=stream)


def renewed(turns: Sequence[Turn], number: int) -> tuple[Turn, ...]:
    """Return turns with a number behind the last words, so that the text is new."""
    last = turns[-1]
    return (*turns[:-1], replace(last, text=f"{last.text} {number}"))


def request_of(turns: Iterable[Turn], path: str, *, stream: bool = False) -> Request:
    """Return the request that asks with some turns."""
    body: dict[str, Any]
    if path == CHAT:
        body = {"messages": [{"role": _ROLES[turn.speaker], "content": turn.text} for turn in turns]}
    else:
        body = {"turns": [{"speaker": t.speaker, "text": t.text, "item_ids": list(t.item_ids)} for t in turns]}
    return Request(path, body | ({"stream": True} if stream else {}))
