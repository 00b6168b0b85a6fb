"""What goes over the wire about sweeps."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from mmd.sweeps.kinds import MAX_TEXT, MAX_VALUES
from mmd.sweeps.types import Mode, Scalar, State, SweepName
from serve_apps.api import Wire

_MOST = 10**12
_Number = Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-_MOST, le=_MOST)]
_Whole = Annotated[StrictInt, Field(ge=-_MOST, le=_MOST)]
_Plain = StrictBool | _Whole | _Number | Annotated[StrictStr, Field(max_length=MAX_TEXT)]
Value = _Plain | Annotated[tuple[_Plain, ...], Field(max_length=MAX_VALUES)]
"""Of a setting: a plain value, or a list of them."""


class SweepOut(Wire):
    """A sweep, without its trials."""

    id: str = Field(description="Begins with the time of its start.")
    sweep: SweepName = Field(description="Which sweep.")
    corpus: str = Field(description="Corpus that it works on.")
    state: State = Field(
        description="waiting: launched, nothing is recorded yet; interrupted: it said it runs, and nothing has been "
        "heard of it for a minute, or its job is gone."
    )
    metric: str = Field(description="What trials are compared by.")
    mode: Mode = Field(description="Whether more or less of the metric is better.")
    axis: str | None = Field(description="What the trials' curves run over; null: they have none.")
    space: dict[str, Any] = Field(description="What is searched: setting → value.")
    total: int = Field(ge=0, description="Trials planned; 0: not known yet.")
    done: int = Field(ge=0, description="Trials that have ended.")
    best: float | None = Field(description="Best of the metric so far, on average over the groups of trials.")
    started_unix_s: float = Field(description="Start, seconds since 1970.")
    seconds: float = Field(ge=0, description="How long it took, or has run so far.")
    artifact: str | None = Field(description="Artefact that it made.")
    note: str | None = Field(description="Why it failed, or what else is to be known.")
    stoppable: bool = Field(description="Whether it can be stopped here.")


class TrialOut(Wire):
    """A trial of a sweep."""

    setting: dict[str, Scalar] = Field(description="Setting, or place of the search → value.")
    group: str = Field(description="Trials of one group compete with each other alone.")
    metrics: dict[str, float] = Field(description="Numbers by name.")
    curve: tuple[tuple[float, float], ...] = Field(description="The metric over the sweep's axis: (place, value).")
    done: bool = Field(description="Whether it has ended.")
    at_s: float = Field(ge=0, description="Seconds from the sweep's beginning to its newest report.")
    best: bool = Field(description="Whether it is the best of its group so far.")


class SweepDetail(SweepOut):
    """A sweep with its trials."""

    trials: tuple[TrialOut, ...] = Field(description="In the order in which they were first heard of.")


class FieldOut(Wire):
    """A setting that a sweep's space may have."""

    key: str = Field(description="Its path in the settings.")
    default: Any = Field(description="Its value where nothing else is set.")
    accepts: dict[str, Any] = Field(description="JSON schema of its values.")
    description: str = Field(description="What it is.")


class KindOut(Wire):
    """A sweep that there is."""

    name: SweepName
    needs: tuple[str, ...] = Field(description="Kinds of artefacts of the corpus that must be there.")
    corpora: tuple[str, ...] = Field(description="Corpora in the store that have them.")
    fields: tuple[FieldOut, ...] = Field(description="What its space may have.")


class LaunchingOut(Wire):
    """Whether sweeps can be launched here."""

    allowed: bool
    reason: str | None = Field(description="Why not.")


class SweepsResponse(Wire):
    """The newest sweeps, and whether more can be launched."""

    sweeps: tuple[SweepOut, ...] = Field(description="Newest first.")
    launching: LaunchingOut
    problem: str | None = Field(description="What could not be asked, as the cluster's job server.")


class KindsResponse(Wire):
    """The sweeps that there are."""

    kinds: tuple[KindOut, ...]


class LaunchRequest(Wire):
    """A sweep to launch."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"sweep": "conkd", "corpus": "shop", "space": {"recommend.sweep.gammas": [0.5, 0.9]}},
                {"sweep": "rules", "corpus": "shop", "space": {"intent.search.rollouts": 200}},
            ]
        }
    )
    sweep: SweepName = Field(description="Which one; see /v1/sweeps/kinds.")
    corpus: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Name of a corpus in the store.")
    space: dict[Annotated[str, Field(max_length=MAX_TEXT)], Value] = Field(
        default={}, max_length=64, description="Setting → value, for what shall differ from the defaults."
    )


class StopRequest(Wire):
    """Nothing more needs to be said."""
