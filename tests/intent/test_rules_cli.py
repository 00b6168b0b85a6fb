"""``mmd rules`` from the command line: answers, exit codes, and errors without a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pytest

from mmd import schema
from mmd.artifacts import ArtifactStore
from mmd.cli import main
from mmd.intent.rulebase import RULES_FILE, RuleBase
from mmd.intent.rules import measure
from mmd.schema import Dialogue, Turn

RULES = """\
format_version: 1
defaults: {intent: other}
rules:
  intent:
    fading:
      - id: fade
        if: [last_user contains "fade"]
        stats: {support: 2, hits: 2, precision: 1.0, wilson_lower: 0.3424, coverage: 0.5}
"""
SAID = [
    ("d1", "does it fade", "fading"),
    ("d2", "will it fade", "fading"),
    ("d3", "hello", "other"),
    ("d4", "colour loss", "fading"),
]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with a corpus ``toy`` of four dialogues and the rule base mined from it."""
    made = ArtifactStore(str(tmp_path / "store"))
    rows = [
        schema.dialogue_to_row(Dialogue(name, "toy", "train", (Turn("user", text),), {"intent": label}))
        for name, text, label in SAID
    ]
    with made.write("corpus", "toy", settings={}) as writer:
        writer.write_table("dialogues", pa.Table.from_pylist(rows, schema=schema.DIALOGUES))
        writer.write_json("tasks.json", {"intent": ["fading", "other"]})
        writer.write_json("summary.json", {})
    base = RuleBase.from_yaml(RULES)
    with made.write("rulebase", "toy", settings={}) as writer:
        RuleBase(base.rules, defaults=base.defaults, meta={"corpus": "corpus/toy"}).save(writer)
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text("features: {ocr: none, text: none, vision: descriptor}\n", encoding="utf-8")
    return path


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    folder = tmp_path / "edited"
    folder.mkdir()
    added = "      - id: loss\n        if: ['user contains \"colour loss\"']\n"
    (folder / RULES_FILE).write_text(RULES.replace("meta: {}", "") + added, encoding="utf-8")
    return folder


def rules(capsys: pytest.CaptureFixture[str], store: ArtifactStore, *arguments: str) -> tuple[int, str]:
    code = main(["rules", *arguments, "--store", store.uri])
    return code, capsys.readouterr().out


def test_show_prints_rules_with_their_record(capsys: pytest.CaptureFixture[str], store: ArtifactStore) -> None:
    code, out = rules(capsys, store, "show", "toy")
    assert code == 0
    assert 'last_user contains "fade"' in out
    assert "1 rules. Defaults: intent other. Made from: corpus corpus/toy." in out
    assert "顾客最后一句话里有“fade”" in rules(capsys, store, "show", "toy", "--words", "--lang", "zh")[1]


def test_show_exports_a_base_that_can_be_read_again(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, tmp_path: Path
) -> None:
    assert rules(capsys, store, "show", "rulebase/toy", "--to", str(tmp_path / "out"))[0] == 0
    assert RuleBase.load_path(tmp_path / "out").rules == RuleBase.load(store.open("rulebase/toy")).rules


def test_explain_a_text_with_the_conditions_of_a_rule(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, config: Path
) -> None:
    arguments = ("explain", "toy", "--text", "Does it FADE?", "--rule", "fade", "--config", str(config))
    code, out = rules(capsys, store, *arguments)
    assert code == 0
    assert "intent: fading, by fade" in out
    assert "the customer's last message contains “fade” → fading (right 2 of 2 times)" in out
    assert 'yes last_user contains "fade"' in out


def test_explain_falls_back_on_the_default(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, config: Path
) -> None:
    code, out = rules(capsys, store, "explain", "toy", "--text", "hi", "--config", str(config))
    assert (code, out.strip()) == (0, "intent: other, the default, since no rule fires")


def test_explain_a_picture(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tall"
    folder.mkdir()
    (folder / RULES_FILE).write_text(
        RULES.replace('last_user contains "fade"', "image aspect is tall"), encoding="utf-8"
    )
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (40, 90)).save(encoded, "PNG")
    (tmp_path / "tall.png").write_bytes(encoded.getvalue())
    picture = ("--image", str(tmp_path / "tall.png"), "--config", str(config))
    code, out = rules(capsys, store, "explain", str(folder), *picture)
    assert (code, "intent: fading, by fade" in out) == (0, True)


