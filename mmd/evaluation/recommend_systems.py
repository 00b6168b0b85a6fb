"""What is compared: rankers of all items on every mention, and speakers on every response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmd.errors import CorpusError
from mmd.evaluation.recommending import GateTrace, Likelihood, ranks_of
from mmd.recommend.batches import batches_by
from mmd.recommend.samples import mention_samples, response_samples
from mmd.recommend.types import Context, MentionSample, Mode, ResponseSample
from mmd.retrieval.ranks import MISS, Ranks

if TYPE_CHECKING:
    import torch

    from mmd.recommend.backbone import Backbone
    from mmd.recommend.batches import BatchMaker, DialogueBatch
    from mmd.recommend.generate import Generator
    from mmd.recommend.replies import Reply
    from mmd.recommend.runs import Ground
    from mmd.recommend.vocabulary import Tokenizer

Judged = Literal["test", "validation"]
Scorer = Callable[[Sequence[Context]], NDArray[np.floating]]
"""Contexts → scores of all items, (n, n_items), larger is better."""
_SCORED_TOGETHER = 256


@dataclass(frozen=True)
class Questions:
    """What is asked: responses to speakers, mentions to rankers.

    Attributes:
        split: that they are of; validation is the part of the training split on which choices are made.
        responses: of the agent.
        mentions: of the agent.
    """

    split: Judged
    responses: Sequence[ResponseSample]
    mentions: Sequence[MentionSample]

    @classmethod
    def of(cls, ground: Ground, split: Judged) -> Questions:
        """Return the questions of a split; only ``test`` opens test dialogues.

        Raises:
            CorpusError: there is no response.
        """
        if split == "validation":
            responses: Sequence[ResponseSample] = ground.responses.validation
            mentions: Sequence[MentionSample] = ground.mentions.validation
        else:
            settings, dialogues = ground.settings.conversations, ground.conversations.dialogues("test")
            responses = [sample for one in dialogues for sample in response_samples(one, settings)]
            mentions = [sample for one in dialogues for sample in mention_samples(one, settings)]
        if not responses:
            raise CorpusError(
                f"{ground.conversations.artifact.ref}: there is no response to evaluate: no dialogue of the split "
                f"{split} has a turn of the agent after another turn; give some records that split (docs/data.md)."
            )
        return cls(split, responses, [mention for mention in mentions if mention.speaker == "agent"])


@dataclass(frozen=True)
class Ranked:
    """Where a ranker put the item of each mention.

    Attributes:
        name: of the ranker.
        ranks: int64 (n,), 1-based, among all items.
        open_ranks: the same among items that the context does not mention; a miss where it mentions the right one.
    """

    name: str
    ranks: Ranks
    open_ranks: Ranks


def rank_mentions(name: str, score: Scorer, mentions: Sequence[MentionSample]) -> Ranked:
    """Rank all items for every mention by its context.

    Args:
        name: of the ranker.
        score: the ranker.
        mentions: to rank for.
    """
    ranks, open_ranks = [], []
    for start in range(0, len(mentions), _SCORED_TOGETHER):
        some = mentions[start : start + _SCORED_TOGETHER]
        scores, golds = score([mention.context for mention in some]), [mention.item for mention in some]
        ranks.append(ranks_of(scores, golds))
        open_ranks.append(ranks_of(scores, golds, [mention.context.items for mention in some]))
    none = [np.empty(0, dtype=np.int64)]
    return Ranked(name, np.concatenate(ranks or none), np.concatenate(open_ranks or none))


def after_mode(generator: Generator) -> Scorer:
    """Return a scorer by what a speaker would name first: its items right after the token of recommendation."""
    return generator.first_items


def by_item_head(generator: Generator) -> Scorer:
    """Return a scorer by the head that reads the context alone, which only students without distillation learn."""

    def score(contexts: Sequence[Context]) -> NDArray[np.floating]:
        import torch  # noqa: PLC0415 (slow to import)

        batch = generator.maker.contexts(contexts).to(generator.device)
        with torch.inference_mode():
            found: NDArray[np.floating] = generator.backbone.item_logits_of_context(batch).cpu().numpy()
        return found

    return score


# ---------------------------------------------------------------- speakers


@dataclass(frozen=True)
class Reading:
    """What a speaker makes of right responses, teacher-forced.

    Attributes:
        likelihoods: of all tokens of each response: mode, words, items, end.
        of_words: of its words alone.
        places: mention id → rank of the item at its place among all items, and among those not mentioned before; what
            was said before it in the response is given. Items beyond the response's limit are not here.
        traces: item mass at each token after the mode, which would be too easy a place without an item.
    """

    likelihoods: tuple[Likelihood, ...]
    of_words: tuple[Likelihood, ...]
    places: dict[str, tuple[int, int]]
    traces: tuple[GateTrace, ...]

    def ranked(self, name: str, mentions: Sequence[MentionSample]) -> Ranked:
        """Return the ranks at the items' places; an item beyond the response's limit is missed."""
        found = [self.places.get(mention.id, (MISS, MISS)) for mention in mentions]
        ranks = np.array(found, dtype=np.int64).reshape(-1, 2)
        return Ranked(name, ranks[:, 0], ranks[:, 1])


def read_responses(
    backbone: Backbone[Any], maker: BatchMaker, samples: Sequence[ResponseSample], batch: int = 64
) -> Reading:
    """Read right responses with a speaker: how likely they are, and where items stand at their places.

    Args:
        backbone: the speaker; it is put into eval mode.
        maker: of its batches.
        samples: whose responses are read.
        batch: responses that are read together; the result does not depend on it.
    """
    import torch  # noqa: PLC0415 (slow to import)

    backbone.eval()
    device = next(backbone.parameters()).device
    found: dict[int, _Read] = {}
    for rows in batches_by([maker.length(sample) for sample in samples], batch):
        some = [samples[row] for row in rows]
        made = maker(some).to(device)
        with torch.inference_mode():
            read = list(_read(backbone, maker, made, some))
        found |= dict(zip(rows, read, strict=True))
    reads = [found[row] for row in range(len(samples))]
    return Reading(
        likelihoods=tuple(read.likelihood for read in reads),
        of_words=tuple(read.of_words for read in reads),
        places={mention: ranks for read in reads for mention, ranks in read.places.items()},
        traces=tuple(read.trace for read in reads),
    )


@dataclass(frozen=True)
class _Read:
    likelihood: Likelihood
    of_words: Likelihood
    places: dict[str, tuple[int, int]]
    trace: GateTrace


def _read(
    backbone: Backbone[Any], maker: BatchMaker, batch: DialogueBatch, samples: Sequence[ResponseSample]
) -> Iterator[_Read]:
    from mmd.recommend.gates import item_mass  # noqa: PLC0415 (with torch)

    space, tokenizer = backbone.space, maker.tokenizer
    logits, targets = backbone.token_logits(batch), batch.target[batch.target_mask]
    log_probs = logits.log_softmax(-1)
    nll = -log_probs.gather(1, targets[:, None])[:, 0].double()
    masses = item_mass(log_probs.exp(), space)
    is_item, is_word = targets >= space.first_item, _are_words(targets, space.rec, space.gen, space.eos)
    is_word &= ~is_item
    counts = batch.target_mask.sum(1).tolist()
    start = 0
    for sample, count in zip(samples, counts, strict=True):
        own = slice(start, start + count)
        start += count
        words = is_word[own]
        at_items = is_item[own].nonzero()[:, 0]
        after = slice(own.start + maker.settings.mode_tokens, own.stop)
        yield _Read(
            likelihood=Likelihood(float(nll[own].sum()), count),
            of_words=Likelihood(float(nll[own][words].sum()), int(words.sum())),
            places=_places(logits[own][at_items][:, space.items], sample),
            trace=GateTrace(
                sample_id=sample.id,
                mode=sample.mode,
                tokens=tuple(token_words(targets[after].tolist(), tokenizer)),
                masses=tuple(masses[after].tolist()),
                is_item=tuple(is_item[after].tolist()),
            ),
        )


def _are_words(targets: torch.Tensor, *control: int) -> torch.Tensor:
    import torch  # noqa: PLC0415 (slow to import)

    return ~torch.isin(targets, torch.tensor(control, device=targets.device))


def _places(logits: torch.Tensor, sample: ResponseSample) -> dict[str, tuple[int, int]]:
    """Return mention id → ranks of the response's first items, one a row of logits (k, n_items)."""
    items = sample.response.items[: len(logits)]
    scores = logits.float().cpu().numpy()
    ranks = ranks_of(scores, items).tolist()
    open_ranks = ranks_of(scores, items, [sample.context.items] * len(items)).tolist()
    return {f"{sample.id}.{n}": pair for n, pair in enumerate(zip(ranks, open_ranks, strict=True), start=1)}


