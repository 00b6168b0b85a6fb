"""The vocabulary of a model trained from scratch: lower-cased words, Chinese and Japanese characters one by one.

It is built from the training split alone; rarer words are one unknown word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmd.artifacts import fingerprint
from mmd.intent.textnorm import normalise
from mmd.recommend.types import LinkedTurn, Part, ResponseSample
from mmd.recommend.vocabulary import TOKENIZER_FILE, UNKNOWN_TEXT, Tokenizer, TokenSpace

if TYPE_CHECKING:
    from mmd.artifacts import ArtifactWriter
    from mmd.recommend.settings import ConversationSettings

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces; Korean is not
_LETTER = f"[^\\W_{_CJK}]"
# A character, a number with its points and commas, a word with the apostrophes and hyphens inside it, or one sign.
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:[.,:]\d+)+(?!{_LETTER})|{_LETTER}+(?:['-]{_LETTER}+)*|\S")
_IS_CJK = re.compile(f"[{_CJK}]")
_CURLY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "`": "'"})
_SPECIALS = ("pad", "bos", "eos", "unk", "rec", "gen", "user", "agent")
_CLOSES = frozenset(".,!?;:)]}%…。、")
_OPENS = frozenset("([{$#")
_QUOTES = frozenset("\"'")
_ENDS = frozenset(".!?。")
_PRONOUN = re.compile("i('|$)")  # I, I'm, I've


def split_words(text: str) -> list[str]:
    """Return the tokens of a text, normalised (NFKC, case-folded).

    >>> split_words("Don't you like sci-fi? 我喜欢 3.5")
    ["don't", 'you', 'like', 'sci-fi', '?', '我', '喜', '欢', '3.5']
    """
    return _TOKEN.findall(normalise(text).translate(_CURLY))


class WordTokenizer(Tokenizer):
    """Words ↔ ids; ids are control tokens, words by falling frequency, items.

    Args:
        words: the known words, without repeats.
        item_ids: of the graph, in its order.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], item_ids: Sequence[str]) -> None:
        self.words = tuple(words)
        self.item_ids = tuple(item_ids)
        at = {name: index for index, name in enumerate(_SPECIALS)}
        self.speakers = {"user": at["user"], "agent": at["agent"]}
        self.space = TokenSpace(
            n_words=len(_SPECIALS) + len(self.words),
            n_items=len(self.item_ids),
            **{name: at[name] for name in ("pad", "bos", "eos", "unk", "rec", "gen")},
            silent=tuple(at[name] for name in ("pad", "bos", "unk", "user", "agent")),
            digest=fingerprint([self.words, self.item_ids]),
        )
        self._id_of = {word: len(_SPECIALS) + index for index, word in enumerate(self.words)}

    @classmethod
    def build(
        cls, samples: Iterable[ResponseSample], item_ids: Sequence[str], settings: ConversationSettings
    ) -> WordTokenizer:
        """Count the words of the training samples' contexts and responses, each turn of a dialogue once.

        Args:
            samples: those of other splits are passed over.
            item_ids: of the graph, in its order.
            settings: how often a known word occurs at least, and how many there are at most.
        """
        train = [sample for sample in samples if sample.split == "train"]
        turns = ((sample.dialogue_id, turn) for sample in train for turn in (*sample.context.turns, sample.response))
        return cls(frequent_words(turns, settings.min_word_count, settings.max_words, turn_words), item_ids)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text's words."""
        unknown = _SPECIALS.index("unk")
        return [self._id_of.get(word, unknown) for word in split_words(text)]

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Return words with the spaces and capitals that a person writes."""
        return "".join(part for part in self.decode(tokens) if isinstance(part, str))

    def decode(self, tokens: Sequence[int]) -> list[Part]:
        """Return words and items; see :meth:`Tokenizer.decode`."""
        control = self.control
        return join_words([self._said(token) for token in tokens if token not in control])

    def save(self, writer: ArtifactWriter, folder: str) -> None:
        """Write the words and the items' ids as JSON."""
        content = {"kind": self.kind, "words": self.words, "item_ids": self.item_ids}
        writer.write_json(f"{folder}/{TOKENIZER_FILE}", content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WordTokenizer:
        """Invert :meth:`save`."""
        return cls(content["words"], content["item_ids"])

    def _said(self, token: int) -> Part:
        if self.space.is_item(token):
            return self.space.item_at(token)
        return UNKNOWN_TEXT if token == self.space.unk else self.words[token - len(_SPECIALS)]


def frequent_words(
    turns: Iterable[tuple[str, LinkedTurn]], least: int, most: int, split: Callable[[LinkedTurn], Iterable[str]]
) -> tuple[str, ...]:
    """Return the words of turns, most frequent first.

    Args:
        turns: with their dialogues; however often a dialogue shows a turn, it counts once.
        least: rarer words are left out.
        most: number of words.
        split: words of a turn.
    """
    counts = Counter(word for _, turn in dict.fromkeys(turns) for word in split(turn))
    frequent = sorted((-count, word) for word, count in counts.items() if count >= least)
    return tuple(word for _, word in frequent[:most])


def turn_words(turn: LinkedTurn) -> list[str]:
    """Return the words and signs of a turn, items left out."""
    return [word for part in turn.parts if isinstance(part, str) for word in split_words(part)]


def join_words(tokens: Sequence[Part]) -> list[Part]:
    """Return words and items with spaces between them, sentences beginning with a capital.

    Splitting the words again gives the same tokens. Neighbouring words become one string.

    >>> join_words(["have", "you", "seen", 7, "?", "i", "liked", "it", "!"])
    ['Have you seen ', 7, '? I liked it!']
    """
    parts: list[Part] = []
    open_quotes: set[str] = set()
    before: Part | None = None
    sentence = glued = True  # the first word starts a sentence, and no space stands before it
    for token in tokens:
        closes_quote = token in open_quotes
        tight = glued or closes_quote or token in _CLOSES or _touches(before, token)
        _append(parts, "" if tight else " ", _capital(token, start=sentence))
        glued = token in _OPENS
        if isinstance(token, str) and token in _QUOTES:
            open_quotes ^= {token}
            glued = not closes_quote
        elif token not in _OPENS:
            sentence = token in _ENDS
        before = token
    return parts


def _append(parts: list[Part], space: str, token: Part) -> None:
    """Add a token to the last string, or as a part of its own."""
    text = space if isinstance(token, int) else space + token
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)
    if isinstance(token, int):
        parts.append(token)


def _touches(before: Part | None, token: Part) -> bool:
    """Say whether no space stands between two tokens, one of them a character of a script without spaces."""
    pair = (before, token)
    if not all(isinstance(part, str) for part in pair):
        return False
    cjk = [bool(_IS_CJK.match(str(part))) for part in pair]
    return all(cjk) or (cjk[1] and before in _CLOSES)


def _capital(token: Part, *, start: bool) -> Part:
    """Return a word with a capital where one belongs: at the start of a sentence, and the pronoun I."""
    if not isinstance(token, str) or not (start or _PRONOUN.match(token)):
        return token
    first = token[0].upper()
    # Some capitals are two letters, or do not fold back to the letter (dotless i): the word stays as it is.
    return first + token[1:] if len(first) == 1 and first.casefold() == token[0] else token
