"""What workers say of themselves, as frozen values: no gRPC, so that planning may read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from arctic_api.world import SuiteReport


class Phase(StrEnum):
    """What a world does; the protocol's phases by their names."""

    UNKNOWN = "PHASE_UNSPECIFIED"
    """A phase of a newer protocol than this operator's."""
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DRAINING = "DRAINING"
    CHECKPOINTING = "CHECKPOINTING"
    EXPORTING = "EXPORTING"
    DONE = "DONE"


@dataclass(frozen=True)
class StageSeen:
    """One stage of the curriculum. `checkpoint` is a URI, empty while there is none."""

    name: str
    tokens: int
    started: datetime | None = None
    completed: datetime | None = None
    checkpoint: str = ""
    initial_validation_loss: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class SourceSeen:
    """One prepared source, in the words of `arctic_api.world.SourceReport`."""

    name: str
    documents: int
    skipped: int
    tokens: int
    epochs: float
    planned_epochs: float
    unused_splits: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSeen:
    """A committed checkpoint."""

    step: int
    tokens: int
    uri: str
    time: datetime | None


@dataclass(frozen=True)
class RoutingSeen:
    """The routers of all layers: the worst figure of each kind, and how many experts are dead."""

    imbalance: float
    entropy: float
    dead_experts: int
    dropped: float


@dataclass(frozen=True)
class TrainingObservation:
    """A training as its rank 0 says it is. Rates are per second; a figure that is not known (yet) is None."""

    uid: str
    epoch: int
    phase: Phase
    message: str
    time: datetime | None
    stage: str = ""
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    exposed_communication: float | None = None
    """Share of the time of the last step's exchanges that the world could only wait for them."""
    exposed_by_kind: Mapping[str, float] = field(default_factory=dict)
    """The same of each kind that there was."""
    expert_chunks: int | None = None
    stages: tuple[StageSeen, ...] = ()
    sources: tuple[SourceSeen, ...] = ()
    last_checkpoint: CheckpointSeen | None = None
    stop_after: str = ""
    """The stage that the run ends with; empty: the last one."""
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of the attempt, by what they were spent on."""
    routing: RoutingSeen | None = None
    skipped_updates: int = 0
    recomputes: bool = False
    """Whether activations are computed again in the backward pass, for want of memory."""
    planned_memory: int = 0
    """Bytes that a rank takes at most, as planned; 0 where a worker doesn't say."""


@dataclass(frozen=True)
class LogSums:
    """Sums of natural logarithms of seconds."""

    count: int = 0
    sum: float = 0.0
    sum_of_squares: float = 0.0

    def plus(self, other: "LogSums", sign: int = 1) -> "LogSums":
        """Return these and others together; without them if `sign` is -1."""
        return LogSums(
            self.count + sign * other.count,
            self.sum + sign * other.sum,
            self.sum_of_squares + sign * other.sum_of_squares,
        )


@dataclass(frozen=True)
class Figures:
    """What a leader has counted since it has started; a canary is judged by it."""

    ended: int = 0
    """Requests that were answered whole, or failed."""
    failed: int = 0
    ttft: LogSums = LogSums()
    per_token: LogSums = LogSums()
    """Of each request its mean."""

    def plus(self, other: "Figures", sign: int = 1) -> "Figures":
        """Return these and others together; without them if `sign` is -1."""
        return Figures(
            self.ended + sign * other.ended,
            self.failed + sign * other.failed,
            self.ttft.plus(other.ttft, sign),
            self.per_token.plus(other.per_token, sign),
        )

    def since(self, before: "Figures") -> "Figures":
        """Return what was added to what a leader said before: all, if it has started anew meanwhile."""
        added = self.plus(before, -1)
        anew = min(added.ended, added.failed, added.ttft.count, added.per_token.count) < 0
        return self if anew else added


@dataclass(frozen=True)
class InferenceObservation:
    """An inference group as its leader says it is. Rates are per second, the utilization is 0 to 1."""

    uid: str
    phase: Phase
    message: str
    time: datetime | None
    ready: bool = False
    draining: bool = False
    running: int = 0
    waiting: int = 0
    kv_cache_utilization: float = 0.0
    tokens_per_second: float = 0.0
    requests_per_second: float = 0.0
    ttft_p99_seconds: float = 0.0
    loaded: float = 0.0
    """Share of the leader's weights in memory."""
    figures: Figures = Figures()


@dataclass(frozen=True)
class EvaluationObservation:
    """An evaluation as its pod says it is."""

    uid: str
    phase: Phase
    message: str
    time: datetime | None
    suites: tuple[SuiteReport, ...] = ()


Observation = TrainingObservation | InferenceObservation | EvaluationObservation


@dataclass(frozen=True)
class Live:
    """How it stands between the operator and one world. Nothing here decides whether something succeeded."""

    observation: Observation | None = None
    """The newest one, kept when the stream breaks."""
    received: datetime | None = None
    """When it came, by the operator's clock."""
    connected: bool = False
    """Whether the stream stands and has brought a state."""
    error: str = ""
    """Why it does not stand: a sentence for people."""
