"""Monte Carlo Tree Search for rules: PUCT over conjunctions of predicates (METHODS section 1).

State: the set of predicates of a rule for one label. Action: append an unused predicate. A state is hashed as a
frozenset, so the order of predicates changes neither node nor reward, and paths that meet share one node.
Selection: AlphaZero's PUCT, ``Q + c·P·√ΣN / (1 + N)``, with progressive widening; untried children come first.
Reward: smoothed precision × log support − length penalty (METHODS section 1), scaled into known bounds.

All children of a node are evaluated in one numpy call on the words that the node's own set leaves non-zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmd.intent.bitsets import Bits, pack, split_by_label
from mmd.intent.settings import SearchSettings

State = frozenset[int]
"""Indices of the predicates of a conjunction."""

_EMPTY: State = frozenset()
_PRECISION_PRIOR = 1.0  # pseudo-examples at the label's base rate: one hit in one try is not precision 1


@dataclass(frozen=True)
class SearchProblem:
    """What one search works on: the truth of each predicate, packed with the label's examples first.

    Attributes:
        bits: shape (n_predicates, n_words).
        hit_words: the first so many words belong to the label's examples.
        prior: proposer's belief that a predicate speaks for the label, shape (n_predicates,), sums to 1.
    """

    bits: Bits
    hit_words: int
    n_positive: int
    n_negative: int
    prior: NDArray[np.float64]

    @classmethod
    def build(
        cls, members: NDArray[np.bool_], positive: NDArray[np.bool_], prior: NDArray[np.float64]
    ) -> SearchProblem:
        """Pack ``members``, shape (n_predicates, n_examples), for the label that ``positive`` marks."""
        bits, hit_words = split_by_label(members, positive)
        n_positive = int(positive.sum())
        total = float(prior.sum())
        scaled = prior / total if total > 0 else np.full(len(prior), 1.0 / max(1, len(prior)))
        return cls(bits, hit_words, n_positive, int(positive.size) - n_positive, scaled)

    def everything(self) -> Bits:
        """Return the set of all examples, the extent of the empty rule."""
        hits, misses = np.ones(self.n_positive, np.bool_), np.ones(self.n_negative, np.bool_)
        return np.concatenate([pack(hits), pack(misses)])


@dataclass(frozen=True, slots=True)
class Found:
    """A conjunction that the search evaluated, with its counts on the search's own examples."""

    state: State
    hits: int
    support: int
    reward: float


