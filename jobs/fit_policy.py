"""Fit the assistant's policy: which responses fit an intent, and how much each part has to say.

Makes the artefact policy/NAME. Counted on the dialogues that the parts learnt from: which intent was answered in which
modality, and with which responses. Chosen on the held-out part of the training split: the weights of the parts' votes
on the modality, whether responses that never answered an intent are passed over, who answers in words, and whose
products are shown. The test split is not opened. Parts that were not trained are left out.

    mmd fit_policy                                 the newest gate, index and student of the built-in shop corpus
    mmd fit_policy --corpus redial=../shared/data/redial
"""

from __future__ import annotations

import sys

from jobs.glue.assistant import Stand, open_roles
from jobs.glue.entry import JobContext, console, main
from mmd.artifacts import Artifact, version_for
from mmd.assistant.fits import Fits
from mmd.assistant.fitting import Fitted, count_answers, fit_plan
from mmd.assistant.gather import gather
from mmd.assistant.loading import save_policy
from mmd.errors import CorpusError
from mmd.tables import plain_table


def run(context: JobContext) -> Artifact:
    """Write policy/NAME unless the same parts have one.

    Raises:
        ArtifactError: no part was trained.
        CorpusError: no training dialogue has an answer.
    """
    inputs, config = open_roles(context), context.config
    settings = {
        "assistant": config.assistant.model_dump(mode="json", exclude={"enabled"}),
        "generation": config.recommend.generation.model_dump(mode="json"),
    }
    if found := context.existing("policy", settings, inputs, {}):
        return found
    stand = Stand(context, inputs)
    turns, validation = stand.turns("train"), stand.turns("validation")
    if not turns:
        raise CorpusError(f"{inputs['corpus'].ref}: no training dialogue has an answer of the agent to learn from.")
    console.print(f"counting the answers to {len(turns):,} turns, choosing on {len(validation):,}", soft_wrap=True)
    counts = count_answers(stand.assistant, turns)
    fits = Fits.of(counts)
    fitted = fit_plan(config.assistant, fits, gather(stand.assistant, validation))
    with context.store.write("policy", context.name, settings=settings, inputs=inputs, replace=context.force) as writer:
        save_policy(writer, fitted.plan, counts, fitted.to_json())
        writer.metrics = {
            "training_turns": len(turns),
            "validation_turns": len(validation),
            "intents": len(fits.by_intent),
            "responses": len(fits.responses),
            **{f"vote of {part}": weight for part, weight in fitted.plan.votes.items()},
            "temperature": fitted.plan.temperature,
            "min_seen": fitted.plan.min_seen,
            "words": fitted.plan.words,
            "products": fitted.plan.products,
        }
    print_tried(fitted)
    return context.store.open(f"policy/{context.name}@{version_for('policy', settings, inputs, {})}")


def print_tried(fitted: Fitted) -> None:
    """Print the best of what was tried of each choice."""
    if not fitted.turns:
        note = "note: no dialogue was held out of all parts' training, so nothing was chosen: equal votes"
        console.print(note, style="yellow", markup=False, soft_wrap=True)
        return
    table = plain_table("choice", "candidate", "score", title=f"chosen on {fitted.turns} validation turns")
    for name, scores in fitted.tried.items():
        for candidate, score in sorted(scores.items(), key=lambda pair: -pair[1])[:3]:
            table.add_row(name, candidate, f"{score:.4f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("fit_policy", __doc__, run))
