"""Method `frame`: role-aware paraphrase templates around the customer's last message.

What is asked stays; how it is opened, closed, spelt and cut into turns changes. Every turn keeps its speaker: customers
greet, thank and hesitate, agents answer politely, and no word of one side moves to the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from mmd.intent.augment.guard import Guard
from mmd.intent.augment.phrasebook import language_of, phrases
from mmd.intent.types import has_words
from mmd.language import HAN, Language
from mmd.schema import Speaker, Turn

Turns = tuple[Turn, ...]
Move = Callable[["_Draft"], Turns | None]

_MOST_MOVES = 3
_ANSWERED_SHARE = 0.7  # greetings that the agent answers
_LEAD_IN_SHARE = 0.6  # courtesies rather than hesitations
_DOUBLED_SHARE = 0.5  # marks that are doubled rather than dropped
_SENTENCE_END = re.compile(r"(?<=[。！？!?])\s*(?=\S)|(?<=[.;；~])\s+(?=\S)")
_LAST_MARK = re.compile(r"[。.？?！!~]+$")
_GREETING = re.compile(
    r"^\s*(?:你好|您好|在[吗么]|亲|哈喽|有人|hi\b|hello|hey|good (?:morning|day|evening))", re.IGNORECASE
)
_LITTLE_WORD = re.compile(
    r"(?:an?|are|can|could|did|do|does|has|have|help|how|if|is|it|may|my|our|please|roughly|show|that|the|there|these|"
    r"this|was|we|what|when|where|which|who|why|will|would|you|your)\b",
    re.IGNORECASE,
)
_STATEMENT = re.compile(rf"(?:[A-Za-z0-9)]|(?![哦呢哈呀啦吗嘛么吧])[{HAN}])[.。!！]?$")
_THANKS = re.compile(r"谢|辛苦|麻烦|thank|thx|cheers|please|pls", re.IGNORECASE)
_QUESTION = re.compile(
    r"[吗嘛么呢吧啥咋几哪谁]|多[少久长大]|是不是|是否|能不能|有没有|可不可以"
    r"|^\W*(?:what|where|when|which|who|why|how|is|are|do|does|did|can|could|will|would|should|has|have|may)\b",
    re.IGNORECASE,
)


def reframe(turns: Sequence[Turn], guard: Guard, rng: random.Random) -> Turns | None:
    """Return the turns said in another way, by one to three moves; None where no move applies.

    Args:
        turns: of the dialogue, at least one user turn having words.
        guard: conditions of rules; a message is cut in two only where they tell which part carries the request.
        rng: source of every choice.
    """
    draft = _Draft(tuple(turns), language_of(turns), guard, rng)
    wanted = rng.randint(1, _MOST_MOVES)
    options = list(MOVES)
    while options and len(draft.done) < wanted:
        move = options.pop(rng.randrange(len(options)))
        changed = move(draft)
        if changed is not None and changed != draft.turns and not draft.done & _EXCLUDES.get(move, set()):
            draft.turns = changed
            draft.done.add(move)
    return draft.turns if draft.done else None


class _Draft:
    """A dialogue in the making."""

    def __init__(self, turns: Turns, language: Language, guard: Guard, rng: random.Random) -> None:
        self.turns = turns
        self.language = language
        self.guard = guard
        self.rng = rng
        self.done: set[Move] = set()

    def pick(self, family: str) -> str:
        return str(self.rng.choice(phrases(self.language)[family]))

    @property
    def asked(self) -> int:
        """Index of the last user turn that has words; -1 without one."""
        return max((i for i, t in enumerate(self.turns) if t.speaker == "user" and has_words(t.text)), default=-1)

    def said(self, index: int, text: str) -> Turns:
        """Return the turns with one turn's text replaced."""
        return (*self.turns[:index], replace(self.turns[index], text=text), *self.turns[index + 1 :])


def _open_with_greeting(draft: _Draft) -> Turns | None:
    """Put a greeting, and often its answer, before the first turn."""
    if any(_GREETING.match(turn.text) for turn in draft.turns[:2]):
        return None
    opening = [Turn("user", draft.pick("greet"))]
    if draft.rng.random() < _ANSWERED_SHARE:
        opening.append(Turn("agent", draft.pick("greet_back")))
    return (*opening, *draft.turns)


def _drop_greeting(draft: _Draft) -> Turns | None:
    """Leave out an opening turn that only greets, and its answer."""
    first, rest = draft.turns[0], draft.turns[1:]
    if first.image_ids or first.item_ids or len(rest) == 0 or not _only_greets(first.text):
        return None
    if rest[0].speaker == "agent" and not rest[0].image_ids and not rest[0].item_ids:
        rest = rest[1:]
    return rest if any(t.speaker == "user" and has_words(t.text) for t in rest) else None


def _only_greets(text: str) -> bool:
    return len(text.strip()) <= 24 and _GREETING.match(text) is not None and not _SENTENCE_END.search(text)


def _lead_in(draft: _Draft) -> Turns | None:
    """Open the last message with a courtesy or a hesitation."""
    family = "lead_in" if draft.rng.random() < _LEAD_IN_SHARE else "filler"
    text = draft.turns[draft.asked].text
    phrase = draft.pick(family)
    if _GREETING.match(text) or text.startswith(phrase.strip(" ，,")):
        return None
    return draft.said(draft.asked, phrase + _uncapitalised(text, after=phrase))


def _uncapitalised(text: str, after: str) -> str:
    """Return the text without its capital where it goes on after a comma with a little word; names keep theirs."""
    if not after.rstrip().endswith(",") or not _LITTLE_WORD.match(text):
        return text
    return text[:1].lower() + text[1:]


