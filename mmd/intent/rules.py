"""Predicates, rules and their statistics: the vocabulary of the rule base.

A rule is a conjunction of predicates that speaks for one label of one task. All statistics are out-of-fold:
in-sample ones are badly optimistic on few-shot data (METHODS section 1), so none is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from mmd.intent.types import Vector

PredicateKind = Literal["text", "regex", "ocr", "image", "item", "near", "ask"]
PREDICATE_KINDS: tuple[PredicateKind, ...] = get_args(PredicateKind)
WILSON_Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True, slots=True, order=True)
class Predicate:
    """An atomic yes/no test on an example. Matching of text is case-insensitive, on NFKC-normalised text.

    ====== =================================================== ==========================================
    kind   scope                                               value
    ====== =================================================== ==========================================
    text   user | agent | last_user | any                      a turn of the scope contains this
    regex  the same, or ocr                                    a turn (OCR line) matches this RE2 pattern
    ocr    any | top | middle | bottom (third of the picture)  a recognised line there contains this
    image  count | aspect | size | has_text | text_amount |    a named bucket of that attribute
           cluster
    item   attribute name, or title                            the attribute equals / the title contains
    near   last_user | image                                   name of a prototype whose cosine passes
                                                               the prototype's threshold
    ask    a question id                                       yes or no (asked of the small MLLM)
    ====== =================================================== ==========================================

    :mod:`mmd.intent.predicates` defines exactly when each holds, and its one-line written form.
    """

    kind: PredicateKind
    scope: str
    value: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class RuleStats:
    """Out-of-fold statistics: counts over training examples held out from the rule's discovery."""

    support: int  # examples it fired on
    hits: int  # of these, with the rule's label
    precision: float  # hits / support
    wilson_lower: float  # lower end of the 95 % Wilson interval of precision
    coverage: float  # support / examples of the task
    weight: float = field(default=1.0, compare=False)  # of a firing in the rules' vote; the rule base sets it


UNMEASURED = RuleStats(support=0, hits=0, precision=0.0, wilson_lower=0.0, coverage=0.0)
"""Statistics of a hand-written rule nobody has measured yet: the weakest there are, so it ranks last."""


def wilson_lower(hits: int, support: int, z: float = WILSON_Z) -> float:
    """Return the lower end of the Wilson score interval of hits / support, in [0, 1]; 0 without support.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if support <= 0:
        return 0.0
    share = hits / support
    centre = share + z * z / (2 * support)
    spread = z * math.sqrt(share * (1 - share) / support + z * z / (4 * support * support))
    return max(0.0, (centre - spread) / (1 + z * z / support))


def measure(support: int, hits: int, examples: int) -> RuleStats:
    """Return the statistics of a rule that fired on ``support`` of ``examples`` and was right ``hits`` times.

    Coverage is rounded to six decimals, so that statistics survive being written as text.

    Raises:
        ValueError: unless 0 <= hits <= support <= examples.
    """
    if not 0 <= hits <= support <= examples:
        raise ValueError(f"need 0 <= hits <= support <= examples, got {hits}, {support}, {examples}")
    return RuleStats(
        support=support,
        hits=hits,
        precision=hits / support if support else 0.0,
        wilson_lower=wilson_lower(hits, support),
        coverage=round(support / examples, 6) if examples else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """If all ``predicates`` hold, the label is ``label``. ``provenance`` says how it was found.

    ``note`` is a remark by whoever edited the base by hand; a rule that is not ``enabled`` is kept but never fires.
    """

    id: str
    task: str
    label: str
    predicates: tuple[Predicate, ...]
    stats: RuleStats
    provenance: Mapping[str, str] = field(default_factory=dict)
    enabled: bool = True
    note: str = ""


@dataclass(frozen=True, eq=False)
class Prototype:
    """A named point that ``near`` and ``cluster`` predicates measure cosine similarity to.

    Args:
        name: unique in the rule base; what predicates call it by.
        scope: ``last_user`` (a sentence vector), ``image`` (an image vector), or ``cluster`` (a centre of the
            image vectors: a picture belongs to the nearest centre).
        vector: float32 of shape (dim,), L2-normalised by the constructor.
        threshold: least cosine that counts as near, in [-1, 1]; clusters ignore it.
        words: what stands at this point, for people to read.
    """

    name: str
    scope: str
    vector: Vector
    threshold: float
    words: str = ""

    def __post_init__(self) -> None:
        """Normalise the vector once."""
        object.__setattr__(self, "vector", unit(np.asarray(self.vector, dtype=np.float32)))


Prototypes = Mapping[str, Prototype]
PROTOTYPE_SCOPES = ("last_user", "image", "cluster")


def unit(vector: Vector) -> Vector:
    """Return a vector of length 1 in the same direction; a zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    return vector if length == 0.0 else (vector / np.float32(length)).astype(np.float32, copy=False)


def strength(rule: Rule) -> tuple[float, int, str]:
    """Return the sort key that puts the best rule first: Wilson lower bound, then support, then id."""
    return (-rule.stats.wilson_lower, -rule.stats.support, rule.id)
