r"""Do rules keep still where they have nothing to say? Share of foreign dialogues on which they fire, by τ.

Rules of one or two shopping corpora are asked about chats of other kinds (MMDial: everyday talk about pictures;
ReDial: talk about films), none of which carries any of the intents: every firing is a false one. Each is cut after a
user turn drawn at random, as the service would meet it. Beside them the same bases on their own held-out examples:
what τ costs there. Everything is counted twice: with all rules, and with those alone that have an affirmed condition
(a rule of nothing but negations fires by absence, and absence is what foreign dialogues are full of).

    mmd experiment false_firing --corpora shop taobao=../shared/data/taobao \
        --foreign mmdial=../shared/data/mmdial redial=../shared/data/redial
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.experiments import domains, figures
from jobs.experiments.domains import Domain
from jobs.experiments.fold_bases import BaseUnit, FoldBase, MiningInputs, mine_bases
from mmd.corpora.store import Corpus
from mmd.features.base import TextEncoder
from mmd.features.extract import build_extractors
from mmd.intent.examples import image_facts, make_example, vector_texts
from mmd.intent.rules import Rule
from mmd.intent.types import IntentExample, Vector, has_words
from mmd.intent.vote import verdict
from mmd.schema import Dialogue, text_id

TAUS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
ANY = "any rule"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the corpora of the rules, the foreign corpora and their sample."""
    domains.add_options(parser)
    parser.add_argument("--corpora", nargs="+", default=["shop"], help="corpora whose rules are asked")
    parser.add_argument("--foreign", nargs="+", required=True, help="corpora that have none of the intents")
    parser.add_argument("--dialogues", type=int, default=500, help="of each foreign corpus (default: %(default)s)")
    parser.add_argument("--outer", type=int, default=3, help="outer folds, so bases a task (default: %(default)s)")


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mine every corpus's rules, then count firings at home and abroad."""
    homes = [domains.open_domain(options, corpus) for corpus in options["corpora"]]
    seed, outer = homes[0].config.seed, options["outer"]
    encoder = build_extractors(homes[0].config.features).text
    foreign = {
        context.name: foreign_examples(Corpus(context.open("corpus")), encoder, options["dialogues"], seed)
        for context in (domains.open_corpus(options, corpus) for corpus in options["foreign"])
    }
    by_name = {home.name: home for home in homes}
    units = [BaseUnit(name, task, f) for name, home in by_name.items() for task in home.examples for f in range(outer)]
    bases = mine_bases(by_name, units, outer)
    results = {
        home.name: {
            task: measure_task(
                home, task, [b for b in bases if (b.unit.domain, b.unit.task) == (home.name, task)], foreign, outer
            )
            for task in home.examples
        }
        for home in homes
    }
    return {
        "config": {
            "rules_of": list(by_name),
            "splits": "rules: training, held out; foreign: training, or what there is",
            "foreign": {name: len(examples) for name, examples in foreign.items()},
            "outer_folds": outer,
            "taus": TAUS,
            "intent": homes[0].config.intent.model_dump(mode="json"),
        },
        "repeats": outer,
        "rules": results,
    }


def foreign_examples(corpus: Corpus, encoder: TextEncoder | None, limit: int, seed: int) -> list[IntentExample]:
    """Return up to ``limit`` dialogues, drawn by the seed, each cut after one of its user turns; without a label.

    The training split is drawn from, or everything where there is none.
    """
    rng = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    pool = [d for d in corpus.dialogues("train") or corpus.dialogues() if asked_turns(d)]
    drawn = [cut(d, rng.choice(asked_turns(d))) for d in rng.sample(pool, min(limit, len(pool)))]
    texts = {text_id(text): text for dialogue in drawn for text in vector_texts(dialogue)}
    vectors: dict[str, Vector] = {}
    if encoder is not None and texts:
        vectors = dict(zip(texts, encoder.encode(list(texts.values())), strict=True))
    images, items = image_facts(corpus, None), corpus.items()
    return [make_example(d, "", images=images, items=items, text_vectors=vectors) for d in drawn]


def asked_turns(dialogue: Dialogue) -> list[int]:
    """Return the places of the user turns that say something."""
    return [i for i, turn in enumerate(dialogue.turns) if turn.speaker == "user" and has_words(turn.text)]


def cut(dialogue: Dialogue, turn: int) -> Dialogue:
    """Return the dialogue up to a turn, that turn included."""
    return replace(dialogue, turns=dialogue.turns[: turn + 1])