@dataclass(slots=True, eq=False)
class Node:
    """A visited state. ``total`` / ``visits`` is Q, the mean reward below (and at) this node."""

    state: State
    reward: float
    hits: int
    support: int
    extent: Bits
    words: NDArray[np.intp] | None  # which words of the full width ``extent`` covers; None: all
    visits: int = 0
    total: float = 0.0
    actions: list[int] | None = None  # predicates to append, best prior first; None before expansion
    priors: list[float] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)  # opened ones, aligned with ``actions``

    @property
    def q(self) -> float:
        """Mean reward of the rollouts through this node; 0 before the first."""
        return self.total / self.visits if self.visits else 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search found: every evaluated conjunction, and how it went."""

    found: list[Found]
    rollouts: int
    evaluations: int  # distinct conjunctions whose reward was computed
    best_reward: float


def reward_bounds(settings: SearchSettings) -> tuple[float, float]:
    """Return what no reward can leave: precision and log support lie in [0, 1], the penalty grows with length."""
    return -settings.length_penalty * settings.max_length, 1.0


class RuleSearch:
    """One tree: the search for rules of one label. Deterministic for given arguments.

    Args:
        problem: predicates, examples and priors.
        settings: exploration, widening, length and reward.
        min_hits: examples of the label that a conjunction must hold on to be worth a node.
    """

    def __init__(self, problem: SearchProblem, settings: SearchSettings, *, min_hits: int = 1) -> None:
        self.problem = problem
        self.settings = settings
        self.min_hits = max(1, min_hits)
        self.nodes: dict[State, Node] = {}
        self.evaluated: dict[State, tuple[int, int, float]] = {}
        self.rollouts = 0
        self.best_reward = -math.inf
        self._since_best = 0
        self._base_rate = problem.n_positive / max(1, problem.n_positive + problem.n_negative)
        self._log_positive = math.log1p(max(1, problem.n_positive))
        everything = problem.everything()
        size = problem.n_positive + problem.n_negative
        root_reward = float(self.reward(np.array([problem.n_positive]), np.array([size]), 0)[0])
        self.root = Node(_EMPTY, root_reward, problem.n_positive, size, everything, None)
        self.nodes[_EMPTY] = self.root

    def reward(self, hits: NDArray[np.int64], support: NDArray[np.int64], length: int) -> NDArray[np.float64]:
        """Return smoothed precision × log support − length penalty, inside :func:`reward_bounds`.

        Support counts the label's examples (as in association rules), on a log scale where all of them give 1.
        """
        precision = (hits + _PRECISION_PRIOR * self._base_rate) / (support + _PRECISION_PRIOR)
        breadth = np.log1p(hits) / self._log_positive
        value: NDArray[np.float64] = precision * breadth - self.settings.length_penalty * length
        return value

    def run(self, rollouts: int | None = None) -> SearchResult:
        """Do up to ``rollouts`` more (default: the settings'), fewer once nothing better was found for ``patience``."""
        for _ in range(self.settings.rollouts if rollouts is None else rollouts):
            if self._since_best >= self.settings.patience:
                break
            self.rollout()
        found = [Found(state, *counts) for state, counts in self.evaluated.items()]
        return SearchResult(found, self.rollouts, len(self.evaluated), self.best_reward)

    def rollout(self) -> None:
        """Select down to a leaf, open a child there, and back its reward up along the path."""
        node, path = self.root, [self.root]
        while True:
            if node.actions is None:
                self._expand(node)
            child, is_new = self._next(node)
            if child is None:
                break
            node = child
            path.append(node)
            if is_new:
                break
        self.rollouts += 1
        self._since_best += 1
        if node.reward > self.best_reward and node is not self.root:
            self.best_reward, self._since_best = node.reward, 0
        for passed in path:
            passed.visits += 1
            passed.total += node.reward

    def _next(self, node: Node) -> tuple[Node | None, bool]:
        """Return the next node downwards (None at a terminal one) and whether this rollout opened it."""
        actions = node.actions or []
        if not actions:
            return None, False
        allowed = min(
            len(actions), max(1, math.ceil(self.settings.widening * node.visits**self.settings.widening_alpha))
        )
        opened = len(node.children)
        if opened < allowed:
            child = self._open(node, actions[opened])
            node.children.append(child)
            return child, child.visits == 0
        return self._select(node), False

    def _select(self, node: Node) -> Node:
        """Return the opened child with the highest PUCT score; ties go to the higher prior."""
        scale = self.settings.c_puct * math.sqrt(node.visits)
        best, best_score = node.children[0], -math.inf
        for child, prior in zip(node.children, node.priors, strict=False):
            visits = child.visits
            score = child.total / visits + scale * prior / (1 + visits)
            if score > best_score:
                best, best_score = child, score
        return best

    def _open(self, node: Node, action: int) -> Node:
        state = node.state | {action}
        known = self.nodes.get(state)
        if known is not None:
            return known
        hits, support, reward = self.evaluated[state]
        child = Node(state, reward, hits, support, *self._extent(node, action))
        self.nodes[state] = child
        return child

    def _extent(self, node: Node, action: int) -> tuple[Bits, NDArray[np.intp] | None]:
        """Return the child's set, without its zero words once these are the majority."""
        row = self.problem.bits[action]
        extent = node.extent & (row if node.words is None else row[node.words])
        alive = np.flatnonzero(extent)
        if 2 * alive.size >= extent.size:
            return extent, node.words
        return extent[alive], alive if node.words is None else node.words[alive]

    def _expand(self, node: Node) -> None:
        """Evaluate every child in one call and rank the worthwhile ones by prior and immediate reward."""
        node.actions = []
        if len(node.state) >= self.settings.max_length or node.hits == node.support:
            return  # a longer rule cannot beat precision 1 on a subset
        hits, support = self._count_children(node)
        useful = (hits >= self.min_hits) & (support < node.support)
        candidates = np.flatnonzero(useful)
        if candidates.size == 0:
            return
        hits, support = hits[candidates], support[candidates]
        rewards = self.reward(hits, support, len(node.state) + 1)
        weight = self.problem.prior[candidates] * np.exp(self.settings.lookahead * rewards)
        order = np.lexsort((candidates, -weight))
        node.actions = candidates[order].tolist()
        node.priors = (weight[order] / weight.sum()).tolist()
        evaluated, state = self.evaluated, node.state
        for action, *counts in zip(candidates.tolist(), hits.tolist(), support.tolist(), rewards.tolist(), strict=True):
            evaluated[state | {action}] = (counts[0], counts[1], counts[2])

    def _count_children(self, node: Node) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return hits and support of appending each predicate, shape (n_predicates,) each."""
        problem = self.problem
        if node.words is None:
            joint = np.bitwise_count(problem.bits & node.extent)
            split = problem.hit_words
        else:
            joint = np.bitwise_count(problem.bits[:, node.words] & node.extent)
            split = int(np.searchsorted(node.words, problem.hit_words))
        hits = joint[:, :split].sum(axis=1, dtype=np.int64)
        return hits, hits + joint[:, split:].sum(axis=1, dtype=np.int64)
