"""Who speaks where: the item mass m_t that the dialogue teacher sees, by kind of turn and place.

m_t is the soft gate's λ_t, and the hard gate's against η. It is read at every token of right responses, as distillation
reads it: behind their mode, at items, at words of responses that name one, and in talk. Area under the ROC curve says
how well it tells items from words. With mode tokens the teacher has read whether the response names an item, so that
telling turns apart is nearly given; what is found is the place within a turn that names one (``items in their turns``).
Curves say what each η would give to the recommendation teacher; traces follow a few conversations. Nothing is trained
here but teachers that are not there yet.

Words of dialogues are told of simulated corpora only, unless ``evaluation.show_dialogues`` is ``always``.

    mmd experiment gate_by_turn --corpus shop
    mmd experiment gate_by_turn --corpus redial --judge test
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs import train_teachers
from jobs.evaluate import pictures_of
from jobs.experiments import figures, retrievers, students
from jobs.glue.cluster import hold_cluster
from jobs.glue.entry import JobContext
from mmd.corpora.store import Corpus
from mmd.evaluation.recommend_report import masses_by_place
from mmd.evaluation.recommend_systems import Questions, read_responses
from mmd.evaluation.recommending import GateTrace, gate_auc

ETAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 20
_TRACES = 3
_TURNS = 6  # of a conversation at most in a picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the corpus and whose responses are read."""
    retrievers.add_judging(parser)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read right responses with the dialogue teacher."""
    judged = retrievers.judged_on(options)
    with hold_cluster():
        context = students.open_graph(options)
        teacher = train_teachers.run(context)
    found = traces_of(context.pinned(teacher), judged)
    return {
        "config": {
            "corpus": context.name,
            "graph": context.open("graph").ref,
            "teacher": teacher.ref,
            "judged_on": judged,
            "recommend": context.config.recommend.model_dump(mode="json", exclude={"enabled"}),
        },
        "repeats": 1,
        "samples": {"responses": len(found), "that name an item": sum(t.mode == "rec" for t in found)},
        "item_mass": {kind: summary(masses) for kind, masses in masses_by_place(found).items()},
        "auc": aucs(found),
        "hard_gate": hard_gate(found),
        "conversations": conversations(found, _TRACES, words=may_show(context)),
    }


def traces_of(context: JobContext, judged: retrievers.Judged) -> list[GateTrace]:
    """Return the item mass at every token of the judged responses."""
    from mmd.recommend.conversations import Conversations
    from mmd.recommend.runs import Ground
    from mmd.recommend.saving import load_dialogue_teacher

    config, teacher = context.config, context.open("teacher")
    conversations = Conversations(context.open("graph"))
    talker = load_dialogue_teacher(teacher, conversations.graph, config.models)
    ground = Ground(conversations, config.recommend, config.seed, config.models, teacher.manifest.seeds["teacher"])
    responses = Questions.of(ground, judged).responses
    return list(read_responses(talker.backbone, talker.maker, responses).traces)


def may_show(context: JobContext) -> bool:
    """Say whether words of the corpus may be told."""
    corpus = context.made_from(context.open("graph"))["corpus"]
    return pictures_of(context, Corpus(corpus)) is not None


def summary(masses: Sequence[float]) -> dict[str, Any]:
    """Return count, mean, quartiles and histogram of numbers in [0, 1]."""
    counts, _ = np.histogram(masses, bins=BINS, range=(0.0, 1.0))
    quartiles = np.percentile(masses, [25, 50, 75])
    return {
        "tokens": len(masses),
        "mean": round(float(np.mean(masses)), 4),
        "quartiles": [round(float(value), 4) for value in quartiles],
        "histogram": [round(count / len(masses), 5) for count in counts.tolist()],
    }


def aucs(traces: Sequence[GateTrace]) -> dict[str, float | None]:
    """Return areas under the ROC curve; None where all places are of one kind.

    ``items``: item places against all other tokens; ``items in their turns``: against words of the same kind of turn;
    ``turns``: turns that name an item against talk, by the largest mass in the turn.
    """
    naming = [trace for trace in traces if trace.mode == "rec"]

    def places(of: Sequence[GateTrace]) -> float | None:
        flat = [pair for trace in of for pair in zip(trace.masses, trace.is_item, strict=True)]
        return gate_auc([mass for mass, _ in flat], [flag for _, flag in flat])

    spoken = [trace for trace in traces if trace.masses]
    found = {
        "items": places(traces),
        "items in their turns": places(naming),
        "turns": gate_auc([max(trace.masses) for trace in spoken], [trace.mode == "rec" for trace in spoken]),
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def hard_gate(traces: Sequence[GateTrace]) -> list[dict[str, float]]:
    """Return, by η, the share of each kind of place at which the recommendation teacher would speak."""
    places = {kind: np.array(masses) for kind, masses in masses_by_place(traces).items()}
    return [
        {"eta": eta, **{kind: round(float((masses >= eta).mean()), 4) for kind, masses in places.items()}}
        for eta in ETAS
    ]


def conversations(traces: Sequence[GateTrace], count: int, *, words: bool) -> list[dict[str, Any]]:
    """Return the item mass along the conversations with most of both kinds of turns, numbered from 1.

    Args:
        traces: of all responses.
        count: conversations.
        words: whether tokens are told.
    """
    turns: dict[str, list[GateTrace]] = {}
    for trace in traces:
        turns.setdefault(trace.sample_id.rpartition("#")[0], []).append(trace)

    def both_kinds(name: str) -> int:
        naming = sum(trace.mode == "rec" for trace in turns[name][:_TURNS])
        return min(naming, len(turns[name][:_TURNS]) - naming)

    chosen = sorted(turns, key=lambda name: (-both_kinds(name), name))[:count]
    return [
        {
            "conversation": number,
            "turns": [
                {
                    "mode": trace.mode,
                    "item_mass": [round(mass, 3) for mass in trace.masses],
                    "is_item": list(trace.is_item),
                    **({"tokens": list(trace.tokens)} if words else {}),
                }
                for trace in turns[name][:_TURNS]
            ],
        }
        for number, name in enumerate(chosen, start=1)
    ]


# ---------------------------------------------------------------- picture


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw histograms by place, what each η gives away, and the traces."""
    config, shown = record["config"], record["conversations"]
    title = f"Item mass seen by the dialogue teacher, {config['corpus']}, {config['judged_on']}"
    with figures.figure(path, title, rows=1 + len(shown), columns=2, height=2.6, width=13.0) as axes:
        histogram(axes[0], record)
        eta_curves(axes[1], record["hard_gate"], float(config["recommend"]["distill"]["eta"]))
        for number, conversation in enumerate(shown, start=1):
            wide = span(axes[2 * number], axes[2 * number + 1])
            trace_line(wide, conversation)


