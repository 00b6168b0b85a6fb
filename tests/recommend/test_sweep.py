"""What a sweep tries and chooses."""

from __future__ import annotations

import pytest

from mmd.recommend.settings import DistillSettings, SweepSettings
from mmd.recommend.sweep import Row, Trial, by_gate, choose, points_of, score_of


def row(f1: float, perplexity: float) -> Row:
    return {"f1": f1, "perplexity": perplexity}


def trial(gate: str, *rows: Row) -> Trial:
    return Trial({"gate": gate}, rows)


def test_only_the_hard_gate_is_tried_with_every_eta():
    sweep = SweepSettings(etas=(0.1, 0.5), gammas=(0.3, 0.6, 0.9), temperatures=(1.0, 2.0))
    points = points_of(sweep, DistillSettings(eta=0.7))
    assert len(points) == 2 * 3 * 2 + 3 * 2
    assert {point["eta"] for point in points if point["gate"] == "soft"} == {0.7}
    assert all(DistillSettings.model_validate(point) for point in points)


def test_what_counts_is_what_would_be_kept():
    """The likeliest validation is the second, though the third names items best."""
    assert trial("soft", row(0.1, 9.0), row(0.2, 8.0), row(0.5, 8.5)).kept == row(0.2, 8.0)


@pytest.mark.parametrize(("perplexity", "score"), [(8.0, 0.2), (10.0, 0.2), (20.0, 0.1)])
def test_perplexity_beyond_the_limit_costs_in_proportion(perplexity: float, score: float):
    assert score_of(row(0.2, perplexity), limit=10.0) == pytest.approx(score)


def test_the_best_of_those_that_talk_as_well_is_chosen():
    trials = [trial("hard", row(0.1, 9.0)), trial("soft", row(0.2, 9.9)), trial("soft", row(0.9, 10.1))]
    assert choose(trials, limit=10.0) is trials[1]
    assert by_gate(trials, limit=10.0) == {"hard": trials[0], "soft": trials[1]}


def test_of_equals_the_one_that_talks_best_is_chosen():
    trials = [trial("hard", row(0.0, 9.0)), trial("soft", row(0.0, 8.0)), trial("soft", row(0.0, 8.5))]
    assert choose(trials, limit=10.0) is trials[1]


def test_if_none_talks_as_well_the_nearest_is_chosen():
    trials = [trial("hard", row(0.9, 30.0)), trial("soft", row(0.1, 20.0))]
    assert choose(trials, limit=10.0) is trials[1]
