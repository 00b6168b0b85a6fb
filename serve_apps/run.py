"""Serve a trained corpus online: ``mmd serve`` or ``python -m serve_apps.run``.

    mmd serve                                       the shop corpus at http://127.0.0.1:8000
    mmd serve --corpus taobao --set serve.port=9000
    mmd serve --artifact rulebase/shop@1a2b3c4d5e6f  a rule base of your choice
    mmd serve --try 8                               ask it eight test dialogues over HTTP, then stop

Runs until interrupted. On a running Ray cluster use ``serve deploy serve_apps/serve_config.yaml`` instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

from rich.console import Console

from mmd.artifacts import ArtifactStore
from mmd.assistant.types import PARTS
from mmd.config import AppConfig, ServeSettings, add_settings_options, load_config
from mmd.errors import ArtifactError, ConfigError, MmdError
from mmd.log import configure_logging
from serve_apps.api import Part, ReadyResponse
from serve_apps.client import ServiceClient
from serve_apps.keys import admission
from serve_apps.trial import Trials, try_service

_console = Console(highlight=False)
_NEEDED: Mapping[Part, Sequence[str]] = {
    "intent": ("corpus", "features", "rulebase"),
    "retrieval": ("index",),
    "recommendation": ("student",),
}
"""Part of the service → kinds of artefacts without which it does not answer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve from the command line; return the exit code.

    0: stopped, or every dialogue of ``--try`` was answered; 1: one of them was not; 2: a user's mistake.
    """
    args = build_parser().parse_args(argv)
    configure_logging()
    try:
        overrides = args.overrides if args.artifacts is None else [*args.overrides, f"store={args.artifacts}"]
        config = load_config(args.config, profile=args.profile, overrides=overrides)
        trial = run(config, args.corpus or config.data.corpus.name, args.artifact, try_count=args.try_count)
    except MmdError as err:
        _console.print(f"mmd serve: {err}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        _console.print("mmd serve: stopped")
        return 0
    return 0 if trial is None or trial.all_answered else 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mmd serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_settings_options(parser)
    parser.add_argument("--artifacts", metavar="STORE", help="artefact store, a folder or URI (default: the settings')")
    parser.add_argument("--corpus", metavar="NAME", help="corpus whose artefacts answer (default: the settings')")
    parser.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="KIND/NAME@VERSION",
        help="answer with this artefact (rulebase, classifier, adapter, gate, features, retriever, index, student or "
        "policy), not the newest; repeatable",
    )
    parser.add_argument(
        "--try",
        dest="try_count",
        type=_count,
        metavar="N",
        help="ask N test dialogues over HTTP, print the answers, stop; exit code 1 if one got no answer",
    )
    return parser


def _count(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above zero")
    return int(text)


def run(config: AppConfig, corpus: str, refs: Sequence[str] = (), *, try_count: int | None = None) -> Trials | None:
    """Start the application and keep it until interrupted, or until ``try_count`` dialogues have been asked.

    Returns:
        How the asked dialogues fared, if any were to be asked.

    Raises:
        RequestError: nothing that was found in the store can be loaded.
        MmdError: artefacts are missing, or the port is taken; both are found before Ray starts.
    """
    check_artifacts(config.store, corpus, refs)
    check_port(config.serve)
    admission(config.serve)  # a file of keys that cannot be read shows at once
    from ray import serve

    from serve_apps.app import AppArgs, build, refs_from

    settings = config.serve
    intent, retrieval, recommendation, policy = refs_from(refs)
    app = build(
        AppArgs(
            store=ArtifactStore(config.store).absolute,
            corpus=corpus,
            intent=intent,
            retrieval=retrieval,
            recommendation=recommendation,
            policy=policy,
            assistant=config.assistant,
            serve=settings,
            features=config.features,
            models=config.models,
            generation=config.recommend.generation,
        )
    )
    _start_ray(config)
    # After Ray, which takes SIGTERM for itself. A container is stopped by SIGTERM; a background job ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        serve.start(
            http_options={
                "host": settings.host,
                "port": settings.port,
                # the ingress answers 504 first; this is for what it cannot see
                "request_timeout_s": settings.request_timeout_s + 5,
            }
        )
        try:
            serve.run(app, name="mmd")
        except RuntimeError as err:
            raise ConfigError(f"the application did not start: {err}") from err
        client = ServiceClient(settings)
        ready = ReadyResponse.model_validate_json(client.get("/readyz"))
        _console.print(
            f"mmd serve: {corpus} ({' and '.join(ready.answers)}) at http://{settings.host}:{settings.port} "
            "(API: /docs; stop: Ctrl+C)"
        )
        for problem in ready.degraded:
            _console.print(f"mmd serve: {problem}", style="yellow", markup=False, soft_wrap=True)
        if try_count:
            return try_service(client, ArtifactStore(config.store), try_count, _console)
        _wait()
        return None
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]  # upstream has no annotation


def check_artifacts(store: str, corpus: str, refs: Sequence[str] = ()) -> None:
    """Open what will be served, without checking hashes, so that mistakes show at once.

    One of intent recognition, retrieval and recommendation is enough; what is named must be there.

    Raises:
        ArtifactError: no part is whole; the message names what each lacks and the job that makes it.
    """
    opened = ArtifactStore(store)
    kinds = {ref.partition("/")[0] for ref in refs}
    for ref in refs:
        opened.open(ref, verify=False)
    lacking: list[str] = []
    for part, needed in _NEEDED.items():
        missing = []
        for kind in (kind for kind in needed if kind not in kinds):
            try:
                opened.open(f"{kind}/{corpus}", verify=False)
            except ArtifactError as err:
                missing.append(f"{part}: {err}")
        if not missing:
            return
        lacking += missing
    raise ArtifactError("there is nothing to serve yet; one of these parts is enough.\n" + "\n".join(lacking))


def check_port(settings: ServeSettings) -> None:
    """Refuse a port that something else listens on.

    Raises:
        ConfigError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as err:
            reason = err.strerror or str(err)
            raise ConfigError(
                f"serve.port: {settings.host}:{settings.port} cannot be used ({reason}); choose another with "
                "--set serve.port=N, or stop what listens there."
            ) from err


