"""What work of another size would take: nodes, hours and price, from measured lines and published figures of cards.

Everything that is assumed is an argument with a name. Nothing here measures; :mod:`jobs.bench.scale` does, and hands in
what it found. Prices are the reader's own: those given are round figures to compare rows with, no offer of anyone's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmd.errors import ConfigError

Basis = Literal["measured", "published"]
"""What a row rests on: lines measured on two cores, or a card's published figures, without a card at hand."""
_HOUR_S = 3600.0
_GB = 2**30


@dataclass(frozen=True)
class Machine:
    """A node without cards.

    Attributes:
        cores: as fast as those that were measured.
        memory_gb: GiB.
        price_an_hour: in any currency.
        busy: share of its cores' time that goes into the work, in (0, 1].
        usable: share of its memory that the work may take, in (0, 1].
    """

    cores: int = 16
    memory_gb: float = 64.0
    price_an_hour: float = 0.80
    busy: float = 0.8
    usable: float = 0.8

    @property
    def core_s_an_hour(self) -> float:
        """Processor seconds of work that it does in an hour."""
        return self.cores * self.busy * _HOUR_S

    @property
    def usable_bytes(self) -> float:
        """Memory that the work may take."""
        return self.memory_gb * self.usable * _GB


@dataclass(frozen=True)
class Card:
    """A GPU as its maker describes it.

    Attributes:
        name: of the card.
        bf16_tflops: 10^12 dense bf16 operations a second.
        memory_gb: GiB.
        price_an_hour: in the machines' currency.
        source: of the figures.
    """

    name: str
    bf16_tflops: float
    memory_gb: float
    price_an_hour: float
    source: str


CARDS = (
    Card("A100 80GB SXM", 312.0, 80.0, 1.80, "NVIDIA A100 data sheet: BF16 tensor core, without sparsity"),
    Card("H100 80GB SXM", 989.0, 80.0, 3.00, "NVIDIA H100 data sheet: BF16 tensor core, half of the sparse figure"),
    Card("H200 141GB SXM", 989.0, 141.0, 3.80, "NVIDIA H200 data sheet: BF16 tensor core, half of the sparse figure"),
)


@dataclass(frozen=True)
class Line:
    """A cost that grows evenly: ``fixed + each * units``."""

    fixed: float
    each: float

    @classmethod
    def through(cls, units: Sequence[float], costs: Sequence[float]) -> Line:
        """Return the line of least squares; of one point, the one through it and nothing.

        Raises:
            ConfigError: no points, or all of one size.
        """
        if len(units) == 1 and units[0] > 0:
            return cls(0.0, costs[0] / units[0])
        if len(set(units)) < 2:
            raise ConfigError(f"a line through {len(units)} points of one size has no slope; measure two sizes.")
        mean_units, mean_costs = sum(units) / len(units), sum(costs) / len(costs)
        each = sum((u - mean_units) * (c - mean_costs) for u, c in zip(units, costs, strict=True)) / sum(
            (u - mean_units) ** 2 for u in units
        )
        return cls(mean_costs - each * mean_units, each)

    def at(self, units: float) -> float:
        """Return the cost of so many."""
        return self.fixed + self.each * units


@dataclass(frozen=True)
class Estimate:
    """What some work would take.

    Attributes:
        work: in words.
        basis: what the row rests on.
        nodes: machines, or cards.
        hours: that they work; 0 for a service, which runs on.
        price: of the work; of a service, an hour's.
        per: what the price is for.
        told: further figures by name.
        assumed: figures that were given, by name.
    """

    work: str
    basis: Basis
    nodes: int
    hours: float
    price: float
    per: Literal["in all", "an hour"] = "in all"
    told: dict[str, float] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)


def batch_work(work: str, core_s: float, machine: Machine, *, within_h: float) -> Estimate:
    """Return what work of so many processor seconds takes that can be spread over any number of nodes.

    Args:
        work: in words.
        core_s: processor seconds in all.
        machine: each node.
        within_h: hours that it may take; as few nodes as reach that.
    """
    nodes = max(1, math.ceil(core_s / (machine.core_s_an_hour * within_h)))
    hours = core_s / (machine.core_s_an_hour * nodes)
    return Estimate(
        work,
        "measured",
        nodes,
        hours,
        nodes * hours * machine.price_an_hour,
        told={"core_hours": core_s / _HOUR_S},
        assumed={"machine": asdict(machine), "within_h": within_h},
    )


