"""What predicates mean, how they are written on one line, and how they read in words.

:func:`holds` is the reference: slow, obvious, and what the matcher must agree with.
:func:`parse_predicate` and :func:`format_predicate` are inverse to each other; the written forms are::

    last_user contains "fade"            not ocr top contains "refund"
    user matches /(no|not).{0,3}light/   ocr matches /¥ ?[0-9]+/
    image aspect is tall                 item colour is red
    item title contains "shirt"          last_user is near "does it fade"
    ask has_logo is yes

Values are bare words or JSON strings; a pattern runs from the first ``/`` to the last one of the line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping

import numpy as np

from mmd.errors import RuleError
from mmd.intent.patterns import compile_regex
from mmd.intent.rules import Predicate, Prototype, Prototypes, unit
from mmd.intent.textnorm import normalise
from mmd.intent.types import ImageFacts, IntentExample, Vector
from mmd.intent.wording import describe_predicate, describe_rule
from mmd.schema import OcrLine

__all__ = [
    "ANSWERS",
    "IMAGE_ATTRIBUTES",
    "IMAGE_BUCKETS",
    "NEAR_SCOPES",
    "OCR_REGIONS",
    "REGEX_SCOPES",
    "TEXT_SCOPES",
    "Prototype",
    "Prototypes",
    "check_predicate",
    "check_prototype",
    "describe_predicate",
    "describe_rule",
    "format_predicate",
    "holds",
    "parse_predicate",
]

TEXT_SCOPES = ("last_user", "user", "agent", "any")
REGEX_SCOPES = (*TEXT_SCOPES, "ocr")
OCR_REGIONS = ("any", "top", "middle", "bottom")
NEAR_SCOPES = ("last_user", "image")
ANSWERS = ("yes", "no")
IMAGE_BUCKETS: Mapping[str, tuple[str, ...]] = {
    "count": ("none", "one", "two", "many"),
    "aspect": ("tall", "square", "wide"),
    "size": ("small", "medium", "large"),
    "has_text": ("yes", "no"),
    "text_amount": ("none", "little", "some", "much"),
}
"""Image attribute → its buckets; ``cluster`` has none here, since its values are names of prototypes."""
IMAGE_ATTRIBUTES = (*IMAGE_BUCKETS, "cluster")

_SURROGATE = re.compile("[\ud800-\udfff]")
TALL_RATIO = 1.25  # longer by a quarter than the other side
SMALL_PIXELS = 200 * 200
LARGE_PIXELS = 800 * 800
LITTLE_TEXT_CHARS = 10
SOME_TEXT_CHARS = 60


# ---------------------------------------------------------------- meaning


def holds(predicate: Predicate, example: IntentExample, prototypes: Prototypes) -> bool:
    """Say whether a predicate holds on an example: the reference semantics.

    Text and patterns are sought in each turn (OCR line) by itself, normalised. Image attributes hold when some
    picture has them. ``near`` and ``cluster`` do not hold where the vector was not extracted. A negated predicate
    holds exactly when the plain one does not.

    Raises:
        RuleError: the predicate is malformed, or names a prototype that is not there.
    """
    check_predicate(predicate)
    check_prototype(predicate, prototypes)
    return _plain_holds(predicate, example, prototypes) != predicate.negated


def _plain_holds(predicate: Predicate, example: IntentExample, prototypes: Prototypes) -> bool:
    kind, scope, value = predicate.kind, predicate.scope, predicate.value
    if kind == "text":
        return any(normalise(value) in text for text in segments(example, scope))
    if kind == "regex":
        pattern = compile_regex(value)
        return any(pattern.search(text) is not None for text in segments(example, scope))
    if kind == "ocr":
        return any(normalise(value) in text for text in ocr_segments(example, scope))
    if kind == "near":
        return is_near(prototypes[value], example)
    if kind == "image":
        return value in image_buckets(scope, example, prototypes)
    return _metadata_holds(predicate, example)


def _metadata_holds(predicate: Predicate, example: IntentExample) -> bool:
    if predicate.kind == "ask":
        return normalise(example.meta.get(f"ask:{predicate.scope}", "")) == predicate.value
    return item_holds(predicate.scope, normalise(predicate.value), example)


def segments(example: IntentExample, scope: str) -> list[str]:
    """Return the normalised texts that a text or regex predicate of this scope looks at, one by one.

    Args:
        example: the situation.
        scope: ``user``, ``agent``, ``any``, ``last_user`` (the last user turn that has text), or ``ocr``.
    """
    if scope == "ocr":
        return ocr_segments(example, "any")
    if scope == "last_user":
        text = normalise(example.text(scope))
        return [text] if text else []
    return [normalise(t.text) for t in example.turns if scope in ("any", t.speaker)]


def ocr_segments(example: IntentExample, region: str) -> list[str]:
    """Return the normalised OCR lines of one region of all pictures."""
    return [
        normalise(line.text)
        for image in example.images
        for line in image.ocr
        if region == "any" or region_of(line, image.height) == region
    ]


def region_of(line: OcrLine, height: int) -> str:
    """Return the third of the picture that the middle of an OCR line lies in: top, middle or bottom."""
    middle = (line.box[1] + line.box[3]) / 2
    if middle * 3 < height:
        return "top"
    return "middle" if middle * 3 < 2 * height else "bottom"


def item_holds(attribute: str, value: str, example: IntentExample) -> bool:
    """Say whether some item's attribute equals the normalised value (its title contains it)."""
    if attribute == "title":
        return any(value in normalise(item.title) for item in example.items)
    return any(normalise(item.attributes[attribute]) == value for item in example.items if attribute in item.attributes)


