"""Scalars and small objects that both resources use: token counts, durations, percentages, references, conditions."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

# Go's RE2, Rust's regex (pydantic) and Python's re all read these patterns alike.
# At most three decimals, so that any unit makes a whole number; at most 18 digits, so that it fits in 64 bits.
TOKENS_PATTERN = r"^([0-9]{1,18}|[0-9]{1,6}(\.[0-9]{1,3})?[kMGT])$"
# With 15 characters no duration overflows Go's 64-bit nanoseconds.
DURATION_PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
# A segment of a path that is neither empty nor `.` nor `..`, in which RE2 has no way to say "not".
_MOUNT_SEGMENT = r"([^:/.]|\.[^:/.]|\.\.[^:/])[^:/]*"
_FOLDER_SEGMENT = r"([A-Za-z0-9_-]|\.[A-Za-z0-9_-]|\.\.[A-Za-z0-9._-])[A-Za-z0-9._-]*"
MOUNT_PATH_PATTERN = rf"^(/{_MOUNT_SEGMENT})+$"
FOLDER_PATTERN = rf"^{_FOLDER_SEGMENT}(/{_FOLDER_SEGMENT})*$"
PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"
REASON_PATTERN = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
TRACKING_PATTERN = r"^(https?://[^/\s]+|file:///)\S*$"
NUMBER_PATTERN = r"^[0-9]+(\.[0-9]+)?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
ORIGIN_PATTERN = r"^(\*|https?://[^/\s]+)$"
ENDPOINT_PATTERN = r"^https?://[^/\s]+(/\S*)?$"

HINTS = {
    TOKENS_PATTERN: "write a whole number or 1.5k, 20M, 3G, 1T",
    QUANTITY_PATTERN: "write a quantity such as 8, 500m or 16Gi",
    DURATION_PATTERN: "write a duration such as 90s, 20m or 1h30m",
    NAME_PATTERN: "write lower-case letters, digits and '-', beginning with a letter and not ending with '-'",
    SUBDOMAIN_PATTERN: "write the name of an object: lower-case letters, digits, '-' and '.'",
    LABEL_VALUE_PATTERN: "write letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    LABEL_KEY_PATTERN: "write the name of a label of nodes such as topology.kubernetes.io/zone",
    VARIABLE_PATTERN: "write letters, digits and '_', not beginning with a digit",
    MOUNT_PATH_PATTERN: "write an absolute path without ':', '//', '.' and '..', and no '/' at its end",
    FOLDER_PATTERN: "write a relative path such as runs/first, without '.' and '..'",
    PERCENT_PATTERN: "write a percentage from 0% to 100%",
    ORIGIN_PATTERN: 'write an origin such as https://chat.example.com, without a path, or "*" for all',
    ENDPOINT_PATTERN: "write the API's address, up to and with /v1, such as https://models.example.com/v1",
    TRACKING_PATTERN: "write https://HOST, or file:/// and a folder",
    NUMBER_PATTERN: 'write a decimal number as text, such as "2.50"',
}
"""What to write instead, by the pattern that a text does not match."""

MAX_OBJECT_NAME = 40  # children append an attempt or a revision and five digits of the uid, and stay a DNS label
MAX_LABEL = 63  # of a label's value
MAX_WHOLE = 10**18 - 1  # a whole number of 18 digits, which 64 bits hold
MAX_COUNT = 2**31 - 1

_TOKEN_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_QUANTITY_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
# Extended resources by which vendors count their accelerators, whole ones, parts of them and shares of their time.
_GPUS = r"nvidia\.com/(gpu(\.shared)?|mig-.+)|amd\.com/gpu|gpu\.intel\.com/(i915|xe)|habana\.ai/gaudi"


class Resource(BaseModel):
    """Base of every object in a manifest: camelCase on the wire, unknown fields and numbers that JSON lacks refused,
    never changed once read.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def wire(self) -> dict[str, Any]:
        """Return the object as it stands in a manifest, without fields that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_tokens(value: int | str) -> int:
    """Return the number of tokens that `1T`, `1.5G`, `200k` or a plain integer mean; ValueError says what to write."""
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(TOKENS_PATTERN, text):
        hint = " (write G for 10^9)" if text.endswith(("B", "b")) else ""
        raise ValueError(f"{text!r} is not a number of tokens: {HINTS[TOKENS_PATTERN]}{hint}")
    number, unit = (text[:-1], text[-1]) if text[-1] in _TOKEN_UNITS else (text, "")
    whole, _, fraction = number.partition(".")
    divisor: int = 10 ** len(fraction)
    return int(whole + fraction) * _TOKEN_UNITS[unit] // divisor


def parse_duration(value: str) -> float:
    """Return the seconds of a Go duration such as `1h30m`, `20m`, `90s`, `500ms`."""
    if not re.fullmatch(DURATION_PATTERN, value):
        raise ValueError(f"{value!r} is not a duration: {HINTS[DURATION_PATTERN]}")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", value))


def parse_percent(value: str) -> float:
    """Return the share, from 0 to 1, that a percentage such as `5%` means."""
    if not re.fullmatch(PERCENT_PATTERN, value):
        raise ValueError(f"{value!r} is not a percentage: {HINTS[PERCENT_PATTERN]}")
    return int(value.removesuffix("%")) / 100


def _check_tokens(value: Any) -> Any:
    parse_tokens(value)
    return value


def _check_quantity(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WHOLE
    if not whole and not (isinstance(value, str) and len(value) <= 32 and re.fullmatch(QUANTITY_PATTERN, value)):
        raise ValueError(f"{value!r} is not a quantity: {HINTS[QUANTITY_PATTERN]}")
    return value


# Checked before pydantic tries either side of the union, so that there is one sentence and not one for each side.
Tokens = Annotated[
    int | str,
    BeforeValidator(_check_tokens),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maximum": MAX_WHOLE,
            "maxLength": 18,
            "pattern": TOKENS_PATTERN,
        }
    ),
]
Quantity = Annotated[
    int | str,
    BeforeValidator(_check_quantity),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maximum": MAX_WHOLE,
            "maxLength": 32,
            "pattern": QUANTITY_PATTERN,
        }
    ),
]
Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=15)]
Percent = Annotated[str, Field(pattern=PERCENT_PATTERN, max_length=4)]
DecimalText = Annotated[str, Field(pattern=NUMBER_PATTERN, max_length=24)]
ObjectName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_OBJECT_NAME)]
ItemName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
Subdomain = Annotated[str, Field(pattern=SUBDOMAIN_PATTERN, max_length=253)]
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE_PATTERN, max_length=MAX_LABEL)]
LabelKey = Annotated[str, Field(pattern=LABEL_KEY_PATTERN, max_length=317)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]

MAP_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
MAP_BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
MAP_BY_MOUNT_PATH: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]}
SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
OPAQUE: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
"""Fields whose content the schema does not know."""


class Metadata(Resource):
    """The part of an object's metadata that a person writes, and what the API server adds to it."""

    name: str
    """Name of the object."""
    namespace: str | None = None
    """Namespace of the object."""
    labels: dict[str, LabelValue] | None = None
    """Labels of the object."""
    annotations: dict[str, str] | None = None
    """Annotations of the object."""
    generate_name: Any = None
    finalizers: Any = None
    owner_references: Any = None
    uid: Any = None
    generation: Any = None
    resource_version: Any = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    managed_fields: Any = None
    self_link: Any = None


