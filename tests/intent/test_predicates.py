"""What predicates mean, and how they are written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmd.errors import RuleError
from mmd.intent.patterns import compile_regex, required_literal
from mmd.intent.predicates import (
    IMAGE_BUCKETS,
    NEAR_SCOPES,
    OCR_REGIONS,
    REGEX_SCOPES,
    TEXT_SCOPES,
    Prototype,
    check_predicate,
    describe_rule,
    format_predicate,
    holds,
    parse_predicate,
)
from mmd.intent.rules import PREDICATE_KINDS, UNMEASURED, Predicate, Rule, measure, wilson_lower
from mmd.intent.textnorm import normalise
from mmd.intent.types import ImageFacts, IntentExample
from mmd.intent.wording import CENTRE, CONTRAST, PICTURE, describe_predicate
from mmd.schema import Item, OcrLine, Turn


def example(*turns: Turn, **known: object) -> IntentExample:
    return IntentExample("d", "t", None, turns, **known)  # type: ignore[arg-type]


def says(line: str, situation: IntentExample, prototypes: dict[str, Prototype] | None = None) -> bool:
    return holds(parse_predicate(line), situation, prototypes or {})


# ---------------------------------------------------------------- normalisation


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(st.text())
def test_normalised_text_is_one_line_that_can_be_encoded(text: str) -> None:
    assert len(normalise(text).splitlines()) <= 1
    normalise(text).encode()


def test_full_width_case_and_white_space_do_not_matter() -> None:
    assert normalise(" Ｒed\t\n ＳＨＯＥ　") == "red shoe"
    assert normalise("STRAẞE") == normalise("strasse")


# ---------------------------------------------------------------- text

CHAT = example(
    Turn("user", "Hello, RED shoes"), Turn("agent", "会褪色吗"), Turn("user", "Does it  fade?"), Turn("user", " ")
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('last_user contains "DOES IT FADE"', True),  # the last user turn that has text
        ("last_user contains red", False),
        ('user contains "red shoes"', True),
        ('agent contains "褪色"', True),
        ('user contains "褪色"', False),
        ('any contains "褪色"', True),
        ('any contains "shoes会"', False),  # never across turns
        ("not any contains red", False),
        ("user matches /^hello/", True),
        ("user matches /^does it fade.$/", True),
        ("last_user matches /HELLO/", False),
        ("agent matches /[^a-z]{4}/", True),
    ],
)
def test_text_of_each_role(line: str, expected: bool) -> None:  # noqa: FBT001 (a table)
    assert says(line, CHAT) is expected


def test_nothing_said_holds_no_text_predicate_and_every_negated_one() -> None:
    assert not says("last_user matches /.*/", example())
    assert says('not last_user contains "x"', example())


# ---------------------------------------------------------------- pictures


def picture(width: int = 300, height: int = 300, *lines: tuple[str, float]) -> ImageFacts:
    ocr = tuple(OcrLine(text, 0.9, (0.0, y - 5, 100.0, y + 5)) for text, y in lines)
    return ImageFacts("i", width, height, ocr)


def test_ocr_lines_belong_to_the_third_their_middle_lies_in() -> None:
    seen = example(images=(picture(300, 300, ("Refund", 99.0), ("price", 100.0), ("total", 200.0)),))
    assert says("ocr top contains refund", seen)
    assert says("ocr middle contains price", seen)
    assert says("ocr bottom contains total", seen)
    assert not says("ocr bottom contains refund", seen)
    assert says("ocr contains refund", seen)
    assert says("ocr matches /^tot/", seen)


@pytest.mark.parametrize(
    ("width", "height", "aspect", "size"),
    [
        (400, 500, "tall", "medium"),  # 1.25 times as high as wide
        (401, 500, "square", "medium"),
        (500, 400, "wide", "medium"),
        (199, 200, "square", "small"),
        (800, 800, "square", "large"),
    ],
)
def test_aspect_and_size_of_a_picture(width: int, height: int, aspect: str, size: str) -> None:
    seen = example(images=(picture(width, height),))
    assert [b for b in IMAGE_BUCKETS["aspect"] if says(f"image aspect is {b}", seen)] == [aspect]
    assert [b for b in IMAGE_BUCKETS["size"] if says(f"image size is {b}", seen)] == [size]


@pytest.mark.parametrize(
    ("characters", "amount"), [(0, "none"), (1, "little"), (9, "little"), (10, "some"), (59, "some"), (60, "much")]
)
def test_amount_of_text_in_a_picture(characters: int, amount: str) -> None:
    seen = example(images=(picture(300, 300, ("x" * characters, 10.0)),))
    assert says(f"image text_amount is {amount}", seen)
    assert says(f"image has_text is {'yes' if characters else 'no'}", seen)


def test_attributes_hold_when_some_picture_has_them_and_none_without_pictures() -> None:
    two = example(images=(picture(100, 300), picture(300, 100)))
    assert says("image aspect is tall", two)
    assert says("image aspect is wide", two)
    assert says("image count is two", two)
    assert not says("image aspect is tall", example())
    assert not says("image has_text is no", example())
    assert says("image count is none", example())
    assert says("image count is many", example(images=(picture(),) * 7))


# ---------------------------------------------------------------- items, answers, prototypes


def test_items_by_attribute_and_title() -> None:
    shown = example(items=(Item("1", "Red Running SHOE", {"colour": "Dark Red"}),))
    assert says('item colour is "dark red"', shown)
    assert not says("item colour is red", shown)
    assert not says("item size is red", shown)
    assert says("item title contains shoe", shown)


def test_answers_of_the_language_model_come_from_meta() -> None:
    asked = example(meta={"ask:logo": "Yes"})
    assert says("ask logo is yes", asked)
    assert not says("ask other is yes", asked)
    assert not says("ask other is no", asked)  # not asked is not no


PROTOTYPES = {
    "fade": Prototype("fade", "last_user", np.array([3.0, 4.0], np.float32), 0.8, "does it fade"),
    "label": Prototype("label", "image", np.array([0.0, 1.0], np.float32), 0.5, "a label"),
    "shoes": Prototype("shoes", "cluster", np.array([1.0, 0.0], np.float32), 0.0, "shoes"),
    "shirts": Prototype("shirts", "cluster", np.array([0.0, 1.0], np.float32), 0.0, "shirts"),
}


def test_near_is_a_cosine_at_or_above_the_threshold() -> None:
    """cos((.6, .8), (0, 2)) = .8 and cos((.6, .8), (1, 0)) = .6."""
    assert says("last_user is near fade", example(last_user_vector=np.array([0, 2], np.float32)), PROTOTYPES)
    assert not says("last_user is near fade", example(last_user_vector=np.array([1, 0], np.float32)), PROTOTYPES)
    assert not says("last_user is near fade", example(), PROTOTYPES)
    assert says("not last_user is near fade", example(), PROTOTYPES)


def test_pictures_belong_to_the_nearest_cluster() -> None:
    seen = example(images=(ImageFacts("i", 1, 1, vector=np.array([2, 1], np.float32)), picture()))
    assert says("image cluster is shoes", seen, PROTOTYPES)
    assert not says("image cluster is shirts", seen, PROTOTYPES)
    assert not says('image is near "label"', seen, PROTOTYPES)  # cosine 1 / sqrt(5) = .447


def test_a_missing_prototype_is_named_with_the_nearest_one() -> None:
    with pytest.raises(RuleError, match=r"no prototype 'fades' of scope last_user\. Did you mean 'fade'"):
        says("last_user is near fades", example(), PROTOTYPES)
    with pytest.raises(RuleError, match="no prototype 'label' of scope last_user"):
        says("last_user is near label", example(), PROTOTYPES)


# ---------------------------------------------------------------- written form

values = st.text(min_size=1).filter(lambda v: normalise(v) != "" and all(not 0xD800 <= ord(c) < 0xE000 for c in v))
patterns = st.text(alphabet="ab/不 |.^$\"'#:", min_size=1).filter(lambda p: normalise(p) != "")
names = values.filter(lambda v: v != "title")


@given(
    st.one_of(
        st.builds(Predicate, st.just("text"), st.sampled_from(TEXT_SCOPES), values, st.booleans()),
        st.builds(Predicate, st.just("regex"), st.sampled_from(REGEX_SCOPES), patterns, st.booleans()),
        st.builds(Predicate, st.just("ocr"), st.sampled_from(OCR_REGIONS), values, st.booleans()),
        st.builds(Predicate, st.just("item"), st.one_of(st.just("title"), names), values, st.booleans()),
        st.builds(Predicate, st.just("near"), st.sampled_from(NEAR_SCOPES), values, st.booleans()),
        st.builds(Predicate, st.just("image"), st.just("cluster"), values, st.booleans()),
        st.builds(Predicate, st.just("ask"), values, st.sampled_from(["yes", "no"]), st.booleans()),
        st.sampled_from([Predicate("image", a, b) for a, buckets in IMAGE_BUCKETS.items() for b in buckets]),
    )
)
def test_written_predicates_read_back_the_same(predicate: Predicate) -> None:
    assert parse_predicate(format_predicate(predicate)) == predicate


def test_every_kind_has_a_written_form_and_words_in_both_languages() -> None:
    lines = {
        "text": 'last_user contains "褪色"',
        "regex": "last_user matches /(不|没).{0,3}亮/",
        "ocr": 'not ocr top contains "退款"',
        "image": "image aspect is tall",
        "item": "item colour is red",
        "near": 'last_user is near "fade"',
        "ask": "ask has_logo is yes",
    }
    assert tuple(lines) == PREDICATE_KINDS
    for kind, line in lines.items():
        predicate = parse_predicate(line)
        assert predicate.kind == kind
        assert format_predicate(predicate) == line
        assert describe_predicate(predicate, "en", PROTOTYPES) != describe_predicate(predicate, "zh", PROTOTYPES)


@pytest.mark.parametrize("scope", [("text", s) for s in TEXT_SCOPES] + [("regex", s) for s in REGEX_SCOPES])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_negation_changes_the_words(scope: tuple[str, str], lang: str) -> None:
    plain = Predicate(*scope, "x")  # type: ignore[arg-type]
    negated = Predicate(*scope, "x", negated=True)  # type: ignore[arg-type]
    assert describe_predicate(plain, lang) != describe_predicate(negated, lang)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('last_user contain "x"', "not a predicate; write one of: last_user contains"),
        ("lastuser contains x", "unknown scope 'lastuser'.*Did you mean 'last_user'"),
        ("image aspect is tal", "unknown value of image aspect 'tal'.*Did you mean 'tall'"),
        ("image colour is red", "unknown image attribute 'colour'"),
        ('ocr contains ""', "the value is empty"),
        ('user contains "　"', "the value is empty"),
        ('user contains "a', "quotes are not closed"),
        ("user contains red shoe", "unexpected 'shoe' after 'red'; put values of several words in quotes"),
        ("user matches fade", "between slashes"),
        ("item title is x", "expected `contains`, found 'is'"),
        ("ask q is maybe", "unknown answer 'maybe'"),
        ("", "not a predicate"),
        ("not", "not a predicate"),
    ],
)
def test_malformed_lines_say_what_is_wrong_and_what_is_known(line: str, complaint: str) -> None:
    with pytest.raises(RuleError, match=complaint) as caught:
        parse_predicate(line)
    assert line.strip() in str(caught.value)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        (r"(a)b\1", r"\\1 at position 5. RE2 has no backreferences"),
        ("ab(?=c)", r"\(\?= at position 3. RE2 has no lookahead"),
        ("(?<!a)b", "at position 1. RE2 has no lookahead or lookbehind"),
        ("a{2000}", "at position 2. RE2 counts to 1000 at most"),
        ("(a", r"missing \)"),
        ("[z-a]", "z-a at position 2"),
        ("((a{100}){100}){100}", "bad repetition|too large|invalid repetition"),
        ("a\nb", "line break"),
        ("x" * 1001, "has 1001 characters, at most 1000"),
    ],
)
def test_patterns_that_re2_cannot_run_are_refused_with_the_place(pattern: str, complaint: str) -> None:
    with pytest.raises(RuleError, match=complaint):
        check_predicate(Predicate("regex", "user", pattern))


def test_a_catastrophic_pattern_is_harmless() -> None:
    """Backtracking would take 2^n steps; here 100,000 characters are searched in linear time."""
    assert compile_regex("(a+)+$").search("a" * 100_000 + "!") is None


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        ("(不|没).{0,3}亮", "亮"),
        ("^Red$", "red"),
        ("abc+d", "abc"),
        ("abc?d", "ab"),
        ("ab{0,2}c", "a"),
        ("a|b", None),
        ("(?i)abc", None),
        (r"a\d", None),
        ("[]a]b", None),
        ("[[:alpha:]x]y", None),
        ("[a-z]+", None),
        ("é", None),  # has case, so it is left out
    ],
)
def test_the_literal_that_every_match_contains(pattern: str, literal: str | None) -> None:
    assert required_literal(pattern) == literal


@given(st.text(alphabet="ab亮不|()[]{}?*+.^$-,:02\\ ", min_size=1), st.text(alphabet="ab亮不()[]{}?*+. 02"))
def test_a_match_always_contains_the_required_literal(pattern: str, text: str) -> None:
    literal = required_literal(pattern)
    try:
        compiled = compile_regex(pattern)
    except RuleError:
        return
    if literal is not None and compiled.search(normalise(text)) is not None:
        assert normalise(literal) in normalise(text)


# ---------------------------------------------------------------- rules in words


def test_a_rule_in_words_with_its_record() -> None:
    conditions = (parse_predicate('last_user contains "褪色"'), parse_predicate("image aspect is tall"))
    rule = Rule("r", "t", "是否易褪色", conditions, measure(12, 11, 500))
    assert describe_rule(rule) == (
        "the customer's last message contains “褪色” and the picture is tall → 是否易褪色 (right 11 of 12 times)"
    )
    assert describe_rule(rule, "zh") == ("顾客最后一句话里有“褪色”，且图片形状是竖长 → 是否易褪色（12 次中 11 次正确）")
    unmeasured = Rule("r", "t", "a", (parse_predicate("last_user is near fade"),), UNMEASURED)
    assert describe_rule(unmeasured, "en", PROTOTYPES) == (
        "the customer's last message means something like “does it fade” → a (not measured yet)"
    )


@pytest.mark.parametrize(
    ("scope", "words", "en", "zh"),
    [
        ("last_user", CENTRE.format("refund"), "is like known ones labelled “refund”", "与“refund”类的已知例句相似"),
        ("last_user", CONTRAST.format("退款"), "has what sets “退款” apart", "有“退款”类区别于其他类的特征"),
        ("image", CENTRE.format("a of b"), "the picture is like known ones labelled “a of b”", "“a of b”类的已知图片"),
        ("image", CONTRAST.format("size"), "the picture has what sets “size” apart", "图片有“size”类区别于其他类"),
        ("image", PICTURE.format("d7"), "looks like that of dialogue d7", "图片与对话 d7 中的图片相似"),
    ],
)
def test_what_mining_found_is_told_in_the_readers_language(scope: str, words: str, en: str, zh: str) -> None:
    """No English stays in the Chinese words, and an absence is told as one."""
    near = Predicate("near", scope, "p")  # type: ignore[arg-type]
    prototypes = {"p": Prototype("p", scope, np.array([1.0, 0.0], np.float32), 0.5, words)}
    assert en in describe_predicate(near, "en", prototypes)
    told = describe_predicate(near, "zh", prototypes)
    assert zh in told
    assert "examples" not in told
    for lang in ("en", "zh"):
        absent = describe_predicate(replace(near, negated=True), lang, prototypes)
        assert absent != describe_predicate(near, lang, prototypes)


def test_a_customers_words_are_quoted_as_they_are() -> None:
    prototypes = {"p": Prototype("p", "last_user", np.array([1.0, 0.0], np.float32), 0.5, "a picture of a shoe")}
    told = describe_predicate(Predicate("near", "last_user", "p"), "en", prototypes)
    assert told == "the customer's last message means something like “a picture of a shoe”"


def test_wilson_bound_of_eleven_of_twelve() -> None:
    """p = .9167, z² = 3.8415: (.9167 + .16006 − 1.96·√(.006366 + .006669)) / 1.32012 = .6461."""
    assert wilson_lower(11, 12) == pytest.approx(0.6461, abs=1e-4)
    assert wilson_lower(0, 0) == 0.0
    assert wilson_lower(0, 5) == pytest.approx(0.0, abs=1e-12)


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_wilson_bound_never_exceeds_the_precision(hits: int, misses: int) -> None:
    stats = measure(hits + misses, hits, 200)
    assert 0.0 <= stats.wilson_lower <= stats.precision + 1e-12 <= 1.0 + 1e-12


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="hits <= support <= examples"):
        measure(2, 3, 10)
