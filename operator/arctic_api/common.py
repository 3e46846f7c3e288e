"""Scalars and small objects that both resources use: token counts, durations, percentages, references, conditions."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

TOKENS_PATTERN = r"^[0-9]+(\.[0-9]+)?(k|M|G|T)?$"
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"
NUMBER_PATTERN = r"^[0-9]+(\.[0-9]+)?$"
MAX_OBJECT_NAME = 40  # children append an attempt or a revision and five digits of the uid, and stay a DNS label

_TOKEN_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Resource(BaseModel):
    """Base of every object in a manifest: camelCase on the wire, unknown fields refused, never changed once read."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    def wire(self) -> dict[str, Any]:
        """Return the object as it stands in a manifest, without fields that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_tokens(value: int | str) -> int:
    """Return the number of tokens that `1T`, `1.5G`, `200k` or a plain integer mean; ValueError says what to write."""
    text = str(value)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T)?", text)
    if isinstance(value, bool) or not match or len(text) > 24:
        hint = " (write G for 10^9)" if text.endswith(("B", "b")) else ""
        raise ValueError(f"{text!r} is not a number of tokens: write a whole number or 1.5k, 20M, 3G, 1T{hint}")
    whole, _, fraction = match[1].partition(".")
    scaled = int(whole + fraction) * _TOKEN_UNITS[match[2] or ""]
    count, remainder = divmod(scaled, 10 ** len(fraction))
    if remainder:
        raise ValueError(f"{text!r} is not a whole number of tokens")
    return count


def parse_duration(value: str) -> float:
    """Return the seconds of a Go duration such as `1h30m`, `20m`, `90s`, `500ms`."""
    if not re.fullmatch(DURATION_PATTERN[1:-1], value):
        raise ValueError(f"{value!r} is not a duration: write for example 90s, 20m, 1h30m")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", value))


def _check_tokens(value: int | str) -> int | str:
    parse_tokens(value)
    return value


def _check_duration(value: str) -> str:
    parse_duration(value)
    return value




Tokens = Annotated[
    int | str,
    AfterValidator(_check_tokens),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True, "maxLength": 24, "pattern": TOKENS_PATTERN}),
]
Duration = Annotated[
    str, Field(pattern=DURATION_PATTERN, max_length=24), AfterValidator(_check_duration)
]
Percent = Annotated[str, Field(pattern=PERCENT_PATTERN)]
DecimalText = Annotated[str, Field(pattern=NUMBER_PATTERN, max_length=24)]
ObjectName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_OBJECT_NAME)]
ItemName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
PositiveFloat = Annotated[float, Field(gt=0)]


class SecretReference(Resource):
    """A Secret in the object's own namespace."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""


class RopeScaling(Resource):
    """How rotary positions are stretched beyond the trained length."""

    type: Literal["linear", "dynamic", "yarn"]
    """Method of scaling."""
    factor: Annotated[float, Field(ge=1)]
    """How many times longer than trained."""


class KeyValue(Resource):
    """An environment variable with a literal value."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=32768)]
    """Its value."""


class ClaimVolume(Resource):
    """A PersistentVolumeClaim mounted into every worker."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the claim, in the object's namespace."""
    mount_path: Annotated[str, Field(pattern=r"^/.+", max_length=1024)]
    """Absolute path in the workers."""
    read_only: bool = True
    """Whether the workers may only read it."""


class Toleration(Resource):
    """A taint that the workers tolerate, as in a Pod."""

    key: str | None = Field(None, max_length=317)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(None, max_length=253)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class WorkerTemplate(Resource):
    """What a manifest may say about its pods: a closed list, so that its author can't mount a Secret or take a service account."""

    node_selector: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(None, max_length=32)
    """Labels that a node must have."""
    tolerations: list[Toleration] | None = Field(None, max_length=32)
    """Taints that the workers tolerate."""
    affinity: dict[str, Any] | None = Field(None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """A Pod's `affinity`, verbatim."""
    labels: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(None, max_length=32)
    """Extra labels; those under `arctic.dev/` are the operator's."""
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] | None = Field(None, max_length=32)
    """Extra annotations."""
    environment: list[KeyValue] | None = Field(
        None, max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    )
    """Environment variables."""
    volumes: list[ClaimVolume] | None = Field(
        None,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
    )
    """Claims to mount."""


Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        }
    ),
]


class Resources(Resource):
    """Compute resources of one worker pod, as in a container."""

    requests: dict[str, Quantity] | None = Field(None, max_length=16)
    """What is set aside for the pod."""
    limits: dict[str, Quantity] | None = Field(None, max_length=16)
    """What the pod may use at most; GPUs stand here, for example `nvidia.com/gpu: 8`."""


class Condition(Resource):
    """A condition as Kubernetes defines it (metav1.Condition)."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    observed_generation: int | None = None
