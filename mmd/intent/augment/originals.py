"""Originals: labelled training examples as samples, with their folds and hints, and their pictures' bytes on demand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mmd.corpora.store import Corpus
from mmd.intent.firings import HeldOutFiring
from mmd.intent.folds import assign_folds
from mmd.intent.hints import hint_text, told_rules
from mmd.intent.matcher import CompiledRules
from mmd.intent.rulebase import RuleBase
from mmd.intent.samples import ORIGINAL, Sample
from mmd.intent.types import IntentExample

Hints = Mapping[str, str]  # dialogue id → hint


def make_originals(examples: Sequence[IntentExample], hints: Hints, *, folds: int, seed: int) -> list[Sample]:
    """Return the samples of one task's labelled training examples, in order.

    The folds are those that rules' τ and the probe are validated with, so that what is held out is so for all.

    Args:
        examples: with labels; distinct dialogues.
        hints: dialogue id → hint; none where a dialogue is missing.
        folds: number of folds.
        seed: from which they derive.
    """
    ids = [example.dialogue_id for example in examples]
    labels = [str(example.label) for example in examples]
    dealt = assign_folds(ids, labels, folds, seed).tolist() if ids else []
    return [
        Sample(example.dialogue_id, example.dialogue_id, ORIGINAL, fold, hints.get(example.dialogue_id, ""), example)
        for example, fold in zip(examples, dealt, strict=True)
    ]


def held_out_hints(
    firings: Mapping[str, Sequence[HeldOutFiring]] | None,
    base: RuleBase,
    examples: Sequence[IntentExample],
    limit: int,
) -> dict[str, str]:
    """Return dialogue id → what the rules say of it, found and judged without it.

    A base that came without held-out firings, as one written by hand does, is taken at its word.

    Args:
        firings: dialogue id → held-out firings, best first (:func:`mmd.intent.firings.load_firings`).
        base: asked where there are none.
        examples: of one task.
        limit: rules told at most.
    """
    if firings is not None:
        return {e.dialogue_id: hint_text(firings.get(e.dialogue_id, ()), limit) for e in examples}
    if not examples:
        return {}
    fired = CompiledRules(base, examples[0].task).fired_batch(examples)
    return {
        example.dialogue_id: hint_text(told_rules(rules, base.prototypes), limit)
        for example, rules in zip(examples, fired, strict=True)
    }


def with_bytes(samples: Iterable[Sample], corpus: Corpus) -> list[Sample]:
    """Return the samples with their pictures' bytes, read from the corpus's shards.

    Raises:
        ArtifactError: the corpus lacks one of the pictures.
    """
    rows = list(samples)
    wanted = {image.image_id for sample in rows for image in sample.example.images}
    data = {image.id: image.data for image in corpus.images(wanted)} if wanted else {}
    return [
        replace(
            sample,
            example=replace(
                sample.example,
                images=tuple(replace(image, data=data[image.image_id]) for image in sample.example.images),
            ),
        )
        for sample in rows
    ]
