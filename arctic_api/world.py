"""The contract between the operator and its workers: what a pod is told, what it reports, and the constants of both.

A pod is told everything in one environment variable, `ARCTIC_WORLD`, holding a `TrainingWorld` or an `InferenceGroup`
as JSON: it is part of the create-only Job or group, so a world can't see another specification than the one that
its revision was computed from. `arctic train` and `arctic serve` make the same documents for local processes.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from arctic_api.common import Resource
from arctic_api.evaluation import ArcticEvaluationSpec, SuiteState
from arctic_api.inference import ArcticInferenceSpec
from arctic_api.training import ArcticTrainingSpec

Spec = TypeVar("Spec", ArcticTrainingSpec, ArcticInferenceSpec, ArcticEvaluationSpec)

WORLD_VARIABLE = "ARCTIC_WORLD"
NODE_RANK_VARIABLE = "ARCTIC_NODE_RANK"
"""Training: the Job's completion index. Inference: the pipeline rank, the ordinal in its StatefulSet."""

TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""OpenTelemetry's own: the URL of the OTLP/HTTP receiver that traces are sent to, without a path; unset for none."""

TERMINATION_MESSAGE = "/dev/termination-log"
TLS_FOLDER = "/etc/arctic/tls"
LOGIN_FOLDER = "/etc/arctic/login"
"""Where the key is mounted with which the pods of a group log in to each other, if their engine needs that."""
STORE_FOLDER = "/var/lib/arctic/store"
"""Where the checkpoint claim is mounted."""
CREDENTIALS_FOLDER = "/etc/arctic/credentials"
"""Where the Secret with the key is mounted that an evaluated endpoint takes."""


LOGIN_KEY = "id_ed25519"
"""File of the private key in `LOGIN_FOLDER`; the public one's has `.pub` added."""


class ExitCode(IntEnum):
    """What a worker's end means; every other code is a counted failure."""

    DONE = 0
    """The curriculum is done, its final checkpoint and export are committed."""
    BAD_INPUT = 64
    """Not tried again as it is (EX_USAGE)."""
    INTERRUPTED = 75
    """Stopped on SIGTERM, after a checkpoint unless no step was made; not counted (EX_TEMPFAIL)."""


CHECKPOINT_MISMATCH = "CheckpointMismatch"
"""The manifest asks for another past, or another model, than the run's checkpoints have."""
TOKENIZER_MISMATCH = "TokenizerMismatch"
"""The manifest asks for another tokenizer than the one that the run has."""
LOSS_SPIKE = "LossSpike"
"""The loss jumped, and `restart.lossSpike` says to stop then."""
SUSPENDED = "Suspended"
"""The attempt has ended because the manifest suspends the training here."""
GROUP_BROKEN = "GroupBroken"
"""A rank of an inference group has lost another."""
CORRECTABLE = frozenset({CHECKPOINT_MISMATCH, TOKENIZER_MISMATCH, LOSS_SPIKE})
"""Refusals that an edit of the manifest can mend: the training waits for it."""


class Label(StrEnum):
    """Labels of every child object."""

    MANAGED = "arctic.dev/managed"
    KIND = "arctic.dev/kind"
    NAME = "arctic.dev/name"
    UID = "arctic.dev/uid"
    ATTEMPT = "arctic.dev/attempt"
    REVISION = "arctic.dev/revision"
    GROUP = "arctic.dev/group"
    ROLE = "arctic.dev/role"
    """`worker`, `leader` (pipeline rank 0) or `gateway`."""
    ROUTING = "arctic.dev/routing"
    """A `Routing`: which requests the gateway may send to the pod."""


class Routing(StrEnum):
    """Which requests a leader gets."""

    ON = "on"
    CANARY = "canary"
    """The canary's share, and all only where no leader is `on`."""
    OFF = "off"


LONGEST_INDEX = 9
"""Digits of a group's number: a name with more is none that was given."""


def group_index(name: str) -> int:
    """Return the number of an inference group from its name, which ends with it; -1 for a name of none."""
    number = name.rpartition("-g")[2]
    return int(number) if number.isdecimal() and len(number) <= LONGEST_INDEX else -1


def revision_in(name: str) -> str:
    """Return the revision of an inference group from its name: nobody can edit that. Empty for a name of none."""
    return name.rpartition("-g")[0].rpartition("-")[2]


