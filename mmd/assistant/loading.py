"""The policy as an artefact (``policy/NAME``), and from artefacts to an assistant that answers in process.

Files: ``policy.json`` with the chosen :class:`~mmd.assistant.plan.Plan` and what was tried, and the table ``answers``,
the counted answers of training dialogues.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple
from typing import Any, TypeVar

import pyarrow as pa

from mmd.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mmd.assistant.assistant import Assistant
from mmd.assistant.fits import Answered, Fits
from mmd.assistant.plan import Plan
from mmd.assistant.policy import Policy
from mmd.assistant.settings import AssistantSettings
from mmd.assistant.types import PARTS, Part
from mmd.errors import ArtifactError, MmdError
from mmd.intent.engine import IntentEngine
from mmd.intent.online import OnlineSettings
from mmd.recommend import loading as recommending
from mmd.recommend.settings import GenerationSettings
from mmd.retrieval import loading as retrieving

POLICY_FILE = "policy.json"
ANSWERS = pa.schema(
    [
        ("tasks", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        ("modality", pa.string()),
        ("response_ids", pa.list_(pa.string())),
        ("text", pa.string()),
        ("count", pa.int64()),
    ]
)
"""How often training answered so. ``tasks`` and ``labels``: the intents that were recognised, none for none;
``text``: of answers in words."""
UNFITTED = "policy: none was fitted, the parts have equal votes and every response fits every intent"

T = TypeVar("T")


def save_policy(writer: ArtifactWriter, plan: Plan, counts: Mapping[Answered, int], tried: Mapping[str, Any]) -> None:
    """Write a policy.

    Args:
        writer: of an artefact of kind ``policy``.
        plan: that was chosen.
        counts: how a turn of a training dialogue was answered → how often.
        tried: what the choice rests on, for readers.
    """
    writer.write_json(POLICY_FILE, {"plan": plan.model_dump(mode="json"), "tried": dict(tried)})
    rows = [
        {
            "tasks": [task for task, _ in answer.intents],
            "labels": [label for _, label in answer.intents],
            "modality": answer.modality,
            "response_ids": list(answer.response_ids),
            "text": answer.text,
            "count": count,
        }
        for answer, count in sorted(counts.items(), key=lambda pair: astuple(pair[0]))
    ]
    writer.write_table("answers", pa.Table.from_pylist(rows, schema=ANSWERS))


def load_policy(artifact: Artifact, settings: AssistantSettings | None = None) -> Policy:
    """Load a fitted policy.

    Args:
        artifact: of kind ``policy``.
        settings: of the reply.

    Raises:
        ArtifactError: the artefact is of another kind, or was written by another version.
    """
    artifact = artifact.of_kind("policy", "open policy/NAME, which `mmd fit_policy` writes.")
    try:
        plan = Plan.model_validate(artifact.read_json(POLICY_FILE)["plan"])
    except (KeyError, TypeError, ValueError) as err:
        raise ArtifactError(f"{artifact.ref}: {POLICY_FILE} cannot be read ({err}); run `mmd fit_policy`.") from err
    rows = artifact.read_table("answers", ANSWERS).to_pylist()
    return Policy(settings, Fits.of({_answered(row): row["count"] for row in rows}), plan)


def _answered(row: Mapping[str, Any]) -> Answered:
    intents = tuple(zip(row["tasks"], row["labels"], strict=True))
    return Answered(intents, row["modality"], tuple(row["response_ids"]), row["text"])


def load_assistant(
    store: ArtifactStore,
    name: str,
    *,
    settings: AssistantSettings | None = None,
    online: OnlineSettings | None = None,
    generation: GenerationSettings | None = None,
    refs: Mapping[str, str] | None = None,
    parts: Collection[Part] = PARTS,
) -> Assistant:
    """Load what there is of an assistant: newest artefacts of a corpus, or those that ``refs`` names.

    Args:
        store: where the artefacts are.
        name: name of the corpus and of everything made from it.
        settings: of the turn.
        online: of extractors and models.
        generation: how the student decodes.
        refs: role (``policy``, ``gate``, ``index``, ``student`` …) → ``kind/name@version``.
        parts: that are wanted.

    Raises:
        ArtifactError: a wanted version is not there.
    """
    refs, online, missing = dict(refs or {}), online or OnlineSettings(), dict[Part, str]()

    def there(part: Part, load: Callable[[], T], role: str) -> T | None:
        if part not in parts:
            return None
        try:
            return load()
        except MmdError as err:
            if role in refs:
                raise
            missing[part] = str(err)
            return None

    intent = there(
        "intent", lambda: IntentEngine.from_store(store, name, refs=_only(refs, "gate"), settings=online), "gate"
    )
    retrieval = there(
        "retrieval", lambda: retrieving.load_online(store, name, _only(refs, "index", "retriever"), online), "index"
    )
    recommendation = there(
        "recommendation",
        lambda: recommending.load_online(store, name, _only(refs, "student"), generation, online.models),
        "student",
    )
    policy, problem, artifacts = open_policy(store, name, refs.get("policy"), settings)
    return Assistant(
        policy,
        intent=intent,
        retrieval=retrieval,
        recommendation=recommendation,
        missing=missing,
        degraded=problem,
        artifacts=artifacts,
    )


def open_policy(
    store: ArtifactStore, name: str, ref: str | None = None, settings: AssistantSettings | None = None
) -> tuple[Policy, tuple[str, ...], dict[str, str]]:
    """Return the policy of a corpus, what is missing of it, and role → reference; an unfitted one where none is there.

    Raises:
        ArtifactError: ``ref`` names one that is not there.
    """
    try:
        artifact = store.open(ref or f"policy/{name}")
    except ArtifactError:
        if ref:
            raise
        return Policy(settings), (UNFITTED,), {}
    return load_policy(artifact, settings), (), {"policy": artifact.ref}


def _only(refs: Mapping[str, str], *roles: str) -> dict[str, str]:
    return {role: refs[role] for role in roles if role in refs}
