"""The vocabulary of a causal language model, with modes, speakers and items behind the model's own tokens.

What is added never goes through the model's tokenizer, so no text can spell it. The tokenizer's files are kept as
transformers writes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmd.artifacts import fingerprint
from mmd.models.resolve import LOCAL
from mmd.recommend.types import Part
from mmd.recommend.vocabulary import TOKENIZER_FILE, Tokenizer, TokenSpace

if TYPE_CHECKING:
    from mmd.artifacts import Artifact, ArtifactWriter
    from mmd.models.encoder import PromptEncoder
    from mmd.models.settings import ModelSettings

ADDED = ("rec", "gen", "user", "agent")
"""Control tokens behind the model's own vocabulary; ``agent`` opens the agent's turns and thus the response."""
_MODEL_FOLDER = "model"
_ANCHOR = "a"
"""Some tokenizers drop the space that a text begins with; behind a letter they keep it."""
_GLUED_BEHIND = frozenset("([{\"'“‘「《 \n\t")


class LmTokenizer(Tokenizer):
    """Words by the model's tokenizer, items by their position.

    Args:
        encoder: the model's tokenizer (:func:`mmd.models.mllm.load_encoder`).
        item_ids: of the graph, in its order.
    """

    kind = "lm"

    def __init__(self, encoder: PromptEncoder, item_ids: Sequence[str]) -> None:
        self.encoder = encoder
        self.item_ids = tuple(item_ids)
        tokenizer = encoder.tokenizer
        vocabulary = tokenizer.get_vocab()
        self.n_own = max(vocabulary.values()) + 1
        at = {name: self.n_own + index for index, name in enumerate(ADDED)}
        self.speakers = {"user": at["user"], "agent": at["agent"]}
        unsaid = {encoder.pad_id, *tokenizer.all_special_ids, at["user"], at["agent"]} - {encoder.end_id}
        self.space = TokenSpace(
            n_words=self.n_own + len(ADDED),
            n_items=len(self.item_ids),
            pad=encoder.pad_id,
            bos=at["agent"],
            eos=encoder.end_id,
            rec=at["rec"],
            gen=at["gen"],
            silent=tuple(sorted(unsaid)),
            digest=fingerprint([sorted(vocabulary.items()), self.item_ids]),
        )
        self._anchor = encoder.text_ids(_ANCHOR)

    @classmethod
    def of_model(cls, name: str, item_ids: Sequence[str], models: ModelSettings | None = None) -> LmTokenizer:
        """Return the tokenizer for a model by name.

        Raises:
            ModelError: the name does not resolve, or has no usable tokenizer.
        """
        from mmd.models.mllm import load_encoder

        return cls(load_encoder(name, models), item_ids)

    def encode_text(self, text: str) -> list[int]:
        """Return the model's tokens of a text that people wrote."""
        return self.encoder.text_ids(text)

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Return the tokens of an utterance, each item as one.

        The space before an item goes: on its own it would be a token of its own that no model has seen there.
        """
        known = list(parts)
        return super().encode_parts(
            part.rstrip(" ") if isinstance(part, str) and isinstance(after, int) else part
            for part, after in zip(known, [*known[1:], ""], strict=False)
        )

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Return the text of words, with the space that it begins with."""
        own = [token for token in tokens if token < self.n_own]
        before, after = (self._plain(ids) for ids in (self._anchor, [*self._anchor, *own]))
        return after.removeprefix(before)

    def decode(self, tokens: Sequence[int]) -> list[Part]:
        """Return words and items, a space before each item that follows words."""
        control, parts, words = self.control, list[Part](), list[int]()
        for token in tokens:
            if self.space.is_item(token):
                self._add_words(parts, words)
                self._add_item(parts, self.space.item_at(token))
                words = []
            elif token not in control:
                words.append(token)
        self._add_words(parts, words)
        return parts

    def save(self, writer: ArtifactWriter, folder: str) -> None:
        """Write the items' ids, and the model's tokenizer as transformers does."""
        content = {"kind": self.kind, "item_ids": self.item_ids}
        writer.write_json(f"{folder}/{TOKENIZER_FILE}", content)
        with tempfile.TemporaryDirectory() as scratch:
            self.encoder.tokenizer.save_pretrained(scratch)
            for path in sorted(Path(scratch).iterdir()):
                writer.write_bytes(f"{folder}/{_MODEL_FOLDER}/{path.name}", path.read_bytes())

    @classmethod
    def load(cls, artifact: Artifact, folder: str) -> LmTokenizer:
        """Invert :meth:`save`."""
        from transformers import AutoTokenizer

        from mmd.models.encoder import PromptEncoder

        content = artifact.read_json(f"{folder}/{TOKENIZER_FILE}")
        with tempfile.TemporaryDirectory() as scratch:
            place = artifact.copy_folder(f"{folder}/{_MODEL_FOLDER}", Path(scratch))
            tokenizer: Any = AutoTokenizer.from_pretrained(str(place), **LOCAL)
        return cls(PromptEncoder(artifact.ref, "", tokenizer, None), content["item_ids"])

    def _plain(self, tokens: Sequence[int]) -> str:
        return str(self.encoder.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _add_words(self, parts: list[Part], words: Sequence[int]) -> None:
        if text := self.decode_text(words):
            parts.append(text)

    def _add_item(self, parts: list[Part], item: int) -> None:
        last = parts[-1] if parts else ""
        if isinstance(last, int):
            parts.append(" ")
        elif last and last[-1] not in _GLUED_BEHIND:
            parts[-1] = f"{last} "
        parts.append(item)