class Manifest(Resource):
    """What every resource of ours has in common."""

    api_version: str
    """Group and version."""
    kind: str
    """Kind of the resource."""
    metadata: Metadata
    """Name, labels and annotations."""


class SecretReference(Resource):
    """A Secret in the object's own namespace."""

    secret_name: Subdomain
    """Name of the Secret."""


class RopeScaling(Resource):
    """How rotary positions are stretched beyond the trained length."""

    type: Literal["linear", "dynamic", "yarn"]
    """Method of scaling."""
    factor: Annotated[float, Field(ge=1, le=2**16)]
    """How many times longer than trained."""


class KeyValue(Resource):
    """An environment variable with a literal value."""

    name: Annotated[str, Field(pattern=VARIABLE_PATTERN, max_length=253)]
    """Name of the variable; those that begin with `ARCTIC_` are the operator's."""
    value: Annotated[str, Field(max_length=32768)]
    """Its value."""


class ClaimVolume(Resource):
    """A PersistentVolumeClaim mounted into every worker."""

    claim_name: Subdomain
    """Name of the claim, in the object's namespace."""
    mount_path: Annotated[str, Field(pattern=MOUNT_PATH_PATTERN, max_length=1024)]
    """Absolute path in the workers."""
    read_only: bool = True
    """Whether the workers may only read it."""