def token_words(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return what each token looks like alone: a word, ``@position`` of an item, nothing for control tokens."""
    space = tokenizer.space
    # Lower-cased, since a decoder takes a lone word for the first of a sentence.
    return [f"@{space.item_at(t)}" if space.is_item(t) else tokenizer.decode_text([t]).strip().lower() for t in tokens]


@dataclass(frozen=True)
class Speaker:
    """Something that said a reply to every sample.

    Attributes:
        name: of the speaker.
        replies: one a sample; None: the right responses themselves.
        reading: of the right responses; None where it says nothing new.
        ms_alone: a token, of replies decoded one at a time; empty where that was not measured.
        given_modes: whether the right modes were given.
    """

    name: str
    replies: tuple[Reply, ...] | None
    reading: Reading | None = None
    ms_alone: tuple[float, ...] = ()
    given_modes: bool = False


def listen(
    name: str, generator: Generator, samples: Sequence[ResponseSample], *, timed: int = 0, gold_modes: bool = False
) -> Speaker:
    """Let a speaker answer every sample, after a first batch that warms it up and is not timed.

    Args:
        name: of the speaker.
        generator: it.
        samples: to answer.
        timed: replies that are decoded once more, one at a time, for their time.
        gold_modes: give the right modes, an upper bound, instead of reading the right responses.
    """
    modes: list[Mode] | None = [sample.mode for sample in samples] if gold_modes else None
    generator.replies(samples[: generator.settings.batch])  # first calls choose kernels and fill caches
    alone = [generator.replies([sample])[0].ms_per_token for sample in samples[: timed + 1]][1:]  # the first warms up
    return Speaker(
        name=name,
        replies=tuple(generator.replies(samples, modes)),
        reading=None
        if gold_modes
        else read_responses(generator.backbone, generator.maker, samples, generator.settings.batch),
        ms_alone=tuple(alone) if timed else (),
        given_modes=gold_modes,
    )
