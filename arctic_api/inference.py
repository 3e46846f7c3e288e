"""`ArcticInference`: one model served by groups of pods behind one stable address."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from arctic_api.common import (
    MAP_BY_NAME,
    MAP_BY_TYPE,
    MAX_COUNT,
    OPAQUE,
    ORIGIN_PATTERN,
    SET,
    BaseWeights,
    Condition,
    Count,
    Duration,
    ItemName,
    Manifest,
    ObjectName,
    Percent,
    Resource,
    Resources,
    RopeScaling,
    SecretReference,
    Subdomain,
    Timestamp,
    Uri,
    WorkerTemplate,
)
from arctic_api.engine_options import EngineName, EngineOptions

KIND = "ArcticInference"
PLURAL = "arcticinferences"
SHORT_NAME = "ainf"


def _check_length(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value != "unlimited" and not (whole and 1 <= value <= MAX_COUNT):
        raise ValueError(f"{value!r} is not a length: write a number of tokens, at least 1, or unlimited")
    return value


Origin = Annotated[str, Field(pattern=ORIGIN_PATTERN, max_length=255)]
Length = Annotated[
    int | Literal["unlimited"],
    BeforeValidator(_check_length),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": MAX_COUNT,
            "maxLength": 9,
            "pattern": "^unlimited$",
        }
    ),
]


class ServedAdapter(Resource):
    """A low-rank adapter that is served beside the model, under a name of its own."""

    name: ItemName
    """Name under which clients ask for it, as for a model; not the model's own."""
    uri: Uri
    """A folder in the layout of the library peft: `file:///...`, such as a training's export with `export: adapter`."""


class InferenceModel(Resource):
    """Which weights are served: exactly one of `training`, `uri` and `inImage`."""

    training: ObjectName | None = None
    """An ArcticTraining in this namespace whose export is served."""
    uri: Uri | None = None
    """A folder in the Hugging Face layout: `file:///...` alone."""
    in_image: Literal[True] | None = None
    """The model that the engine's image brings with it: `nim` alone."""
    credentials: SecretReference | None = None
    """Secret with the keys to reach `uri`: refused, as files need none."""
    served_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name under which clients ask for the model; the object's name if unset."""
    adapters: Annotated[list[ServedAdapter], Field(min_length=1, max_length=64)] | None = Field(
        None, json_schema_extra=MAP_BY_NAME
    )
    """Adapters that are served beside the model, in the same batches: `native` alone."""


class Engine(Resource):
    """What runs the model in a group."""

    name: EngineName = "native"
    """`native` runs anywhere; `vllm`, `tensorrt-llm` and `nim` are for GPUs."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image that runs the engine; the operator's default for the engine if unset. With `nim`, NVIDIA's container."""
    options: EngineOptions | None = None
    """Options handed to the engine under its own names."""
    credentials: SecretReference | None = None
    """Secret with the key `NGC_API_KEY`: `nim` alone."""
    cache_claim: Subdomain | None = None
    """PersistentVolumeClaim that keeps what the container downloads: `nim` alone; it is lost with the pod if unset."""


class Quantization(Resource):
    """Formats of what is kept in memory."""

    weights: Literal["fp8", "bf16", "fp32"] = "fp8"
    """Format of the weights: `fp8` is e4m3 with scales."""
    kv_cache: Literal["fp8", "bf16", "fp32"] = "bf16"
    """Format of keys and values."""


class InferenceParallelism(Resource):
    """Shape of one group: `pipeline` pods, one a node, with `tensor` ranks in each."""

    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks in a pod that share out every layer."""
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that share out the layers."""


class Attention(Resource):
    """How far back attention looks."""

    window: Count | None = None
    """Latest tokens that a token sees, itself among them, more than `sinks`; the model's own if unset, or all."""
    sinks: Annotated[int, Field(ge=0, le=1024)] = 0
    """First tokens that it sees besides the window (StreamingLLM, Xiao et al., 2023)."""
    max_length: Length = 4096
    """Most tokens of a request, prompt and answer together; the default gives way to a model with fewer positions.

    More than these, and `unlimited`, take a window that fits into them with its sinks.
    """
    rope_scaling: RopeScaling | None = None
    """Stretch rotary positions."""