def loop_variables(settings: ServeSettings) -> dict[str, str]:
    """Return what Ray's processes must find in their environment for ``serve.one_loop``.

    Every hand-over between threads waits for the interpreter's lock. Models compute in threads of their own either
    way. Ray's ``RAY_SERVE_THROUGHPUT_OPTIMIZED`` would also hold back lines of its log, keep garbage of swapped
    models, and let replicas talk by gRPC on ports without authentication.
    """
    if not settings.one_loop:
        return {}
    return {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}


def cpus_for(config: AppConfig) -> int:
    """Return the logical CPUs of a local cluster: those of the settings, or as many as all replicas may come to hold.

    A replica holds one; those that find none would be waited for without a word.
    """
    models = len(PARTS) * max(config.serve.min_replicas, config.serve.max_replicas)
    return max(config.cluster.logical_cpus, config.serve.min_replicas + models)


def _start_ray(config: AppConfig) -> None:
    import ray

    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=config.cluster.address, log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on the loopback interface
    for name, value in loop_variables(config.serve).items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address="local",  # beside, not inside, a cluster that somebody started on this machine
            num_cpus=cpus_for(config),
            object_store_memory=config.cluster.object_store_mb * 2**20,
            include_dashboard=config.cluster.dashboard,
            log_to_driver=False,
        )
    except Exception as err:
        if "timed out during startup" not in str(err):
            raise
        raise MmdError("Ray did not start within its 30 s: this machine is very busy; try again later.") from err


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _wait() -> None:
    """Block until interrupted."""
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
