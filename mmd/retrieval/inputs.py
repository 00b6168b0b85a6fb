"""From queries and responses to the tensors that towers read.

A maker is built once from the settings and a source of vectors and pictures; it can be pickled into workers, and makes
the same tensors from the same query wherever it runs: in training, when an index is built, and online.

A text is either tokens (a text model is trained) or vectors (features, or a model that stays as it is). A query's
vectors are three side by side: its last user turn's; all turns', each weighted by 0.7 to the power of its age and the
sum normalised; its last agent turn's. A response has the vector of its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.features.extract import ExtractorInfo
from mmd.retrieval.settings import TowerSettings
from mmd.retrieval.types import Query, Response

if TYPE_CHECKING:
    import torch

    from mmd.retrieval.tokens import Side, Tokenizer

Vectors = NDArray[np.float32]
TURN_DECAY = 0.7
"""Weight of a turn against the one after it."""
QUERY_PARTS = 3
"""Vectors of a query: last user turn, all turns, last agent turn."""


class InputSources(Protocol):
    """Where vectors and pictures come from; the dimensions are 0 for what the towers do not read."""

    @property
    def extractors(self) -> Mapping[str, ExtractorInfo | None]:
        """Role (``text``, ``vision``) → extractor whose vectors these are, None where towers read none."""
        ...

    @property
    def text_dim(self) -> int:
        """Length of a text's vector."""
        ...

    @property
    def picture_dim(self) -> int:
        """Length of a picture's vector."""
        ...

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (n, text_dim), rows of unit length; a text without words is a zero row."""
        ...

    def picture_vectors(self, image_ids: Sequence[str]) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return float32 (n, picture_dim), and which of them are known; the others' rows are zero."""
        ...

    def picture_bytes(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """Return encoded pictures, None for those that are not there."""
        ...


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Texts as vectors, float32 (n, d), or as a text model's tokens (``input_ids``, ``attention_mask``: (n, width))."""

    vectors: torch.Tensor | None = None
    tokens: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Return how many texts there are."""
        return len(self.vectors) if self.vectors is not None else len((self.tokens or {})["attention_mask"])

    def rows(self, index: Any) -> TextBatch:  # noqa: ANN401 (whatever torch takes as an index)
        """Return some texts; tokens lose the columns that are padding in all of them."""
        if self.tokens is None:
            return TextBatch(self.vectors[index] if self.vectors is not None else None)
        picked = {key: value[index] for key, value in self.tokens.items()}
        width = max(1, int(picked["attention_mask"].sum(1).max())) if len(picked["attention_mask"]) else 1
        return TextBatch(tokens={key: value[:, :width] for key, value in picked.items()})

    def to(self, device: torch.device | str) -> TextBatch:
        """Return the same texts on a device."""
        vectors = None if self.vectors is None else self.vectors.to(device)
        tokens = None if self.tokens is None else {key: value.to(device) for key, value in self.tokens.items()}
        return TextBatch(vectors, tokens)


@dataclass(frozen=True, eq=False)
class TowerInputs:
    """A batch for a tower.

    Attributes:
        text: words.
        pictures: vectors (n, d) or pixels (n, 3, height, width); rows without a picture are zero; None: no tower of
            this retriever looks at pictures.
        has_picture: bool (n,).
        kind: int64 (n,): index of the response's modality; 0 for queries.
    """

    text: TextBatch
    pictures: torch.Tensor | None
    has_picture: torch.Tensor
    kind: torch.Tensor

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.kind)

    def rows(self, index: Any) -> TowerInputs:  # noqa: ANN401 (whatever torch takes as an index)
        """Return some rows, by slice, index tensor or mask."""
        pictures = None if self.pictures is None else self.pictures[index]
        return TowerInputs(self.text.rows(index), pictures, self.has_picture[index], self.kind[index])

    def to(self, device: torch.device | str) -> TowerInputs:
        """Return the same rows on a device."""
        pictures = None if self.pictures is None else self.pictures.to(device)
        return TowerInputs(self.text.to(device), pictures, self.has_picture.to(device), self.kind.to(device))


class InputMaker:
    """Makes tower inputs.

    Args:
        towers: what the towers read.
        modalities: of the retriever, in its order.
        sources: of vectors and pictures.
        titles: item id → title, for mentions of items in turns (:attr:`mmd.retrieval.facts.Facts.titles`).
        pictures: image id → words (:attr:`mmd.retrieval.facts.Facts.pictures`).
        tokenizer: of the trained text model; None: texts are vectors.
        processor: image processor of the trained vision model; None: pictures are vectors, or not looked at.
    """

    def __init__(
        self,
        towers: TowerSettings,
        modalities: Sequence[str],
        sources: InputSources,
        titles: Mapping[str, str],
        pictures: Mapping[str, str] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        processor: Any | None = None,  # noqa: ANN401 (duck-typed library object)
    ) -> None:
        self.towers = towers
        self.modalities = tuple(modalities)
        self.sources = sources
        self.titles = titles
        self.pictures = {} if pictures is None else pictures  # one that is empty may fill: pictures come online
        self.tokenizer = tokenizer
        self.processor = processor

    def queries(self, queries: Sequence[Query]) -> TowerInputs:
        """Return the inputs of context towers.

        Raises:
            ModelError: a picture cannot be decoded; the message names it.
        """
        import torch

        from mmd.retrieval.facts import context_text

        turns = [context_text(query, self.titles, self.pictures) for query in queries]
        if self.tokenizer is not None:
            text = self._tokens(["\n".join(lines) for lines in turns], self.towers.context_tokens, "left")
        else:
            text = TextBatch(torch.from_numpy(self._turn_vectors(turns)))
        pictures, has_picture = self._pictures([_last_pictures(query) for query in queries])
        return TowerInputs(text, pictures, has_picture, torch.zeros(len(queries), dtype=torch.int64))

    def responses(self, responses: Sequence[Response]) -> TowerInputs:
        """Return the inputs of response towers.

        Raises:
            ModelError: a response's modality is not the retriever's, or a picture cannot be decoded.
        """
        import torch

        texts = [response.text for response in responses]
        if self.tokenizer is not None:
            text = self._tokens(texts, self.towers.response_tokens, "right")
        else:
            text = TextBatch(torch.from_numpy(self.sources.text_vectors(texts)))
        ids = [() if response.image_id is None else (response.image_id,) for response in responses]
        pictures, has_picture = self._pictures(ids)
        kinds = torch.tensor([self._kind(response) for response in responses], dtype=torch.int64)
        return TowerInputs(text, pictures, has_picture, kinds)

    def _kind(self, response: Response) -> int:
        if response.modality not in self.modalities:
            raise ModelError(
                f"response {response.id}: its modality {response.modality!r} is none of this retriever's "
                f"({', '.join(self.modalities)}); train one with it in retrieval.samples.modalities."
            )
        return self.modalities.index(response.modality)

    def _tokens(self, texts: Sequence[str], limit: int, side: Side) -> TextBatch:
        """Tokenise; a text beyond ``limit`` tokens loses those on ``side``."""
        if self.tokenizer is None:
            raise TypeError("InputMaker: has no tokenizer; its texts are vectors")
        return TextBatch(tokens=self.tokenizer(texts, limit, side))

    def _turn_vectors(self, contexts: Sequence[Sequence[str]]) -> Vectors:
        """Return float32 (n, 3 · text_dim) of contexts, whose lines are ``speaker: words``, oldest first."""
        turns = [[_speaker_and_words(line) for line in lines] for lines in contexts]
        flat = [words for lines in turns for _, words in lines]
        vectors, dim = self.sources.text_vectors(flat), self.sources.text_dim
        out = np.zeros((len(contexts), QUERY_PARTS, dim), np.float32)
        start = 0
        for row, lines in enumerate(turns):
            own = vectors[start : start + len(lines)]
            start += len(lines)
            if not len(own):
                continue
            speakers = [speaker for speaker, _ in lines]
            ages = np.arange(len(own))[::-1].astype(np.float32)
            mixed = (np.float32(TURN_DECAY) ** ages) @ own
            out[row, 0] = own[_last(speakers, "user")] if "user" in speakers else 0.0
            out[row, 1] = mixed / max(float(np.linalg.norm(mixed)), 1e-12)
            out[row, 2] = own[_last(speakers, "agent")] if "agent" in speakers else 0.0
        return out.reshape(len(contexts), QUERY_PARTS * dim)

    def _pictures(self, rows: Sequence[Sequence[str]]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the pictures of each row (n, …) and bool (n,), whether it has one."""
        import torch

        if self.towers.vision == "none":
            return None, torch.zeros(len(rows), dtype=torch.bool)
        if self.processor is not None:
            return self._pixels([row[-1] if row else None for row in rows])
        found, known = self.sources.picture_vectors([image_id for row in rows for image_id in row])
        out = np.zeros((len(rows), self.sources.picture_dim), np.float32)
        has = np.zeros(len(rows), np.bool_)
        start = 0
        for place, row in enumerate(rows):
            own = found[start : start + len(row)][known[start : start + len(row)]]
            start += len(row)
            if len(own):
                out[place], has[place] = own.mean(0), True
        return torch.from_numpy(out), torch.from_numpy(has)

    def _pixels(self, ids: Sequence[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 (n, 3, height, width) and bool (n,)."""
        import torch

        from mmd.retrieval.tokens import pixels_of

        wanted = [image_id for image_id in ids if image_id is not None]
        data = dict(zip(wanted, self.sources.picture_bytes(wanted), strict=True))
        rows = [None if i is None or (found := data[i]) is None else (i, found) for i in ids]
        has = torch.tensor([row is not None for row in rows], dtype=torch.bool)
        return pixels_of(self.processor, rows), has


def _speaker_and_words(line: str) -> tuple[str, str]:
    speaker, _, words = line.partition(": ")
    return speaker, words


def _last(values: Sequence[str], wanted: str) -> int:
    return len(values) - 1 - values[::-1].index(wanted)


def _last_pictures(query: Query) -> tuple[str, ...]:
    """Return the pictures of the last turn that has any."""
    return next((turn.image_ids for turn in reversed(query.turns) if turn.image_ids), ())
