"""What must survive augmentation: the words by which rules know a label, numbers, links and negations.

A rule that fires on an example for the example's own label says which of its words carry the label. Edits spare these
words where they occur, and a sample on which such a keyword (or pattern) no longer holds is not made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmd.intent.patterns import required_literal
from mmd.intent.predicates import holds
from mmd.intent.rules import Predicate, Rule
from mmd.intent.textnorm import normalise
from mmd.intent.types import TAG, ImageFacts, IntentExample

Span = tuple[int, int]

_ALWAYS = re.compile(
    TAG.pattern + r"|https?://\S+"
    r"|[A-Za-z]*\d[\w.,:%/-]*"  # numbers, sizes, order and article numbers
    r"|[一二两三四五六七八九十百千万半]+"
    r"|[不没未无别非].?"  # what turns a statement into its opposite
    r"|\b(?:no|not|never|none|nothing|without|\w+n['’]t|cannot|nor)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Guard:
    """The rules' conditions on one example's words and printed text that augmentation keeps true.

    Attributes:
        text: keywords and patterns in turns, of all rules that fire for the example's label.
        printed: keywords in the pictures' text, of the strongest such rule that reads any.
    """

    text: tuple[Predicate, ...] = ()
    printed: tuple[str, ...] = ()

    @classmethod
    def of(cls, fired: Sequence[Rule], label: str | None) -> Guard:
        """Gather the conditions of the rules that fired, best first, for this label."""
        own = [rule for rule in fired if rule.label == label]
        positive = dict.fromkeys(p for rule in own for p in rule.predicates if not p.negated)
        text = tuple(p for p in positive if p.kind == "text" or (p.kind == "regex" and p.scope != "ocr"))
        readers = ([normalise(p.value) for p in r.predicates if p.kind == "ocr" and not p.negated] for r in own)
        return cls(text, tuple(next((words for words in readers if words), ())))

    def spans(self, text: str) -> list[Span]:
        """Return the parts of a turn's text that edits leave alone, as (start, end)."""
        found = [match.span() for match in _ALWAYS.finditer(text)]
        folded = text.casefold()
        if len(folded) != len(text):  # rare letters grow when folded; positions would not fit
            folded = text.lower() if len(text.lower()) == len(text) else text
        for word in self._words():
            found += [match.span() for match in re.finditer(re.escape(word), folded)]
        return sorted(found)

    def _words(self) -> list[str]:
        words = (p.value if p.kind == "text" else required_literal(p.value) for p in self.text)
        return [normalise(word) for word in words if word and normalise(word)]

    def keeps(self, example: IntentExample) -> bool:
        """Say whether all conditions on words still hold."""
        return all(holds(predicate, example, {}) for predicate in self.text)

    def keeps_print(self, before: ImageFacts, after: ImageFacts) -> bool:
        """Say whether the guarded words that a picture showed can still be read in it."""
        had, has = ([normalise(line.text) for line in image.ocr] for image in (before, after))
        return all(any(word in line for line in has) for word in self.printed if any(word in line for line in had))
