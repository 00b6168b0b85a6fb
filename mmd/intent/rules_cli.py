"""``mmd rules show | explain | lint | edit-check``: rule bases for people."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from mmd.artifacts import Artifact, ArtifactStore, version_for
from mmd.config import AppConfig, add_settings_options, load_config
from mmd.corpora.base import ImageSource
from mmd.corpora.images import ImageLoader
from mmd.corpora.store import Corpus
from mmd.errors import ArtifactError, BadRecordError, RequestError, RuleError
from mmd.features.store import Features
from mmd.intent.edits import Change, Effect, changes, measure_effect, remeasure
from mmd.intent.examples import load_examples, make_example
from mmd.intent.gate import load_gates
from mmd.intent.lint import Finding, lint
from mmd.intent.matcher import CompiledRules
from mmd.intent.predicates import format_predicate, holds
from mmd.intent.rulebase import RULES_FILE, RuleBase, check_labels
from mmd.intent.rules import UNMEASURED, Rule
from mmd.intent.types import IntentExample
from mmd.intent.wording import describe_predicate, describe_rule
from mmd.schema import Dialogue, Image, Turn
from mmd.tables import plain_table

_console = Console(highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- arguments


def add_subcommands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four actions to ``mmd rules``."""
    show = _action(subparsers, "show", "print rules with their statistics, or export them for editing")
    show.add_argument("--task", help="only this task")
    show.add_argument("--label", help="only this label")
    show.add_argument("--limit", type=int, help="at most so many rules a label")
    show.add_argument("--words", action="store_true", help="whole sentences instead of the written conditions")
    show.add_argument("--to", type=Path, metavar="FOLDER", help="write the base there as files to edit")
    show.add_argument("--force", action="store_true", help="with --to: overwrite a base that is there")
    explain = _action(subparsers, "explain", "say which rules fire on a dialogue, and why")
    explain.add_argument("--text", action="append", default=[], help="a message of the customer; repeat for more")
    explain.add_argument("--image", type=Path, action="append", default=[], help="a picture of the last message")
    explain.add_argument("--dialogue", metavar="ID", help="a dialogue of the corpus instead")
    explain.add_argument("--task", help="only this task")
    explain.add_argument("--rule", metavar="ID", help="also tell each condition of this rule")
    _action(subparsers, "lint", "name contradictions, duplicates, rules that never fire, …")
    check = _action(subparsers, "edit-check", "say what a hand edit changes", rules=False)
    check.add_argument("old", help="rule base before: folder, YAML file or artefact")
    check.add_argument("new", help="rule base after: folder or YAML file")
    check.add_argument("--write", action="store_true", help="write measured statistics into NEW")
    check.add_argument("--adopt", metavar="NAME", help="store NEW, measured, as artefact rulebase/NAME")


