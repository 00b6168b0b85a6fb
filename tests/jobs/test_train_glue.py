"""What stands around Ray Train: interrupts, a Ray that does not start, and who trains on what."""

from __future__ import annotations

import signal
import sys

import pytest

from jobs.glue import train
from jobs.glue.cluster import busy_machine
from jobs.glue.train import gpus_wanted, own_interrupts
from mmd.config import build_config
from mmd.errors import MmdError


def test_an_aborted_training_is_an_interrupt_and_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray Train puts in a handler of its own
        sys.exit(0)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_training_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with own_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ray_that_gives_up_starting_is_told_with_the_way_out():
    with pytest.raises(MmdError, match="very busy"), busy_machine():
        raise Exception("The current node timed out during startup. …")  # noqa: TRY002 (what Ray raises)
    with pytest.raises(ValueError, match="other"), busy_machine():
        raise ValueError("other")


JOINED = {"address": "auto"}  # as in the profile gpu


@pytest.mark.parametrize(
    ("cluster", "device", "gpus", "wanted", "told"),
    [
        ({}, "auto", 0, False, None),  # a laptop
        ({}, "auto", 2, True, None),
        ({}, "auto", 1, False, "2 workers train on CPUs, for only 1 of 2 GPUs are there now"),
        (JOINED, "auto", 0, False, "2 workers train on CPUs, for no node with a GPU is there now"),
        (JOINED, "auto", 2, True, None),
        (JOINED, "cpu", 0, False, None),
        (JOINED, "cuda", 0, True, None),  # waited for: Ray asks the autoscaler
    ],
)
def test_workers_take_gpus_where_each_has_one_and_it_is_told_where_they_do_not(
    cluster: dict[str, str],
    device: str,
    gpus: int,
    wanted: object,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {}))
    train._say_once.cache_clear()
    config = build_config({"cluster": cluster, "models": {"device": device}})
    for _ in range(3):  # as of the runs of one job
        assert gpus_wanted(config, 2) is wanted
    printed = capsys.readouterr().out
    if told is None:
        assert printed == ""
    else:
        assert printed.count(told) == 1
        assert "minReplicas" in printed


def test_a_submitted_job_is_told_of_missing_gpus_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as Ray sets it
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    train._say_once.cache_clear()
    assert not gpus_wanted(build_config({}), 1)
    assert "1 worker trains on CPUs" in capsys.readouterr().out