def _close(draft: _Draft) -> Turns | None:
    """End the last message with thanks or a plea."""
    text = draft.turns[draft.asked].text.rstrip()
    phrase = draft.pick("closing")
    if _THANKS.search(text) and _THANKS.search(phrase):
        return None
    ended = _LAST_MARK.search(text) is not None
    if ended and phrase == "~":
        return None
    if draft.language == "zh":
        return draft.said(draft.asked, text + (phrase.lstrip("， ") if ended else phrase))
    return draft.said(draft.asked, (text if ended else f"{text}.") + phrase)


def _spelling(draft: _Draft) -> Turns | None:
    """Write words of customers in a more or a less casual form."""
    pairs = phrases(draft.language)["variants"]
    users = [i for i, turn in enumerate(draft.turns) if turn.speaker == "user" and turn.text]
    options = [(i, pair) for i in users for pair in pairs if _form(pair[0], draft.language).search(draft.turns[i].text)]
    if not options:
        return None
    index, (old, new) = draft.rng.choice(options)
    return draft.said(index, _form(old, draft.language).sub(lambda m: _like(m.group(), new), draft.turns[index].text))


def _form(words: str, language: Language) -> re.Pattern[str]:
    pattern = re.escape(words)
    return re.compile(pattern if language == "zh" else rf"(?<![\w'’]){pattern}(?![\w'’])", re.IGNORECASE)


def _like(old: str, new: str) -> str:
    """Return ``new`` with the capital that ``old`` has; the pronoun I always has one."""
    if new[:1] == "i" and new[1:2] in ("'", " "):
        return "I" + new[1:]
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _punctuate(draft: _Draft) -> Turns | None:
    """Drop or double the last mark, or set one where there is none."""
    text = draft.turns[draft.asked].text.rstrip()
    mark = _LAST_MARK.search(text)
    if mark is None:
        asks = _QUESTION.search(_SENTENCE_END.split(text)[-1]) is not None
        return draft.said(draft.asked, text + _MARKS[draft.language][asks])
    if text[-1] in "?？!！~" and draft.rng.random() < _DOUBLED_SHARE:
        return draft.said(draft.asked, text + text[-1])
    return draft.said(draft.asked, text[: mark.start()])


_MARKS: dict[Language, tuple[str, str]] = {"en": (".", "?"), "zh": ("。", "？")}


def _agent_manners(draft: _Draft) -> Turns | None:
    """Make a statement of the agent more courteous; questions stay as they are."""
    agents = [i for i, t in enumerate(draft.turns) if t.speaker == "agent" and _states(t.text)]
    if not agents:
        return None
    index = draft.rng.choice(agents)
    text = draft.turns[index].text.rstrip()
    if draft.rng.random() < _LEAD_IN_SHARE and not _GREETING.match(text):
        phrase = draft.pick("agent_lead_in")
        return draft.said(index, phrase + _uncapitalised(text, after=phrase))
    if draft.language == "zh":
        return draft.said(index, _LAST_MARK.sub("", text) + draft.pick("agent_closing"))
    return draft.said(index, text + draft.pick("agent_closing"))


def _states(text: str) -> bool:
    """Say whether a text ends as a plain statement, to which a courtesy can be added."""
    return has_words(text) and _STATEMENT.search(text.rstrip()) is not None


def _merge(draft: _Draft) -> Turns | None:
    """Join the last message with the customer's turn right before it."""
    index = draft.asked
    if index < 1 or draft.turns[index - 1].speaker != "user":
        return None
    before, last = draft.turns[index - 1], draft.turns[index]
    space = "" if draft.language == "zh" and _LAST_MARK.search(before.text) else " "
    joined = Turn(
        speaker="user",
        text=f"{before.text}{space}{last.text}".strip(),
        image_ids=before.image_ids + last.image_ids,
        item_ids=before.item_ids + last.item_ids,
    )
    return (*draft.turns[: index - 1], joined, *draft.turns[index + 1 :])


def _split(draft: _Draft) -> Turns | None:
    """Cut the last message in two turns where rules tell that the second part carries the request."""
    if not any(p.scope == "last_user" for p in draft.guard.text):
        return None
    turn = draft.turns[draft.asked]
    cuts = [match.end() for match in _SENTENCE_END.finditer(turn.text)]
    cuts = [cut for cut in cuts if has_words(turn.text[:cut]) and has_words(turn.text[cut:])]
    if not cuts:
        return None
    cut = draft.rng.choice(cuts)
    speaker: Speaker = "user"
    # Pictures stay with the part that comes first, so that they are seen in the order they were sent.
    first = Turn(speaker, turn.text[:cut].rstrip(), turn.image_ids, turn.item_ids)
    return (*draft.turns[: draft.asked], first, Turn(speaker, turn.text[cut:]), *draft.turns[draft.asked + 1 :])


MOVES: tuple[Move, ...] = (
    _open_with_greeting,
    _drop_greeting,
    _lead_in,
    _close,
    _spelling,
    _punctuate,
    _agent_manners,
    _merge,
    _split,
)
_EXCLUDES: dict[Move, set[Move]] = {
    # What one has added the other must not take for part of the message.
    _punctuate: {_close},
    _agent_manners: {_open_with_greeting},
    _drop_greeting: {_open_with_greeting},
    _open_with_greeting: {_drop_greeting, _lead_in},
    _split: {_lead_in, _close, _merge},
    _merge: {_split},
}
