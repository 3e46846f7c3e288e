"""The operator's settings, read once from environment variables that the chart sets. No defaults live anywhere else."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from arctic_api.common import ClaimVolume, Duration, KeyValue, Resources, Toleration, parse_duration
from arctic_api.engine_options import EngineName
from arctic_api.log_format import LogFormat

PREFIX = "ARCTIC_"


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the environment variables."""


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error


def _from_commas(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


class EngineDefaults(BaseModel):
    """How the workers of one engine run; what is unset is as for all workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[str, Field(min_length=1)] | None = None
    """Image where a manifest names none."""
    command: tuple[str, ...] | None = None
    """What `-m arctic_workers.inference` is appended to."""
    volumes: tuple[ClaimVolume, ...] = ()
    """Claims mounted besides those of all workers; one at the same path takes the place of theirs."""


class Settings(BaseModel):
    """What the chart decides for the whole operator. A field's variable is its name in capitals after `ARCTIC_`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: Annotated[str, Field(min_length=1)]
    """Namespace that the operator runs in: Lease and certificate authority are kept there."""
    pod_name: str = "arctic-operator"
    """Identity in the leader election."""
    watch_namespaces: Annotated[tuple[str, ...], BeforeValidator(_from_commas)] = ()
    """Namespaces whose objects are served; all if empty."""
    read_nodes: bool = False
    """Whether nodes may be read, which a cluster-wide install may: drains and lost nodes are seen at once."""
    worker_image: Annotated[str, Field(min_length=1)]
    """Image of the workers where a manifest names none."""
    worker_command: Annotated[tuple[str, ...], BeforeValidator(_from_json), Field(min_length=1)] = ("python3",)
    """What `-m arctic_workers.training` or `-m arctic_workers.inference` is appended to."""
    worker_volumes: Annotated[tuple[ClaimVolume, ...], BeforeValidator(_from_json)] = ()
    """Claims mounted into every worker besides the manifest's."""
    worker_environment: Annotated[tuple[KeyValue, ...], BeforeValidator(_from_json)] = ()
    """Environment of every worker; a manifest's variables of the same name win."""
    worker_resources: Annotated[Resources | None, BeforeValidator(_from_json)] = None
    """Resources of a worker whose manifest names none."""
    engines: Annotated[dict[EngineName, EngineDefaults], BeforeValidator(_from_json)] = {}
    """What differs for the workers of an engine, by its name."""
    gateway_image: Annotated[str, Field(min_length=1)]
    """Image of the gateways."""
    gateway_node_selector: Annotated[dict[str, str], BeforeValidator(_from_json)] = {}
    """Labels of the nodes that gateways may run on."""
    gateway_tolerations: Annotated[tuple[Toleration, ...], BeforeValidator(_from_json)] = ()
    """Taints that gateways tolerate."""
    inference_groups: Literal["StatefulSet", "LeaderWorkerSet"] = "StatefulSet"
    """Kind that new inference groups are made as; those that run stay what they are."""
    leader_worker_sets: bool = False
    """Whether LeaderWorkerSets may be read and written: to make groups of them, and for as long as there are some."""
    cluster_domain: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = "cluster.local"
    """Domain of the cluster's DNS: gateways resolve whole names, without a search list."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of workers and gateways."""
    image_pull_secrets: Annotated[tuple[str, ...], BeforeValidator(_from_json)] = ()
    """Names of the Secrets that images of workers and gateways are pulled with, in each object's namespace."""
    deployment: str = ""
    """Name of the operator's own Deployment, which what it keeps for itself goes with; empty if there is none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the log."""
    log_format: LogFormat = "text"
    """What a line of the log is, of the operator and of all workers."""
    tracing_endpoint: Annotated[str, Field(pattern=r"^(https?://[^\s/?#]+/?)?$")] = ""
    """OTLP/HTTP receiver that the operator and all workers send traces to, without a path; empty for none."""
    lease_name: Annotated[str, Field(min_length=1)] = "arctic-operator"
    """Name of the Lease."""
    lease_duration: Duration = "4s"
    """Time after which a silent leader is replaced."""
    lease_renew: Duration = "1s"
    """Time between renewals."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9443
    """Port of /metrics, /healthz and /readyz; 0 takes a free one."""

    @property
    def heartbeat_namespace(self) -> str:
        """Namespace of the heartbeat object: one that is watched."""
        if not self.watch_namespaces or self.namespace in self.watch_namespaces:
            return self.namespace
        return self.watch_namespaces[0]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings; SettingsError names every variable that is missing or wrong and says why."""
        known = {f"{PREFIX}{field.upper()}": field for field in cls.model_fields}
        given = {field: environment[name] for name, field in known.items() if environment.get(name, "") != ""}
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            lines = [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
            raise SettingsError("the operator's environment is wrong:\n  " + "\n  ".join(lines)) from error
        if parse_duration(settings.lease_renew) * 2 > parse_duration(settings.lease_duration):
            raise SettingsError("ARCTIC_LEASE_RENEW must be at most half of ARCTIC_LEASE_DURATION")
        if settings.inference_groups == "LeaderWorkerSet" and not settings.leader_worker_sets:
            raise SettingsError(
                "ARCTIC_LEADER_WORKER_SETS must be true where ARCTIC_INFERENCE_GROUPS is LeaderWorkerSet: "
                "give the operator the rights to them, as the chart does"
            )
        return settings
