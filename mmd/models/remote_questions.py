"""How a server is asked for the labels of a task after one prompt: as tokens, or as messages with pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.models.encoder import PromptEncoder
from mmd.models.likelihood import TokenTrie
from mmd.models.prompt import Prompt

if TYPE_CHECKING:
    from mmd.models.remote import RemoteMllm

Node = tuple[int, ...]
"""A proper beginning of a label's tokens."""


@dataclass(frozen=True, eq=False)
class LabelPlan:
    """Which of a task's labels are asked how.

    Attributes:
        labels: all of them.
        sequences: their tokens, the end of turn included.
        stepwise: places of those that are asked token by token.
        whole: places of the others, asked in one piece.
        trie: of the former's tokens.
        nodes: their beginnings, in the trie's order.
        tokens: asked for after each beginning: all that one of them has.
    """

    labels: tuple[str, ...]
    sequences: tuple[Node, ...]
    stepwise: tuple[int, ...]
    whole: tuple[int, ...]
    trie: TokenTrie
    nodes: tuple[Node, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, labels: Sequence[str], sequences: Sequence[Node], whole: Sequence[int]) -> LabelPlan:
        """Plan labels, those at some places to be asked in one piece."""
        stepwise = tuple(i for i in range(len(labels)) if i not in set(whole))
        chosen = [sequences[i] for i in stepwise]
        return cls(
            labels=tuple(labels),
            sequences=tuple(sequences),
            stepwise=stepwise,
            whole=tuple(whole),
            trie=TokenTrie.of(chosen),
            nodes=tuple(sorted({sequence[:end] for sequence in chosen for end in range(1, len(sequence))})),
            # A request asks for one token at least: the end, if all are asked in one piece.
            tokens=tuple(sorted({token for sequence in chosen for token in sequence} or {sequences[0][-1]})),
        )

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each stepwise label's log-likelihood.

        Args:
            values: log-probabilities of ``tokens`` after the prompt and after each node, (1 + n_nodes, n_tokens).
        """
        # What fills up `branches` may be no token of `tokens`; it is never read.
        columns = np.minimum(np.searchsorted(self.tokens, self.trie.branches), len(self.tokens) - 1)
        return self.trie.sequence_sums(np.take_along_axis(values, columns, axis=1)[None]).reshape(-1)


class Question(Protocol):
    """A prompt whose labels are asked."""

    plan: LabelPlan

    def root(self) -> NDArray[np.float64]:
        """Return log P(token | prompt) of the plan's tokens, shape (n_tokens,)."""
        ...

    def requests(self) -> list[Sequence[Node]]:
        """Return the plan's nodes by request."""
        ...

    def after(self, nodes: Sequence[Node]) -> NDArray[np.float64]:
        """Return log P(token | prompt, node) of one request's nodes, shape (n_nodes, n_tokens)."""
        ...

    def whole(self, label: int) -> float:
        """Return the log-likelihood of the label at a place, asked in one piece; after :meth:`root`."""
        ...


class TokenQuestion:
    """A prompt of words: as tokens, all nodes in one request."""

    def __init__(self, mllm: RemoteMllm, prompt: Prompt, plan: LabelPlan) -> None:
        self.plan = plan
        self._mllm = mllm
        self._ids: list[int] = mllm.encoder.encode_one(prompt)["input_ids"][0].tolist()

    def root(self) -> NDArray[np.float64]:
        """See :class:`Question`."""
        return self._mllm.server.after_tokens(self._mllm.name, [self._ids], self.plan.tokens).reshape(-1)

    def requests(self) -> list[Sequence[Node]]:
        """See :class:`Question`."""
        return [self.plan.nodes] if self.plan.nodes else []

    def after(self, nodes: Sequence[Node]) -> NDArray[np.float64]:
        """See :class:`Question`."""
        prompts = [[*self._ids, *node] for node in nodes]
        return self._mllm.server.after_tokens(self._mllm.name, prompts, self.plan.tokens)

    def whole(self, label: int) -> float:
        """See :class:`Question`; as tokens its steps are known, and all go in one request."""
        sequence = self.plan.sequences[label]
        tokens = sorted(set(sequence))
        prompts = [[*self._ids, *sequence[:step]] for step in range(len(sequence))]
        values = self._mllm.server.after_tokens(self._mllm.name, prompts, tokens)
        return float(sum(values[step, tokens.index(token)] for step, token in enumerate(sequence)))


class ChatQuestion:
    """A prompt with pictures: as messages, one request a node, which the assistant's turn begins with."""

    def __init__(self, mllm: RemoteMllm, prompt: Prompt, plan: LabelPlan) -> None:
        self.plan = plan
        self._mllm = mllm
        self._prompt = prompt
        self._messages = chat_messages(mllm.encoder, prompt)
        self._rendered: Node = ()

    def root(self) -> NDArray[np.float64]:
        """See :class:`Question`."""
        server, name = self._mllm.server, self._mllm.name
        self._rendered, values = server.after_chat(name, self._messages, "", self.plan.tokens)
        self._mllm.require_alike(self._prompt, self._rendered)
        return values

    def requests(self) -> list[Sequence[Node]]:
        """See :class:`Question`."""
        return [[node] for node in self.plan.nodes]

    def after(self, nodes: Sequence[Node]) -> NDArray[np.float64]:
        """See :class:`Question`."""
        (node,) = nodes
        said = self._mllm.encoder.words_of(node)
        rendered, values = self._mllm.server.after_chat(self._mllm.name, self._messages, said, self.plan.tokens)
        if rendered != (*self._rendered, *node):
            raise self._read_otherwise(said)
        return values[None]

    def whole(self, label: int) -> float:
        """See :class:`Question`."""
        said, sequence, start = self.plan.labels[label], self.plan.sequences[label], len(self._rendered)
        messages = [*self._messages, {"role": "assistant", "content": said}]
        rendered, values = self._mllm.server.of_chat(self._mllm.name, messages)
        end = start + len(sequence)
        if rendered[:end] != (*self._rendered, *sequence):
            raise self._read_otherwise(said)
        return float(values[start:end].sum())

    def _read_otherwise(self, said: str) -> ModelError:
        return ModelError(
            f"model {self._mllm.name!r}: the server reads {said!r}, of a label, as other tokens than in training; the "
            "label cannot be scored there: set models.mllm_url to null, or rename the label."
        )


def chat_messages(encoder: PromptEncoder, prompt: Prompt) -> list[dict[str, Any]]:
    """Return a prompt to a model that sees pictures as OpenAI's chat messages, pictures as data URLs of PNGs.

    Pictures are decoded here as for training (transparent ground, stored orientation), so that every server sees the
    same pixels.
    """
    urls = iter(_data_url(encoder.open_picture(data)) for data in prompt.pictures)

    def part(known: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": next(urls)}} if known["type"] == "image" else dict(known)

    return [{**message, "content": [part(p) for p in message["content"]]} for message in encoder.messages(prompt)]


def _data_url(picture: Any) -> str:  # noqa: ANN401 (a PIL image)
    out = io.BytesIO()
    # No EXIF: servers would turn the picture by its orientation. Barely compressed: it goes to the next machine.
    picture.save(out, "PNG", exif=b"", icc_profile=None, compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