CHECKPOINT_REQUEST = "arctic.dev/checkpoint-request"
"""Annotation of an ArcticTraining: each new value asks for one checkpoint, which status.checkpointRequest answers."""
DRAIN_REQUEST = "arctic.dev/drain-request"
"""Annotation of an ArcticInference, `GROUP/TOKEN`: each new token asks once that the group with this number be made
anew elsewhere; status.drainRequest answers it."""


class Ports(Resource):
    """Ports of a worker pod; local processes get free ones."""

    control: int = 9440
    """gRPC, mutual TLS."""
    metrics: int = 9441
    """Plain HTTP: /metrics, /livez, /readyz."""
    rendezvous: int = 29500
    """torch.distributed."""
    http: int = 8000
    """OpenAI-compatible API, inference leaders only."""
    login: int = 2222
    """SSH among the pods of a group whose engine runs over MPI."""


class Mount(Resource):
    """A claim as the workers see it: in a cluster `path` equals `mount_path`, for local processes it is a folder."""

    mount_path: str
    path: str

    def resolve(self, path: str) -> str | None:
        """Return where `path` really is, or None if it is not under this mount."""
        if path == self.mount_path or path.startswith(self.mount_path.rstrip("/") + "/"):
            return self.path + path[len(self.mount_path.rstrip("/")) :]
        return None


def locate(path: str, mounts: Iterable[Mount]) -> str:
    """Return where a path of the manifest really is: in the innermost mount that it is under."""
    found = (mount.resolve(path) for mount in sorted(mounts, key=lambda mount: -len(mount.mount_path)))
    return next((place for place in found if place is not None), path)


class PodWorld(BaseModel):
    """What any pod is told."""

    model_config = ConfigDict(
        alias_generator=Resource.model_config["alias_generator"], populate_by_name=True, frozen=True
    )

    namespace: str
    name: str
    uid: str
    ports: Ports = Ports()
    tls_folder: str | None = TLS_FOLDER
    """Folder with tls.crt, tls.key and ca.crt; None for local processes, which listen on loopback only."""
    termination_message: str = TERMINATION_MESSAGE
    """File that the report is written to at the end."""
    mounts: list[Mount] = []

    def locate(self, path: str) -> str:
        """Return where a path of the manifest really is."""
        return locate(path, self.mounts)


def without_pods(spec: Spec) -> Spec:
    """Return a specification without what is said of its pods, which no worker reads.

    It may be longer than everything else, and Linux takes no variable of more than 128 KiB.
    """
    return spec.model_copy(update={"template": None, "resources": None})


class TrainingWorld(PodWorld):
    """One attempt."""

    kind: Literal["ArcticTraining"] = "ArcticTraining"
    first_host: str
    """Address of the first pod, where all `spec.parallelism.nodes` meet: a pod has no need of the others' names."""
    spec: Annotated[ArcticTrainingSpec, AfterValidator(without_pods)]
    attempt: Annotated[int, Field(ge=1)]
    epoch: Annotated[int, Field(ge=1)]
    """Grows with each attempt; a checkpoint commits only under the store's newest epoch."""
    run_folder: str
    """Folder of this training in its store, `STORE/NAMESPACE/NAME-UID5`.

    It holds checkpoints/, tokenizer/, export/ and evaluation/.
    """
    weights_folder: str | None = None
    """Export folder of the training that `model.from.training` names."""


class InferenceGroup(PodWorld):
    """One replica."""

    kind: Literal["ArcticInference"] = "ArcticInference"
    hosts: list[str]
    """Address of each pod, by pipeline rank; the first is the rendezvous."""
    spec: Annotated[ArcticInferenceSpec, AfterValidator(without_pods)]
    group: str
    """Name of the group, which is its StatefulSet's or LeaderWorkerSet's."""
    revision: str
    model_folder: str
    """Folder of the weights in the Hugging Face layout."""
    keys_folder: str | None = None
    """Folder of the Secret that `service.auth` names, a file a value; None where a gateway asks for keys."""
    login_folder: str | None = None
    """Folder with the group's `LOGIN_KEY`; None where its pods have no need of it."""

    @property
    def served_name(self) -> str:
        """Name under which clients ask for the model."""
        return self.spec.model.served_name or self.name

    @property
    def drained_path(self) -> str:
        """Path of a sidecar's metrics port that tells it to drain, and is answered once that is done.

        Anyone may ask that port, and only who may read the pods knows the uid.
        """
        return f"/drained/{self.uid}"


