"""Regular expressions written by people, run only by RE2: linear time whatever the pattern."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

import re2

from mmd.errors import RuleError

MAX_PATTERN_CHARS = 1000
MAX_PATTERN_BYTES = 1 << 20  # memory of one compiled pattern; RE2 refuses larger ones
MAX_SET_BYTES = 64 << 20  # memory of patterns searched together, most of it a cache that fills on demand


@functools.lru_cache(maxsize=1)
def regex_options() -> Any:  # noqa: ANN401 (re2 is untyped)
    """Return RE2's options: case-insensitive, bounded memory, no output of its own."""
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = MAX_PATTERN_BYTES
    options.log_errors = False
    return options


def set_options() -> Any:  # noqa: ANN401 (re2 is untyped)
    """Return the options of a set of patterns: as for one, with the memory a joint automaton needs."""
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = MAX_SET_BYTES
    options.log_errors = False
    return options


@functools.lru_cache(maxsize=16384)
def compile_regex(pattern: str) -> Any:  # noqa: ANN401 (re2 is untyped)
    """Compile a pattern with RE2, whose time is linear in the text whatever the pattern.

    Raises:
        RuleError: RE2 cannot run it; the message names the place in the pattern and the way out.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise RuleError(f"the pattern has {len(pattern)} characters, at most {MAX_PATTERN_CHARS} are taken; split it.")
    if any(char in "\r\n" for char in pattern):
        raise RuleError(r"the pattern contains a line break; a turn is searched as one line, write \s instead.")
    try:
        return re2.compile(pattern, regex_options())
    except UnicodeEncodeError as err:
        raise RuleError(f"the pattern has half a surrogate pair at position {err.start + 1}; remove it.") from err
    except re2.error as err:
        raise RuleError(_explain_regex(pattern, _message_of(err))) from err


def _message_of(err: Exception) -> str:
    detail = err.args[0] if err.args else ""
    return detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)


def _explain_regex(pattern: str, message: str) -> str:
    reason, _, fragment = message.partition(": ")
    found = pattern.find(fragment) if fragment else -1
    place = f" at position {found + 1}" if found >= 0 else ""
    return f"pattern /{pattern}/: {message}{place}. {_regex_way_out(reason, fragment)}"


def _regex_way_out(reason: str, fragment: str) -> str:
    if fragment.startswith("(?") and "perl operator" in reason:
        return "RE2 has no lookahead or lookbehind (its time is linear); add a second predicate, or `not … matches`."
    if re.fullmatch(r"\\[1-9k].*", fragment):
        return "RE2 has no backreferences (its time is linear); write the alternatives out."
    if "repetition size" in reason:
        return "RE2 counts to 1000 at most; use * or +."
    if "too large" in reason:
        return "Use smaller repetition counts."
    return r"See github.com/google/re2/wiki/Syntax; put \ before a character that is meant literally."


def required_literal(pattern: str) -> str | None:
    """Return the longest text that every match surely contains, or None when none is plain to see.

    Only literals outside groups, classes and alternatives count, of characters that case and normalisation leave
    alone (ASCII letters aside, which are case-folded). It lets a matcher try a pattern only where a word occurs.
    """
    plain = _outside_groups(pattern)
    if "|" in plain or "(?" in pattern.replace("(?:", "") or any(odd in pattern for odd in _ODD):
        return None
    runs = [""]
    for char, following in zip(plain, [*plain[1:], ""], strict=True):
        if _is_plain(char) and following not in ("?", "*", "{"):
            runs[-1] += char.casefold()
        else:
            runs.append("")
    best = max(runs, key=len).strip()
    return best if best and unicodedata.is_normalized("NFKC", best) else None


_ODD = ("\\", "[]", "[^]", "[:")  # escapes, and classes that a bracket does not end


def _outside_groups(pattern: str) -> str:
    """Return the pattern with each group and class replaced by ``.`` and each repetition count by ``{``."""
    closing = {"(": ")", "[": "]", "{": "}"}
    out: list[str] = []
    stack: list[str] = []
    for char in pattern:
        if stack and stack[-1] == "]" and char != "]":
            continue  # inside a class nothing opens
        if char in closing:
            if not stack:
                out.append("{" if char == "{" else ".")
            stack.append(closing[char])
        elif stack and char == stack[-1]:
            stack.pop()
        elif not stack:
            out.append(char)
    return "".join(out)


def _is_plain(char: str) -> bool:
    if char.isascii():
        return char.isalnum() or char in " ,;:!=<>'\"%&@#~`_-"
    return char.casefold() == char == char.upper() and unicodedata.is_normalized("NFKC", char)