class KVCache(Resource):
    """Room for keys and values."""

    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the memory left after the weights."""


PrefixCaching = Annotated[Literal[False, True, "perKey"], Field(json_schema_extra=OPAQUE)]
"""Opaque to the API server, since a structural schema has no type for a truth value or a word; it checks the values."""


class Batching(Resource):
    """How requests share a step."""

    token_budget: Annotated[int, Field(ge=1, le=1_048_576)] = 2048
    """Most tokens one step carries."""
    max_sequences: Annotated[int, Field(ge=1, le=65536)] = 256
    """Most requests that run at once."""
    kv_cache: KVCache = KVCache()
    """Room for keys and values."""
    prefix_caching: PrefixCaching = False
    """Whether prompts that start alike share their keys and values; with `perKey`, those of one API key alone."""
    target_inter_token_latency: Duration | None = None
    """Time between two tokens of an answer that the engine keeps to by reading prompts in smaller pieces."""
    suffix_decoding: bool | None = None
    """Whether what was written before proposes tokens that the model only verifies: `native` alone."""


class AutoscalingTarget(Resource):
    """What is held: at least one; of several the one that asks for most groups counts."""

    queued_per_replica: Count | None = None
    """Requests that wait, in the gateway and in the leaders, by replica."""
    kv_cache_utilization: Percent | None = None
    """Share of the room for keys and values that is in use, mean over the groups."""
    ttft: Duration | None = None
    """Time to first token, 99th percentile of the last minute, in the slowest group."""


class Stabilization(Resource):
    """How long a number of groups must have been asked for."""

    up: Duration = "0s"
    """Before there are more: the least that was asked for in this time."""
    down: Duration = "5m"
    """Before there are fewer: the most that was asked for in this time."""


class Hold(Resource):
    """Requests that wait in the gateway while there is no group: only of a service that is scaled to zero."""

    requests: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most that wait at once, shared out over the gateway's two pods; further ones are answered with 429."""
    timeout: Duration = "5m"
    """Longest wait; then the answer is 429. More than a group takes to load."""


class Autoscaling(Resource):
    """Decides on the number of groups, and publishes it as status.desiredReplicas; never writes spec."""

    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest groups; 0 with `scaleToZeroAfter` alone."""
    max: Annotated[int, Field(ge=1, le=1000)]
    """Most groups."""
    target: AutoscalingTarget
    """What is held."""
    stabilization: Stabilization = Stabilization()
    """How long a number must have been asked for."""
    scale_to_zero_after: Duration | None = None
    """Removes the last group after so long without a request; needs `min: 0`. The next request brings one back."""
    hold: Hold = Hold()
    """Requests that wait in the gateway while there is no group."""


class CanaryMargin(Resource):
    """How much worse a canary may be and still take over."""

    latency: Percent = "10%"
    """Of the stable revision's time to first token, and of its time per token (geometric means)."""
    errors: Percent = "1%"
    """Of all requests: how many more may fail."""


class CanaryAnalysis(Resource):
    """Has the operator decide on a canary, by what the leaders of both revisions count over the same minutes.

    What is worse for certain (4 sigma, and by more than the margin as far as one knows) is rolled back at once, and
    refused until the specification makes another revision. After `duration` it takes over if it is sure (2.33 sigma)
    that nothing is worse than the margin; where there are too few requests to tell, it stays a canary.
    """

    duration: Duration = "30m"
    """Least time of a canary that takes over."""
    margin: CanaryMargin = CanaryMargin()
    """How much worse it may be."""


class Canary(Resource):
    """Share of requests that the newest revision gets.

    The revision before it gets the rest, until this is taken out of the manifest, which finishes the rollout, or the
    change is taken back, which ends the canary, or `analysis` decides. A service's first revision is no canary, nor is
    one that follows a revision that has never served.
    """

    weight: Percent
    """Share of requests, whatever number of groups each revision has: groups follow it as far as they can."""
    analysis: CanaryAnalysis | None = None
    """Has the operator decide; people do if unset."""


class Rollout(Resource):
    """How a new revision takes over."""

    max_surge: Annotated[int, Field(ge=0, le=1000)] = 1
    """Groups above `replicas` during a rollout."""
    max_unavailable: Annotated[int, Field(ge=0, le=1000)] = 0
    """Groups below `replicas` during a rollout."""
    drain_timeout: Duration = "120s"
    """Time that running requests get before a group is deleted."""
    paused: bool = False
    """Holds the rollout where it is; what breaks meanwhile is replaced by the newest revision."""
    canary: Canary | None = None
    """Share of requests that the newest revision gets."""
    to_revision: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Goes back to this revision, one of `status.revisions`, and stays there while it is set.

    What a group is made of is as it was then, the weights of a training among it; the rest is as this manifest says.
    """


class Service(Resource):
    """The stable address."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the OpenAI-compatible endpoint."""
    auth: SecretReference | None = None
    """Secret whose values are the accepted API keys, one or several a value, one a line; anybody may ask if unset.

    Clients send `Authorization: Bearer KEY`, and are refused with 401 without one; `/health` needs none. With no such
    Secret, or none in it, every request is refused. What changes in it counts within a minute, and restarts nothing.
    """
    cors: Annotated[list[Origin], Field(min_length=1, max_length=32)] | None = Field(None, json_schema_extra=SET)
    """Origins whose pages may ask from a browser, such as https://chat.example.com, or "*" for all; none by default."""


