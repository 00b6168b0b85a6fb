"""What fitting and evaluating an assistant start from: its parts, their corpus, and the turns that were answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from jobs.glue.entry import JobContext, console
from mmd.artifacts import Artifact, Kind
from mmd.assistant.assistant import Assistant
from mmd.assistant.loading import load_assistant
from mmd.assistant.turns import AskedTurn, HeldOut, Judged, asked_turns
from mmd.assistant.types import Part
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError
from mmd.features.store import Features
from mmd.intent.online import OnlineSettings
from mmd.recommend.settings import ConversationSettings
from mmd.retrieval.facts import Facts
from mmd.retrieval.settings import SampleSettings
from mmd.schema import Image

PART_OF: Mapping[Kind, Part] = {"gate": "intent", "index": "retrieval", "student": "recommendation"}
"""Kind of artefact → the part that answers with it."""


def open_roles(context: JobContext) -> dict[str, Artifact]:
    """Open the newest, or pinned, artefact of each part that was made from the corpus, and the corpus.

    Raises:
        ArtifactError: no part was.
    """
    corpus = context.open("corpus")
    found: dict[str, Artifact] = {}
    reasons = []
    for role in PART_OF:
        try:
            part = context.open(role)
            made_from = _corpus_of(context, part)
        except ArtifactError as err:
            reasons.append(str(err))
            continue
        if made_from == corpus.ref:
            found[role] = part
        else:
            reasons.append(f"{part.ref} was made from {made_from}, not from {corpus.ref}.")
    if not found:
        raise ArtifactError("there is no part of an assistant: " + " ".join(reasons))
    for reason in reasons:
        console.print(f"note: goes without a part: {reason}", style="yellow", markup=False, soft_wrap=True)
    return found | {"corpus": corpus}


def _corpus_of(context: JobContext, part: Artifact) -> str:
    """Return the corpus that an artefact was made from, the student by way of its graph."""
    if "corpus" in part.manifest.inputs:
        return part.input_ref("corpus")
    return context.store.open(part.input_ref("graph")).input_ref("corpus")


@dataclass(frozen=True)
class Stand:
    """An assistant and its corpus.

    Args:
        context: settings and store.
        inputs: role → artefact: ``corpus``, and of ``gate``, ``index`` and ``student`` what there is; ``policy`` once
            it is fitted.
    """

    context: JobContext
    inputs: Mapping[str, Artifact]

    @cached_property
    def corpus(self) -> Corpus:
        """Of the dialogues."""
        return Corpus(self.inputs["corpus"])

    @cached_property
    def _lineage(self) -> dict[str, dict[str, Artifact]]:
        """Role → what its artefact was made from; the retriever's for the index."""
        return {role: self.context.made_from(self.inputs[role]) for role in PART_OF if role in self.inputs}

    @cached_property
    def features(self) -> Features | None:
        """With the text of pictures."""
        for found in self._lineage.values():
            if "features" in found:
                return Features(found["features"])
        return None

    @cached_property
    def assistant(self) -> Assistant:
        """All parts that there are, in process; a part whose artefact is not among the inputs is left out."""
        config = self.context.config
        online = OnlineSettings(features=config.features, models=config.models, run_ocr=False)
        return load_assistant(
            self.context.store,
            self.context.name,
            settings=config.assistant,
            online=online,
            generation=config.recommend.generation,
            refs={role: artifact.ref for role, artifact in self.inputs.items() if role != "corpus"},
            parts=[part for role, part in PART_OF.items() if role in self.inputs],
        )

    @cached_property
    def samples(self) -> SampleSettings:
        """Which turns are answers: as the retriever learnt them."""
        if "index" not in self.inputs:
            return self.context.config.retrieval.samples
        retriever = self._lineage["index"]["retriever"]
        return SampleSettings.model_validate(retriever.manifest.settings["samples"])

    @cached_property
    def facts(self) -> Facts:
        """Of the corpus."""
        return Facts.load(self.corpus, self.features, self.samples)

    @cached_property
    def held_out(self) -> HeldOut:
        """What retriever and student did not learn from; the gate has seen every labelled training dialogue."""
        shares = []
        if "index" in self.inputs:
            retriever = self._lineage["index"]["retriever"]
            shares.append((self.samples.validation_fraction, retriever.manifest.seeds["retriever"]))
        if "student" in self.inputs:
            made = self.context.made_from(self.inputs["student"])["teacher"]
            settings = ConversationSettings.model_validate(made.manifest.settings["conversations"])
            shares.append((settings.validation_fraction, made.manifest.seeds["teacher"]))
        if not shares:
            shares.append((self.samples.validation_fraction, self.context.config.seed))
        return HeldOut(tuple(shares))

    @cached_property
    def images(self) -> dict[str, Image]:
        """The corpus's pictures, the text in them as featurize recognised it."""
        ocr = self.features.ocr if self.features else {}
        return {image.id: replace(image, ocr=ocr.get(image.id, image.ocr or ())) for image in self.corpus.images()}

    def turns(self, part: Judged) -> list[AskedTurn]:
        """Return the answered turns of a part of the corpus; the test split is opened for ``test`` alone."""
        dialogues = self.corpus.dialogues("test" if part == "test" else "train")
        chosen = [dialogue for dialogue in dialogues if self.held_out.part(dialogue) == part]
        return list(asked_turns(chosen, self.facts, self.samples.modalities, self.images))


def lineage_of(policy: Artifact, context: JobContext) -> dict[str, Artifact]:
    """Return a policy and what it was made from."""
    return {**context.made_from(policy), "policy": policy}