@dataclass(frozen=True)
class IndexCosts:
    """What a part of an index was measured to take.

    Attributes:
        bytes_each: memory of a response, all included.
        build_core_s_each: processor seconds to add one.
        query_core_s_each: processor seconds of a query, by stored response.
        part: responses of the part; larger indices are taken as so many parts of this size.
    """

    bytes_each: float
    build_core_s_each: float
    query_core_s_each: float
    part: float = 1e6


def build_of_index(responses: float, costs: IndexCosts, machine: Machine) -> Estimate:
    """Return what building an index takes on as many nodes as hold it."""
    nodes = nodes_of_index(responses, costs, machine)
    core_s = responses * costs.build_core_s_each
    hours = core_s / (machine.core_s_an_hour * nodes)
    return Estimate(
        f"index of {responses:.3g} responses: building it where it will lie",
        "measured",
        nodes,
        hours,
        nodes * hours * machine.price_an_hour,
        told={
            "core_hours": core_s / _HOUR_S,
            "memory_gb": responses * costs.bytes_each / _GB,
            "parts": math.ceil(responses / costs.part),
        },
        assumed={"machine": asdict(machine), "costs": asdict(costs)},
    )


def service_of_index(responses: float, costs: IndexCosts, machine: Machine) -> Estimate:
    """Return what keeping an index up takes; each query is put to every node, which looks into its own part."""
    nodes = nodes_of_index(responses, costs, machine)
    query_core_s = responses * costs.query_core_s_each
    return Estimate(
        f"index of {responses:.3g} responses: answering",
        "measured",
        nodes,
        0.0,
        nodes * machine.price_an_hour,
        per="an hour",
        told={
            "queries_per_s": nodes * machine.cores * machine.busy / query_core_s,
            "core_ms_a_query": 1000 * query_core_s,
        },
        assumed={"machine": asdict(machine), "costs": asdict(costs)},
    )


def nodes_of_index(responses: float, costs: IndexCosts, machine: Machine) -> int:
    """Return the nodes whose memory holds an index."""
    return max(1, math.ceil(responses * costs.bytes_each / machine.usable_bytes))


def fine_tuning(
    parameters: float,
    tokens: float,
    card: Card,
    *,
    method: Literal["lora", "full"] = "lora",
    utilisation: float = 0.45,
    within_h: float = 8.0,
    weights_share: float = 0.6,
    recompute: bool = True,
) -> Estimate:
    """Return what fine-tuning a language model takes.

    Operations a token are 2 a weight for the forward pass, 2 for the gradient of activations, 2 for that of weights
    where all are trained (Kaplan et al. 2020, section 2.1), and 2 where the forward pass is computed again. Bytes a
    weight are 2 (bf16) where few are trained; 16 with gradients and Adam's states (Rajbhandari et al. 2020, section
    3.1), which ZeRO-3 spreads over the cards.

    Args:
        parameters: weights of the model.
        tokens: to be learned from, all passes together.
        card: each of the cards.
        method: of training.
        utilisation: share of the card's rate, in (0, 1].
        within_h: hours that it may take; as few cards as reach that and hold the model.
        weights_share: share of a card's memory for what is counted here; the rest is the activations'.
        recompute: whether activations are recomputed in the backward pass.
    """
    a_weight = (4 if method == "lora" else 6) + (2 if recompute else 0)
    card_s = tokens * parameters * a_weight / (card.bf16_tflops * 1e12 * utilisation)
    held = parameters * (2 if method == "lora" else 16)
    cards = max(math.ceil(held / (card.memory_gb * _GB * weights_share)), math.ceil(card_s / (within_h * _HOUR_S)), 1)
    hours = card_s / cards / _HOUR_S
    return Estimate(
        f"{method} fine-tuning of {parameters:.3g} weights on {tokens:.3g} tokens, {card.name}",
        "published",
        cards,
        hours,
        cards * hours * card.price_an_hour,
        told={
            "card_hours": card_s / _HOUR_S,
            "tokens_per_s_a_card": tokens / card_s,
            "weights_and_states_gb": held / _GB,
        },
        assumed={
            "card": asdict(card),
            "utilisation": utilisation,
            "within_h": within_h,
            "weights_share": weights_share,
            "recompute": recompute,
        },
    )