def is_near(prototype: Prototype, example: IntentExample) -> bool:
    """Say whether the example's vector (some picture's vector) passes the prototype's threshold."""
    if prototype.scope == "last_user":
        vectors = [example.last_user_vector]
    else:
        vectors = [image.vector for image in example.images]
    return any(v is not None and cosine(prototype.vector, v) >= prototype.threshold for v in vectors)


def image_buckets(attribute: str, example: IntentExample, prototypes: Prototypes) -> set[str]:
    """Return the buckets of an image attribute that the example's pictures fall into."""
    if attribute == "count":
        return {IMAGE_BUCKETS["count"][min(len(example.images), 3)]}
    if attribute == "cluster":
        return {name for image in example.images if (name := cluster_of(image, prototypes)) is not None}
    return {image_bucket(attribute, image) for image in example.images}


def image_bucket(attribute: str, image: ImageFacts) -> str:
    """Return the bucket of one picture: ``aspect``, ``size``, ``has_text`` or ``text_amount``."""
    if attribute in ("has_text", "text_amount"):
        return text_bucket(attribute, sum(len(normalise(line.text)) for line in image.ocr))
    if attribute == "aspect":
        if image.height >= TALL_RATIO * image.width:
            return "tall"
        return "wide" if image.width >= TALL_RATIO * image.height else "square"
    pixels = image.width * image.height
    return "small" if pixels < SMALL_PIXELS else "large" if pixels >= LARGE_PIXELS else "medium"


def text_bucket(attribute: str, chars: int) -> str:
    """Return the bucket of a picture with so many recognised characters: ``has_text`` or ``text_amount``."""
    if attribute == "has_text":
        return "yes" if chars else "no"
    if not chars:
        return "none"
    return "little" if chars < LITTLE_TEXT_CHARS else "some" if chars < SOME_TEXT_CHARS else "much"


def cluster_of(image: ImageFacts, prototypes: Prototypes) -> str | None:
    """Return the name of the cluster centre nearest to a picture, ties to the first; None without vector."""
    if image.vector is None:
        return None
    centres = [p for p in prototypes.values() if p.scope == "cluster"]
    if not centres:
        return None
    vector = image.vector
    return max(centres, key=lambda p: cosine(p.vector, vector)).name


def cosine(centre: Vector, vector: Vector) -> float:
    """Return the cosine of a unit vector and another, in [-1, 1]; 0 for a zero vector.

    Raises:
        RuleError: the dimensions differ, so the base was made with other features.
    """
    if centre.shape != vector.shape:
        raise RuleError(
            f"a prototype has {centre.size} dimensions, the example's vector {vector.size}: the rule base was mined "
            "on other features; use the features it names, or run `mmd mine_rules` again."
        )
    return float(np.dot(centre, unit(vector)))


# ---------------------------------------------------------------- well-formedness


def check_predicate(predicate: Predicate) -> None:
    """Refuse a malformed predicate.

    Raises:
        RuleError: unknown scope or bucket (with the nearest known one), an empty value, or an invalid pattern.
    """
    kind, scope, value = predicate.kind, predicate.scope, predicate.value
    if kind in _SCOPES:
        _check_known(scope, _SCOPES[kind], "scope" if kind != "image" else "image attribute")
    if not normalise(value):
        raise RuleError("the value is empty, so it would always hold; write what to look for.")
    if _SURROGATE.search(scope + value):
        raise RuleError("half a surrogate pair is not a character; remove it.")
    if kind == "regex":
        compile_regex(value)
    elif kind == "image" and scope in IMAGE_BUCKETS:
        _check_known(value, IMAGE_BUCKETS[scope], f"value of image {scope}")
    elif kind == "ask":
        _check_known(value, ANSWERS, "answer")
    elif kind == "item" and not scope.strip():
        raise RuleError('the item attribute has no name; write e.g. item colour is "red".')


_SCOPES: Mapping[str, tuple[str, ...]] = {
    "text": TEXT_SCOPES,
    "regex": REGEX_SCOPES,
    "ocr": OCR_REGIONS,
    "image": IMAGE_ATTRIBUTES,
    "near": NEAR_SCOPES,
}


def check_prototype(predicate: Predicate, prototypes: Prototypes) -> None:
    """Refuse a ``near`` or ``cluster`` predicate whose prototype is missing or of another scope.

    Raises:
        RuleError: with the nearest known name.
    """
    wanted = _prototype_scope(predicate)
    if wanted is None:
        return
    known = [p.name for p in prototypes.values() if p.scope == wanted]
    if predicate.value not in known:
        raise RuleError(
            f"no prototype {predicate.value!r} of scope {wanted}.{nearest(predicate.value, known)} "
            "Prototypes need vectors and are made by mining; name one of the base's `prototypes`."
        )


