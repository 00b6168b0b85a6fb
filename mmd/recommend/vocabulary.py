"""The vocabulary V ∪ I: words (and control tokens) first, then every item as one token of its own.

A teacher and a student can exchange distributions only over the same vocabulary, and perplexities are comparable only
within one: a :class:`TokenSpace` has a fingerprint that tells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mmd.artifacts import fingerprint
from mmd.errors import ArtifactError, CorpusError
from mmd.recommend.types import Mode, Part
from mmd.schema import Speaker

if TYPE_CHECKING:
    from mmd.artifacts import Artifact, ArtifactWriter
    from mmd.recommend.types import LinkedTurn

TOKENIZER_FILE = "tokenizer.json"
_LISTS = {"words": ("words", "item_ids"), "lm": ("item_ids",)}
"""Kind of tokenizer → lists that its file has."""
UNKNOWN_TEXT = "[unknown]"
"""What an unknown word is decoded to."""


@dataclass(frozen=True, slots=True)
class TokenSpace:
    """Which ids are words, items and control tokens.

    Attributes:
        n_words: ids below are words and control tokens.
        n_items: ids from ``n_words`` on are items, in the order of the item graph.
        pad: fills rows up; never looked at.
        bos: stands before a response; what the first step of decoding is given.
        eos: ends a response.
        rec: first token of a response that names an item.
        gen: first token of any other response.
        unk: stands for words that the vocabulary lacks; None: there are none.
        silent: tokens that no reply may hold, since they are nothing that one says: padding, start, speakers, unknown.
        digest: of the words themselves and of the items' ids.
    """

    n_words: int
    n_items: int
    pad: int
    bos: int
    eos: int
    rec: int
    gen: int
    unk: int | None = None
    silent: tuple[int, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        """Check that there is something to recommend.

        Raises:
            CorpusError: no item.
        """
        if self.n_items < 1:
            raise CorpusError("the item graph has no item to recommend; give the corpus a catalogue (docs/data.md).")

    @property
    def first_item(self) -> int:
        """Token of the graph's first item."""
        return self.n_words

    @property
    def size(self) -> int:
        """Number of tokens, items included."""
        return self.n_words + self.n_items

    @property
    def items(self) -> slice:
        """Ids of the items."""
        return slice(self.n_words, self.size)

    def is_item(self, token: int) -> bool:
        """Say whether a token is an item."""
        return self.n_words <= token < self.size

    def item_at(self, token: int) -> int:
        """Return the position of a token's item in the graph.

        Raises:
            ValueError: the token is no item.
        """
        if not self.is_item(token):
            raise ValueError(f"token {token}: items are {self.n_words} to {self.size - 1}")
        return token - self.n_words

    def token_of(self, item: int) -> int:
        """Return the token of the item at a position of the graph.

        Raises:
            ValueError: the graph has no such item.
        """
        if not 0 <= item < self.n_items:
            raise ValueError(f"item {item}: the graph has items 0 to {self.n_items - 1}")
        return self.n_words + item

    def mode_token(self, mode: Mode) -> int:
        """Return the token that announces a mode."""
        return self.rec if mode == "rec" else self.gen

    def fingerprint(self) -> str:
        """Return what equal vocabularies have in common, and only they."""
        return fingerprint(asdict(self))


def require_same_space(teacher: TokenSpace, student: TokenSpace, teacher_name: str, student_name: str) -> None:
    """Raise unless two models speak the same vocabulary.

    Raises:
        ArtifactError: they do not; the message names both and how they differ.
    """
    if teacher.fingerprint() == student.fingerprint():
        return
    sizes = [f"{space.n_words} words and {space.n_items} items" for space in (teacher, student)]
    differ = "with other words or items" if sizes[0] == sizes[1] else f"and {student_name} has {sizes[1]}"
    raise ArtifactError(
        f"vocabulary mismatch: {teacher_name} has {sizes[0]}, {differ}; a student learns from a teacher of its own "
        "vocabulary. Train both from the same graph artefact with the same recommend.conversations, backbone.kind and "
        "backbone.model."
    )


class Tokenizer(ABC):
    """Words and items ↔ tokens.

    Attributes:
        space: ids and what they are.
        speakers: token that opens a turn, by who speaks.
    """

    space: TokenSpace
    speakers: dict[Speaker, int]

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of words; none of them is a control token or an item, whatever the text says."""

    @abstractmethod
    def decode_text(self, tokens: Sequence[int]) -> str:
        """Return words as a person writes them; an unknown one as :data:`UNKNOWN_TEXT`."""

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Return the tokens of an utterance, each item as one."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens.append(self.space.token_of(part))
            else:
                tokens += self.encode_text(part)
        return tokens

    def encode_turn(self, turn: LinkedTurn) -> list[int]:
        """Return a turn of a context: who speaks, then what they say."""
        return [self.speakers[turn.speaker], *self.encode_parts(turn.parts)]

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> list[Part]:
        """Return words and items of a response; control tokens say nothing.

        Titles put in the place of the items give a text with its spaces right.
        """

    @abstractmethod
    def save(self, writer: ArtifactWriter, folder: str) -> None:
        """Write what :func:`load_tokenizer` reads into a folder of an artefact."""

    @property
    def control(self) -> frozenset[int]:
        """Tokens that are neither words nor items."""
        space = self.space
        return frozenset({space.pad, space.bos, space.eos, space.rec, space.gen, *self.speakers.values()})


def load_tokenizer(artifact: Artifact, folder: str) -> Tokenizer:
    """Load a tokenizer of either kind.

    Raises:
        ArtifactError: the folder holds none, or a file that lacks something.
    """
    content = artifact.read_json(f"{folder}/{TOKENIZER_FILE}")
    kind = content.get("kind")
    if kind not in _LISTS:
        raise ArtifactError(
            f"{artifact.ref}: {folder}/{TOKENIZER_FILE} is of unknown kind {kind!r}; run the job again."
        )
    for name in _LISTS[kind]:
        if not isinstance(content.get(name), list):
            raise ArtifactError(f"{artifact.ref}: {folder}/{TOKENIZER_FILE} has no list {name!r}; run the job again.")
    if kind == "words":
        from mmd.recommend.words import WordTokenizer

        return WordTokenizer.from_json(content)
    from mmd.recommend.lm_tokens import LmTokenizer

    return LmTokenizer.load(artifact, folder)
