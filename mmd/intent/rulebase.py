"""The rule base: knowledge outside the weights, as YAML that people read and edit.

``rules.yaml`` holds everything but the prototypes' vectors, which lie in ``prototypes.safetensors`` beside it;
``compiled.json`` is the same, checked and flattened, so that loading need not parse YAML. It names the hash of
the YAML it was made from: after a hand edit it no longer applies and the YAML is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mmd.artifacts import Artifact, ArtifactWriter
from mmd.errors import RuleError
from mmd.intent.predicates import check_predicate, check_prototype, format_predicate
from mmd.intent.rules import UNMEASURED, Predicate, Prototype, Prototypes, Rule, RuleStats, measure, strength
from mmd.intent.types import Vector
from mmd.intent.vote import label_weights

FORMAT_VERSION = 1
RULES_FILE = "rules.yaml"
VECTORS_FILE = "prototypes.safetensors"
COMPILED_FILE = "compiled.json"
Labels = Mapping[str, Sequence[str]]  # task → its labels

_HEADER = """\
# mmd rule base. A rule: if all lines under `if` hold, the label it stands under is the answer. Order: task, label,
# strength. What several firing rules say together is the gate's business; a task's default answers where none fires.
# Statistics are out-of-fold. Edit freely: write `stats: null` for a new or changed rule (it then ranks last until
# `mmd rules edit-check` measures it), `enabled: false` to switch one off, `note: …` to say why.
"""


@dataclass(frozen=True)
class RuleBase:
    """Checked rules, strongest first within task and label, and what they refer to.

    Args:
        rules: in any order; ids are unique.
        prototypes: name → prototype, for ``near`` and ``cluster`` predicates.
        defaults: task → label where no rule fires.
        meta: where the base comes from: corpus, features, seeds, …

    Raises:
        RuleError: a duplicate id, a malformed predicate, or a prototype that is not there.
    """

    rules: tuple[Rule, ...]
    prototypes: Prototypes = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check, weigh the votes, then order by task, label and strength."""
        check_rules(self.rules, self.prototypes)
        ordered = sorted(weigh(self.rules), key=lambda rule: (rule.task, rule.label, strength(rule)))
        object.__setattr__(self, "rules", tuple(ordered))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have a rule or a default, sorted."""
        return tuple(sorted({rule.task for rule in self.rules} | set(self.defaults)))

    def of_task(self, task: str) -> tuple[Rule, ...]:
        """Return the enabled rules of a task, best first over all labels."""
        return tuple(sorted((r for r in self.rules if r.task == task and r.enabled), key=strength))

    def rule(self, rule_id: str) -> Rule:
        """Return a rule by id.

        Raises:
            RuleError: there is none.
        """
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise RuleError(f"no rule {rule_id!r} in this base; `mmd rules show` lists them.")

    # ------------------------------------------------------------ YAML

    def to_yaml(self) -> str:
        """Return the readable form; equal bases give equal text."""
        tasks: dict[str, dict[str, list[Any]]] = {}
        for rule in self.rules:
            tasks.setdefault(rule.task, {}).setdefault(rule.label, []).append(_rule_to_yaml(rule))
        content = {
            "format_version": FORMAT_VERSION,
            "meta": dict(self.meta),
            "defaults": dict(sorted(self.defaults.items())),
            "prototypes": [_prototype_to_yaml(p) for _, p in sorted(self.prototypes.items())],
            "rules": tasks,
        }
        text = yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=10**6)
        return _HEADER + str(text)

    @classmethod
    def from_yaml(
        cls,
        text: str,
        *,
        vectors: Mapping[str, Vector] | None = None,
        labels: Labels | None = None,
        where: str = RULES_FILE,
    ) -> RuleBase:
        """Read the YAML form strictly.

        Args:
            text: the YAML.
            vectors: prototype name → vector.
            labels: task → labels; given them, other tasks and labels are refused.
            where: file name that errors begin with.

        Raises:
            RuleError: with file, line and way out, for anything unknown, ill-typed, missing or duplicate.
        """
        from mmd.intent.rulebase_yaml import read_rulebase  # noqa: PLC0415 (it needs this module's constants)

        return cls(**read_rulebase(text, vectors=vectors or {}, labels=labels, where=where))

    # ------------------------------------------------------------ files

    def to_files(self) -> dict[str, bytes]:
        """Return file name → content of the whole base."""
        text = self.to_yaml().encode()
        vectors = {name: np.ascontiguousarray(p.vector) for name, p in sorted(self.prototypes.items())}
        return {
            RULES_FILE: text,
            VECTORS_FILE: save_tensors(vectors),
            COMPILED_FILE: json.dumps(flatten(self, _sha256(text)), ensure_ascii=False).encode(),
        }

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], *, labels: Labels | None = None, where: str = RULES_FILE
    ) -> RuleBase:
        """Invert :meth:`to_files`; the compiled form is used when it was made from this very YAML.

        Raises:
            RuleError: see :meth:`from_yaml`.
        """
        text = files[RULES_FILE]
        vectors = _read_vectors(files.get(VECTORS_FILE), where)
        base = unflatten(files.get(COMPILED_FILE), _sha256(text), vectors)
        if base is not None and (labels is None or fits_labels(base, labels)):
            return base
        try:
            decoded = text.decode()
        except UnicodeDecodeError as err:
            raise RuleError(f"{where}: not UTF-8 at byte {err.start}; save the file as UTF-8.") from err
        return cls.from_yaml(decoded, vectors=vectors, labels=labels, where=where)

    def save(self, writer: ArtifactWriter) -> None:
        """Write the base into an artefact."""
        for name, data in self.to_files().items():
            writer.write_bytes(name, data)

    @classmethod
    def load(cls, artifact: Artifact, *, labels: Labels | None = None) -> RuleBase:
        """Read the base from an artefact.

        Raises:
            RuleError: see :meth:`from_yaml`.
            ArtifactError: the artefact is no rule base.
        """
        names = [n for n in (VECTORS_FILE, COMPILED_FILE) if artifact.has(n)]
        files = {name: artifact.read_bytes(name) for name in (RULES_FILE, *names)}
        return cls.from_files(files, labels=labels, where=artifact.path(RULES_FILE))

    def save_folder(self, folder: Path) -> None:
        """Write the base as files for people to edit."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load_path(cls, path: Path, *, labels: Labels | None = None) -> RuleBase:
        """Read a base from a folder or from its YAML file, vectors and compiled form beside it.

        Raises:
            RuleError: the file is not there, or see :meth:`from_yaml`.
        """
        file = path / RULES_FILE if path.is_dir() else path
        beside = [file.parent / VECTORS_FILE, file.parent / COMPILED_FILE]
        try:
            files = {RULES_FILE: file.read_bytes(), **{p.name: p.read_bytes() for p in beside if p.is_file()}}
        except OSError as err:
            reason = err.strerror or "cannot be read"
            raise RuleError(f"{file}: {reason}; name a rule base's folder or its {RULES_FILE}.") from err
        return cls.from_files(files, labels=labels, where=str(file))


