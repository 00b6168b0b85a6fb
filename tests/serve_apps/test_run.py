"""Before the service starts: what its artefacts lack is told part by part."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmd.artifacts import ArtifactStore
from mmd.config import AppConfig, ServeSettings
from mmd.errors import ArtifactError
from serve_apps.run import check_artifacts, cpus_for


def write(store: Path, kind: str) -> None:
    with ArtifactStore(str(store)).write(kind, "demo", settings={}) as writer:  # type: ignore[arg-type]
        writer.write_json("content.json", {})


def test_a_store_from_which_nothing_can_be_served_says_what_each_part_lacks(tmp_path: Path):
    write(tmp_path, "corpus")
    write(tmp_path, "graph")
    with pytest.raises(ArtifactError) as caught:
        check_artifacts(str(tmp_path), "demo")
    lines = str(caught.value).splitlines()
    assert [line.partition(".")[0].partition(";")[0].split("/")[0] for line in lines[1:]] == [
        "intent: features",
        "intent: rulebase",
        "retrieval: index",
        "recommendation: student",
    ]
    assert "`mmd distill` makes it" in lines[-1]


def test_one_part_is_enough(tmp_path: Path):
    with pytest.raises(ArtifactError):
        check_artifacts(str(tmp_path), "demo")
    write(tmp_path, "student")
    checked = check_artifacts(str(tmp_path), "demo")  # type: ignore[func-returns-value]
    assert checked is None  # and nothing was raised


@pytest.mark.parametrize(
    ("least", "most", "cpus"),
    [
        (1, 2, 8),  # the settings' own: an ingress and six replicas fit
        (2, 2, 8),
        (3, 2, 12),  # three ingresses and nine replicas; autoscaling never goes below the least
        (1, 8, 25),
    ],
)
def test_a_local_cluster_has_a_cpu_for_every_replica_that_there_may_be(least: int, most: int, cpus: int):
    serve = ServeSettings(min_replicas=least, max_replicas=most)
    assert cpus_for(AppConfig(serve=serve)) == cpus