def _action(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, *, rules: bool = True
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=what, description=what)
    parser.set_defaults(action=name)
    if rules:
        parser.add_argument("rules", help=f"folder, {RULES_FILE} file, or artefact NAME[@VERSION]")
    parser.add_argument("--corpus", metavar="NAME", help="corpus (and features) artefact; default: the base's own")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the words (default: en)")
    parser.add_argument("--store", help="artefact store (default: the settings' store)")
    add_settings_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one action; return its exit code (``lint``: 1 when there is an error).

    Raises:
        MmdError: a file, artefact, rule, label or dialogue is not what it should be.
    """
    actions = {"show": _show, "explain": _explain, "lint": _lint, "edit-check": _edit_check}
    return actions[args.action](args)


@dataclass(frozen=True)
class _Place:
    """Where rule bases and corpora are looked up; the settings file is read only when something needs it."""

    args: argparse.Namespace

    @cached_property
    def config(self) -> AppConfig:
        return load_config(self.args.config, profile=self.args.profile, overrides=self.args.overrides)

    @cached_property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.args.store or self.config.store)

    def base(self, ref: str) -> tuple[RuleBase, Artifact | None]:
        """Load a rule base from a path or an artefact.

        Raises:
            RuleError: neither is there, or the base is malformed.
        """
        path = Path(ref)
        if path.exists() or path.suffix in (".yaml", ".yml"):
            return RuleBase.load_path(path), None
        try:
            artifact = self.store.open(ref if ref.startswith("rulebase/") else f"rulebase/{ref}")
        except ArtifactError as err:
            raise RuleError(f"{ref}: neither a file nor an artefact ({err})") from err
        return RuleBase.load(artifact), artifact

    def data(self, base: RuleBase) -> tuple[Corpus, Features | None] | None:
        """Open the corpus and features asked for, else those the base was mined from if they are there.

        Raises:
            ArtifactError: a corpus was asked for and is not there.
        """
        asked = self.args.corpus
        corpus_ref = f"corpus/{asked}" if asked else base.meta.get("corpus")
        features_ref = f"features/{asked}" if asked else base.meta.get("features")
        if not corpus_ref:
            return None
        try:
            corpus = Corpus(self.store.open(corpus_ref))
        except ArtifactError:
            if asked:
                raise
            return None
        return corpus, self._features(features_ref)

    def _features(self, ref: str | None) -> Features | None:
        try:
            return Features(self.store.open(ref)) if ref else None
        except ArtifactError:
            return None

    def need_data(self, base: RuleBase) -> tuple[Corpus, Features | None]:
        """Like :meth:`data`, but there must be a corpus.

        Raises:
            RequestError: the base names none that is there.
        """
        found = self.data(base)
        if found is None:
            raise RequestError("this needs a corpus, and the base's own is not in the store; name one with --corpus.")
        return found


# ---------------------------------------------------------------- show


def _save_to(base: RuleBase, folder: Path, *, force: bool) -> None:
    if (folder / RULES_FILE).exists() and not force:
        raise RuleError(
            f"{folder / RULES_FILE}: is there already, perhaps edited; name another folder, or add --force."
        )
    try:
        base.save_folder(folder)
    except OSError as err:
        raise RuleError(f"{folder}: cannot be written ({err.strerror}); name a folder of your own.") from err


def _show(args: argparse.Namespace) -> int:
    base, _ = _Place(args).base(args.rules)
    if args.to:
        _save_to(base, args.to, force=args.force)
        _print(f"{len(base.rules)} rules written to {args.to / RULES_FILE}; edit that file, then run edit-check.")
        return 0
    rules = _chosen(base, args.task, args.label)
    for task, label in dict.fromkeys((rule.task, rule.label) for rule in rules):
        own = [rule for rule in rules if (rule.task, rule.label) == (task, label)]
        table = plain_table("rule", "if", "right", "of", "≥", title=f"{task} → {label}")
        for rule in own[: args.limit]:
            table.add_row(*(_escape(cell) for cell in _row(rule, base, args)))
        _console.print(table)
    _print(f"{len(rules)} rules. Defaults: {_pairs(base.defaults)}. Made from: {_pairs(base.meta)}.")
    return 0


def _chosen(base: RuleBase, task: str | None, label: str | None) -> list[Rule]:
    for name, value, known in (
        ("task", task, sorted({r.task for r in base.rules})),
        ("label", label, sorted({r.label for r in base.rules if task in (None, r.task)})),
    ):
        if value is not None and value not in known:
            raise RuleError(f"--{name} {value!r}: no rule has it; there are {', '.join(known) or 'none'}.")
    return [r for r in base.rules if task in (None, r.task) and label in (None, r.label)]


def _row(rule: Rule, base: RuleBase, args: argparse.Namespace) -> tuple[str, ...]:
    if args.words:
        conditions = "\n".join(describe_predicate(p, args.lang, base.prototypes) for p in rule.predicates)
    else:
        conditions = "\n".join(format_predicate(p) for p in rule.predicates)
    name = rule.id if rule.enabled else f"{rule.id} (off)"
    if rule.stats == UNMEASURED:
        return name, conditions, "–", "–", "–"
    return name, conditions, str(rule.stats.hits), str(rule.stats.support), f"{rule.stats.wilson_lower:.2f}"


# ---------------------------------------------------------------- explain


def _explain(args: argparse.Namespace) -> int:
    place = _Place(args)
    base, _ = place.base(args.rules)
    tasks = [args.task] if args.task else list(base.tasks)
    if args.task and args.task not in base.tasks:
        raise RuleError(f"--task {args.task!r}: the base has {', '.join(base.tasks) or 'none'}.")
    for example in _examples_to_explain(place, base, tasks):
        _explain_one(base, example, args)
    return 0


def _examples_to_explain(place: _Place, base: RuleBase, tasks: Sequence[str]) -> list[IntentExample]:
    args = place.args
    if args.dialogue:
        return _stored_examples(place, base, tasks)
    if not (any(text.strip() for text in args.text) or args.image):
        raise RequestError("nothing to explain; give --text, --image or --dialogue.")
    loader = ImageLoader(None, place.config.data.limits) if args.image else None
    images = [_load_image(loader, path) for path in args.image if loader]
    texts = args.text or [""]
    ids = tuple(image.id for image in images)
    turns = tuple(Turn("user", t, ids if n == len(texts) - 1 else ()) for n, t in enumerate(texts))
    dialogue = Dialogue("given", "command line", "test", turns)
    return _online_examples(place, base, dialogue, {image.id: image for image in images}, tasks)


def _load_image(loader: ImageLoader, path: Path) -> Image:
    try:
        return loader.load(ImageSource(data=path.read_bytes()))
    except OSError as err:
        raise RequestError(f"--image {path}: {err.strerror or err}.") from err
    except BadRecordError as err:
        raise RequestError(f"--image {path}: {err.detail} ({err.reason}).") from err


def _online_examples(
    place: _Place, base: RuleBase, dialogue: Dialogue, images: Mapping[str, Image], tasks: Sequence[str]
) -> list[IntentExample]:
    """Compute features the way the service does, as far as the base's predicates can use them."""
    # Extractors pull in onnxruntime and torch, which the other actions do without.
    from mmd.features.extract import build_extractors  # noqa: PLC0415
    from mmd.intent.online import OnlineExtractors, OnlineFeatures  # noqa: PLC0415

    uses = {(p.kind, p.scope) for rule in base.rules for p in rule.predicates}
    vision = ("near", "image") in uses or ("image", "cluster") in uses
    text = ("near", "last_user") in uses
    extractors = build_extractors(place.config.features) if images or text else None
    features = OnlineFeatures(
        OnlineExtractors(
            ocr=extractors.ocr if extractors and images else None,
            vision=extractors.vision if extractors and vision else None,
            text=extractors.text if extractors and text else None,
            absent={}
            if extractors and extractors.ocr
            else {"ocr": "no engine is installed (`pip install 'mmd[ocr]'`)"},
        )
    )
    facts, problems = features.look(images)
    vectors, no_text = features.read(t.text for t in dialogue.turns) if text else ({}, None)
    for problem in [*problems, *([no_text] if no_text else [])]:
        _print(f"note: {problem}")
    return [make_example(dialogue, task, images=facts, text_vectors=vectors) for task in tasks]