def check_rules(rules: Iterable[Rule], prototypes: Prototypes) -> None:
    """Refuse rules that cannot be matched.

    Raises:
        RuleError: naming the rule.
    """
    seen: set[str] = set()
    checked: set[Predicate] = set()
    for rule in rules:
        if rule.id in seen:
            raise RuleError(f"rule {rule.id}: the id is used twice; give one of them another.")
        seen.add(rule.id)
        if not rule.predicates:
            raise RuleError(f"rule {rule.id}: has no condition, so it would always fire; set a default label instead.")
        for predicate in rule.predicates:
            if predicate in checked:
                continue
            try:
                check_predicate(predicate)
                check_prototype(predicate, prototypes)
            except RuleError as err:
                raise RuleError(f"rule {rule.id}: `{format_predicate(predicate)}`: {err}") from err
            checked.add(predicate)


def fits_labels(base: RuleBase, labels: Labels) -> bool:
    """Say whether :func:`check_labels` would pass."""
    try:
        check_labels(base, labels)
    except RuleError:
        return False
    return True


def check_labels(base: RuleBase, labels: Labels) -> None:
    """Refuse rules and defaults of tasks or labels that the corpus does not have.

    Raises:
        RuleError: naming the first such rule.
    """
    for task, label, who in [
        *((rule.task, rule.label, f"rule {rule.id}") for rule in base.rules),
        *((task, label, f"default of {task}") for task, label in base.defaults.items()),
    ]:
        if task not in labels:
            raise RuleError(f"{who}: unknown task {task!r}; the corpus has {', '.join(labels)}.")
        if label not in labels[task]:
            raise RuleError(f"{who}: {label!r} is no label of {task}; it has {', '.join(labels[task])}.")


# ---------------------------------------------------------------- YAML details


class _Flow(dict[str, Any]):
    """A mapping written on one line."""


