"""From artefacts to what an :class:`~mmd.intent.engine.IntentEngine` is made of.

The newest gate leads: it names the rule base, classifier, features and corpus that it was made from, so that what
answers belongs together even while newer parts are being trained. A part that may be missing is left out and
named: without a classifier the rules answer alone, without OCR the pictures' text is unknown, without the base
weights of an adapter rules and probe answer.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import PIL.Image
import structlog

from mmd.artifacts import Artifact, ArtifactStore
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, MmdError, ModelError, ServerUnavailableError
from mmd.features.extract import ROLES, VECTOR_ROLES, ExtractorInfo, Extractors, Role, build_extractors
from mmd.features.shared import shared
from mmd.features.store import Features
from mmd.intent.engine import IntentModel, require_numbers, training_shapes, without_mllms
from mmd.intent.gate import Gate, TaskGate, load_gates
from mmd.intent.online import OnlineExtractors, OnlineFeatures, OnlineSettings
from mmd.intent.probe import load_probes
from mmd.intent.rulebase import RuleBase
from mmd.intent.types import ImageFacts, IntentClassifier, IntentExample, PromptedClassifier
from mmd.models.settings import ModelSettings
from mmd.models.threads import torch_threads
from mmd.schema import Turn

Part = Literal["gate", "adapter", "classifier", "rulebase", "features", "corpus"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In the order in which one names the others."""
_OPTIONAL: Mapping[Part, str] = {
    "gate": "rules alone, every one that fires",
    "adapter": "rules and probe",
    "classifier": "rules alone",
}


def load_engine_parts(
    store: ArtifactStore, name: str, refs: Mapping[str, str], settings: OnlineSettings
) -> tuple[IntentModel, OnlineFeatures]:
    """Load a model and the extractors that it was trained with.

    Args:
        store: where the artefacts are.
        name: name of the corpus.
        refs: part → reference, where a certain version is wanted.
        settings: of the extractors.

    Raises:
        ArtifactError: corpus, features or rule base are missing or damaged, or a wanted version is.
        ModelError: an extractor here differs from the one that the model was trained with, or a wanted adapter cannot
            be used here.
    """
    found, missing = open_parts(store, name, refs)
    corpus, features = Corpus(found["corpus"]), Features(found["features"])
    gate = load_gate(found, corpus.tasks)
    mllms, problem = load_mllms(found, gate, settings.models, required="adapter" in refs)
    if problem:
        missing.append(f"adapter: {problem} Until then: {_OPTIONAL['adapter']}.")
    if not mllms:
        found.pop("adapter", None)  # it does not answer
    gate = replace(gate, mllms=mllms) if mllms else without_mllms(gate)
    tasks = answerable(gate, corpus.tasks)
    model = IntentModel(
        gate=gate,
        tasks=tasks,
        shapes=training_shapes(corpus.dialogues("train"), tasks),
        items=corpus.items(),
        artifacts={part: found[part].ref for part in PARTS if part in found},
        degraded=tuple(missing),
    )
    extractors = load_extractors(features.extractors, corpus, settings)
    return model, OnlineFeatures(extractors, settings)


def open_parts(store: ArtifactStore, name: str, refs: Mapping[str, str]) -> tuple[dict[str, Artifact], list[str]]:
    """Open the artefacts that belong together. An adapter is one of them where the gate, or the caller, names it.

    Returns:
        Part → artefact, and what is missing of the parts that may be, with the consequence.

    Raises:
        ArtifactError: a part that must be there is not, or a wanted version is not.
    """
    found: dict[str, Artifact] = {}
    missing = []
    named = dict(refs)
    for part in PARTS:
        wanted = named.get(part)
        if part == "adapter" and wanted is None:
            continue  # the newest one is not this gate's
        try:
            found[part] = store.open(wanted or f"{part}/{name}")
        except ArtifactError as err:
            if part not in _OPTIONAL or part in refs:
                raise
            missing.append(f"{part}: {err} Until then: {_OPTIONAL[part]}.")
            continue
        for role, ref in found[part].manifest.inputs.items():
            if role in PARTS:
                named.setdefault(role, ref.split(" ")[0])  # inputs are "kind/name@version digest"
    return found, missing


def load_gate(found: Mapping[str, Artifact], tasks: Mapping[str, tuple[str, ...]]) -> Gate:
    """Return the gate over what there is; without classifier or gate every rule that fires answers."""
    rulebase = RuleBase.load(found["rulebase"], labels=tasks)
    classifiers = load_classifiers(found["classifier"], tasks) if "classifier" in found else {}
    gates = load_gates(found["gate"]) if "gate" in found else {}
    rules_alone = {task: TaskGate(task, "override", tau=0.0) for task in tasks if task not in classifiers}
    if not gates:
        rules_alone |= {task: TaskGate(task, "override", tau=0.0) for task in tasks}
    return Gate(rulebase, classifiers, {**gates, **rules_alone})


