"""Label log-likelihoods of a model that a vLLM server runs, as :mod:`mmd.models.likelihood` has them of one here.

A label's log-likelihood is the sum over its tokens of log P(token | prompt, tokens before it), the end of turn
included. The labels' beginnings are the nodes of a :class:`~mmd.models.likelihood.TokenTrie`; the server is asked for
the next token after the prompt, then after the prompt and each node, all at once. The first request leaves the prompt
in the server's prefix cache, so that each further one computes little more than a node.

A prompt of words goes as tokens (completions API): the server reads exactly what the model was trained on. One with
pictures can only go as messages (chat API), which the *server* renders and tokenizes. That it makes of them what
:class:`~mmd.models.encoder.PromptEncoder` does is checked: of every prompt, that what follows it are the label's own
tokens; of the first one with pictures, every token.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmd.errors import ModelError
from mmd.models.encoder import PromptEncoder
from mmd.models.likelihood import LogLikelihoods, TokenTrie, label_tokens
from mmd.models.prompt import Prompt
from mmd.models.remote_server import RemoteServer


class RemoteMllm:
    """A model on a server; safe to call from several threads.

    Args:
        name: that the server knows it by; a LoRA adapter on a base is a name of its own.
        encoder: its tokenizer and processor; the weights need not be here.
        server: where it runs.
    """

    def __init__(self, name: str, encoder: PromptEncoder, server: RemoteServer) -> None:
        self.name = name
        self.encoder = encoder
        self.server = server
        self._rendered_alike = False

    @property
    def sees_pictures(self) -> bool:
        """Whether pictures of a prompt reach the model."""
        return self.encoder.sees_pictures

    def label_scorer(self, labels: Sequence[str]) -> RemoteLabelScorer:
        """Return what scores these labels by this model."""
        return RemoteLabelScorer(self, labels)

    def turn(self, adapter: str | None) -> AbstractContextManager[None]:
        """Do nothing: the server keeps its adapters apart."""
        del adapter
        return nullcontext()

    def require_alike(self, prompt: Prompt, rendered: Sequence[int]) -> None:
        """Compare the tokens that the server made of a prompt with those of training; once is enough.

        Raises:
            ModelError: they differ.
        """
        if self._rendered_alike:
            return
        expected = self.encoder.encode_one(prompt)["input_ids"][0].tolist()
        if expected != list(rendered):
            place = _difference(expected, rendered)
            raise ModelError(
                f"model {self.name!r}: the server makes {len(rendered)} tokens of a prompt with a picture, the model "
                f"was trained on {len(expected)}, and they differ from token {place} on; start the server with the "
                "tokenizer, processor and chat template of the base model and --chat-template-content-format openai."
            )
        self._rendered_alike = True


class RemoteLabelScorer:
    """Scores every label of a set after a prompt: log P(label and end of turn | prompt), natural logarithm.

    Args:
        mllm: the model.
        labels: distinct, non-empty labels.

    Raises:
        ValueError: no labels, an empty one, or two that are the same tokens to the model.
    """

    def __init__(self, mllm: RemoteMllm, labels: Sequence[str]) -> None:
        self.mllm = mllm
        self.labels = tuple(labels)
        sequences = label_tokens(mllm.encoder, self.labels)
        self._trie = TokenTrie.of(sequences)
        self._nodes = sorted({sequence[:end] for sequence in sequences for end in range(1, len(sequence))})
        # All requests ask for the same tokens: what fills up `branches` is among them or never read.
        self._tokens = sorted({token for sequence in sequences for token in sequence})
        places = np.searchsorted(self._tokens, self._trie.branches)
        self._columns: NDArray[np.intp] = np.minimum(places, len(self._tokens) - 1)

    def prepare(self) -> None:
        """Do nothing: whether the server is there shows with the first question, and may change with any."""

    def log_likelihoods(self, prompts: Sequence[Prompt]) -> LogLikelihoods:
        """Return log P(label | prompt), float64 of shape (n_prompts, n_labels).

        Raises:
            ServerUnavailableError: the server cannot be reached, is late, overloaded or broken.
            ModelError: it does not know the model, refuses a prompt, or reads it otherwise than in training.
        """
        each = self.mllm.server.each
        questions = [self._question(prompt) for prompt in prompts]
        roots = each(lambda question: question.root(), questions)
        asked = [(question, nodes) for question in questions for nodes in question.requests(self._nodes)]
        after = iter(each(lambda pair: pair[0].after(pair[1]), asked))
        values = np.zeros((len(prompts), 1 + len(self._nodes), len(self._tokens)))
        for row, question in enumerate(questions):
            found = [next(after) for _ in question.requests(self._nodes)]
            values[row] = np.concatenate([roots[row][None], *found])
        branches = np.take_along_axis(values, self._columns[None].repeat(len(prompts), axis=0), axis=2)
        return self._trie.sequence_sums(branches)

    def _question(self, prompt: Prompt) -> _Question:
        return (_ChatQuestion if prompt.pictures else _TokenQuestion)(self.mllm, prompt, self._tokens)


class _Question:
    """A prompt, and how the server is asked for the next token after it and after labels' beginnings."""

    def __init__(self, mllm: RemoteMllm, prompt: Prompt, tokens: Sequence[int]) -> None:
        self.mllm = mllm
        self.prompt = prompt
        self.tokens = tokens

    def root(self) -> NDArray[np.float64]:
        """Return log P(token | prompt), shape (n_tokens,)."""
        raise NotImplementedError

    def requests(self, nodes: Sequence[tuple[int, ...]]) -> list[Sequence[tuple[int, ...]]]:
        """Return the nodes by request."""
        raise NotImplementedError

    def after(self, nodes: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        """Return log P(token | prompt, node) of one request's nodes, shape (n_nodes, n_tokens)."""
        raise NotImplementedError


class _TokenQuestion(_Question):
    """A prompt of words: as tokens, all nodes in one request."""

    def __init__(self, mllm: RemoteMllm, prompt: Prompt, tokens: Sequence[int]) -> None:
        super().__init__(mllm, prompt, tokens)
        self._ids: list[int] = mllm.encoder.encode_one(prompt)["input_ids"][0].tolist()

    def root(self) -> NDArray[np.float64]:
        return self.mllm.server.after_tokens(self.mllm.name, [self._ids], self.tokens).reshape(-1)

    def requests(self, nodes: Sequence[tuple[int, ...]]) -> list[Sequence[tuple[int, ...]]]:
        return [nodes] if nodes else []

    def after(self, nodes: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        prompts = [[*self._ids, *node] for node in nodes]
        return self.mllm.server.after_tokens(self.mllm.name, prompts, self.tokens)


class _ChatQuestion(_Question):
    """A prompt with pictures: as messages, one request a node, which the assistant's turn begins with."""

    def __init__(self, mllm: RemoteMllm, prompt: Prompt, tokens: Sequence[int]) -> None:
        super().__init__(mllm, prompt, tokens)
        self._messages = chat_messages(mllm.encoder, prompt)
        self._rendered: tuple[int, ...] = ()

    def root(self) -> NDArray[np.float64]:
        self._rendered, values = self.mllm.server.after_chat(self.mllm.name, self._messages, "", self.tokens)
        self.mllm.require_alike(self.prompt, self._rendered)
        return values

    def requests(self, nodes: Sequence[tuple[int, ...]]) -> list[Sequence[tuple[int, ...]]]:
        return [[node] for node in nodes]

    def after(self, nodes: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        (node,) = nodes
        said = self.mllm.encoder.words_of(node)
        rendered, values = self.mllm.server.after_chat(self.mllm.name, self._messages, said, self.tokens)
        if rendered != (*self._rendered, *node):
            raise ModelError(
                f"model {self.mllm.name!r}: the server reads the beginning {said!r} of a label as other tokens than in "
                "training, so that its label cannot be scored there; set models.mllm_url to null, or rename the label."
            )
        return values[None]


def _difference(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the first place at which two sequences differ; where one begins with the other, its length."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


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
    picture.save(out, "PNG", compress_level=1)  # goes to the next machine, not to a disk
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
