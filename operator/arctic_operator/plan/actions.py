"""What a plan consists of: values that say what to do, and nothing that does it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from arctic_operator.manifests.common import Manifest
from arctic_operator.observed import GroupSet, Job
from arctic_operator.plan.autoscaling import Scaler
from arctic_operator.plan.comparison import Comparison


@dataclass(frozen=True)
class Delete:
    """Delete the object that has this uid. `after_pods` keeps it until its pods are gone.

    `grace_seconds` is what a pod gets to end; None leaves it what its manifest says.
    """

    kind: str
    namespace: str
    name: str
    uid: str | None = None
    after_pods: bool = False
    grace_seconds: int | None = None


@dataclass(frozen=True)
class Mark:
    """Set labels and annotations of a child, and `replicas`, unless that is None."""

    kind: str
    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    replicas: int | None = None


@dataclass(frozen=True)
class Adopt:
    """Give an object another owner, by the reference to it and the labels of its children."""

    kind: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    owner: Mapping[str, Any]


@dataclass(frozen=True)
class Follow:
    """Follow the state of the worker at this address; `group` is empty for a training."""

    group: str
    host: str
    port: int


@dataclass(frozen=True)
class Command:
    """Something that a worker is told; it is told again for as long as it does not show."""

    name: Literal["pause", "resume", "stop_after", "checkpoint", "drain"]
    argument: str = ""
    """The stage, or the token of the request that is answered."""
    group: str = ""
    """The group whose leader is told; empty for a training's rank 0."""


@dataclass(frozen=True)
class Event:
    """Something that happened, for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Remembered:
    """What the plans of a service hand on, one to the next; losing it loses time alone."""

    scaler: Scaler = field(default_factory=Scaler)
    comparison: Comparison = field(default_factory=Comparison)
    early: Mapping[tuple[str, datetime], datetime] = field(default_factory=dict)
    """Since when pods are seen to be ready, by their uids and the time since which they are as their kubelets say, if
    that was yet to come."""


@dataclass(frozen=True)
class Plan:
    """The difference between what is and what should be, and the status that tells of it.

    Applied in the order of the fields.
    """

    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    mark: tuple[Mark, ...] = ()
    drain: tuple[str, ...] = ()
    """Groups whose leader is told to take no new requests; none of them is waited for."""
    delete: tuple[Delete, ...] = ()
    follow: tuple[Follow, ...] = ()
    """All streams that should be open for this object."""
    ask_gateways: tuple[str, ...] = ()
    """Addresses of the gateway's pods that are asked how many requests wait in them."""
    remembered: Remembered = field(default_factory=Remembered)
    """What the next plan of a service is to be given."""
    commands: tuple[Command, ...] = ()
    """What a training is told; none of it is waited for."""
    status: dict[str, Any] | None = None
    """The whole status; None leaves it alone."""
    settling: bool = False
    """Whether the status may wait a moment for what follows at once, and changes it again."""
    begins: bool = False
    """Whether the status tells only that a world is being started: worlds that are not yet are more urgent."""
    short: tuple[Job | GroupSet, ...] = ()
    """Children that have too few pods for too long: why must be asked for."""
    requeue_after: float | None = None
    """Seconds after which to look again even if nothing happens."""
    needs_fresh: bool = False
    """Follows from something that was not there: look at the API server itself, and plan again, before applying."""


def sooner(*delays: float | None) -> float | None:
    """Return the shortest of the given delays, at least a tenth of a second; None for none."""
    known = [delay for delay in delays if delay is not None]
    return max(0.1, min(known)) if known else None
