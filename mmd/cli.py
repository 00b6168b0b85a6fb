"""The ``mmd`` command: settings, artefacts and rules at hand, and every job on the spot (``mmd VERB …``).

``mmd VERB`` runs ``jobs.VERB`` in this process; ``mmd submit VERB`` runs it on a cluster.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

import yaml
from rich.console import Console

import mmd
from mmd.artifacts import KINDS, Artifact, ArtifactStore, diff_manifests
from mmd.artifacts.cleaning import gc
from mmd.config import ProfileName, add_settings_options, describe_settings, load_config
from mmd.errors import MmdError
from mmd.intent import rules_cli
from mmd.models.resolve import known_models
from mmd.tables import plain_table

JOBS = {
    "pipeline": "everything below in one resumable command",
    "ingest": "read a corpus into validated, deduplicated shards",
    "featurize": "OCR, image vectors and sentence vectors, cached by content",
    "mine_rules": "search rules with MCTS and select the rule base",
    "fit_intent": "fit the classifier and choose the gate's threshold",
    "augment": "rule-guided augmentation of the few-shot set",
    "finetune_mllm": "fine-tune the multimodal model with Ray Train, DeepSpeed and PEFT",
    "sweep_gates": "choose how rules, probe and multimodal model are joined; --method conkd: how a student is taught",
    "evaluate": "measure everything on the test split and write the report",
    "train_retriever": "train DR, SDR or MDR with Ray Train",
    "build_index": "encode all responses and make them searchable",
    "evaluate_retrieval": "measure the retriever on the test split and write its report",
    "build_graph": "item graph, and dialogues linked to it, for recommending",
    "train_teachers": "train ConKD's recommendation teacher and its dialogue teacher with Ray Train",
    "distill": "distil the student that talks and recommends from both teachers",
    "evaluate_recommend": "measure the student on the test split and write its report",
    "fit_policy": "fit the assistant's policy: which responses fit an intent, and how much each part has to say",
    "evaluate_assistant": "measure the assistant on the test split against each of its parts",
    "bench": "run a benchmark and record it under docs/results",
    "experiment": "run an experiment and record it, with its picture, under docs/results",
}
SERVING = {
    "serve": ("serve_apps.run", "serve a trained corpus online"),
    "load": ("serve_apps.load_cli", "send a running service requests at a fixed rate and report"),
    "chat": ("serve_apps.chat_cli", "talk with a running service in the terminal"),
    "keys": ("serve_apps.keys_cli", "make API keys for the service"),
}
CLUSTER = {"submit": ("jobs.submit", "send a job to a Ray cluster; follow, list and stop the jobs there")}
COMMANDS = ("config", "artifacts", "rules", "models")
_console = Console(highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``mmd``; returns the exit code (0 done, 2 a user's mistake)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and (target := _module_of(arguments[0])):
        return _run_module(target, arguments)
    parser = build_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        parser.error(f"no command {arguments[0]!r}; there are {', '.join([*COMMANDS, *JOBS, *CLUSTER, *SERVING])}")
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args)
    except MmdError as err:
        _console.print(f"mmd: {err}", style="red", markup=False, soft_wrap=True)
        return 2
    except BrokenPipeError:  # `mmd … | head`
        return 0
    return code


def _module_of(word: str) -> str | None:
    verb = word.replace("-", "_")
    if verb in JOBS:
        return job_module(verb)
    modules = CLUSTER | SERVING
    return modules[verb][0] if verb in modules else None


def job_module(verb: str) -> str:
    """Return the module that a verb of :data:`JOBS` runs."""
    return "jobs.experiments" if verb == "experiment" else f"jobs.{verb}"


def _run_module(module: str, arguments: list[str]) -> int:
    saved, sys.argv = sys.argv, arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = saved
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands that need no Ray; jobs are listed in its epilogue."""
    width = max(map(len, JOBS))
    others = {name: what for name, (_, what) in (CLUSTER | SERVING).items()}
    verbs = "\n".join(f"  {name:<{width}}  {what}" for name, what in (JOBS | others).items())
    parser = argparse.ArgumentParser(
        prog="mmd",
        description=(mmd.__doc__ or "").splitlines()[0],
        epilog=f"jobs (each has its own --help):\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmd {mmd.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_config(commands.add_parser("config", help="show or validate settings"))
    _add_artifacts(commands.add_parser("artifacts", help="list, show, compare and clean artefacts"))
    rules = commands.add_parser("rules", help="show, explain, lint and check hand edits of rule bases")
    rules_cli.add_subcommands(rules.add_subparsers(required=True, metavar="ACTION"))
    rules.set_defaults(run=rules_cli.run)
    models = commands.add_parser("models", help="list the models that a name can stand for")
    models.set_defaults(run=_models)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, what, run in (
        ("show", "print the settings in force as YAML", _config_show),
        ("validate", "check the settings file with every profile", _config_validate),
        ("keys", "list every setting with its type and meaning", _config_keys),
    ):
        action = actions.add_parser(name, help=what)
        add_settings_options(action)
        action.set_defaults(run=run)


def _config_show(args: argparse.Namespace) -> int:
    config = load_config(args.config, profile=args.profile, overrides=args.overrides)
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


def _config_validate(args: argparse.Namespace) -> int:
    profiles = [args.profile] if args.profile else get_args(ProfileName)
    for profile in profiles:
        load_config(args.config, profile=profile, overrides=args.overrides)
        print(f"{args.config}: profile {profile} is valid")
    return 0


def _config_keys(_: argparse.Namespace) -> int:
    for key, kind, meaning in describe_settings():  # a line each, for grep
        print(f"{key} ({kind}): {meaning}")
    return 0


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, what: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=what)
        sub.add_argument("--store", help="artefact store (default: the settings' store)")
        add_settings_options(sub)
        sub.set_defaults(run=run)
        return sub

    action("list", "every complete artefact", _artifacts_list).add_argument("kind", nargs="?", choices=KINDS)
    show = action("show", "the manifest of one artefact", _artifacts_show)
    show.add_argument("ref", help="kind/name or kind/name@version")
    show.add_argument("--verify", action="store_true", help="check the hash of every file")
    diff = action("diff", "what differs between two artefacts", _artifacts_diff)
    diff.add_argument("a")
    diff.add_argument("b")
    gc = action("gc", "remove what interrupted writers left", _artifacts_gc)
    gc.add_argument(
        "--older-than-s",
        type=float,
        default=3600.0,
        help="spare files younger than this (default 1 h; resumable runs in .train and .tune: a day at least)",
    )
    gc.add_argument("--broken", action="store_true", help="also remove artefacts whose files fail their hashes")
    gc.add_argument("--dry-run", action="store_true", help="only list")


