"""The policy in the ingress: pure and small, so that it needs no deployment of its own; swapped as the models are."""

from __future__ import annotations

from mmd.assistant.policy import Policy
from mmd.assistant.settings import AssistantSettings
from mmd.config import ServeSettings
from serve_apps.assistant import ServedPolicy
from serve_apps.replica import PartStatus, Refs, Replica


class PolicyRefs(Refs):
    """Which artefact decides, as ``kind/name@version``; absent: the newest of the corpus, or an unfitted one."""

    policy: str | None = None


class PolicySeat(Replica[ServedPolicy]):
    """Holds the policy that decides now.

    Args:
        store: URI of the artefact store.
        corpus: name of the corpus.
        settings: of the service.
        assistant: of the reply.
    """

    def __init__(self, store: str, corpus: str, settings: ServeSettings, assistant: AssistantSettings) -> None:
        super().__init__("policy", PolicyRefs, store, corpus, settings)
        self._assistant = assistant

    def _load(self, refs: dict[str, str]) -> ServedPolicy:
        from mmd.assistant.loading import open_policy

        policy, degraded, artifacts = open_policy(self._store, self._corpus, refs.get("policy"), self._assistant)
        return ServedPolicy(policy, self._corpus, artifacts, degraded)

    def _describe(self, engine: ServedPolicy) -> PartStatus:
        return PartStatus("policy", artifacts=engine.artifacts, degraded=engine.degraded)

    @property
    def served(self) -> ServedPolicy:
        """What decides now; an unfitted policy where the artefact cannot be read."""
        if self._engine is not None:
            return self._engine
        problem = f"policy: {self._absent or 'none is loaded yet'}"
        return ServedPolicy(Policy(self._assistant), self._corpus, degraded=(problem,))