class EvaluationWorld(PodWorld):
    """The pod that evaluates a model."""

    kind: Literal["ArcticEvaluation"] = "ArcticEvaluation"
    spec: Annotated[ArcticEvaluationSpec, AfterValidator(without_pods)]
    job: str
    """Name of the pod's Job."""
    folder: str
    """Folder of this evaluation in its store, `STORE/NAMESPACE/NAME-UID5`: what is there is gone on with."""
    weights_folder: str | None = None
    """Folder of the weights in the Hugging Face layout, or of a run's checkpoint; None for an API that is asked."""
    url: str | None = None
    """Address of that API, up to and with `/v1`."""
    model: str
    """Name of the model: at that API, and in results."""
    credentials_folder: str | None = None
    """Folder of the Secret with the key that the API takes."""
    compared: list[str] = []
    """Folders of the evaluations that its page shows beside this one."""


World = TrainingWorld | InferenceGroup | EvaluationWorld
"""What pods are told with which the operator speaks."""


def uid5(uid: str) -> str:
    """Return the five hex digits of a uid that names of children and run folders carry."""
    return uid.replace("-", "")[:5]


def run_folder(root: str, namespace: str, name: str, uid: str) -> str:
    """Return the folder of one training in its store: with the uid in it, a re-created object starts clean."""
    return f"{root}/{namespace}/{name}-{uid5(uid)}"


class Told(Resource):
    """What a pod tells, in which a figure may have come to no number."""

    model_config = ConfigDict(allow_inf_nan=True)


class StageReport(Told):
    """One stage as the worker saw it."""

    name: str
    tokens: int
    start_time: str | None = None
    completion_time: str | None = None
    checkpoint: str | None = None
    initial_validation_loss: float | None = None
    """Loss on held-out text of the stage's main category, at its start."""
    validation_loss: float | None = None
    """The same, at its end."""


class SourceReport(Told):
    """One source as the worker prepared it."""

    name: str
    """`validation.NAME` for one that is only for validation."""
    documents: int = 0
    """Documents, those that are held out among them."""
    skipped: int = 0
    """Rows left out because they had no usable text."""
    tokens: int = 0
    """Tokens to train on."""
    epochs: float = 0.0
    """How often they have been read."""
    planned_epochs: float = 0.0
    """How often they will have been read at the end of the curriculum."""
    unused_splits: list[str] = Field(default_factory=list)
    """Splits of its data set that are not read."""


class CheckpointReport(Told):
    """A committed checkpoint."""

    step: int
    tokens: int
    uri: str
    time: str


class Report(Told):
    """What a training pod leaves in its termination message (4,096 bytes at most): the durable word on how it ended."""

    outcome: Literal["succeeded", "interrupted", "refused", "failed"]
    reason: str = ""
    """CamelCase, for a condition."""
    message: str = ""
    """A sentence for people: what is wrong, where, what to do."""
    epoch: int = 0
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    checkpoint: CheckpointReport | None = None
    export_uri: str | None = None
    """Set only when the final checkpoint and the export are committed: the final marker."""
    stages: list[StageReport] = Field(default_factory=list)
    sources: list[SourceReport] = Field(default_factory=list)
    evaluation: dict[str, float] | None = None


class FigureReport(Told):
    """A figure and its 95% interval."""

    name: str
    value: float
    low: float
    high: float


class SuiteReport(Told):
    """One suite of an evaluation as the worker saw it."""

    name: str
    state: SuiteState
    answered: int = 0
    judged: int = 0
    planned: int = 0
    figures: list[FigureReport] = Field(default_factory=list)
    message: str = ""


class EvaluationReport(Told):
    """What an evaluation's pod leaves in its termination message: the durable word on what it found."""

    outcome: Literal["succeeded", "interrupted", "refused", "failed"]
    reason: str = ""
    """CamelCase, for a condition."""
    message: str = ""
    """A sentence for people: what is wrong, where, what to do."""
    suites: list[SuiteReport] = Field(default_factory=list)
    enterprise_intelligence: FigureReport | None = None
