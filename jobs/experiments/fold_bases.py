"""Rule bases mined without an outer fold: honest about that fold, and several, so that results have a spread.

Everything (predicates, prototypes, searches, selection) is made anew without the fold, as in ``jobs.bench rules_cv``;
the bases are spread over processes by Ray Tune and equal those of one process.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jobs.experiments.domains import Domain
from jobs.glue.cluster import ray_cluster
from jobs.glue.tune import tune_batches
from mmd.artifacts import code_revision, fingerprint
from mmd.intent.folds import assign_folds
from mmd.intent.matcher import CompiledRules
from mmd.intent.miner import join, mine_task
from mmd.intent.mining import NameVectors
from mmd.intent.proposer import Proposer, make_proposer
from mmd.intent.rulebase import RuleBase
from mmd.intent.rules import Rule
from mmd.intent.settings import IntentSettings
from mmd.intent.types import IntentExample
from mmd.models.settings import ModelSettings

OUTER_SEED = 300  # no fold of mining's own is an outer fold


@dataclass(frozen=True, order=True)
class BaseUnit:
    """One base: mined from a task of a domain, without an outer fold, with a proposer (empty: mined only)."""

    domain: str
    task: str
    fold: int
    proposer: str = ""


@dataclass(frozen=True)
class FoldBase:
    """A mined base; ``seconds`` is what mining took in one process, ``default`` the label where no rule fires."""

    unit: BaseUnit
    base: RuleBase
    seconds: float

    @cached_property
    def _compiled(self) -> CompiledRules:
        return CompiledRules(self.base, self.unit.task)

    @property
    def default(self) -> str:
        """The task's label where no rule fires."""
        return self.base.defaults[self.unit.task]

    def fired(self, examples: Sequence[IntentExample]) -> list[tuple[Rule, ...]]:
        """Return the rules that fire on each example, best first."""
        return self._compiled.fired_batch(examples)


@dataclass(frozen=True)
class MiningInputs:
    """What the bases of one domain are mined from."""

    examples: Mapping[str, Sequence[IntentExample]]
    names: Mapping[str, NameVectors]
    settings: IntentSettings
    models: ModelSettings
    seed: int
    outer: int

    @classmethod
    def of(cls, domain: Domain, outer: int) -> MiningInputs:
        """Take everything from a domain."""
        config = domain.config
        return cls(domain.examples, domain.names, config.intent, config.models, config.seed, outer)

    def folds(self, task: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the outer fold of each of the task's examples, shape (n_examples,)."""
        rows = self.examples[task]
        return assign_folds([e.dialogue_id for e in rows], [str(e.label) for e in rows], self.outer, OUTER_SEED)

    def held(self, task: str, fold: int) -> list[IntentExample]:
        """Return the examples of an outer fold."""
        return [e for e, f in zip(self.examples[task], self.folds(task), strict=True) if f == fold]


class BaseMiner:
    """Mines bases in one process; a proposer's model is loaded once.

    Args:
        inputs: domain → what to mine from.
    """

    def __init__(self, inputs: Mapping[str, MiningInputs]) -> None:
        self._inputs = inputs
        self._proposers: dict[str, Proposer] = {}

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Mine the units, given as mappings; return bases as JSON-able values."""
        return [to_json(self.mine(BaseUnit(**unit))) for unit in batch]

    def mine(self, unit: BaseUnit) -> FoldBase:
        """Mine one base."""
        inputs = self._inputs[unit.domain]
        folds = inputs.folds(unit.task)
        inside = [e for e, f in zip(inputs.examples[unit.task], folds, strict=True) if f != unit.fold]
        proposer = self._proposer(unit.proposer, inputs)
        started = time.perf_counter()
        mined = mine_task(inside, inputs.settings, inputs.seed, names=inputs.names[unit.task], proposer=proposer)
        return FoldBase(unit, join([mined]), time.perf_counter() - started)

    def _proposer(self, name: str, inputs: MiningInputs) -> Proposer:
        if name not in self._proposers:
            models = inputs.models.model_copy(update={"proposer": name or None})
            self._proposers[name] = make_proposer(inputs.settings.predicates, models)
        return self._proposers[name]


def mine_bases(domains: Mapping[str, Domain], units: Sequence[BaseUnit], outer: int) -> list[FoldBase]:
    """Mine all units, spread over processes; return them in the units' order.

    Args:
        domains: by name.
        units: what to mine.
        outer: number of outer folds.
    """
    inputs = {name: MiningInputs.of(domain, outer) for name, domain in domains.items()}
    context = next(iter(domains.values())).context
    told = {name: [d.features.artifact.ref, d.config.intent.model_dump(mode="json")] for name, d in domains.items()}
    with ray_cluster(context.config.cluster):
        values = tune_batches(
            BaseMiner,
            (inputs,),
            [[asdict(unit)] for unit in units],
            storage=context.scratch(".tune"),
            name=f"fold_bases-{fingerprint([code_revision(), told, outer, context.config.seed])[:12]}",
            max_concurrent=context.config.tune.max_concurrent,
            title="rule bases",
        )
    return [from_json(value) for value in values]


def to_json(mined: FoldBase) -> dict[str, Any]:
    """Return a base as a JSON-able value."""
    files = {name: base64.b64encode(data).decode() for name, data in mined.base.to_files().items()}
    return {"unit": asdict(mined.unit), "files": files, "seconds": mined.seconds}


def from_json(value: Mapping[str, Any]) -> FoldBase:
    """Invert :func:`to_json`."""
    files = {name: base64.b64decode(text) for name, text in value["files"].items()}
    return FoldBase(BaseUnit(**value["unit"]), RuleBase.from_files(files), value["seconds"])
