"""Jobs on several nodes; the quick part needs no cluster, the slow one loses nodes of a real one (root, Linux)."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.serve.schema import ServeDeploySchema

from jobs.bench import machines, node_cluster, nodes
from jobs.bench.machines import Machine, Network, Place, boot_command, free_subnet, hosts_file
from jobs.bench.node_cluster import NodeCluster, NodeSize, head_command, node_environment, worker_command
from jobs.bench.node_jobs import SMALL, as_options, chat_line, checkpoints, write_chats
from jobs.bench.node_serving import config_of
from jobs.bench.node_trials import (
    Lab,
    columns_unlike,
    compare,
    compare_losses,
    files_unlike,
    numbers_unlike,
    went_on_after,
)
from jobs.bench.node_verbs import NAMES, PIPELINE, VERBS, try_verbs
from jobs.glue.entry import build_parser
from jobs.pipeline import STEPS
from mmd.artifacts import ArtifactStore
from mmd.config import load_config
from mmd.corpora.chat import ChatReader
from mmd.corpora.settings import LimitSettings
from mmd.corpora.validate import validate_record
from mmd.errors import BadRecordError, ClusterError
from serve_apps.app import AppArgs, build

PLACE = Place("worker1", "mmd1-2", "mmd1v2", "10.213.0.2")


@pytest.fixture(scope="session")
def namespaces() -> None:
    if reason := machines.why_not():
        pytest.skip(f"no namespaces: {reason}")


# ---------------------------------------------------------------- machines


def test_a_machine_dies_with_its_starter_and_all_of_it_with_its_first_process():
    command = boot_command(PLACE, ["ray", "start"], Path("/h o/hosts"))
    assert command[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert {"--pid", "--kill-child=KILL", "--uts", "--mount"} <= set(command)
    assert command[-2:] == ["ray", "start"]
    assert "mount --bind '/h o/hosts' /etc/hosts" in " ".join(command)


def test_a_machine_finds_its_own_address_by_its_name():
    assert hosts_file(PLACE).splitlines()[1] == "10.213.0.2 worker1"


def test_a_network_takes_addresses_that_no_route_leads_to():
    assert free_subnet("default via 192.0.2.1 dev eth0\n") == "10.213.0"
    assert free_subnet("10.213.0.0/24 dev mmd1\n10.213.1.0/24 dev mmd2\n") == "10.213.2"
    with pytest.raises(ClusterError, match="no free /24 network"):
        free_subnet("\n".join(f"10.213.{number}.0/24 dev x" for number in range(256)))


@pytest.mark.parametrize("end", [Machine.kill, Machine.unplug])
def test_the_end_of_a_machine_ends_what_its_programs_started(
    end: Callable[[Machine], None], tmp_path: Path, namespaces: None
):
    network = Network()
    try:
        place = network.place("alpha")
        program = ["sh", "-c", "hostname; getent hosts alpha; setsid sleep 4711 & exec sleep 4711"]
        machine = network.start(place, program, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, tmp_path)
        wait_for(lambda: len(sleeping()) == 2)
        assert (tmp_path / "log").read_text().split() == ["alpha", place.address, "alpha"]
        end(machine)
        wait_for(lambda: not sleeping())
        assert not machine.alive
    finally:
        network.close()
    told = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert place.namespace not in told


def sleeping() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4711"]]


def wait_for(what: Any, seconds: float = 20.0) -> None:
    import time

    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


# ---------------------------------------------------------------- nodes


def test_the_head_runs_drivers_only_and_workers_join_it():
    head = head_command(PLACE, NodeSize(cpus=3, object_store_mb=100))
    assert {"--head", "--num-cpus=0", "--block", "--object-store-memory=104857600"} <= set(head)
    worker = worker_command(PLACE, "10.213.0.1", NodeSize(cpus=3))
    assert {"--address=10.213.0.1:6379", "--num-cpus=3", "--node-ip-address=10.213.0.2", "--node-name=worker1"} <= set(
        worker
    )


def test_a_node_takes_nothing_of_another_cluster_along():
    env = node_environment({"RAY_ADDRESS": "http://other", "PATH": "/bin", "HOME": "/me"})
    assert "RAY_ADDRESS" not in env
    assert env["RAY_AUTH_MODE"] == "disabled"
    assert env["PATH"].endswith(":/bin")
    assert env["HOME"] == "/me"


def test_a_machine_without_namespaces_is_told_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(node_cluster, "why_not", lambda: "making network namespaces takes root")
    with (
        pytest.raises(ClusterError, match="cannot be started here: making network namespaces takes root"),
        node_cluster.node_cluster(),
    ):
        pass


# ---------------------------------------------------------------- what is compared


def write(store: ArtifactStore, seed: int, text: str, *, replace: bool = False) -> Any:
    with store.write("rulebase", "shop", settings={"seed": seed}, replace=replace) as writer:
        writer.write_json("rules.json", {"text": text})
        writer.write_json("same.json", {})
    return store.open("rulebase/shop")


def test_artefacts_are_equal_by_version_and_the_hash_of_every_file(tmp_path: Path):
    one, same = (write(ArtifactStore(str(tmp_path / name)), 0, "a") for name in ("one", "same"))
    assert compare(one, same) == {"version_equal": True, "files_unlike": [], "equal": True}
    other_content = write(ArtifactStore(str(tmp_path / "content")), 0, "b")
    assert files_unlike(one, other_content) == ["rules.json"]
    assert not compare(one, other_content)["equal"]
    other_version = write(ArtifactStore(str(tmp_path / "version")), 1, "a")
    assert compare(one, other_version) == {"version_equal": False, "files_unlike": [], "equal": False}


def test_losses_are_compared_step_by_step():
    """2.0 against 2.1 is 5 %."""
    found = compare_losses({"run": [4.0, 2.0]}, {"run": [4.0, 2.1]})
    assert found["steps"] == {"run": 2}
    assert found["largest_relative_difference"] == pytest.approx(0.05)
    assert compare_losses({"run": [4.0]}, {"run": [4.0, 2.0]})["largest_relative_difference"] is None


def test_the_steps_after_which_a_training_went_on_are_read_from_its_log():
    assert went_on_after("joint-fold0: goes on after step 5\nall done\nx: goes on after step 20") == [5, 20]
    assert went_on_after("joint-fold0: 21 steps") == []


def test_numbers_are_compared_without_times():
    one = {"f1": {"rules": 0.5}, "latency": {"rules": {"p50_ms": 3.0}}, "rows": [{"seconds_s": 1.0, "n": 4}]}
    assert numbers_unlike(one, {**one, "latency": {}, "rows": [{"seconds_s": 2.0, "n": 4}]}) == []
    assert numbers_unlike(one, {**one, "f1": {"rules": 0.4}, "rows": []}) == ["/f1/rules", "/rows/0/n"]
    assert numbers_unlike({"ms_per_token": {"alone": 1.0}}, {"ms_per_token": {"alone": 2.0}}) == []
    assert numbers_unlike({"items": 1}, {"items": 2}) == ["/items"]


def test_tables_are_compared_without_their_times():
    def table(**columns: list[Any]) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        return bytes(sink.getvalue())

    one = table(text=["a", "b"], ms=[1.0, 2.0])
    assert columns_unlike(one, table(text=["a", "b"], ms=[3.0, 4.0])) == []
    assert columns_unlike(one, table(text=["a", "c"], ms=[1.0, 2.0])) == ["text"]
    assert columns_unlike(one, table(text=["a", "b"], item=["x", "y"])) == ["item"]


def test_every_job_is_tried():
    jobs = {path.stem for path in Path("jobs").glob("[!_]*.py")} - {"submit"}  # which sends them
    assert set(NAMES) == jobs
    assert {name for name, verb in VERBS.items() if verb.in_pipeline} == set(STEPS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != PIPELINE])
def test_what_a_job_is_tried_with_are_its_options(name: str):
    verb = VERBS[name]
    module = importlib.import_module(f"jobs.{verb.command[0]}")
    parser = build_parser(verb.command[0], "")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    given = parser.parse_args([*verb.arguments, "--force"])
    config = load_config(Path("ray_config.yaml"), overrides=given.overrides)
    assert config.data.shop.dialogues == SMALL["data.shop.dialogues"]
    assert getattr(given, "method", "kdsl") == ("conkd" if name == "sweep_conkd" else "kdsl")


class Alone(Lab):
    """Nodes that are none: a job that is sent writes what it is told to, into the store that it is given."""

    def __init__(self, work: Path, ready: Path, makes: dict[str, Any]) -> None:
        super().__init__(NodeCluster.__new__(NodeCluster), work, ready)
        self.makes, self.sent = makes, list[str]()

    def send(self, verb: str, *arguments: str, store: Path) -> dict[str, Any]:
        assert {"--set", "--force"} & set(arguments)
        self.sent.append(verb)
        if verb in self.makes:
            write(ArtifactStore(str(store)), 0, self.makes[verb], replace=True)
        return {"exit_code": 0, "seconds": 1.0}


def test_jobs_that_made_the_same_are_not_tried_again(tmp_path: Path):
    write(ArtifactStore(str(tmp_path / "ready")), 0, "a")
    lab = Alone(tmp_path / "work", tmp_path / "ready", {"mine_rules": "a", PIPELINE: "a"})
    found = try_verbs(lab, ["mine_rules", PIPELINE])
    assert found["mine_rules"]["equal"]
    assert found[PIPELINE]["equal"]
    assert try_verbs(lab, ["mine_rules", PIPELINE]) == found
    assert lab.sent == ["mine_rules", PIPELINE]


def test_jobs_that_made_something_else_are_told_and_tried_again(tmp_path: Path):
    write(ArtifactStore(str(tmp_path / "ready")), 0, "a")
    lab = Alone(tmp_path / "work", tmp_path / "ready", {"mine_rules": "b"})
    for _ in range(2):
        found = try_verbs(lab, ["mine_rules", PIPELINE])
        assert not found["mine_rules"]["equal"]
        assert found["mine_rules"]["files_unlike"] == ["rules.json"]
        assert found[PIPELINE]["lacking"] == [found["mine_rules"]["artefact"]]
        assert not found[PIPELINE]["equal"]
    assert lab.sent == ["mine_rules", PIPELINE] * 2


def test_a_job_that_made_nothing_is_no_success(tmp_path: Path):
    write(ArtifactStore(str(tmp_path / "ready")), 0, "a")
    with pytest.raises(ClusterError, match="mine_rules made no rulebase on the nodes"):
        try_verbs(Alone(tmp_path / "work", tmp_path / "ready", {}), ["mine_rules"])


def test_checkpoints_are_those_that_are_whole(tmp_path: Path):
    assert checkpoints(tmp_path) == []
    for number, text in enumerate(['{"step": 10}', '{"step": 5}', '{"st']):
        folder = tmp_path / f".train/run/joint/checkpoint_{number}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text)
    assert checkpoints(tmp_path) == [5, 10]


def test_the_job_that_is_sent_uses_two_workers_with_zero_3():
    config = load_config(Path("ray_config.yaml"), overrides=as_options(SMALL)[1::2])
    assert config.intent.finetune.deepspeed.stage == 3


def test_one_chat_in_thirteen_is_bad_for_three_reasons_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.bench.node_jobs._CHAT_FILES", 1)
    monkeypatch.setattr("jobs.bench.node_jobs._CHAT_SIDE_PX", 16)
    write_chats(tmp_path / "chats")
    reader = ChatReader(tmp_path / "chats")
    reasons = []
    for part in reader.plan():
        for raw in reader.read(part):
            try:
                validate_record(reader, raw, LimitSettings(), {})
            except BadRecordError as err:
                reasons.append(err.reason)
    assert reasons == ["broken_json", "unknown_speaker", "image_missing", "broken_json"]  # chats 0, 13, 26, 39 of 40
    assert chat_line(1).endswith("}]}")


def test_the_service_is_deployed_with_two_replicas_of_everything_on_different_nodes(tmp_path: Path):
    config = ServeDeploySchema.model_validate(config_of(tmp_path))
    args = AppArgs.model_validate(config.applications[0].args)
    ingress = build(args)._bound_deployment
    models = [bound._bound_deployment for bound in ingress.init_args[:3]]
    assert ingress.num_replicas == 2
    assert all(d._deployment_config.autoscaling_config.min_replicas == 2 for d in models)
    assert all(d._replica_config.max_replicas_per_node == 1 for d in (ingress, *models))
    alone = build(AppArgs(store="artifacts"))._bound_deployment
    assert (alone.num_replicas, alone._replica_config.max_replicas_per_node) == (1, None)


# ---------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def cluster(namespaces: None) -> Iterator[NodeCluster]:
    with node_cluster.node_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("nodes") / "ready"
    nodes.make_ready(store)
    return store


def held(found: dict[str, Any]) -> bool:
    """Undisturbed and with a node lost, the job made what it makes alone; a node was lost while it was at work."""
    runs = [found["undisturbed"], found["node lost"]]
    return all(run["exit_code"] == 0 and run["equal"] for run in runs) and bool(found["node lost"]["lost"])


class TestNodesAreLost:
    pytestmark: ClassVar = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

    def test_ingest_loses_no_record(self, cluster: NodeCluster, tmp_path: Path):
        found = nodes.PARTS["ingest"](Lab(cluster, tmp_path, None), {})
        assert held(found), found

    def test_the_rule_base_is_the_same(self, cluster: NodeCluster, ready: Path, tmp_path: Path):
        found = nodes.PARTS["mine_rules"](Lab(cluster, tmp_path, ready), {})
        assert held(found), found

    def test_training_goes_on_from_its_checkpoint(self, cluster: NodeCluster, ready: Path, tmp_path: Path):
        found = nodes.PARTS["finetune_mllm"](Lab(cluster, tmp_path, ready), {})
        assert held(found), found
        assert set(found["node lost"]["lost"]["actors_at_work"].values()) == {1}  # a worker on each node
        # Nothing is told where the last step seen was that of the checkpoint.
        assert set(found["node lost"]["went_on_after_steps"]) <= set(found["node lost"]["lost"]["kept"])

    def test_an_index_in_parts_answers_as_the_whole(self, cluster: NodeCluster, ready: Path, tmp_path: Path):
        found = nodes.PARTS["sharded"](Lab(cluster, tmp_path, ready), {})
        for name in ("undisturbed", "node lost"):
            assert found[name]["searches_unlike_the_whole"] == 0, found[name]
            assert found[name]["nodes"]["at the start"] == 2
        assert found["node lost"]["parts_lost"] >= 1

    def test_the_service_goes_on_answering(self, cluster: NodeCluster, ready: Path, tmp_path: Path):
        found = nodes.PARTS["serve"](Lab(cluster, tmp_path, ready), {"rate": 3.0, "seconds": 60.0})
        assert all(len(set(where)) == 2 for where in found["replicas"].values())
        assert found["undisturbed"]["reached"], found["undisturbed"]
        assert found["node lost"]["reached"], found["node lost"]
        assert found["node lost"]["lost"]
        assert found["node silent"]["lost"]
        # Who is asked there first, or again, hears nothing within a client's ten seconds; everybody else is answered.
        assert set(found["node silent"]["errors"]) <= {"ConnectTimeout", "ConnectError", "ReadTimeout"}
        assert found["node silent"]["answered_share"] >= 0.9

    def test_a_node_that_is_lost_is_noticed_and_another_joins(self, cluster: NodeCluster):
        cluster.wait_for(3)
        lost = cluster.workers()[0]
        cluster.kill(lost)
        cluster.wait_for(2)
        assert lost not in cluster.alive()
        assert cluster.add() != lost
        cluster.wait_for(3)
        with pytest.raises(ClusterError, match="not a worker"):
            cluster.kill("head")
        assert httpx.get(f"{cluster.dashboard}/api/version", timeout=20).is_success