def answerable(gate: Gate, tasks: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return those tasks on which something has an answer: one that no training example was labelled for has none."""
    known = {*gate.classifiers, *gate.mllms, *gate.rulebase.defaults}
    return {task: labels for task, labels in tasks.items() if task in known}


def load_classifiers(artifact: Artifact, tasks: Mapping[str, tuple[str, ...]]) -> dict[str, IntentClassifier]:
    """Return task → classifier of those tasks that the artefact has one for."""
    return {task: probe for task, probe in load_probes(artifact).items() if task in tasks}


def load_mllms(
    found: Mapping[str, Artifact], gate: Gate, settings: ModelSettings, *, required: bool
) -> tuple[dict[str, PromptedClassifier], str | None]:
    """Load the large models that a gate asks.

    Returns:
        Task → model, and why there is none although the gate asks one, if so.

    Raises:
        ModelError: they cannot be used here, and ``required`` is on.
    """
    asking = {task for task, how in gate.tasks.items() if how.asks_mllm}
    if "adapter" not in found:
        return {}, None
    if not asking:
        return {}, f"{found['adapter'].ref} is not asked by the gate; run sweep_gates with it." if required else None
    from mmd.intent.mllm import load_mllm_classifiers  # noqa: PLC0415 (torch and transformers, only where asked)

    artifact = found["adapter"]
    try:
        loaded = {task: mllm for task, mllm in load_mllm_classifiers(artifact, settings).items() if task in asking}
        with torch_threads(settings.threads):
            for task, mllm in loaded.items():  # one that cannot answer shows now; the first customer need not wait
                _ask_first(task, mllm)
    except Exception as err:  # whatever its packages raise: too little memory, missing weights, another version
        reason = str(err) if isinstance(err, MmdError) else f"{type(err).__name__}: {err}"
        problem = f"{artifact.ref} cannot be used here ({reason[:400]})."
        if required:
            raise ModelError(problem) from err
        return {}, problem
    return dict(loaded), None


def _ask_first(task: str, mllm: PromptedClassifier) -> None:
    """Ask a large model its first question. A server that is not there may come later: every answer tells, till then.

    Raises:
        ModelError: it does not answer as it should; or whatever its packages raise.
    """
    try:
        require_numbers(mllm.predict([_first_question(task, with_picture=mllm.needs_pictures)])[0].values)
    except ServerUnavailableError as err:
        structlog.get_logger(__name__).warning("mllm_server_unavailable", task=task, reason=str(err))


def _first_question(task: str, *, with_picture: bool) -> IntentExample:
    """Return a question that takes every part of a model: words and, for one that looks at them, a grey picture."""
    if not with_picture:
        return IntentExample("first", task, None, (Turn("user", "?"),))
    buffer, side_px = io.BytesIO(), 64
    PIL.Image.new("RGB", (side_px, side_px), "grey").save(buffer, "png")
    picture = ImageFacts("grey", side_px, side_px, data=buffer.getvalue())
    return IntentExample("first", task, None, (Turn("user", "?", ("grey",)),), images=(picture,))


# ---------------------------------------------------------------- extractors


def load_extractors(
    trained: Mapping[str, ExtractorInfo | None],
    corpus: Corpus,
    settings: OnlineSettings,
    roles: Sequence[Role] = ROLES,
) -> OnlineExtractors:
    """Build the extractors that the model was trained with and load their weights; one that cannot be is told.

    Args:
        trained: role → extractor that the model was trained with.
        corpus: whose pictures may have come with OCR.
        settings: of the extractors.
        roles: that are read at all.

    Raises:
        ModelError: vision or text here is another than the one that the model was trained with.
    """
    absent: dict[str, str] = {}
    choices = {role: _choice(role, trained.get(role), corpus) if role in roles else "none" for role in ROLES}
    built = {role: _load(role, choice, settings, absent) for role, choice in choices.items()}
    for role in VECTOR_ROLES:
        if built[role]:
            Extractors(ocr=None, vision=built["vision"], text=built["text"]).check(trained, (role,))
    return OnlineExtractors(ocr=built["ocr"], vision=built["vision"], text=built["text"], absent=absent)


def _choice(role: Role, trained: ExtractorInfo | None, corpus: Corpus) -> str:
    """Return the setting that leads to the extractor of a role that the model was trained with."""
    if trained:
        return trained.name.partition("-")[0]
    # The corpus may have come with its own OCR; pictures that come online do not.
    return "auto" if role == "ocr" and _has_ocr(corpus) else "none"


def _has_ocr(corpus: Corpus) -> bool:
    column = corpus.image_table(["ocr"])["ocr"]
    return int(column.null_count) < len(column)


def _load(role: Role, choice: str, settings: OnlineSettings, absent: dict[str, str]) -> Any:  # noqa: ANN401 (by role)
    """Return a warm extractor, or None with the reason in ``absent``, unless none is wanted."""
    if choice == "none":
        return None
    if role == "ocr" and not settings.run_ocr:
        absent[role] = "switched off (serve.run_ocr); text in pictures is not read"
        return None
    chosen = settings.features.model_copy(update={"ocr": "none", "text": "none"} | {role: choice})
    try:
        extractor = shared((role, chosen.model_dump_json()), lambda: _warm(getattr(build_extractors(chosen), role)))
    except Exception as err:  # noqa: BLE001 (whatever its package raises: the answers go on without it)
        absent[role] = f"cannot be used here ({err})"
        return None
    if extractor is None:
        absent[role] = "no engine is installed (`pip install 'mmd[ocr]'`); text in pictures is not read"
    return extractor


def _warm(extractor: Any) -> Any:  # noqa: ANN401 (by role)
    """Load an extractor's weights, if it has any."""
    if warm := getattr(extractor, "warm", None):
        warm()
    return extractor
