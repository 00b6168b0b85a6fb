"""Do rules carry over to another corpus? Rules of the shop on taobao's training part, and back.

Labels of the two corpora are matched without any list made by hand: two labels are partners if each is the other's
nearest neighbour by the cosine of their names' sentence vectors, above a floor. Rules of labels without a partner are
switched off. The same bases (each mined without an outer fold of its own corpus) then answer their own held-out fold
and the other corpus's training examples; a verdict counts as right if its label's partner is the example's label.

``shared`` looks only at examples whose label has a partner, ``all`` at every example, where those others can only be
answered wrongly. ``chance`` is the precision of the same answers dealt to the covered examples at random.

    mmd experiment cross_domain --corpus shop --other taobao=../shared/data/taobao
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.experiments import domains, figures
from jobs.experiments.domains import Domain
from jobs.experiments.fold_bases import BaseUnit, FoldBase, MiningInputs, mine_bases
from mmd.errors import ConfigError
from mmd.features.base import TextEncoder
from mmd.features.extract import build_extractors
from mmd.intent.rules import Rule
from mmd.intent.types import IntentExample
from mmd.intent.vote import Verdict, verdict

TAUS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
FLOOR = 0.45
_SEPARATORS = re.compile(r"[_\-/\s]+")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the corpora, the outer folds and the floor of matching."""
    domains.add_options(parser)
    parser.add_argument("--corpus", default="shop", help="one corpus (default: %(default)s)")
    parser.add_argument("--other", required=True, help="the other, e.g. taobao=../shared/data/taobao")
    parser.add_argument("--outer", type=int, default=3, help="outer folds, so bases a task (default: %(default)s)")
    parser.add_argument("--floor", type=float, default=FLOOR, help="least cosine of partners (default: %(default)s)")


@dataclass(frozen=True)
class Pair:
    """Two labels that stand for each other."""

    source: str
    target: str
    cosine: float


def match_labels(sources: Sequence[str], targets: Sequence[str], encoder: TextEncoder, floor: float) -> list[Pair]:
    """Return the labels that are each other's nearest by name, strongest first.

    Args:
        sources: labels of one corpus.
        targets: labels of the other.
        encoder: multilingual sentence encoder.
        floor: least cosine.
    """
    cosines = encoder.encode([_words(s) for s in sources]) @ encoder.encode([_words(t) for t in targets]).T
    nearest, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
    pairs = [
        Pair(source, targets[j], float(cosines[i, j]))
        for i, source in enumerate(sources)
        if back[j := int(nearest[i])] == i and cosines[i, j] >= floor
    ]
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair.source))


def _words(label: str) -> str:
    """Return a label as words: ``order_page`` reads ``order page``."""
    return _SEPARATORS.sub(" ", label)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mine both corpora and answer both by both."""
    one, other = (domains.open_domain(options, options[key]) for key in ("corpus", "other"))
    encoder = _encoder(one)
    by_name = {domain.name: domain for domain in (one, other)}
    outer = options["outer"]
    tasks = domains.shared_tasks(one, other)
    units = [BaseUnit(name, task, fold) for name in by_name for task in tasks for fold in range(outer)]
    bases = mine_bases(by_name, units, outer)
    directions = {
        f"{source.name} to {target.name}": {
            task: measure_task(source, target, task, _of(bases, source.name, task), encoder, options) for task in tasks
        }
        for source, target in ((one, other), (other, one))
    }
    return {
        "config": {
            "corpora": list(by_name),
            "splits": "training only",
            "outer_folds": outer,
            "floor": options["floor"],
            "taus": TAUS,
            "intent": one.config.intent.model_dump(mode="json"),
        },
        "repeats": outer,
        "directions": directions,
    }


def _encoder(domain: Domain) -> TextEncoder:
    encoder = build_extractors(domain.config.features).text
    if encoder is None:
        raise ConfigError("features.text=none: labels are matched by sentence vectors; set use_multilingual or auto.")
    return encoder


def _of(bases: Sequence[FoldBase], domain: str, task: str) -> list[FoldBase]:
    return [base for base in bases if (base.unit.domain, base.unit.task) == (domain, task)]


def measure_task(
    source: Domain,
    target: Domain,
    task: str,
    bases: Sequence[FoldBase],
    encoder: TextEncoder,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Answer held-out examples of the source and all training examples of the target by the same bases."""
    labels = source.corpus.tasks[task]
    pairs = match_labels(labels, target.corpus.tasks[task], encoder, options["floor"])
    partner = {pair.source: pair.target for pair in pairs}
    inputs = MiningInputs.of(source, options["outer"])
    n_labels = len({e.label for e in source.examples[task]})
    own = [Answered.of(b, inputs.held(task, b.unit.fold), {s: s for s in partner}, n_labels) for b in bases]
    foreign = [Answered.of(b, target.examples[task], partner, n_labels) for b in bases]
    shown = {pair.source: round(pair.cosine, 3) for pair in pairs} if source.corpus.simulated else {}
    return {
        "partners": len(pairs),
        "labels": {"source": len(labels), "target": len(target.corpus.tasks[task])},
        "partners_cosines": [round(pair.cosine, 3) for pair in pairs],
        "partners_of_simulated_labels": shown,
        "rules_of_partners": figures.spread_of([sum(r.label in partner for r in b.base.rules) for b in bases]),
        "in_domain": summarise(own),
        "cross_domain": summarise(foreign),
    }


