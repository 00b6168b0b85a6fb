"""Guides and pages of papers: links lead somewhere, numbers are the records', settings and commands exist."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.glue.entry import corpus_overrides
from jobs.glue.job_command import parser_of
from mmd import cli
from mmd.config import AppConfig, describe_settings, load_config
from tests.docs.pages import (
    DOCS,
    GUIDES,
    PAGES,
    PAPERS,
    ROOT,
    commands,
    linked_files,
    look_up,
    prose,
    quoted,
    undefined,
)

SECTIONS = "|".join(AppConfig.model_fields)
SETTING = re.compile(rf"`(?:--set )?'?((?:{SECTIONS})(?:\.[a-z0-9_]+)+)(?:=[^`]*)?`")
KEYS = {key for key, _, _ in describe_settings()}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


@each_page
def test_links_lead_to_files(page: Path):
    assert [target for target in linked_files(page) if not (page.parent / target).exists()] == []


@each_page
def test_references_are_defined_and_used(page: Path):
    assert undefined(page) == set()


@each_page
def test_numbers_marked_as_a_records_are_the_records(page: Path):
    assert [wrong for one in quoted(page) if (wrong := one.differs())] == []


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.stem)
def test_pages_of_papers_quote_records(page: Path):
    assert len(quoted(page)) > 20


def test_index_links_to_every_page():
    linked = {(DOCS / target).resolve() for target in linked_files(DOCS / "README.md")}
    assert {page.resolve() for page in (*PAGES, *DOCS.glob("*.md"))} - {DOCS / "README.md"} <= linked


@each_page
def test_settings_that_a_page_names_exist(page: Path):
    named = set(SETTING.findall(prose(page)))
    assert {name for name in named if name not in KEYS and not any(key.startswith(f"{name}.") for key in KEYS)} == set()


@each_page
def test_commands_of_a_page_parse(page: Path):
    for words in commands(page):
        check(words)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guides_show_commands(page: Path):
    assert sum(words[0] == "mmd" for words in commands(page)) >= 5


def check(words: Sequence[str]) -> None:
    """Parse a command of mmd as it would itself, settings included; others pass."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
    elif words[:3] == ["ray", "job", "submit"] and "--" in words:
        check(words[words.index("--") + 1 :])
    elif words[:2] == ["python", "-m"] and words[2].startswith("jobs."):
        check_mmd(words[2].removeprefix("jobs.").replace("experiments", "experiment"), words[3:])
    elif words[0] == "mmd":
        check_mmd(words[1].replace("-", "_"), words[2:])


def check_mmd(verb: str, arguments: Sequence[str]) -> None:
    if verb == "submit":
        args, rest = importlib.import_module("jobs.submit").build_parser().parse_known_args(arguments)
        if args.job:
            check_mmd(args.job, rest)
        return
    if verb in cli.JOBS:
        parser = parser_of(verb, arguments)
    elif verb in cli.SERVING:
        parser = importlib.import_module(cli.SERVING[verb][0]).build_parser()
    else:
        parser, arguments = cli.build_parser(), [verb, *arguments]
    args = vars(parser.parse_args(arguments))
    corpus = args.get("corpus") if verb in cli.JOBS and verb != "bench" else None
    overrides = [*corpus_overrides(corpus), *(args.get("overrides") or ())]
    load_config(ROOT / "ray_config.yaml", profile=args.get("profile"), overrides=overrides)


def test_commands_are_taken_out_of_a_page(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\n"
        'S="--set seed=1 \\\n   --force"   \n'
        "mmd ingest $S && MMD_API_KEY=x mmd chat   # say something\n"
        "cat > a.txt <<'END'\nmmd nonsense\nEND\n"
        "echo hi | mmd chat --language en\n"
        "```\n```\nmmd output\n```\n"
    )
    assert list(commands(page)) == [
        ["mmd", "ingest", "--set", "seed=1", "--force"],
        ["mmd", "chat"],
        ["cat"],
        ["a.txt"],
        ["END"],
        ["echo", "hi"],
        ["mmd", "chat", "--language", "en"],
    ]


@pytest.mark.parametrize(
    ("shown", "value", "same"),
    [
        (".75", 0.7508, True),
        (".751", 0.7495, False),
        ("−.02", -0.0174, True),
        ("+76 %", 0.7589, True),
        ("4.33 M", 4329728, True),
    ],
)
def test_a_number_is_compared_as_it_is_rounded(tmp_path: Path, shown: str, value: float, same: object):
    (tmp_path / "r.json").write_text(f'{{"a": [{{"k": "x", "v": {value}}}, {{"k": "y", "v": 9}}]}}')
    (tmp_path / "p.md").write_text(f'[{shown}][n]\n\n[n]: r.json "a[k=x] > v"\n')
    (one,) = quoted(tmp_path / "p.md")
    assert (one.differs() is None) == same


def test_a_path_chooses_the_one_entry_that_fits():
    assert look_up({"a": [{"k": "x", "v": [1]}, {"k": "y", "v": 2}]}, "a[k=y] > v") == 2
