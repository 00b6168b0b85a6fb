"""Metrics of a training to TensorBoard and, where wanted, to MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mmd.errors import ConfigError

EVENTS_FILE = "events.tfevents"  # TensorBoard reads every file with "tfevents" in its name


class MetricLog(Protocol):
    """Takes the scalars of one step."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars by name."""
        ...


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a step's report: the step's own, and weighted F1 by task where it was validated."""
    own = {f"train/{name}": float(row[name]) for name in ("loss", "rate", "norm") if name in row}
    return own | {f"held_out_weighted_f1/{task}": float(f1) for task, f1 in row.get("validation", {}).items()}


def write_events(path: Path, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Write a TensorBoard file of (step, scalars) rows.

    Its clock counts steps as seconds: equal trainings then give equal files, and artefacts are compared by content.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(str(path))
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
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
    """Yield a log into an MLflow run of this name, which ends with the ``with``; None without a URI."""
    if uri is None:
        yield None
        return
    import mlflow

    class Log:
        def add(self, step: int, scalars: Mapping[str, float]) -> None:
            mlflow.log_metrics(dict(scalars), step=step)

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("mmd finetune_mllm")
    with mlflow.start_run(run_name=run_name):
        mlflow.log_params(dict(parameters))
        yield Log()