def test_explain_a_stored_dialogue_with_its_label(capsys: pytest.CaptureFixture[str], store: ArtifactStore) -> None:
    code, out = rules(capsys, store, "explain", "toy", "--dialogue", "d4")
    assert (code, out.strip()) == (0, "intent: other, the default, since no rule fires; its label is fading")


def test_lint_checks_against_the_bases_own_corpus(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, edited: Path
) -> None:
    code, out = rules(capsys, store, "lint", "toy")
    assert code == 0
    assert "note: intent: other: no enabled rule speaks for it" in out
    text = (edited / RULES_FILE).read_text(encoding="utf-8").replace("colour loss", "never said")
    (edited / RULES_FILE).write_text(text, encoding="utf-8")
    assert "holds on none of 4 examples" in rules(capsys, store, "lint", str(edited), "--corpus", "toy")[1]


def test_lint_exits_with_one_when_a_rule_can_never_fire(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, edited: Path
) -> None:
    text = (edited / RULES_FILE).read_text(encoding="utf-8")
    (edited / RULES_FILE).write_text(text.replace('"fade"]', '"fade", not user contains "fade"]'), encoding="utf-8")
    code, out = rules(capsys, store, "lint", str(edited))
    assert (code, "never hold together" in out) == (1, True)


def test_edit_check_says_what_changes_and_how_it_does(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, edited: Path
) -> None:
    code, out = rules(capsys, store, "edit-check", "toy", str(edited))
    assert code == 0
    assert 'added: loss: `user contains "colour loss"` → intent: fading' in out
    assert "measured: loss: right 1 of 1 times" in out
    assert "1 of 4 training examples fire other rules, 1 get another answer" in out
    assert "right by rules alone: 3 before, 4 after" in out
    assert "d4: other → fading (its label: fading)" in out
    assert RuleBase.load_path(edited).rule("loss").stats.support == 0  # nothing was written


def test_edit_check_writes_statistics_and_adopts_the_edit(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, edited: Path
) -> None:
    code, _ = rules(capsys, store, "edit-check", "toy", str(edited), "--write", "--adopt", "toy")
    assert code == 0
    assert RuleBase.load_path(edited).rule("loss").stats == measure(1, 1, 4)
    adopted = RuleBase.load(store.open("rulebase/toy"))
    assert [r.id for r in adopted.rules] == ["fade", "loss"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show", "nothing"), "neither a file nor an artefact"),
        (("show", "missing.yaml"), "No such file"),
        (("show", "toy", "--label", "x"), "no rule has it; there are fading"),
        (("explain", "toy"), "nothing to explain; give --text, --image or --dialogue"),
        (("explain", "toy", "--text", " "), "nothing to explain"),
        (("explain", "toy", "--text", "x", "--task", "scene"), "the base has intent"),
        (("explain", "toy", "--dialogue", "d9"), "no labelled dialogue of the corpus has this id"),
        (("explain", "toy", "--image", "missing.png"), "No such file"),
        (("lint", "toy", "--corpus", "nothing"), "no complete artefact"),
    ],
)
def test_mistakes_exit_with_two_and_a_way_out(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, config: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    code, out = rules(capsys, store, *arguments, "--config", str(config))
    assert code == 2
    assert complaint in out
    assert "Traceback" not in out


def test_a_catastrophic_or_unsupported_pattern_in_a_hand_edit_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], store: ArtifactStore, edited: Path
) -> None:
    text = (edited / RULES_FILE).read_text(encoding="utf-8")
    (edited / RULES_FILE).write_text(
        text.replace('last_user contains "fade"', "user matches /(a+)+$/"), encoding="utf-8"
    )
    assert rules(capsys, store, "lint", str(edited))[0] == 0
    (edited / RULES_FILE).write_text(
        text.replace('last_user contains "fade"', r"user matches /(a)\1/"), encoding="utf-8"
    )
    code, out = rules(capsys, store, "lint", str(edited))
    assert code == 2
    assert f"{RULES_FILE}:7: rule fade" in out
    assert "backreferences" in out
