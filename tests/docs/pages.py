"""Pages of docs/ taken apart: their shell commands, links, and numbers that stand for a record's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAPERS = sorted((DOCS / "papers").glob("*.md"))
PAGES = [DOCS / "README.md", DOCS / "api.md", *GUIDES, *PAPERS]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?\s*$")
_VARIABLE = re.compile(r"([A-Z_][A-Z0-9_]*)=(\"[^\"]*\"|'[^']*'|\S*)")
_ENDS = frozenset({"&&", "||", "|", ";", "&", "(", ")", "<", ">", ">>", "<<"})
_DEFINITION = re.compile(r'^\[([^\]]+)\]: (\S+)(?: "([^"]*)")?$', re.MULTILINE)
_REFERENCE = re.compile(r"\[([^\]]+)\]\[([^\]]+)\]")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SEGMENT = re.compile(r"([^\[]*)((?:\[[^\]]*\])*)")


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _references(text: str) -> list[tuple[str, str]]:
    """Return (shown, name) of each reference-style link."""
    return _REFERENCE.findall(_DEFINITION.sub("", text))


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each simple command in the page's ``bash`` blocks; files that they write are skipped."""
    variables: dict[str, str] = {}
    for kind, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "bash":
            for line in _logical_lines(block):
                plain = _filled_in(line, variables)
                if assigned := _VARIABLE.fullmatch(plain):
                    variables[assigned[1]] = assigned[2].strip("\"'")
                else:
                    yield from _simple_commands(plain)


def _logical_lines(block: str) -> Iterator[str]:
    lines = iter(block.replace("\\\n", " ").splitlines())
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()
        if opened := _HEREDOC.search(line):
            for body in lines:
                if body == opened[1]:
                    break


def _filled_in(line: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        line = line.replace(f"${{{name}}}", value)
        line = re.sub(rf"\${name}\b", lambda _, value=value: value, line)
    return line


def _simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in _ENDS:
            if words:
                yield words
            words = []
        elif words or not _VARIABLE.fullmatch(word):  # NAME=VALUE before a command is its environment
            words.append(word)


def linked_files(page: Path) -> list[str]:
    """Return the targets of the page's links that are no addresses on the network, without their anchors."""
    text = prose(page)
    targets = [*_LINK.findall(text), *(target for _, target, _ in _DEFINITION.findall(text))]
    return [target.split("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


@dataclass(frozen=True)
class Quoted:
    """A number that a page takes from a record: ``[.751][gated]``, ``[gated]: ../results/R.json "a > b[c=d] > e"``."""

    page: Path
    shown: str
    record: Path
    path: str

    def differs(self) -> str | None:
        """Return how the record's number differs from the one shown, None where rounding it gives what is shown."""
        value = look_up(json.loads(self.record.read_text(encoding="utf-8")), self.path)
        number, unit = _read(self.shown)
        if abs(value / unit - float(number)) <= 0.5 * 10 ** -len(number.partition(".")[2]) + 1e-9:
            return None
        return f"{self.page.name}: {self.shown} is {value} in {self.record.name}, {self.path}"


def _read(shown: str) -> tuple[str, float]:
    """Return digits and unit of a number as pages write it: ``−.017``, ``+76 %``, ``4.33 M``."""
    number, _, unit = shown.strip("*").replace("−", "-").removeprefix("+").replace(",", "").partition(" ")
    return number, {"": 1.0, "%": 0.01, "M": 1e6}[unit]


def look_up(record: Any, path: str) -> float:
    """Return the number at ``a > b[key=value] > c`` of a record; a bracket chooses the one entry of a list."""
    for part in path.split(" > "):
        found = _SEGMENT.fullmatch(part)
        assert found, part
        record = record[found[1]]
        wanted = dict(pair.split("=", 1) for pair in re.findall(r"\[([^\]]*)\]", found[2]))
        if wanted:
            (record,) = [one for one in record if all(str(one[key]) == value for key, value in wanted.items())]
    return float(record)


def quoted(page: Path) -> list[Quoted]:
    """Return the numbers of a page that are marked as a record's."""
    text = prose(page)
    marked = {name: (target, path) for name, target, path in _DEFINITION.findall(text) if path}
    return [
        Quoted(page, shown, (page.parent / marked[name][0]).resolve(), marked[name][1])
        for shown, name in _references(text)
        if name in marked
    ]


def undefined(page: Path) -> set[str]:
    """Return names of references that the page does not define, and definitions that it does not use."""
    text = prose(page)
    return {name for _, name in _references(text)} ^ {name for name, _, _ in _DEFINITION.findall(text)}