def histogram(axes: Any, record: Mapping[str, Any]) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Draw how item mass is distributed by kind of place."""
    edges = np.linspace(0, 1, BINS + 1)
    for (kind, told), colour in zip(record["item_mass"].items(), figures.COLOURS, strict=False):
        axes.stairs(told["histogram"], edges, color=colour, label=f"{kind} ({told['tokens']:,})", fill=False, lw=1.6)
    axes.set_yscale("log")
    axes.set_xlabel("item mass $m_t$, the soft gate's $\\lambda_t$")
    axes.set_ylabel("share of tokens")
    auc = record["auc"]["items in their turns"]
    axes.set_title("" if auc is None else f"AUC items against words of their turns {auc:.3f}")
    axes.legend(fontsize=7)


def eta_curves(axes: Any, rows: Sequence[Mapping[str, float]], eta: float) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Draw the share of places that a hard gate gives to the recommendation teacher by η."""
    kinds = [kind for kind in rows[0] if kind != "eta"]
    for kind, colour in zip(kinds, figures.COLOURS, strict=False):
        axes.plot([row["eta"] for row in rows], [row[kind] for row in rows], marker=".", color=colour, label=kind)
    axes.axvline(eta, color=figures.INK, lw=0.8, ls=":", label=f"η = {eta:g}")
    axes.set_xlabel("η of the hard gate")
    axes.set_ylabel("recommendation teacher speaks")
    axes.legend(fontsize=7)


def span(left: Any, right: Any) -> Any:  # noqa: ANN401 (matplotlib's axes)
    """Return one of two neighbouring axes stretched over both."""
    spec = left.get_subplotspec().get_gridspec()
    row = left.get_subplotspec().rowspan.start
    right.remove()
    left.set_subplotspec(spec[row, :])
    return left


def printable(token: str) -> str:
    """Return a token as far as the pictures' font can show it."""
    return token[:12] if token.isascii() else "·"


def trace_line(axes: Any, conversation: Mapping[str, Any]) -> None:  # noqa: ANN401 (matplotlib's axes)
    """Draw item mass along the agent's turns of a conversation, items marked."""
    at = 0
    for turn in conversation["turns"]:
        masses, flags = turn["item_mass"], turn["is_item"]
        places = list(range(at, at + len(masses)))
        colour = figures.COLOURS[0] if turn["mode"] == "rec" else figures.COLOURS[-1]
        axes.bar(places, masses, color=colour, width=0.9)
        axes.plot(
            [p for p, flag in zip(places, flags, strict=True) if flag], [1.03] * sum(flags), "v", ms=4, color="#db6d6d"
        )
        for place, token in zip(places, turn.get("tokens", []), strict=False):
            axes.text(
                place, 0.02, printable(token), rotation=90, fontsize=5, ha="center", va="bottom", color=figures.INK
            )
        axes.axvline(at - 0.5 + len(masses) + 0.5, color=figures.INK, lw=0.5)
        at += len(masses) + 1
    axes.set_xlim(-1, at)
    axes.set_ylim(0, 1.1)
    axes.set_xticks([])
    axes.set_ylabel("item mass")
    axes.set_title(
        f"conversation {conversation['conversation']}: the agent's turns; blue name items (marks), grey do not",
        fontsize=8,
    )
