"""Label log-likelihoods of a model that a vLLM server runs, as :mod:`mmd.models.likelihood` has them of one here.

A label's log-likelihood is the sum over its tokens of log P(token | prompt, tokens before it), the end of turn
included. The labels' beginnings are the nodes of a :class:`~mmd.models.likelihood.TokenTrie`; the server is asked for
the next token after the prompt, then after the prompt and each node, all at once. The first request leaves the prompt
in the server's prefix cache, so that each further one computes little more than a node.

A prompt of words goes as tokens (completions API): the server reads exactly what the model was trained on. One with
pictures can only go as messages (chat API), which the *server* renders and tokenizes. That it makes of them what
:class:`~mmd.models.encoder.PromptEncoder` does is checked: of every prompt, that what follows it are the label's own
tokens; of the first one with pictures, every token. A label whose tokens split a character has beginnings that no
message can hold; it is asked in one piece, by the log-probabilities of a prompt that it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from mmd.errors import ModelError
from mmd.models.encoder import PromptEncoder
from mmd.models.likelihood import LogLikelihoods, label_tokens
from mmd.models.prompt import Prompt
from mmd.models.remote_questions import ChatQuestion, LabelPlan, Question, TokenQuestion
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
        self._plan = LabelPlan.of(self.labels, sequences, whole=())
        self._chat_plan = self._plan
        if mllm.sees_pictures and (whole := [i for i, s in enumerate(sequences) if not _is_spelled(mllm.encoder, s)]):
            self._chat_plan = LabelPlan.of(self.labels, sequences, whole=whole)

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
        # The prompts alone first: they are in the server's prefix cache when their continuations come.
        steps = [[found] for found in each(lambda question: question.root()[None], questions)]
        after = [(row, nodes) for row, question in enumerate(questions) for nodes in question.requests()]
        for (row, _), found in zip(after, each(lambda at: questions[at[0]].after(at[1]), after), strict=True):
            steps[row].append(found)
        out = np.zeros((len(prompts), len(self.labels)))
        for row, question in enumerate(questions):
            if question.plan.stepwise:
                out[row, question.plan.stepwise] = question.plan.sums(np.concatenate(steps[row]))
        places = [(row, label) for row, question in enumerate(questions) for label in question.plan.whole]
        for place, value in zip(places, each(lambda at: questions[at[0]].whole(at[1]), places), strict=True):
            out[place] = value
        return out

    def _question(self, prompt: Prompt) -> Question:
        if prompt.pictures:
            return ChatQuestion(self.mllm, prompt, self._chat_plan)
        return TokenQuestion(self.mllm, prompt, self._plan)


def _is_spelled(encoder: PromptEncoder, sequence: Sequence[int]) -> bool:
    """Say whether every beginning of a label is a text of the same tokens; half a Chinese character is none."""
    beginnings = (sequence[:end] for end in range(1, len(sequence)))
    return all(encoder.answer_ids(encoder.words_of(some))[:-1] == list(some) for some in beginnings)


def _difference(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the first place at which two sequences differ; where one begins with the other, its length."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