class DeviceClaim(Resource):
    """Devices that each pod claims for itself (Dynamic Resource Allocation)."""

    name: ItemName
    """Name of the claim within the pod."""
    template_name: Subdomain
    """Name of the ResourceClaimTemplate, in the object's namespace, that the claims are made from."""


class Toleration(Resource):
    """A taint that the workers tolerate, as in a Pod."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Key of the taint; any if unset."""
    operator: Literal["Exists", "Equal"] | None = None
    """How `value` is compared; `Equal` if unset."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; any if unset."""
    toleration_seconds: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Seconds that a taint with the effect NoExecute is tolerated; for ever if unset."""


Term = Annotated[dict[str, Any], Field(json_schema_extra=OPAQUE)]


class NodeAffinity(Resource):
    """Which nodes take the workers, by the labels of the nodes."""

    required_during_scheduling_ignored_during_execution: Term | None = None
    """What must hold: an object with `nodeSelectorTerms`."""
    preferred_during_scheduling_ignored_during_execution: list[Term] | None = None
    """What is preferred: terms with weights."""


class PodAffinity(Resource):
    """Which nodes take the workers, by the pods that are there."""

    required_during_scheduling_ignored_during_execution: list[Term] | None = None
    """Terms that must hold."""
    preferred_during_scheduling_ignored_during_execution: list[Term] | None = None
    """What is preferred: terms with weights."""


class Affinity(Resource):
    """A Pod's affinity: typed as far as the operator reads it, as it adds a term of its own; the terms verbatim."""

    node_affinity: NodeAffinity | None = None
    """By the labels of nodes."""
    pod_affinity: PodAffinity | None = None
    """Beside which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Apart from which pods; that a node takes one pod of a world is added."""


class WorkerTemplate(Resource):
    """What a manifest may say about its pods.

    A closed list, so that its author can't mount a Secret or take a service account.
    """

    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints that the workers tolerate."""
    affinity: Affinity | None = None
    """A Pod's `affinity`."""
    topology: Annotated[list[LabelKey], Field(min_length=1, max_length=8)] | None = Field(None, json_schema_extra=SET)
    """Labels of nodes, of the narrowest domain first, such as `nvidia.com/gpu.clique`, a rack's and
    `topology.kubernetes.io/zone`: pods of one world go to nodes that agree in them as far as there is room.
    """
    labels: Annotated[dict[str, LabelValue], Field(max_length=32)] | None = None
    """Extra labels; those under `arctic.dev/` are the operator's."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = None
    """Extra annotations; those under `arctic.dev/` are the operator's."""
    environment: Annotated[list[KeyValue], Field(max_length=64)] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """Environment variables."""
    volumes: Annotated[list[ClaimVolume], Field(max_length=16)] | None = Field(
        None, json_schema_extra=MAP_BY_MOUNT_PATH
    )
    """Claims to mount."""
    device_claims: Annotated[list[DeviceClaim], Field(max_length=8)] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """Devices by Dynamic Resource Allocation (Kubernetes 1.34 and later), instead of counts in `resources`."""


def _number(quantity: int | str) -> float:
    """Return the number that a quantity means; its type has seen to its form."""
    digits = str(quantity).rstrip("mkKMGTPi")
    return float(digits) * _QUANTITY_UNITS[str(quantity)[len(digits) :]]


class Resources(Resource):
    """Compute resources of one worker pod, as in a container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What is set aside for the pod."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What the pod may use at most; GPUs stand here, for example `nvidia.com/gpu: 8`."""

    @property
    def gpus(self) -> float:
        """GPUs of the pod, whichever vendor's."""
        amounts = {**(self.requests or {}), **(self.limits or {})}
        return sum(_number(amount) for name, amount in amounts.items() if re.fullmatch(_GPUS, name))


class BaseWeights(Resource):
    """Weights that a training has exported; they are there when it is not any more."""

    training: str
    """Name of the training."""
    folder: str
    """Folder of the weights, as the workers see it."""
    claim_name: str | None = None
    """Claim that holds them."""


class Condition(Resource):
    """A condition as Kubernetes defines it (metav1.Condition)."""

    type: str
    """What the condition is about, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(pattern=REASON_PATTERN, max_length=1024)]
    """Why, as one word in CamelCase for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence for people."""
    last_transition_time: Timestamp
    """When the status last changed."""
    observed_generation: int | None = None
    """The metadata.generation that it was judged from."""