class _Dumper(yaml.SafeDumper):
    """Writes :class:`_Flow` mappings on one line, never with anchors, list items indented."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 (yaml's interface)
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
        super().increase_indent(flow, False)


_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
)

# Unicode's other line ends would be folded away outside double quotes.
_LINE_ENDS = frozenset("\x85\u2028\u2029\ufeff")
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if _LINE_ENDS.intersection(text) else None
    ),
)


def _rule_to_yaml(rule: Rule) -> dict[str, Any]:
    out: dict[str, Any] = {"id": rule.id, "if": [format_predicate(p) for p in rule.predicates]}
    out["stats"] = None if rule.stats == UNMEASURED else _stats_to_yaml(rule.stats)
    if rule.provenance:
        out["provenance"] = _Flow(sorted(rule.provenance.items()))
    if not rule.enabled:
        out["enabled"] = False
    if rule.note:
        out["note"] = rule.note
    return out


def _stats_to_yaml(stats: RuleStats) -> _Flow:
    return _Flow(
        support=stats.support,
        hits=stats.hits,
        precision=round(stats.precision, 4),
        wilson_lower=round(stats.wilson_lower, 4),
        coverage=stats.coverage,
    )


def _prototype_to_yaml(prototype: Prototype) -> _Flow:
    return _Flow(name=prototype.name, scope=prototype.scope, threshold=prototype.threshold, words=prototype.words)


def _read_vectors(data: bytes | None, where: str) -> dict[str, Vector]:
    if data is None:
        return {}
    try:
        return {name: vector.astype(np.float32) for name, vector in load_tensors(data).items()}
    except SafetensorError as err:
        raise RuleError(
            f"{where}: {VECTORS_FILE} beside it is damaged ({err}); copy it from the artefact again."
        ) from err


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- compiled form


def weigh(rules: Iterable[Rule]) -> list[Rule]:
    """Return the rules with the weight that a firing has in their task's vote (:func:`mmd.intent.vote.label_weights`).

    Weights follow from the rules that the base has, so that they are right after any edit and need not be stored.
    """
    by_task: dict[str, list[Rule]] = {}
    for rule in rules:
        by_task.setdefault(rule.task, []).append(rule)
    out = []
    for own in by_task.values():
        weights = label_weights(rule for rule in own if rule.enabled)
        out += [replace(r, stats=replace(r.stats, weight=weights.get(r.label, 1.0))) for r in own]
    return out


def flatten(base: RuleBase, yaml_sha256: str) -> dict[str, Any]:
    """Return the base as JSON with each distinct predicate once, rules pointing at them by number."""
    table: dict[Predicate, int] = {}
    rows = []
    for rule in base.rules:
        numbers = [table.setdefault(p, len(table)) for p in rule.predicates]
        stats = rule.stats
        counts = None if stats == UNMEASURED else [stats.support, stats.hits, stats.coverage]
        extras = [dict(sorted(rule.provenance.items())), rule.enabled, rule.note]
        rows.append([rule.id, rule.task, rule.label, numbers, counts, *extras])
    return {
        "format_version": FORMAT_VERSION,
        "yaml_sha256": yaml_sha256,
        "meta": dict(base.meta),
        "defaults": dict(sorted(base.defaults.items())),
        "prototypes": [[p.name, p.scope, p.threshold, p.words] for _, p in sorted(base.prototypes.items())],
        "predicates": [[p.kind, p.scope, p.value, p.negated] for p in table],
        "rules": rows,
    }


def unflatten(data: bytes | None, yaml_sha256: str, vectors: Mapping[str, Vector]) -> RuleBase | None:
    """Invert :func:`flatten`; None when there is no compiled form of this YAML, so that the YAML is to be read."""
    if data is None:
        return None
    try:
        flat = json.loads(data)
        if (flat["format_version"], flat["yaml_sha256"]) != (FORMAT_VERSION, yaml_sha256):
            return None
        predicates = [Predicate(*row) for row in flat["predicates"]]
        rules = tuple(_rule_from_row(row, predicates) for row in flat["rules"])
        prototypes = {
            name: Prototype(name, scope, vectors[name], threshold, words)
            for name, scope, threshold, words in flat["prototypes"]
        }
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # damaged: the YAML is the source
    return RuleBase(rules, prototypes, flat["defaults"], flat["meta"])


def _rule_from_row(row: Sequence[Any], predicates: Sequence[Predicate]) -> Rule:
    rule_id, task, label, numbers, counts, provenance, enabled, note = row
    stats = UNMEASURED if counts is None else rebuild_stats(*counts)
    return Rule(rule_id, task, label, tuple(predicates[n] for n in numbers), stats, provenance, enabled, note)


def rebuild_stats(support: int, hits: int, coverage: float) -> RuleStats:
    """Return statistics from their counts; precision and bound follow from them exactly."""
    return replace(measure(support, hits, support), coverage=coverage)


# ---------------------------------------------------------------- pruning


def prune_supersets(rules: Sequence[Rule]) -> list[Rule]:
    """Drop each rule whose conditions include all of another rule's that is at least as good.

    Only rules of one task and label are compared. "At least as good" is a Wilson lower bound no smaller; of rules
    with the same conditions the strongest stays. The order of the survivors is kept.

    Source: the pruning of RuAG's rule search (METHODS section 1).
    """
    kept: dict[tuple[str, str], list[tuple[frozenset[Predicate], float]]] = {}
    survivors: set[str] = set()
    # Shorter first: a rule can only be dropped for one with fewer conditions, or as many and no weaker.
    for rule in sorted(rules, key=lambda r: (len(set(r.predicates)), strength(r))):
        conditions, bound = frozenset(rule.predicates), rule.stats.wilson_lower
        rivals = kept.setdefault((rule.task, rule.label), [])
        if any(other <= conditions and other_bound >= bound for other, other_bound in rivals):
            continue
        rivals.append((conditions, bound))
        survivors.add(rule.id)
    return [rule for rule in rules if rule.id in survivors]


def count_labels(base: RuleBase) -> Counter[tuple[str, str]]:
    """Return (task, label) → number of enabled rules."""
    return Counter((rule.task, rule.label) for rule in base.rules if rule.enabled)
