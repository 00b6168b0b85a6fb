"""Predicates, rules and their statistics: the vocabulary of the rule base.

A rule is a conjunction of predicates that speaks for one label of one task. All statistics are out-of-fold:
in-sample ones are badly optimistic on few-shot data (METHODS section 1), so none is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PredicateKind = Literal["text", "regex", "ocr", "image", "item", "near", "ask"]


@dataclass(frozen=True, slots=True, order=True)
class Predicate:
    """An atomic yes/no test on an example. Matching of text is case-insensitive, on NFKC-normalised text.

    ====== =================================================== ==========================================
    kind   scope                                               value
    ====== =================================================== ==========================================
    text   user | agent | last_user | any                      the scope's text contains this
    regex  the same, or ocr                                    the scope's text matches this RE2 pattern
    ocr    any | top | middle | bottom (third of the picture)  a recognised line there contains this
    image  count | aspect | size | has_text | text_amount |    a named bucket of that attribute
           cluster
    item   attribute name, or title                            the attribute equals / the title contains
    near   last_user | image                                   name of a prototype whose cosine passes
                                                               the prototype's threshold
    ask    a question id                                       yes (asked of the small MLLM)
    ====== =================================================== ==========================================
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


@dataclass(frozen=True, slots=True)
class Rule:
    """If all ``predicates`` hold, the label is ``label``. ``provenance`` says how it was found."""

    id: str
    task: str
    label: str
    predicates: tuple[Predicate, ...]
    stats: RuleStats
    provenance: Mapping[str, str] = field(default_factory=dict)
