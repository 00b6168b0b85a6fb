"""The fields of Kubernetes' and KubeRay's resources that cluster/kube uses, strict: others are refused.

Written from KubeRay's API reference (ray.io/v1) and the rules that its operator (1.7) checks, not generated from its
resource definitions: no package brings those.
"""

# ruff: noqa: N815 (fields have the names that Kubernetes gives them)

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Mi|Gi)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Literal["mmd"] | None = None
    labels: Labels = {}


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not {"cpu", "memory"} <= set(self.requests) & set(self.limits):
            raise ValueError("cpu and memory need a request and a limit")
        if self.requests.get("nvidia.com/gpu") != self.limits.get("nvidia.com/gpu"):
            raise ValueError("GPUs cannot be overcommitted")
        return self


class Capabilities(Strict):
    drop: list[Literal["ALL"]] = Field(min_length=1)


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Seccomp(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(ge=1)]
    runAsGroup: Annotated[int, Field(ge=1)]
    fsGroup: Annotated[int, Field(ge=1)]
    seccompProfile: Seccomp


class SecretRef(Strict):
    name: Name
    optional: bool = False


class EnvFrom(Strict):
    secretRef: SecretRef


class Port(Strict):
    containerPort: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(max_length=15)]


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class Container(Strict):
    """No ``env``: values come by reference alone."""

    name: Name
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    securityContext: ContainerSecurity
    ports: list[Port] = []
    envFrom: list[EnvFrom]
    resources: Resources
    volumeMounts: list[Mount]


class EmptyDir(Strict):
    sizeLimit: Quantity


class SecretVolume(Strict):
    secretName: Name


class Volume(Strict):
    name: Name
    emptyDir: EmptyDir | None = None
    secret: SecretVolume | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.emptyDir is None) == (self.secret is None):
            raise ValueError("a volume has one source")
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class LabelSelector(Strict):
    matchLabels: Labels


class Spread(Strict):
    maxSkew: Annotated[int, Field(ge=1)]
    topologyKey: str
    whenUnsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"]
    labelSelector: LabelSelector
    matchLabelKeys: list[str] = []


class PodSpec(Strict):
    """No ``restartPolicy``: the autoscaler, version 2, sets Never and refuses others."""

    serviceAccountName: Name
    automountServiceAccountToken: bool | None = None
    terminationGracePeriodSeconds: Annotated[int, Field(ge=1)] | None = None
    securityContext: PodSecurity
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    topologySpreadConstraints: list[Spread] = []
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume]

    @model_validator(mode="after")
    def _mounts_exist(self) -> Self:
        volumes = {volume.name for volume in self.volumes}
        wanted = {mount.name for container in self.containers for mount in container.volumeMounts}
        if wanted != volumes:
            raise ValueError(f"volumes {sorted(volumes)} and mounts {sorted(wanted)} differ")
        return self


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minReplicas > self.maxReplicas:
            raise ValueError("minReplicas lies above maxReplicas")
        return self


class Auth(Strict):
    mode: Literal["token"]
    secretName: Name


class Autoscaler(Strict):
    version: Literal["v2"]
    upscalingMode: Literal["Default", "Conservative", "Aggressive"]
    idleTimeoutSeconds: Annotated[int, Field(ge=0)]
    resources: Resources
    securityContext: ContainerSecurity


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)

    @model_validator(mode="after")
    def _token_authentication_has_a_version(self) -> Self:
        if tuple(map(int, re.findall(r"\d+", self.rayVersion))) < (2, 52, 0):
            raise ValueError("token authentication needs Ray 2.52")
        if len({group.groupName for group in self.workerGroupSpecs}) < len(self.workerGroupSpecs):
            raise ValueError("groups share a name")
        return self

    def pods(self) -> list[PodSpec]:
        """Return the head's pod and one of each group of workers."""
        return [self.headGroupSpec.template.spec, *(group.template.spec for group in self.workerGroupSpecs)]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class UpgradeStrategy(Strict):
    type: Literal["NewCluster"]


class ServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy
    rayClusterDeletionDelaySeconds: Annotated[int, Field(ge=0)]
    excludeHeadPodFromServeSvc: bool
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class JobSpec(Strict):
    """On a running cluster; the operator then allows no backoffLimit, no suspend and no time to live."""

    clusterSelector: dict[Literal["ray.io/cluster"], Name] = Field(min_length=1)
    submissionMode: Literal["HTTPMode", "K8sJobMode"]
    entrypoint: str


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class Plain(Strict):
    """A Namespace or a ServiceAccount."""

    apiVersion: Literal["v1"]
    kind: Literal["Namespace", "ServiceAccount"]
    metadata: Metadata


KINDS = {
    "RayCluster": RayCluster,
    "RayService": RayService,
    "RayJob": RayJob,
    "Namespace": Plain,
    "ServiceAccount": Plain,
}