def _stored_examples(place: _Place, base: RuleBase, tasks: Sequence[str]) -> list[IntentExample]:
    corpus, features = place.need_data(base)
    found = [
        example
        for task in tasks
        if task in corpus.tasks
        for split in ("train", "test")
        for example in load_examples(corpus, features, task, "train" if split == "train" else "test")
        if example.dialogue_id == place.args.dialogue
    ]
    if not found:
        raise RequestError(f"--dialogue {place.args.dialogue!r}: no labelled dialogue of the corpus has this id.")
    return found


def _explain_one(base: RuleBase, example: IntentExample, args: argparse.Namespace) -> None:
    fired = CompiledRules(base, example.task).fired(example)
    default = base.defaults.get(example.task, "no answer")
    answer = f"{fired[0].label}, by {fired[0].id}" if fired else f"{default}, the default, since no rule fires"
    gold = f"; its label is {example.label}" if example.label else ""
    _print(f"{example.task}: {answer}{gold}")
    for rule in fired:
        _print(f"  {rule.id}: {describe_rule(rule, args.lang, base.prototypes)}")
    if args.rule and base.rule(args.rule).task == example.task:
        _print(f"  conditions of {args.rule}:")
        for predicate in base.rule(args.rule).predicates:
            mark = "yes" if holds(predicate, example, base.prototypes) else "no "
            _print(f"    {mark} {format_predicate(predicate)}")


# ---------------------------------------------------------------- lint