def _store(args: argparse.Namespace) -> ArtifactStore:
    if args.store:
        return ArtifactStore(args.store)
    return ArtifactStore(load_config(args.config, profile=args.profile, overrides=args.overrides).store)


def _artifacts_list(args: argparse.Namespace) -> int:
    rows = [
        (a.ref, f"{sum(f.bytes for f in a.manifest.files.values()) / 2**20:.1f}", str(len(a.manifest.files)), _when(a))
        for a in _store(args).find(args.kind)
    ]
    _print_table(("artefact", "MiB", "files", "made (UTC)"), rows)
    return 0


def _artifacts_show(args: argparse.Namespace) -> int:
    artifact = _store(args).open(args.ref, verify=args.verify)
    print(json.dumps(artifact.manifest.model_dump(), indent=2, ensure_ascii=False))
    print(artifact.path(), file=sys.stderr)
    return 0


def _artifacts_diff(args: argparse.Namespace) -> int:
    store = _store(args)
    a, b = (store.open(ref, verify=False) for ref in (args.a, args.b))
    _print_table(("field", a.ref, b.ref), diff_manifests(a.manifest, b.manifest))
    return 0


def _artifacts_gc(args: argparse.Namespace) -> int:
    found = gc(_store(args), min_age_s=args.older_than_s, broken=args.broken, dry_run=args.dry_run)
    _print_table(("path", "MiB", "why"), [(f.path, f"{f.bytes / 2**20:.1f}", f.reason) for f in found])
    print(f"{len(found)} {'found' if args.dry_run else 'removed'}")
    return 0


def _models(_: argparse.Namespace) -> int:
    known = known_models()
    rows = [(m.name, m.kind, "yes" if m.installed else "no", _AS_MLLM.get(m.kind, "no")) for m in known]
    _print_table(("model", "kind", "installed", "as models.mllm"), rows)
    for model in known:
        if not model.installed:  # not in the table, which would break the command
            _console.print(f"{model.name}: {model.install}", markup=False, soft_wrap=True)
    print("Beside these: a Hugging Face folder, a .gguf file, or (with models.allow_hub=true) a hub id.")
    return 0


_AS_MLLM = {"multimodal": "yes, sees pictures", "language": "yes, text alone"}


def _when(artifact: Artifact) -> str:
    return dt.datetime.fromtimestamp(artifact.manifest.created_unix_s, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = plain_table(*header)
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    _console.print(table)


if __name__ == "__main__":
    sys.exit(main())