class ArcticInferenceSpec(Resource):
    """What to serve, with what, how and where."""

    model: InferenceModel
    """Which weights."""
    engine: Engine = Engine()
    """What runs the model."""
    quantization: Quantization = Quantization()
    """Formats of what is kept in memory."""
    parallelism: InferenceParallelism = InferenceParallelism()
    """Shape of one group."""
    attention: Attention = Attention()
    """How far back attention looks."""
    batching: Batching = Batching()
    """How requests share a step."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of groups; with `autoscaling` only what it begins with."""
    autoscaling: Autoscaling | None = None
    """Has the operator decide on the number of groups."""
    rollout: Rollout = Rollout()
    """How a new revision takes over."""
    service: Service = Service()
    """The stable address."""
    suspend: bool = False
    """Removes all groups and keeps the address."""
    start_deadline: Duration | None = None
    """Degraded if not ready so long after creation."""
    priority_class_name: Subdomain | None = None
    """PriorityClass of the pods."""
    resources: Resources | None = None
    """Compute resources of each pod."""
    template: WorkerTemplate | None = None
    """What else may be said about the pods."""


class RevisionStatus(Resource):
    """A revision that can be gone back to."""

    name: str
    """What `rollout.toRevision` takes."""
    generation: int
    """The metadata.generation at which it was first asked for."""
    image: str | None = None
    """Its engine's image, if it names one."""


class CanaryStatus(Resource):
    """What the analysis of a canary says."""

    revision: str
    """The canary's."""
    since: Timestamp | None = None
    """Since when it is compared: the first moment at which groups of both revisions served with its weight."""
    verdict: Literal["Analyzing", "Promoted", "RolledBack"]
    """`RolledBack` is remembered until the specification makes another revision."""
    message: str
    """Why, with the figures."""


class DrainRequest(Resource):
    """What becomes of the group that was asked to go, by the annotation `arctic.dev/drain-request`."""

    token: str
    """What the annotation says after the group: another one asks anew. All of it, if it can't be read."""
    state: Literal["Draining", "Drained", "Refused"]
    """`Drained` once the group is gone."""
    group: str | None = None
    """The group's name."""
    uid: str | None = None
    """Tells the group from a later one of its name."""
    message: str
    """What happens, or why nothing does."""


class ScalingStatus(Resource):
    """The last change of the number of groups that autoscaling has made."""

    replicas: int
    """Groups that are wanted since then."""
    reason: str
    """Why, in one word."""
    message: str
    """Why, with the figures."""
    time: Timestamp
    """When."""


class ArcticInferenceStatus(Resource):
    """What was observed last. Real numbers are text, as Kubernetes conventions ask."""

    state: str | None = None
    """One word for people."""
    observed_generation: int | None = None
    """The metadata.generation that the rest was judged from."""
    conditions: list[Condition] | None = Field(None, json_schema_extra=MAP_BY_TYPE)
    """Ready, Available, Progressing, Degraded, ScalingActive; CanaryPassed where a canary is analysed."""
    replicas: int | None = None
    """Groups that exist."""
    desired_replicas: int | None = None
    """Groups that autoscaling asks for, or else spec.replicas."""
    scaling: ScalingStatus | None = None
    """What autoscaling did last."""
    ready_replicas: int | None = None
    """Groups that have loaded the model and answer."""
    updated_replicas: int | None = None
    """Groups of the newest revision."""
    selector: str | None = None
    """Label selector of the leaders."""
    url: str | None = None
    """Stable address of the service."""
    revision: str | None = None
    """The revision that groups should have."""
    stable_revision: str | None = None
    """The revision that all groups were of last: a canary's requests are taken from it."""
    canary: CanaryStatus | None = None
    """What the analysis of the newest canary says, where there is one."""
    revisions: list[RevisionStatus] | None = Field(None, json_schema_extra=MAP_BY_NAME)
    """Revisions that `rollout.toRevision` takes, the newest first: those in use and ten more."""
    drain_request: DrainRequest | None = None
    """What becomes of the group that was asked to go last."""
    start_time: Timestamp | None = None
    """When a group was ready first."""
    requests_per_second: str | None = None
    """Requests answered a second, over all groups."""
    tokens_per_second: int | None = None
    """Tokens generated a second, over all groups."""
    queued: int | None = None
    """Requests that wait, over all groups."""
    kv_cache_utilization: Percent | None = None
    """Share of the room for keys and values that is in use."""
    ttft_p99: str | None = Field(None, alias="ttftP99")
    """Time to first token, 99th percentile, as a duration."""
    weights: BaseWeights | None = None
    """Weights of the training that `spec.model` names."""


class ArcticInference(Manifest):
    """Serves one Arctic by groups of pods behind one stable address."""

    spec: ArcticInferenceSpec
    """What to serve, with what, how and where."""
    status: ArcticInferenceStatus | None = None
    """What was observed last; written by the operator."""
