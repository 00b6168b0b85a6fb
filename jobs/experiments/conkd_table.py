"""ConKD's main table: no KD, one teacher alone, static, hard and soft gates, by backbone; which of the claims hold.

All arms start alike and train for equally many epochs on the same responses, at most: the weights of the likeliest
validation are kept. Students that start as the dialogue teacher have that teacher, trained on, for their no KD, whose
head for items is new; those that start from scratch compare whole trainings. The record tells both, with the steps.
Teachers are trained once, or for every seed. Every measure is a mean over seeds; differences to no KD have intervals
over draws of conversations and seeds, alike for both sides. A claim holds when the whole interval and every single seed
say so, does not when all say the opposite, else it is open.

    mmd experiment conkd_table --corpus shop --seeds 3
    mmd experiment conkd_table --corpus redial --seeds 3 --judge test --own-teachers
    mmd experiment conkd_table --corpus redial --seeds 3 --judge test --start scratch
    mmd experiment conkd_table --corpus redial --seeds 3 --judge test --tuned
    mmd experiment conkd_table --corpus shop --backbones kgsf lm --set recommend.backbone.model=smollm2-135m
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jobs.experiments import domains, figures, retrievers, students
from jobs.experiments.students import ARMS, NO_KD
from jobs.glue.entry import JobContext, console
from jobs.sweep_conkd import SWEEP_FILE
from mmd.evaluation.recommend_pairs import Comparison, Difference, Verdict
from mmd.recommend.settings import Start

BACKBONES = ("kgsf", "lm")
LM_RATES: Mapping[str, float] = {"dialogue.learning_rate": 5e-5, "student.learning_rate": 5e-5}
"""A language model that can talk already would forget it at the rate of a network from scratch."""
TUNED = "tuned "
GAIN = 0.25
"""What the gates are to win over no KD in F1@1, relative."""
_FAR_APART = 5.0
"""Ratio of perplexities from which they are drawn on a logarithmic axis."""
SHOWN = ("F1@1", "ReR@1", "PrR@1", "F1@1, per response", "perplexity", "item ratio")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add corpus, seeds and backbones."""
    students.add_options(parser)
    parser.add_argument(
        "--backbones", nargs="+", choices=BACKBONES, default=["kgsf"], help="networks (default: %(default)s)"
    )
    parser.add_argument(
        "--start",
        choices=get_args(Start),
        help="of all students: as the dialogue teacher, so that no KD is that teacher trained on, or from scratch "
        "(default: recommend.distill.start)",
    )
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="arms beside no KD")
    parser.add_argument(
        "--tuned", action="store_true", help="also the gates among them with what `sweep_gates --method conkd` chose"
    )


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with every seed on every backbone."""
    judged = retrievers.judged_on(options)
    arms = {name: ARMS[name] for name in ARMS if name == NO_KD or name in options["arms"]}
    if options.get("tuned"):
        arms |= tuned_arms(students.open_graph(options), options["arms"])
    start = {"distill.start": options["start"]} if options.get("start") else {}
    found = {}
    for backbone in options["backbones"]:
        common = {"backbone.kind": backbone, **start, **(LM_RATES if backbone == "lm" else {})}
        units = students.units_of(arms, options["seeds"], common)
        found[backbone] = students.run_units(options, units, judged, f"students, {backbone}")
    evaluation = domains.open_context(options, options["corpus"]).config.evaluation
    fields = {
        backbone: students.comparison_of(outcomes, evaluation.bootstrap_resamples, seed=0)
        for backbone, outcomes in found.items()
    }
    first = next(iter(found.values()))[0]
    margin = domains.open_context(options, options["corpus"]).config.recommend.sweep.perplexity_margin
    claims = [claim for backbone, field in fields.items() for claim in claims_of(backbone, field, margin)]
    for claim in claims:
        console.print(str(claim), markup=False, soft_wrap=True)
    return {
        "config": students.config_of(options, judged),
        "repeats": options["seeds"],
        "samples": {"responses": first["responses"], "mentions": first["mentions"]},
        "parameters": {backbone: outcomes[0]["parameters"] for backbone, outcomes in found.items()},
        "training": {b: students.training_of(outcomes) for b, outcomes in found.items()},
        "table": {b: students.table_of(fields[b], outcomes) for b, outcomes in found.items()},
        "recall": {b: students.recall_of(outcomes) for b, outcomes in found.items()},
        "differences_to_no_kd": {b: differences(field, NO_KD) for b, field in fields.items()},
        "claims": [claim.to_json() for claim in claims],
        "outcomes": {b: students.without_sums(outcomes) for b, outcomes in found.items()},
    }


def differences(field: Comparison, base: str) -> dict[str, Any]:
    """Return variant → measure → how much more it has than the base."""
    return {
        name: {m: students.difference_json(field.difference(name, base, m)) for m in SHOWN}
        for name in field.runs
        if name != base
    }


# ---------------------------------------------------------------- claims


def tuned_arms(context: JobContext, gates: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return arms with the settings that held-out training dialogues chose.

    Args:
        context: of the corpus.
        gates: hard, soft or both; other arms have nothing to choose.

    Raises:
        ArtifactError: nothing was swept.
    """
    swept = context.store.open(f"gate/{context.name}-conkd").read_json(SWEEP_FILE)["by_gate"]
    return {
        f"{TUNED}{gate}": {f"distill.{key}": value for key, value in swept[gate]["point"].items()}
        for gate in gates
        if gate in swept
    }


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and what was measured."""

    backbone: str
    words: str
    found: Difference
    verdict: Verdict

    def __str__(self) -> str:
        """Say what was measured and what follows."""
        told = students.difference_json(self.found)
        low, high = told["difference"]["low"], told["difference"]["high"]
        return (
            f"{self.verdict}: {self.backbone}, {self.words} ({self.found.measure} {told['first']:.4f} against "
            f"{told['second']:.4f}; difference {low:+.4f} to {high:+.4f}, of {len(self.found.by_seed)} seeds)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "backbone": self.backbone,
            "claim": self.words,
            "verdict": self.verdict,
            "measure": self.found.measure,
            **students.difference_json(self.found),
        }


def claims_of(backbone: str, field: Comparison, margin: float) -> Iterator[Claim]:
    """Yield the claims of which both sides were trained.

    Args:
        backbone: kind of the students' network.
        field: the arms.
        margin: a perplexity up to this share higher is not worse.
    """
    for first, second, measure, kind, words in _claims(backbone):
        if first in field.runs and second in field.runs:
            found = field.difference(first, second, measure)
            verdict = found.is_no_more(margin) if kind == "no more" else found.is_more(GAIN if kind == "gain" else 0.0)
            yield Claim(backbone, words, found, verdict)


def _claims(backbone: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield first, second, measure, kind of claim, and its words."""
    for gate in ("hard", "soft"):
        yield gate, NO_KD, "F1@1", "gain", f"{gate} gate: F1@1 more than {GAIN:.0%} above no KD"
        yield gate, NO_KD, "F1@1", "more", f"{gate} gate: F1@1 above no KD"
        yield gate, NO_KD, "perplexity", "no more", f"{gate} gate: perplexity not worse than without KD"
        yield gate, "static", "F1@1", "more", f"{gate} gate: F1@1 above the static gate's"
        yield gate, "dialogue", "F1@1", "more", f"{gate} gate: F1@1 above the dialogue teacher's alone"
        yield "recommendation", gate, "perplexity", "more", f"recommendation teacher alone: talks worse than {gate}"
        tuned = f"{TUNED}{gate}"
        yield tuned, NO_KD, "F1@1", "gain", f"{tuned} gate: F1@1 more than {GAIN:.0%} above no KD"
        yield tuned, NO_KD, "F1@1", "more", f"{tuned} gate: F1@1 above no KD"
        yield tuned, NO_KD, "perplexity", "no more", f"{tuned} gate: perplexity not worse than without KD"
        yield tuned, gate, "F1@1", "more", f"{tuned} gate: F1@1 above that of the default settings"
        yield tuned, "static", "F1@1", "more", f"{tuned} gate: F1@1 above the static gate's"
    better, other = ("hard", "soft") if backbone == "kgsf" else ("soft", "hard")
    size = "small" if backbone == "kgsf" else "large"
    yield better, other, "F1@1", "more", f"the {better} gate suits the {size} backbone better"


# ---------------------------------------------------------------- picture


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw, a row a backbone, items named, perplexity, distinct n-grams and recall by arm."""
    config = record["config"]
    title = f"ConKD, {config['corpus']}, {config['judged_on']}: mean of {record['repeats']} seeds"
    with figures.figure(path, title, rows=len(record["table"]), columns=4, height=3.4, width=16.0) as axes:
        for place, (backbone, table) in enumerate(record["table"].items()):
            own = axes[4 * place : 4 * place + 4]
            students.draw_table(own[:3], table)
            means = [row["perplexity"]["mean"] for row in table.values()]
            if max(means) > _FAR_APART * min(means):  # the recommendation teacher alone teaches no words
                figures.plain_log(own[1])
            own[0].set_ylabel(f"{backbone}: items named, 95 % of conversations")
            recall = [record["recall"][backbone][arm]["first named"]["all"] for arm in table]
            shown = {k: [values[k] for values in recall] for k in recall[0]}
            figures.interval_bars(own[3], list(table), shown, label="item named first, range of seeds")
            figures.crowded(own[3])
