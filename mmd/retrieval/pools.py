"""Pools: the candidates that a sample's right response is ranked among. Drawn once, seeded, the right one exactly once.

A pool of one kind and size is a subset of the larger ones with its seed, so that curves over sizes are smooth.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mmd.errors import ConfigError, CorpusError
from mmd.intent.textnorm import normalise
from mmd.retrieval.modalities import modality
from mmd.retrieval.types import Pool, Response, Sample, SampleSet

PoolKind = Literal["union", "half", "corpus"]
"""``union``: ``size`` responses a modality (50 + 50); ``half``: half as many a modality; ``corpus``: all there are."""
Source = Literal["test", "train", "all"]
"""The split whose samples' right responses are distractors; of products it is the catalogue in any case."""


def make_pools(
    samples: Sequence[Sample],
    responses: SampleSet,
    kind: PoolKind,
    size: int,
    seed: int,
    modalities: Sequence[str] | None = None,
    split_responses: Source = "test",
) -> list[Pool]:
    """Return a pool a sample, in order.

    Distractors are neither the right response, nor ``also`` right, nor look the same as it (equal words; for pictures,
    an equal description). They depend on ``(seed, sample id, modality)`` and the responses there are, nothing else.

    Args:
        samples: to make pools for.
        responses: where distractors come from.
        kind: which pools.
        size: responses a modality, the right one among them; not used by ``corpus``.
        seed: of the draws.
        modalities: that pools mix; None: those that occur in ``responses``.
        split_responses: whose right responses are distractors.

    Raises:
        ConfigError: a modality is unknown or a sample's own is left out, or the size leaves no distractor.
        CorpusError: too few responses to draw from, or a right response is missing.
    """
    names = tuple(responses.modalities if modalities is None else modalities)
    wanted = None if kind == "corpus" else size // 2 if kind == "half" else size
    if wanted is not None and wanted < 1:
        raise ConfigError(f"pools.size={size}: a pool of kind {kind} would be empty; set it to 2 or more.")
    drawing = _Drawing(responses, {name: _sources(responses, name, split_responses) for name in names})
    pools: list[Pool] = []
    for sample in samples:
        if sample.modality not in names:
            raise ConfigError(
                f"sample {sample.id}: its response is of modality {sample.modality}, and pools mix "
                f"{', '.join(names) or 'none'}; choose samples of these, or add {sample.modality}."
            )
        pools.append(drawing.pool(sample, names, wanted, seed))
    return pools


def no_distractors(samples: Sequence[Sample], responses: SampleSet, source: Source = "all") -> list[set[str]]:
    """Return, for each sample, the responses that no pool of it holds as distractors: right ones, and lookalikes."""
    drawing = _Drawing(responses, {name: _sources(responses, name, source) for name in responses.modalities})
    return [drawing.banned(sample) for sample in samples]


@dataclass(frozen=True)
class _Drawing:
    """What pools are drawn from: modality → sorted response ids."""

    given: SampleSet
    sources: Mapping[str, list[str]]

    @cached_property
    def _alike(self) -> Mapping[str, frozenset[str]]:
        """Looks → responses of the sources that look so."""
        groups: defaultdict[str, set[str]] = defaultdict(set)
        for ids in self.sources.values():
            for response_id in ids:
                if look := _looks(self.given.responses[response_id]):
                    groups[look].add(response_id)
        return {look: frozenset(ids) for look, ids in groups.items()}

    def pool(self, sample: Sample, names: Sequence[str], size: int | None, seed: int) -> Pool:
        """Return the pool of one sample; ``size`` responses a modality, None: all."""
        if sample.response_id not in self.given.responses:
            raise CorpusError(
                f"sample {sample.id}: its right response {sample.response_id} is not among the responses; "
                "make samples and pools of the same corpus and settings."
            )
        banned = self.banned(sample)
        chosen: list[str] = []
        for name in sorted(names):
            is_own = name == sample.modality
            part = self._draw(sample, name, None if size is None else size - is_own, banned, seed)
            if is_own:
                insort(part, sample.response_id)
            chosen += part
        return Pool(sample.id, tuple(chosen), sample.response_id)

    def banned(self, sample: Sample) -> set[str]:
        """Return what is no distractor of a sample."""
        right = (sample.response_id, *sample.also)
        looks = {_looks(self.given.responses[r]) for r in right if r in self.given.responses}
        return {*right}.union(*(self._alike.get(look, frozenset()) for look in looks if look))

    def _draw(self, sample: Sample, name: str, count: int | None, banned: set[str], seed: int) -> list[str]:
        source = self.sources[name]
        if count is None:
            return [c for c in source if c not in banned]
        # A whole permutation, not a choice of `count`: its beginning is then the same for every count.
        order = np.random.default_rng(_entropy(seed, sample.id, name)).permutation(len(source))
        drawn: list[str] = []
        for at in order[: count + len(banned)].tolist():
            if len(drawn) == count:
                break
            if source[at] not in banned:
                drawn.append(source[at])
        if len(drawn) < count:
            raise CorpusError(
                f"sample {sample.id}: needs {count} distractors of modality {name}, and there are "
                f"{sum(c not in banned for c in source)} of {len(source)} responses to draw from; "
                f"lower retrieval.pools.size, or add dialogues."
            )
        return sorted(drawn)


def _sources(responses: SampleSet, name: str, split: Source) -> list[str]:
    """Return the ids that may be distractors of a modality, sorted."""
    if modality(name).from_catalogue:
        return sorted(r.id for r in responses.responses.values() if r.modality == name)
    return sorted({s.response_id for s in responses.samples if s.modality == name and split in ("all", s.split)})


def _looks(response: Response) -> str:
    """Return what a reader tells responses of a modality apart by; "" where words do not tell.

    A picture's is its description whatever its encoder may read, so that pools do not change with ``picture_text``.
    """
    words = normalise(response.title if response.modality == "image" else response.text)
    return f"{response.modality}:{words}" if words else ""


def _entropy(seed: int, sample_id: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample_id}:{name}".encode()).digest()[:16], "big")