def _lint(args: argparse.Namespace) -> int:
    place = _Place(args)
    base, artifact = place.base(args.rules)
    data = place.data(base) if args.corpus or artifact else None
    labels, examples = None, None
    if data:
        corpus, features = data
        labels = corpus.tasks
        check_labels(base, labels)
        examples = {task: load_examples(corpus, features, task, "train") for task in base.tasks}
    findings = lint(base, labels=labels, examples=examples, tau=_tau(place, args, artifact))
    _print_findings(findings)
    if data is None:
        _print("Without a corpus neither labels nor examples were checked; name one with --corpus.")
    return int(any(f.level == "error" for f in findings))


def _tau(place: _Place, args: argparse.Namespace, artifact: Artifact | None) -> dict[str, float]:
    """Return task → threshold of the gate made for this corpus, if there is one."""
    name = args.corpus or (artifact.manifest.name if artifact else None)
    if name is None:
        return {}
    try:
        gates = load_gates(place.store.open(f"gate/{name}"))
    except ArtifactError:
        return {}
    return {task: gate.tau for task, gate in gates.items() if gate.tau <= 1.0}


def _print_findings(findings: Iterable[Finding]) -> None:
    count = 0
    for finding in findings:
        count += 1
        _print(f"{finding.level}: {finding.where}: {finding.message} [{finding.code}]")
    _print(f"{count} findings.")


# ---------------------------------------------------------------- edit-check


def _edit_check(args: argparse.Namespace) -> int:
    place = _Place(args)
    old, old_artifact = place.base(args.old)
    new, _ = place.base(args.new)
    _print_changes(changes(old, new))
    data = place.data(old) if args.corpus or old_artifact or args.write or args.adopt else None
    if data is None:
        if args.write or args.adopt:
            place.need_data(old)
        _print("Without a corpus the effect was not measured; name one with --corpus.")
        return 0
    corpus, features = data
    check_labels(new, corpus.tasks)
    tasks = [task for task in corpus.tasks if task in {*old.tasks, *new.tasks}]
    examples = {task: load_examples(corpus, features, task, "train") for task in tasks}
    measured = remeasure(old, new, examples)
    _print_measured(new, measured)
    for task in tasks:
        _print_effect(task, measure_effect(old, measured, task, examples[task]))
    if args.write:
        _write(measured, Path(args.new))
    if args.adopt:
        _adopt(place, measured, corpus, args.adopt)
    return 0


def _print_changes(found: Sequence[Change]) -> None:
    for change in found:
        _print(f"{change.what}: {change.rule_id}: {change.detail}")
    _print(f"{len(found)} rules differ.")


def _print_measured(new: RuleBase, measured: RuleBase) -> None:
    before = {rule.id: rule for rule in new.rules}
    for rule in measured.rules:
        if rule.stats != before[rule.id].stats:
            s = rule.stats
            _print(f"measured: {rule.id}: right {s.hits} of {s.support} times, lower bound {s.wilson_lower:.2f}")


def _print_effect(task: str, effect: Effect, limit: int = 20) -> None:
    _print(
        f"{task}: {len(effect.fired_changed)} of {effect.examples} training examples fire other rules, "
        f"{len(effect.answer_changed)} get another answer; right by rules alone: "
        f"{effect.right_before} before, {effect.right_after} after."
    )
    for line in effect.answer_changed[:limit]:
        _print(f"  {line.dialogue_id}: {line.before} → {line.after} (its label: {line.gold})")
    if len(effect.answer_changed) > limit:
        _print(f"  … and {len(effect.answer_changed) - limit} more.")


def _write(measured: RuleBase, target: Path) -> None:
    folder = target if target.is_dir() else target.parent
    if target.is_dir() or target.name == RULES_FILE:
        measured.save_folder(folder)
    else:
        target.write_text(measured.to_yaml(), encoding="utf-8")
    _print(f"statistics written to {target}.")


def _adopt(place: _Place, measured: RuleBase, corpus: Corpus, name: str) -> None:
    inputs = {"corpus": corpus.artifact}
    settings = {"edited_by_hand": True, "rules": measured.to_yaml()}
    with place.store.write("rulebase", name, settings=settings, inputs=inputs) as writer:
        measured.save(writer)
        writer.metrics = {"rules": len(measured.rules)}
    ref = f"rulebase/{name}@{version_for('rulebase', settings, inputs, {})}"
    _print(f"stored as {ref}; run `mmd fit_intent` so that the gate is chosen for it.")


# ---------------------------------------------------------------- printing


def _print(text: str) -> None:
    _console.print(text, markup=False)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "–"
