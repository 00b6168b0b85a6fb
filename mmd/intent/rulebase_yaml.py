"""Strict reading of ``rules.yaml``: every complaint names file, line and the way out.

The YAML is only composed into nodes, never constructed into objects, so that each value keeps its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from mmd.errors import RuleError
from mmd.intent.predicates import check_prototype, nearest, parse_predicate
from mmd.intent.rulebase import FORMAT_VERSION, VECTORS_FILE, Labels, rebuild_stats
from mmd.intent.rules import PROTOTYPE_SCOPES, UNMEASURED, Predicate, Prototype, Prototypes, Rule, RuleStats, measure
from mmd.intent.types import Vector

_TOP_KEYS = ("format_version", "meta", "defaults", "prototypes", "rules")
_RULE_KEYS = ("id", "if", "stats", "provenance", "enabled", "note")
_STATS_KEYS = ("support", "hits", "precision", "wilson_lower", "coverage")
_PROTOTYPE_KEYS = ("name", "scope", "threshold", "words")
_MAX_DEPTH = 20
_ROUNDING = 6e-4  # written with four decimals; a hand may write three
_INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
# The C parser is some ten times faster; libyaml is optional in PyYAML's builds.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_rulebase(text: str, *, vectors: Mapping[str, Vector], labels: Labels | None, where: str) -> dict[str, Any]:
    """Return the arguments of :class:`~mmd.intent.rulebase.RuleBase` that a YAML text describes.

    Raises:
        RuleError: see :meth:`RuleBase.from_yaml`.
    """
    return _Reader(where, labels, vectors).read(text)


@dataclass
class _Reader:
    where: str
    labels: Labels | None
    vectors: Mapping[str, Vector]

    def read(self, text: str) -> dict[str, Any]:
        root = self._compose(text)
        if root is None:
            raise RuleError(f"{self.where}: is empty; a rule base has the keys {', '.join(_TOP_KEYS)}.")
        top = self._mapping(root, "rule base", _TOP_KEYS)
        self._check_version(root, top)
        prototypes = self._prototypes(top.get("prototypes"))
        meta = self._strings(top["meta"], "meta") if "meta" in top else {}
        defaults = self._defaults(top["defaults"]) if "defaults" in top else {}
        rules = self._rules(top["rules"], prototypes) if "rules" in top else ()
        return {"rules": rules, "prototypes": prototypes, "defaults": defaults, "meta": meta}

    def _check_depth(self, text: str) -> None:
        """Refuse nesting that no rule base has; libyaml's composer recurses until the process dies."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                line = f":{event.start_mark.line + 1}" if event.start_mark else ""
                raise RuleError(f"{self.where}{line}: nested more than {_MAX_DEPTH} deep; a rule base has 4 levels.")

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            self._check_depth(text)
            return yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as err:
            line = err.problem_mark.line + 1 if err.problem_mark else 1
            raise RuleError(
                f"{self.where}:{line}: not valid YAML: {err.problem or err.context}; mind indentation, and put a "
                "line with `: ` or ` #` in it into single quotes."
            ) from err
        except yaml.YAMLError as err:
            raise RuleError(f"{self.where}: not valid YAML: {err}.") from err
        except RecursionError as err:
            raise RuleError(f"{self.where}: nested too deeply for a rule base.") from err

    def _check_version(self, root: yaml.Node, top: Mapping[str, yaml.Node]) -> None:
        version = self._int(top["format_version"], "format_version") if "format_version" in top else None
        if version != FORMAT_VERSION:
            self._fail(
                top.get("format_version", root),
                f"format_version is {version}, this mmd reads {FORMAT_VERSION}; write `format_version: "
                f"{FORMAT_VERSION}`, or mine the base again if an older mmd made it.",
            )

    # ------------------------------------------------------------ prototypes, defaults

    def _prototypes(self, node: yaml.Node | None) -> Prototypes:
        out: dict[str, Prototype] = {}
        for entry in self._sequence(node, "prototypes") if node is not None else []:
            fields = self._mapping(entry, "prototype", _PROTOTYPE_KEYS, required=("name", "scope", "threshold"))
            name = self._text(fields["name"], "prototype name")
            scope = self._text(fields["scope"], "prototype scope")
            if name in out:
                self._fail(entry, f"prototype {name!r} is there twice; names are unique.")
            if scope not in PROTOTYPE_SCOPES:
                known = ", ".join(PROTOTYPE_SCOPES)
                self._fail(fields["scope"], f"unknown prototype scope {scope!r}; known: {known}.")
            if name not in self.vectors:
                self._fail(
                    entry, f"prototype {name!r} has no vector in {VECTORS_FILE}; copy that file beside the YAML."
                )
            threshold = self._number(fields["threshold"], "threshold", -1.0, 1.0)
            words = self._text(fields["words"], "words", empty=True) if "words" in fields else ""
            out[name] = Prototype(name, scope, self.vectors[name], threshold, words)
        return out

    def _defaults(self, node: yaml.Node) -> dict[str, str]:
        out = {}
        for task_node, label_node in self._pairs(node, "defaults"):
            task, label = self._text(task_node, "task"), self._text(label_node, "label")
            self._check_task(task_node, task)
            self._check_label(label_node, task, label)
            out[task] = label
        return out

    def _check_task(self, node: yaml.Node, task: str) -> None:
        if self.labels is not None and task not in self.labels:
            known = ", ".join(self.labels)
            self._fail(node, f"unknown task {task!r}; the corpus has {known}.{nearest(task, self.labels)}")

    def _check_label(self, node: yaml.Node, task: str, label: str) -> None:
        if self.labels is not None and label not in self.labels[task]:
            known = self.labels[task]
            self._fail(node, f"{label!r} is no label of {task}; it has {', '.join(known)}.{nearest(label, known)}")

    # ------------------------------------------------------------ rules

    def _rules(self, node: yaml.Node, prototypes: Prototypes) -> tuple[Rule, ...]:
        rules: list[Rule] = []
        first_line: dict[str, int] = {}
        for task_node, labels_node in self._pairs(node, "rules"):
            task = self._text(task_node, "task")
            self._check_task(task_node, task)
            for label_node, list_node in self._pairs(labels_node, f"rules of {task}"):
                label = self._text(label_node, "label")
                self._check_label(label_node, task, label)
                for entry in self._sequence(list_node, f"rules of {task}, {label}"):
                    rule = self._rule(entry, task, label, prototypes)
                    if rule.id in first_line:
                        self._fail(
                            entry, f"rule id {rule.id!r} is already used on line {first_line[rule.id]}; choose another."
                        )
                    first_line[rule.id] = _line(entry)
                    rules.append(rule)
        return tuple(rules)

    def _rule(self, node: yaml.Node, task: str, label: str, prototypes: Prototypes) -> Rule:
        fields = self._mapping(node, "rule", _RULE_KEYS, required=("id", "if"))
        rule_id = self._text(fields["id"], "rule id")
        lines = self._sequence(fields["if"], f"rule {rule_id}: if")
        if not lines:
            self._fail(
                fields["if"], f"rule {rule_id}: has no condition, so it would always fire; set a default instead."
            )
        return Rule(
            id=rule_id,
            task=task,
            label=label,
            predicates=tuple(self._predicate(line, rule_id, prototypes) for line in lines),
            stats=self._stats(fields.get("stats"), rule_id),
            provenance=self._strings(fields["provenance"], "provenance") if "provenance" in fields else {},
            enabled=self._bool(fields["enabled"], "enabled") if "enabled" in fields else True,
            note=self._text(fields["note"], "note", empty=True) if "note" in fields else "",
        )

    def _predicate(self, node: yaml.Node, rule_id: str, prototypes: Prototypes) -> Predicate:
        line = self._text(node, "condition")
        try:
            predicate = parse_predicate(line)
            check_prototype(predicate, prototypes)
        except RuleError as err:
            self._fail(node, f"rule {rule_id}: {err}")
        return predicate

    def _stats(self, node: yaml.Node | None, rule_id: str) -> RuleStats:
        if node is None or node.tag == _NULL:
            return UNMEASURED
        fields = self._mapping(node, f"rule {rule_id}: stats", _STATS_KEYS, required=_STATS_KEYS)
        support, hits = self._int(fields["support"], "support"), self._int(fields["hits"], "hits")
        if not 0 <= hits <= support:
            self._fail(node, f"rule {rule_id}: stats: needs 0 <= hits <= support, has {hits} and {support}.")
        coverage = self._number(fields["coverage"], "coverage", 0.0, 1.0)
        true = measure(support, hits, support)
        for key, value in (("precision", true.precision), ("wilson_lower", true.wilson_lower)):
            if abs(self._number(fields[key], key, 0.0, 1.0) - value) > _ROUNDING:
                self._fail(
                    fields[key],
                    f"rule {rule_id}: stats: {hits} hits of {support} make {key} {value:.4f}; statistics are "
                    "measured, not chosen: write `stats: null` and run `mmd rules edit-check`.",
                )
        return rebuild_stats(support, hits, coverage)

    # ------------------------------------------------------------ nodes

    def _fail(self, node: yaml.Node, problem: str) -> NoReturn:
        raise RuleError(f"{self.where}:{_line(node)}: {problem}")

    def _pairs(self, node: yaml.Node, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
        if node.tag == _NULL:
            return []
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"{what}: needs a mapping (`key: value` lines).")
        seen: set[str] = set()
        for key, _ in node.value:
            name = self._text(key, f"key of {what}")
            if name in seen:
                self._fail(key, f"{what}: {name!r} is there twice; join the two.")
            seen.add(name)
        return list(node.value)

    def _mapping(
        self, node: yaml.Node, what: str, known: tuple[str, ...], required: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        out: dict[str, yaml.Node] = {}
        for key, value in self._pairs(node, what):
            name = str(key.value)
            if name not in known:
                self._fail(key, f"{what}: unknown key {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
            out[name] = value
        if missing := [name for name in required if name not in out]:
            self._fail(node, f"{what}: {', '.join(missing)} missing; it needs {', '.join(required)}.")
        return out

    def _sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if node.tag == _NULL:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, f"{what}: needs a list (lines that begin with `- `).")
        return list(node.value)

    def _text(self, node: yaml.Node, what: str, *, empty: bool = False) -> str:
        if not isinstance(node, yaml.ScalarNode) or (node.tag == _NULL and not node.value):
            self._fail(node, f"{what}: needs a text.")
        if not node.value.strip() and not empty:
            self._fail(node, f"{what}: is empty.")
        return str(node.value)

    def _strings(self, node: yaml.Node, what: str) -> dict[str, str]:
        return {str(k.value): self._text(v, f"{what}.{k.value}", empty=True) for k, v in self._pairs(node, what)}

    def _int(self, node: yaml.Node, what: str) -> int:
        if node.tag != _INT or not str(node.value).isdecimal():
            self._fail(node, f"{what}: needs a whole number of 0 or more, has {str(node.value)[:40]!r}.")
        return int(node.value)

    def _number(self, node: yaml.Node, what: str, low: float, high: float) -> float:
        try:
            value = float(node.value) if node.tag in (_INT, _FLOAT) else float("nan")
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            self._fail(node, f"{what}: needs a number from {low:g} to {high:g}, has {str(node.value)[:40]!r}.")
        return value

    def _bool(self, node: yaml.Node, what: str) -> bool:
        if node.tag != _BOOL:
            self._fail(node, f"{what}: needs true or false, has {str(node.value)[:40]!r}.")
        return str(node.value).lower() in ("true", "yes", "on")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