def _prototype_scope(predicate: Predicate) -> str | None:
    if predicate.kind == "near":
        return predicate.scope
    return "cluster" if predicate.kind == "image" and predicate.scope == "cluster" else None


def _check_known(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise RuleError(f"unknown {what} {value!r}; known: {', '.join(known)}.{nearest(value, known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


# ---------------------------------------------------------------- written form

_BARE = re.compile(r"\w[\w\-]*")
_FORMS = (
    'last_user contains "word", user matches /pattern/, ocr top contains "word", image aspect is tall, '
    'item colour is red, last_user is near "name", each with `not ` before it if need be'
)


def format_predicate(predicate: Predicate) -> str:
    """Return the one-line written form, which :func:`parse_predicate` reads back."""
    kind, scope, value = predicate.kind, predicate.scope, predicate.value
    if kind == "text":
        line = f"{scope} contains {_quote(value)}"
    elif kind == "regex":
        line = f"{scope} matches /{value}/"
    elif kind == "ocr":
        line = f"ocr contains {_quote(value)}" if scope == "any" else f"ocr {scope} contains {_quote(value)}"
    elif kind == "near":
        line = f"{scope} is near {_quote(value)}"
    elif kind == "item" and scope == "title":
        line = f"item title contains {_quote(value)}"
    else:
        line = f"{kind} {_word(scope)} is {_word(value)}"
    return f"not {line}" if predicate.negated else line


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _word(value: str) -> str:
    return value if _BARE.fullmatch(value) else _quote(value)


def parse_predicate(line: str) -> Predicate:
    """Read the one-line written form.

    Raises:
        RuleError: not of a known form, or malformed (see :func:`check_predicate`); the message quotes the line.
    """
    try:
        predicate = _parse(line.strip())
        check_predicate(predicate)
    except RuleError as err:
        raise RuleError(f"`{line.strip()}`: {err}") from err
    return predicate


def _parse(line: str) -> Predicate:
    negated = line.startswith("not ")
    rest = line[4:].lstrip() if negated else line
    subject, _, tail = rest.partition(" ")
    tail = tail.lstrip()
    if subject == "image" and not tail.startswith("is near "):
        attribute, value = _parse_is(tail)
        return Predicate("image", attribute, value, negated)
    if subject == "item":
        return _parse_item(tail, negated)
    if subject == "ask":
        question, value = _parse_is(tail)
        return Predicate("ask", question, value, negated)
    return _parse_verb(subject, tail, negated)


def _parse_item(tail: str, negated: bool) -> Predicate:  # noqa: FBT001 (private)
    attribute, rest = _take_value(tail)
    if attribute == "title":
        return Predicate("item", "title", _last_value(_after(rest, "contains")), negated)
    return Predicate("item", attribute, _last_value(_after(rest, "is")), negated)


def _parse_is(tail: str) -> tuple[str, str]:
    subject, rest = _take_value(tail)
    return subject, _last_value(_after(rest, "is"))


def _parse_verb(subject: str, tail: str, negated: bool) -> Predicate:  # noqa: FBT001 (private)
    verb, _, rest = tail.partition(" ")
    rest = rest.strip()
    if subject == "ocr" and verb in OCR_REGIONS:
        return Predicate("ocr", verb, _last_value(_after(rest, "contains")), negated)
    if verb == "contains":
        if subject == "ocr":
            return Predicate("ocr", "any", _last_value(rest), negated)
        return Predicate("text", subject, _last_value(rest), negated)
    if verb == "matches":
        return Predicate("regex", subject, _pattern(rest), negated)
    if verb == "is" and rest.startswith("near "):
        return Predicate("near", subject, _last_value(rest[5:].strip()), negated)
    raise RuleError(f"not a predicate; write one of: {_FORMS}.")


def _pattern(text: str) -> str:
    if len(text) < 2 or text[0] != "/" or text[-1] != "/":
        raise RuleError("a pattern stands between slashes: matches /pattern/.")
    return text[1:-1]


def _after(text: str, verb: str) -> str:
    found, _, rest = text.partition(" ")
    if found != verb:
        raise RuleError(f"expected `{verb}`, found {found!r}; write one of: {_FORMS}.")
    return rest.strip()


def _take_value(text: str) -> tuple[str, str]:
    """Split a leading bare word or JSON string off; return it and the rest."""
    if text.startswith('"'):
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError as err:
            raise RuleError(f'the quotes are not closed or a \\ is misplaced ({err.msg}); write "…".') from err
        return str(value), text[end:].strip()
    match = _BARE.match(text)
    if match is None:
        raise RuleError(f'expected a word or "text" at {text[:20]!r}; write one of: {_FORMS}.')
    return match.group(), text[match.end() :].strip()


def _last_value(text: str) -> str:
    value, rest = _take_value(text)
    if rest:
        raise RuleError(f'unexpected {rest!r} after {value!r}; put values of several words in quotes: "{text}".')
    return value