@dataclass(frozen=True)
class Answered:
    """What one base said of examples; labels are already the target's.

    Attributes:
        golds: true labels.
        verdicts: what the rules say, or None.
        known: labels that have a partner.
        kinds: kind of predicate → (right, all) firings of rules that use it, on examples whose label has a partner.
    """

    golds: tuple[str, ...]
    verdicts: tuple[Verdict | None, ...]
    known: frozenset[str]
    kinds: Mapping[str, tuple[int, int]]

    @classmethod
    def of(
        cls, base: FoldBase, examples: Sequence[IntentExample], partner: Mapping[str, str], n_labels: int
    ) -> Answered:
        """Fire the rules of labels with a partner; rename their labels to the partners.

        Args:
            base: the rules.
            examples: to answer.
            partner: the rules' labels → the examples' labels.
            n_labels: labels that the rules' task has, for the evidence of a firing.
        """
        fired = [[_renamed(r, partner) for r in rules if r.label in partner] for rules in base.fired(examples)]
        golds, known = tuple(str(example.label) for example in examples), frozenset(partner.values())
        hits: Counter[str] = Counter()
        firings: Counter[str] = Counter()
        for gold, rules in zip(golds, fired, strict=True):
            for rule in rules if gold in known else ():
                kinds = {p.kind for p in rule.predicates}
                firings.update(kinds)
                hits.update(kinds if rule.label == gold else ())
        by_kind = {kind: (hits[kind], firings[kind]) for kind in sorted(firings)}
        verdicts = tuple(verdict(rules, n_labels) for rules in fired)
        return cls(golds, verdicts, known, by_kind)

    def shared(self) -> Answered:
        """Return the examples whose label has a partner."""
        rows = [i for i, gold in enumerate(self.golds) if gold in self.known]
        golds, verdicts = tuple(self.golds[i] for i in rows), tuple(self.verdicts[i] for i in rows)
        return replace(self, golds=golds, verdicts=verdicts)

    def at(self, tau: float) -> dict[str, float]:
        """Return coverage, precision and precision by chance of the verdicts that reach τ; 0 where none does."""
        pairs = [
            (v.label, gold) for v, gold in zip(self.verdicts, self.golds, strict=True) if v and v.confidence >= tau
        ]
        said, true = Counter(answer for answer, _ in pairs), Counter(gold for _, gold in pairs)
        n = len(pairs)
        return {
            "covered": n,
            "coverage": n / len(self.golds) if self.golds else 0.0,
            "precision": sum(answer == gold for answer, gold in pairs) / n if n else 0.0,
            "chance": sum(said[label] * true[label] for label in said) / n**2 if n else 0.0,
        }


def _renamed(rule: Rule, partner: Mapping[str, str]) -> Rule:
    return replace(rule, label=partner[rule.label])


def summarise(answered: Sequence[Answered]) -> dict[str, Any]:
    """Return coverage, precision and chance by τ, as mean, minimum and maximum over bases."""
    out: dict[str, Any] = {"examples": figures.spread_of([len(a.golds) for a in answered])}
    for name, rows in (("shared", [a.shared() for a in answered]), ("all", list(answered))):
        by_tau = {tau: [a.at(tau) for a in rows] for tau in TAUS}
        out[name] = {
            "examples": figures.spread_of([len(a.golds) for a in rows]),
            "by_tau": {
                str(tau): {key: figures.spread_of([p[key] for p in points]) for key in points[0]}
                for tau, points in by_tau.items()
            },
        }
    kinds = sorted({kind for a in answered for kind in a.kinds})
    counts = {kind: np.sum([a.kinds.get(kind, (0, 0)) for a in answered], axis=0).tolist() for kind in kinds}
    out["firings_by_kind"] = {
        kind: {"firings": total / len(answered), "precision": right / total} for kind, (right, total) in counts.items()
    }
    return out


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw precision against coverage, in domain and across, on the examples whose label has a partner."""
    directions = record["directions"]
    tasks = list(next(iter(directions.values())))
    with figures.figure(
        path,
        "Rules in their own corpus (held out) and in the other: precision against coverage as τ falls",
        rows=len(directions),
        columns=len(tasks),
        height=2.9,
    ) as axes:
        cells = [(way, task, cell) for way, by_task in directions.items() for task, cell in by_task.items()]
        for ax, (way, task, cell) in zip(axes, cells, strict=True):
            _curve(ax, cell["in_domain"]["shared"]["by_tau"], "own corpus, held out", figures.COLOURS[0])
            _curve(ax, cell["cross_domain"]["shared"]["by_tau"], "other corpus", figures.COLOURS[1])
            ax.set_title(f"{way}, {task}: {cell['partners']} labels in common")
            ax.set_xlim(0, 1.02)
            ax.set_ylim(0, 1.05)
            ax.set_xlabel("coverage (share of examples)")
            ax.set_ylabel("precision")
        figures.legend_below(axes[0])


def _curve(axes: Any, by_tau: Mapping[str, Any], name: str, colour: str) -> None:  # noqa: ANN401 (matplotlib's axes)
    points = [p for p in by_tau.values() if p["covered"]["low"] >= 1]
    cover = [p["coverage"]["mean"] for p in points]
    figures.band(axes, cover, [p["precision"] for p in points], name=name, colour=colour)
    axes.plot(cover, [p["chance"]["mean"] for p in points], ":", color=colour, label=f"{name}, by chance")
