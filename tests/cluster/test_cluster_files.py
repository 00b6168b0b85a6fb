"""What lies in cluster/ is valid, agrees with the code and the pinned versions, and holds no secret."""

from __future__ import annotations

import copy
import fnmatch
import functools
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from jobs.glue.entry import build_parser, corpus_overrides
from jobs.glue.records import OUT
from mmd.config import ServeSettings, load_config
from serve_apps.run import loop_variables
from tests.cluster.kuberay import KINDS, RayCluster, RayJob, RayService, WorkerGroup

ROOT = Path(__file__).resolve().parents[2]
KUBE = ROOT / "cluster" / "kube"
OVERLAYS = ("base", "overlays/dev", "overlays/gpu", "overlays/spot")
JOBS = sorted((KUBE / "jobs").glob("*.yaml"))
STORE = "s3://mmd-artifacts/store"
KEYS = {"api_keys_file": "/etc/mmd/keys/keys.txt", "jobs_profile": "gpu"}
REPLICAS = {"min_replicas": 2, "max_replicas_per_node": 1}
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


@functools.cache
def kustomize(overlay: str) -> list[dict[str, Any]]:
    """Build an overlay with kubectl's own kustomize, which asks no cluster."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is not installed; it builds the overlays")
    done = subprocess.run([kubectl, "kustomize", KUBE / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@functools.cache
def parsed(overlay: str) -> tuple[RayCluster, RayService]:
    built = {(one["kind"]): KINDS[one["kind"]].model_validate(one) for one in kustomize(overlay)}
    cluster, service = built["RayCluster"], built["RayService"]
    assert isinstance(cluster, RayCluster)
    assert isinstance(service, RayService)
    return cluster, service


def serve_config(overlay: str) -> dict[str, Any]:
    return yaml.safe_load(parsed(overlay)[1].spec.serveConfigV2)


def job(path: Path) -> RayJob:
    (document,) = documents(path)
    return RayJob.model_validate(document)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(KUBE.glob("base/*.yaml")) if path.name != "kustomization.yaml"] + JOBS,
    ids=lambda path: path.stem,
)
def test_every_manifest_has_only_known_fields_of_the_right_types(path: Path):
    read = [KINDS[document["kind"]].model_validate(document) for document in documents(path)]
    assert [type(one) for one in read] == [KINDS[document["kind"]] for document in documents(path)] != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_build_to_valid_manifests_in_one_namespace(overlay: str):
    built = kustomize(overlay)
    assert sorted(one["kind"] for one in built) == ["Namespace", "RayCluster", "RayService", "ServiceAccount"]
    for one in built:
        model = KINDS[one["kind"]].model_validate(one)
        assert one["kind"] == "Namespace" or model.metadata.namespace == "mmd"  # type: ignore[attr-defined]


def test_every_file_of_an_overlay_is_used():
    for folder in ("base", *(f"overlays/{name}" for name in ("dev", "gpu", "spot"))):
        there = {path.name for path in (KUBE / folder).glob("*.yaml")} - {"kustomization.yaml"}
        (used,) = documents(KUBE / folder / "kustomization.yaml")
        named = {*used["resources"], *(patch["path"] for patch in used.get("patches", ()))}
        assert there == {name for name in named if name.endswith(".yaml")}


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("spec", "authOptions", "mode"), "disabled"),
        (("spec", "rayVersion"), "2.51.0"),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), 99),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "securityContext", "runAsUser"), 0),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env"), []),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources"), {"limits": {"cpu": "1"}}),
        (("spec", "headGroupSpec", "template", "spec", "volumes"), []),
    ],
)
def test_the_schema_refuses_what_is_wrong(place: tuple[str | int, ...], wrong: object):
    (cluster,) = documents(KUBE / "base" / "raycluster.yaml")
    KINDS["RayCluster"].model_validate(cluster)
    bad: Any = copy.deepcopy(cluster)
    inside = bad
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = wrong
    with pytest.raises(ValidationError):
        KINDS["RayCluster"].model_validate(bad)


def test_names_of_cluster_and_service_differ():
    """KubeRay names the head service of both after them."""
    cluster, service = parsed("base")
    assert cluster.metadata.name != service.metadata.name


def test_overlays_do_what_they_are_for():
    gpus = {
        overlay: sum(
            group.minReplicas * int(group.template.spec.containers[0].resources.limits.get("nvidia.com/gpu", "0"))
            for group in parsed(overlay)[0].spec.workerGroupSpecs
        )
        for overlay in OVERLAYS
    }
    assert gpus == {"base": 0, "overlays/dev": 0, "overlays/gpu": 2, "overlays/spot": 2}
    dev, _ = parsed("overlays/dev")
    assert [group.groupName for group in dev.spec.workerGroupSpecs] == ["cpu"]
    spot, service = parsed("overlays/spot")
    key = "karpenter.sh/capacity-type"
    assert [pod.nodeSelector.get(key) for pod in spot.spec.pods()] == ["on-demand", "spot", "spot"]
    assert all(pod.nodeSelector == {key: "on-demand"} for pod in service.spec.rayClusterConfig.pods())
    assert [toleration.key for pod in service.spec.rayClusterConfig.pods() for toleration in pod.tolerations] == [
        "nvidia.com/gpu"
    ]  # none of them tolerates spot nodes
    assert [group.groupName for group in service.spec.rayClusterConfig.workerGroupSpecs] == ["cpu", "gpu"]


def test_the_pod_of_a_gpu_group_tolerates_gpu_nodes():
    for spec in (parsed("overlays/spot")[0].spec, parsed("overlays/spot")[1].spec.rayClusterConfig):
        for group in spec.workerGroupSpecs:
            taints = {toleration.key for toleration in group.template.spec.tolerations}
            has_gpu = "nvidia.com/gpu" in group.template.spec.containers[0].resources.limits
            assert ("nvidia.com/gpu" in taints) == has_gpu


@pytest.mark.parametrize(
    ("overlay", "added"),
    [
        ("base", {"serve": KEYS | REPLICAS}),
        ("overlays/dev", {"serve": KEYS | {"max_replicas": 1}}),
        (
            "overlays/gpu",
            {"serve": KEYS | REPLICAS | {"gpus_per_replica": 1, "part_timeout_s": 11}, "models": {"dtype": "bfloat16"}},
        ),
    ],
)
def test_the_embedded_serve_config_is_the_file_with_store_keys_replicas_and_gpus(overlay: str, added: dict[str, Any]):
    plain = yaml.safe_load((ROOT / "serve_apps" / "serve_config.yaml").read_text(encoding="utf-8"))
    plain["applications"][0]["args"] |= {"store": STORE, **added}
    assert serve_config(overlay) == plain


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_serve_takes_the_embedded_config(overlay: str):
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.app import AppArgs

    (app,) = ServeDeploySchema.model_validate(serve_config(overlay)).applications
    assert AppArgs.model_validate(app.args).store == STORE
    assert isinstance(AppArgs.model_validate(app.args).serve, ServeSettings)
    assert importlib.util.find_spec(app.import_path.partition(":")[0])


def held_by(group: WorkerGroup) -> tuple[int, int]:
    """Return the CPUs and GPUs that Ray counts on a worker."""
    limits = group.template.spec.containers[0].resources.limits
    return int(group.rayStartParams.get("num-cpus", limits["cpu"])), int(limits.get("nvidia.com/gpu", "0"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_workers_that_stay_hold_the_replicas_that_stay(overlay: str):
    """A replica reserves one CPU, one of intent the GPUs of ``serve.gpus_per_replica``, too; proxies reserve none."""
    (app,) = serve_config(overlay)["applications"]
    settings, groups = ServeSettings(**app["args"]["serve"]), parsed(overlay)[1].spec.rayClusterConfig.workerGroupSpecs
    cpus, gpus = (sum(group.minReplicas * held_by(group)[of] for group in groups) for of in (0, 1))
    assert [one["name"] for one in app["deployments"]] == ["ingress", "intent", "retrieval", "recommendation"]
    assert cpus >= settings.min_replicas * len(app["deployments"])
    assert gpus >= settings.min_replicas * settings.gpus_per_replica
    assert settings.max_replicas_per_node is None or all(
        group.minReplicas >= settings.min_replicas and group.maxReplicas >= settings.max_replicas for group in groups
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_replicas_that_autoscaling_may_ask_for_find_a_place(overlay: str):
    """Else each upscale would leave some that wait for ever."""
    (app,) = serve_config(overlay)["applications"]
    settings, groups = ServeSettings(**app["args"]["serve"]), parsed(overlay)[1].spec.rayClusterConfig.workerGroupSpecs
    most = max(settings.min_replicas, settings.max_replicas)
    cpus, gpus = (sum(group.maxReplicas * held_by(group)[of] for group in groups) for of in (0, 1))
    assert cpus >= most * len(app["deployments"])
    assert gpus >= most * settings.gpus_per_replica


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "overlays/dev"])
def test_the_loss_of_a_worker_leaves_a_replica_of_every_part(overlay: str):
    (app,) = serve_config(overlay)["applications"]
    settings = ServeSettings(**app["args"]["serve"])
    assert settings.max_replicas_per_node == 1
    assert settings.min_replicas == 2
    for group in parsed(overlay)[1].spec.rayClusterConfig.workerGroupSpecs:
        assert held_by(group)[0] >= len(app["deployments"])  # one that is left holds one of each
        (spread,) = group.template.spec.topologySpreadConstraints
        assert spread.labelSelector.matchLabels["ray.io/group"] == group.groupName
        assert spread.matchLabelKeys == ["ray.io/cluster"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_file_of_api_keys_lies_where_its_secret_is_mounted(overlay: str):
    file = Path(serve_config(overlay)["applications"][0]["args"]["serve"]["api_keys_file"])
    for pod in parsed(overlay)[1].spec.rayClusterConfig.pods():
        (mount,) = [mount for mount in pod.containers[0].volumeMounts if mount.mountPath == str(file.parent)]
        (volume,) = [volume for volume in pod.volumes if volume.name == mount.name]
        assert mount.readOnly
        assert volume.secret


def test_there_is_a_job_for_the_pipeline_and_each_training():
    names = {path.stem for path in JOBS}
    assert names == {"pipeline", "mine_rules", "finetune_mllm", "train_retriever", "train_teachers", "distill"}
    assert {path.stem.replace("_", "-") for path in JOBS} == {job(path).metadata.name for path in JOBS}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_entrypoints_name_verbs_and_settings_that_exist(path: Path):
    python, flag, module, *arguments = shlex.split(job(path).spec.entrypoint)
    assert (python, flag) == ("python", "-m")
    assert module == f"jobs.{path.stem}"
    assert importlib.util.find_spec(module)
    given = build_parser(path.stem, "").parse_args(arguments)
    assert given.config == Path("/opt/mmd/ray_config.yaml")  # where the image has it
    config = load_config(
        ROOT / "ray_config.yaml",
        profile=given.profile,
        overrides=[*corpus_overrides(given.corpus), *given.overrides],
    )
    assert config.store == STORE
    assert config.cluster.address == "auto"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_know_how_far_the_group_of_base_may_grow(path: Path):
    module, *arguments = shlex.split(job(path).spec.entrypoint)[2:]
    given = build_parser(module, "").parse_args(arguments)
    config = load_config(ROOT / "ray_config.yaml", profile=given.profile, overrides=given.overrides)
    (document,) = documents(KUBE / "base" / "raycluster.yaml")
    cpu, _ = RayCluster.model_validate(document).spec.workerGroupSpecs
    cpus = cpu.maxReplicas * held_by(cpu)[0]
    assert config.cluster.autoscaler_cpus == cpus
    if path.stem in {"mine_rules", "pipeline"}:
        assert config.tune.max_concurrent == cpus


def test_the_command_for_machines_says_how_far_they_may_grow():
    group = yaml.safe_load((ROOT / "cluster/vm.yaml").read_text(encoding="utf-8"))["available_node_types"]["cpu"]
    cpus = group["max_workers"] * group["resources"]["CPU"]
    assert f"--set cluster.autoscaler_cpus={cpus} " in (ROOT / "cluster/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_sweeps_launched_from_the_page_run_with_the_profile_of_the_jobs(overlay: str):
    profiles = {
        build_parser(path.stem, "").parse_args(shlex.split(job(path).spec.entrypoint)[3:]).profile for path in JOBS
    }
    assert profiles == {serve_config(overlay)["applications"][0]["args"]["serve"]["jobs_profile"]}


def test_jobs_go_to_the_cluster_of_base():
    (cluster,) = documents(KUBE / "base" / "raycluster.yaml")
    for path in JOBS:
        assert job(path).spec.clusterSelector == {"ray.io/cluster": cluster["metadata"]["name"]}


def images(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["image"]] if isinstance(value.get("image"), str) else []
        return own + [image for inside in value.values() for image in images(inside)]
    if isinstance(value, list):
        return [image for inside in value for image in images(inside)]
    return []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_and_versions_are_those_of_the_constraints(overlay: str):
    target = "cuda" if overlay in {"overlays/gpu", "overlays/spot"} else "cpu"
    assert set(images(kustomize(overlay))) == {f"registry.example.com/mmd:ray{PINS['ray']}-{target}"}
    cluster, service = parsed(overlay)
    assert cluster.spec.rayVersion == service.spec.rayClusterConfig.rayVersion == PINS["ray"]


def test_versions_in_words_are_those_of_the_constraints():
    for name in ("Dockerfile", "README.md", "vm.yaml"):
        told = (ROOT / "cluster" / name).read_text(encoding="utf-8")
        assert set(re.findall(r"ray(\d+\.\d+\.\d+)", told)) <= {PINS["ray"]}


def vm() -> dict[str, Any]:
    (config,) = documents(ROOT / "cluster" / "vm.yaml")
    return config


def test_the_cluster_launcher_takes_the_vm_file():
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    import jsonschema

    jsonschema.validate(vm(), schema)
    prepared = prepare_config(copy.deepcopy(vm()))  # with the defaults of its cloud
    validate_config(prepared)
    assert prepared["provider"]["type"] == "aws"
    assert prepared["auth"]["ssh_user"]


def test_the_vm_file_has_ray_s_version_and_no_open_doors():
    config = vm()
    assert config["docker"]["image"] == f"registry.example.com/mmd:ray{PINS['ray']}-cuda"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/mmd/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    for node in config["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]


def test_the_readme_makes_the_secrets_that_pods_name_and_names_files_that_exist():
    told = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"create secret generic (\S+)", told))
    named, needed = set(), set()
    for spec in (parsed("overlays/gpu")[0].spec, parsed("overlays/gpu")[1].spec.rayClusterConfig):
        needed.add(spec.authOptions.secretName)
        for pod in spec.pods():
            needed |= {volume.secret.secretName for volume in pod.volumes if volume.secret}
            for source in (source.secretRef for container in pod.containers for source in container.envFrom):
                (named if source.optional else needed).add(source.name)
    assert needed <= made <= needed | named
    assert all(name in told for name in named)
    for name in re.findall(r"\bcluster/[\w./-]*\w", told):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    for name in re.findall(r"\bkube/[\w./-]*\w", told):
        assert (KUBE.parent / name).exists(), name


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}|eyJ[A-Za-z0-9_-]{20,}\."
    r"|(?i:(password|passwd|secret_access_key|auth_token|api_key|hf_token)\"?\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{8,})"
)


def test_no_file_holds_a_secret():
    for path in sorted((ROOT / "cluster").rglob("*")):
        if path.is_file():
            found = SECRET.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path}: {found and found[0]!r}"
    for overlay in OVERLAYS:
        assert not [one for one in kustomize(overlay) if one["kind"] in {"Secret", "ConfigMap"}]


def test_the_search_for_secrets_finds_some():
    for secret in ("AWS_SECRET_ACCESS_KEY=abcdefgh12345678", 'password: "hunter2hunter2"', "AKIA" + "A" * 16):
        assert SECRET.search(secret)
    assert not SECRET.search("secretName: mmd-ray-token  # key auth_token; without secretName")


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    return [(name, rest.strip()) for name, rest in re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", text, re.MULTILINE)]


def test_the_dockerfile_keeps_the_rules_that_matter():
    lines = instructions()
    stages = [rest.partition(" AS ")[2] for name, rest in lines if name == "FROM"]
    assert stages == ["source", "build-cpu", "build-cuda", "runtime", "cpu", "cuda"]
    bases = {rest.split()[0] for name, rest in lines if name == "FROM"} - set(stages)
    assert bases == {"python:${PYTHON}"}
    (python,) = [rest for name, rest in lines if name == "ARG"]
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-[a-z]+", python)  # a version, not latest
    assert not [rest for name, rest in lines if name == "ADD"]
    for name, rest in lines:
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if name == "RUN":
            assert "sudo" not in rest.split()
        if name in {"CMD", "ENTRYPOINT"}:
            assert json.loads(rest)
    assert [name for name, _ in lines].count("HEALTHCHECK") == 1


def test_both_targets_end_as_an_ordinary_user():
    lines = instructions()
    starts = [number for number, (name, _) in enumerate(lines) if name == "FROM"]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        if lines[start][1].endswith((" AS cpu", " AS cuda")):
            assert lines[end - 1] == ("USER", "1000:1000")
    assert any("useradd --uid 1000" in rest for name, rest in lines if name == "RUN")


def test_records_can_be_written_by_the_ordinary_user_below_the_working_directory():
    lines = instructions()
    runtime = lines[lines.index(("FROM", "python:${PYTHON} AS runtime")) : lines.index(("FROM", "runtime AS cpu"))]
    (workdir,) = [rest for name, rest in runtime if name == "WORKDIR"]
    assert ("RUN", f"install -d -o 1000 -g 1000 {workdir}/{OUT.as_posix()}") in runtime


def test_the_image_serves_as_the_command_does():
    variables = {word for name, rest in instructions() if name == "ENV" for word in rest.split()}
    assert variables >= {f"{name}={value}" for name, value in loop_variables(ServeSettings()).items()}


def test_packages_are_pinned_as_the_makefile_pins_them():
    installs = [
        command
        for name, rest in instructions()
        if name == "RUN"
        for command in re.split(r"&&", rest)
        if "pip install" in command and "--upgrade pip" not in command
    ]
    assert installs
    assert all("-c constraints.txt" in command for command in installs)
    torch = [
        position for position, command in enumerate(installs) if re.search(r'[ "]torch(?:==.*\+cpu"|\s*)$', command)
    ]
    whole = [position for position, command in enumerate(installs) if '".[' in command]
    assert torch == [0, 2]
    assert whole == [1, 3]  # torch first, in both builds
    assert installs[4].split()[-1] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # FAISS, of the extra gpu
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "DS_BUILD_OPS=0 $(PIP) install -q -c constraints.txt --no-build-isolation" in makefile


def test_hadolint_has_no_complaint():
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, ROOT / "cluster" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_dockerfile_copies_passes_dockerignore_and_nothing_else():
    lines = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == let_in
    assert all((ROOT / source).exists() for source in copied)
    kept_out = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    for name in (".env", "tls.key", "id.pem", "__pycache__"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in kept_out)
