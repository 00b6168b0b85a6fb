"""Metrics of a training to TensorBoard and, where wanted, to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import structlog

from mmd.errors import ConfigError

log = structlog.get_logger(__name__)
EVENTS_FILE = "events.tfevents"  # TensorBoard reads every file with "tfevents" in its name


class MetricLog(Protocol):
    """Takes the scalars of one step."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars by name."""
        ...


class FragileLog:
    """Sends scalars until that fails for the first time; this is told, and training goes on without.

    MLflow's client repeats what a hiccup of its server swallowed, for minutes; what it gives up on stays so. All
    scalars are in the artefact's TensorBoard file anyway.

    Args:
        send: takes scalars and step.
    """

    def __init__(self, send: Callable[[dict[str, float], int], object]) -> None:
        self._send: Callable[[dict[str, float], int], object] | None = send

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars by name."""
        if self._send is None:
            return
        try:
            self._send(dict(scalars), step)
        except Exception as err:  # noqa: BLE001 (whatever it is, it must not stop the training)
            self._send = None
            _warn("metrics_no_longer_sent", err, step=step)


def _warn(event: str, err: Exception, **context: object) -> None:
    log.warning(event, to="mlflow", error=f"{type(err).__name__}: {err}"[:300], **context)


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a step's report: the step's own, and weighted F1 by task where it was validated."""
    own = {f"train/{name}": float(row[name]) for name in ("loss", "rate", "norm") if name in row}
    return own | {f"held_out_weighted_f1/{task}": float(f1) for task, f1 in row.get("validation", {}).items()}


def write_events(
    path: Path,
    rows: Iterable[tuple[int, Mapping[str, float]]],
    hparams: tuple[Mapping[str, Any], Mapping[str, float]] | None = None,
) -> None:
    """Write a TensorBoard file of (step, scalars) rows.

    Its clock counts steps as seconds: equal trainings then give equal files, and artefacts are compared by content.

    Args:
        path: of the file.
        rows: (step, scalar by name).
        hparams: settings and resulting metrics for TensorBoard's table of hyperparameters; the metrics' values are
            those of the rows' last scalars of these names.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import hparams as summaries_of
    from tensorboardX.summary import scalar

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(str(path))
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for summary in summaries_of(*hparams) if hparams else ():
        writer.write(Event(wall_time=0.0, step=0, summary=summary).SerializeToString())
    for step, scalars in rows:
        for name, value in scalars.items():
            writer.write(Event(wall_time=float(step), step=step, summary=scalar(name, value)).SerializeToString())
    writer.close()


def require_mlflow(uri: str | None) -> None:
    """Check that metrics can go to MLflow if they shall.

    Raises:
        ConfigError: it is asked for and not installed.
    """
    if uri is not None and find_spec("mlflow") is None:
        raise ConfigError(
            f"intent.finetune.mlflow_uri={uri}: the mlflow package is not installed; `pip install mlflow-skinny`, or "
            "set it to null."
        )


@contextmanager
def mlflow_log(uri: str | None, run_name: str, parameters: Mapping[str, Any]) -> Iterator[MetricLog | None]:
    """Yield a log into an MLflow run of this name, which ends with the ``with``; None without a URI.

    Raises:
        ConfigError: there is no MLflow at the URI when training begins; what fails later is only told.
    """
    if uri is None:
        yield None
        return
    import mlflow

    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("mmd finetune_mllm")
        mlflow.start_run(run_name=run_name)
        mlflow.log_params(dict(parameters))
    except Exception as err:
        raise ConfigError(
            f"intent.finetune.mlflow_uri={uri}: no run can be started there ({str(err)[:200]}); set it to a server or "
            "folder that can be written, or to null."
        ) from err
    status = "FAILED"
    try:
        yield FragileLog(lambda scalars, step: mlflow.log_metrics(scalars, step=step))
        status = "FINISHED"
    finally:
        try:
            mlflow.end_run(status)
        except Exception as err:  # noqa: BLE001 (it would hide what ended the training)
            _warn("run_not_ended", err)