def measure_task(
    home: Domain, task: str, bases: Sequence[FoldBase], foreign: Mapping[str, Sequence[IntentExample]], outer: int
) -> dict[str, Any]:
    """Count firings of one task's bases on their held-out examples and on foreign ones."""
    inputs = MiningInputs.of(home, outer)
    n_labels = len({e.label for e in home.examples[task]})
    held = [count(base, inputs.held(task, base.unit.fold), n_labels) for base in bases]
    abroad = {name: [count(base, rows, n_labels) for base in bases] for name, rows in foreign.items()}
    return {
        "rules": figures.spread_of([len(base.base.rules) for base in bases]),
        "held_out": summarise(held),
        **{name: summarise(counts) for name, counts in abroad.items()},
    }


def count(base: FoldBase, examples: Sequence[IntentExample], n_labels: int) -> dict[str, Any]:
    """Return shares of the examples on which a rule fires or the verdict reaches each τ, and who fires how often."""
    fired = base.fired([replace(e, task=base.unit.task) for e in examples])
    affirmed = [[rule for rule in rules if not all(p.negated for p in rule.predicates)] for rules in fired]
    kinds = Counter(kind for rules in fired for rule in rules for kind in {p.kind for p in rule.predicates})
    n = max(1, len(examples))
    return {
        "all_rules": _shares(fired, examples, n_labels),
        "affirmed_rules": _shares(affirmed, examples, n_labels),
        "rules_fired": sum(map(len, fired)) / n,
        "of_these_affirmed": sum(map(len, affirmed)) / n,
        "kinds": {kind: total / n for kind, total in sorted(kinds.items())},
    }


def _shares(
    fired: Sequence[Sequence[Rule]], examples: Sequence[IntentExample], n_labels: int
) -> dict[str, dict[str, float]]:
    """Return the shares of examples with a firing and with a verdict that reaches τ, and of right verdicts."""
    n = max(1, len(examples))
    verdicts = [verdict(rules, n_labels) for rules in fired]
    reach = {str(tau): [v is not None and v.confidence >= tau for v in verdicts] for tau in TAUS}
    right = [v is not None and v.label == e.label for v, e in zip(verdicts, examples, strict=True)]
    return {
        "share": {ANY: sum(map(bool, fired)) / n} | {tau: sum(reached) / n for tau, reached in reach.items()},
        "right": {tau: sum(a and b for a, b in zip(reached, right, strict=True)) / n for tau, reached in reach.items()},
    }


def summarise(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, minimum and maximum over bases of everything counted."""
    kinds = sorted({kind for c in counts for kind in c["kinds"]})
    return {
        rules: {
            what: {key: figures.spread_of([c[rules][what][key] for c in counts]) for key in counts[0][rules][what]}
            for what in ("share", "right")
        }
        for rules in ("all_rules", "affirmed_rules")
    } | {
        "rules_fired_a_dialogue": figures.spread_of([c["rules_fired"] for c in counts]),
        "of_these_affirmed": figures.spread_of([c["of_these_affirmed"] for c in counts]),
        "firings_a_dialogue_by_kind": {
            kind: figures.spread_of([c["kinds"].get(kind, 0.0) for c in counts]) for kind in kinds
        },
    }


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the share of dialogues whose verdict reaches τ: held-out ones of the rules' corpus, and foreign ones."""
    cells = [(home, task, cell) for home, tasks in record["rules"].items() for task, cell in tasks.items()]
    columns = 2 if len(cells) > 1 else 1
    with figures.figure(
        path,
        "Rules on dialogues that have none of their intents: share on which the verdict reaches τ",
        rows=-(-len(cells) // columns),
        columns=columns,
        height=2.7,
    ) as axes:
        for ax, (home, task, cell) in zip(axes, cells, strict=False):
            _draw(ax, cell, record["config"]["foreign"], record["config"]["taus"])
            ax.set_title(f"rules of {home}, {task}")
        for ax in axes[len(cells) :]:
            ax.set_axis_off()
        figures.legend_below(axes[0])


def _draw(
    axes: Any,  # noqa: ANN401 (matplotlib's axes)
    cell: Mapping[str, Any],
    foreign: Iterable[str],
    taus: Sequence[float],
) -> None:
    home, *others = figures.COLOURS
    own = cell["held_out"]["all_rules"]
    figures.band(axes, taus, [own["share"][str(t)] for t in taus], name="own corpus, held out", colour=home)
    axes.plot(taus, [own["right"][str(t)]["mean"] for t in taus], "--", color=home, label="own corpus, right")
    for name, colour in zip(foreign, others, strict=False):
        for rules, told, style in (("all_rules", "", "-"), ("affirmed_rules", ", affirmed rules only", ":")):
            shares = cell[name][rules]["share"]
            axes.plot(
                taus, [shares[str(t)]["mean"] for t in taus], style, marker=".", color=colour, label=f"{name}{told}"
            )
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("τ")
    axes.set_ylabel("share of dialogues")
