"""The cost model against arithmetic on paper."""

from __future__ import annotations

import pytest

from jobs.bench.cost_model import (
    Card,
    IndexCosts,
    Line,
    Machine,
    batch_work,
    build_of_index,
    fine_tuning,
    service_of_index,
)
from mmd.errors import ConfigError

TEN_CORES = Machine(cores=10, memory_gb=10.0, price_an_hour=2.0, busy=0.5, usable=0.5)
"""Does 5 processor seconds a second and lends 5 GiB."""
CARD = Card("a card", bf16_tflops=100.0, memory_gb=100.0, price_an_hour=3.0, source="a test")


def test_a_line_is_that_of_least_squares():
    """Through (0, 1), (1, 3), (2, 5) goes 1 + 2 x; with (2, 8) instead the slope is 3.5, the mean 4 stays at x = 1."""
    assert Line.through([0, 1, 2], [1, 3, 5]) == Line(1.0, 2.0)
    bent = Line.through([0, 1, 2], [1, 3, 8])
    assert (bent.each, bent.fixed) == pytest.approx((3.5, 0.5))
    assert bent.at(4) == pytest.approx(14.5)


def test_a_line_of_one_point_starts_at_nothing_and_one_of_equal_sizes_is_refused():
    assert Line.through([4], [8]) == Line(0.0, 2.0)
    with pytest.raises(ConfigError, match="measure two sizes"):
        Line.through([4, 4], [8, 9])


def test_work_takes_as_few_nodes_as_end_in_time():
    """An hour of a node is 18,000 core seconds; 90,000 within two hours are 2.5 nodes, so 3, for 5/3 h at 2 an hour."""
    found = batch_work("work", 90_000.0, TEN_CORES, within_h=2.0)
    assert found.nodes == 3
    assert found.hours == pytest.approx(5 / 3)
    assert found.price == pytest.approx(10.0)
    assert found.told["core_hours"] == pytest.approx(25.0)


def test_more_nodes_are_quicker_and_not_dearer():
    slow, quick = (batch_work("work", 1e6, TEN_CORES, within_h=h) for h in (10.0, 1.0))
    assert quick.nodes > slow.nodes
    assert quick.price == pytest.approx(slow.price)


def test_an_index_lies_on_as_many_nodes_as_hold_it():
    """1 KiB each: 5 GiB of a node hold 5,242,880, so 20 million need 4 nodes, with 20 core seconds a second."""
    costs = IndexCosts(bytes_each=1024, build_core_s_each=0.001, query_core_s_each=1e-9)
    built = build_of_index(20e6, costs, TEN_CORES)
    assert built.nodes == 4
    assert built.told["parts"] == 20
    assert built.hours == pytest.approx(20e6 * 0.001 / (4 * 18_000))
    served = service_of_index(20e6, costs, TEN_CORES)
    assert served.price == pytest.approx(8.0)
    assert served.told["core_ms_a_query"] == pytest.approx(20.0)
    assert served.told["queries_per_s"] == pytest.approx(1000.0)  # 20 core seconds a second by .02 each


def test_fine_tuning_counts_operations_by_what_is_trained():
    """7e9 weights, 1e9 tokens at 6 a weight with recomputed activations: 4.2e19 operations; at 5e13/s 840,000 s."""
    lora = fine_tuning(7e9, 1e9, CARD, utilisation=0.5, within_h=1e9)
    assert lora.told["card_hours"] == pytest.approx(840_000 / 3600)
    assert lora.nodes == 1
    assert lora.price == pytest.approx(700.0)
    full = fine_tuning(7e9, 1e9, CARD, method="full", utilisation=0.5, within_h=1e9)
    assert full.told["card_hours"] == pytest.approx(lora.told["card_hours"] * 8 / 6)


def test_full_fine_tuning_takes_the_cards_that_hold_its_states():
    """16 bytes of 7e9 weights are 104.3 GiB; of a card's 100 GiB .6 are for them, so 2 cards."""
    assert fine_tuning(7e9, 1.0, CARD, method="full").nodes == 2


def test_a_row_on_published_figures_says_so():
    assert fine_tuning(7e9, 1e6, CARD).basis == "published"
    assert batch_work("work", 1.0, TEN_CORES, within_h=1.0).basis == "measured"
