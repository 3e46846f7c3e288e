"""What a service's status says: the state, the conditions, and the figures that its leaders report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from arctic_api.common import Condition, parse_duration
from arctic_api.inference import ArcticInferenceStatus, DrainRequest, RevisionStatus, ScalingStatus
from arctic_api.world import ExitCode
from arctic_operator.live import InferenceObservation, Live
from arctic_operator.manifests.common import gateway_name, leader_selector
from arctic_operator.manifests.gateway import service_url
from arctic_operator.observed import (
    INVALID_SPEC,
    NO_GATEWAY,
    NO_KEYS,
    Inference,
    InferenceSeen,
    Pod,
    Revision,
    Trouble,
    format_time,
)
from arctic_operator.plan.actions import Event
from arctic_operator.plan.autoscaling import ReadyView, Scaling
from arctic_operator.plan.canary import Canary, stable_revision
from arctic_operator.plan.canary_analysis import Analysed
from arctic_operator.plan.conditions import CRASH_LOOP, Conditions, find, is_true, refusal_of, trouble_of
from arctic_operator.plan.inference_history import Target, told_revisions
from arctic_operator.plan.words import exit_of, report_of

LESS_MEMORY = (
    "raise resources.limits.memory, lower batching.kvCache.memoryFraction or batching.tokenBudget, "
    "or spread the model over more pods by parallelism.pipeline"
)
GATEWAY_AFTER = timedelta(seconds=30)
"""What the pods of a gateway get to start, or to be replaced."""
SHUT = frozenset({NO_KEYS, NO_GATEWAY})
"""Reasons of trouble in which no request comes through, whatever groups are ready."""
WAITING = "WaitingForTraining"
MEASURED = "Measured"
"""Reason of the condition of a service whose number of groups follows what is measured."""
PROGRESS_FIELDS = frozenset(
    {"requestsPerSecond", "tokensPerSecond", "queued", "kvCacheUtilization", "ttftP99", "canary"}
)
"""What changes all the time: written less often than a change of state."""


class GroupView(ReadyView, Protocol):
    """What the status needs of a group."""

    @property
    def pods(self) -> tuple[Pod, ...]: ...  # noqa: D102
    @property
    def lacks_pods(self) -> bool: ...  # noqa: D102
    @property
    def fresh(self) -> bool: ...  # noqa: D102
    def settled(self, now: datetime) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class _Counts:
    desired: int
    all: int
    ready: int
    """Groups that are ready and that the gateway sends requests to: ready means that a request is answered."""
    updated: int
    updated_ready: int
    stale: int
    enough: int
    """Groups that the manifest wants ready at all times."""

    @property
    def complete(self) -> bool:
        """Whether all groups that are wanted are ready, and there are no others."""
        return 0 < self.desired <= self.updated_ready and self.stale == 0


def inference_status(
    inference: Inference,
    seen: InferenceSeen,
    groups: Sequence[GroupView],
    target: Target,
    canary: Canary | None,
    desired: int,
    waiting: Trouble | None,
    held: Trouble | None,
    scaling: Scaling | None,
    analysed: Analysed | None,
    asked_to_go: DrainRequest | None,
    now: datetime,
) -> dict[str, Any]:
    """Return the whole status.

    `waiting` says why there are no weights to make groups with, `held` why it is not at the revision that is asked for.
    """
    kept = [group for group in groups if not group.lost and not group.draining]
    unavailable = inference.spec.rollout.max_unavailable
    counts = _Counts(
        desired=desired,
        all=len(groups),
        ready=sum(group.settled(now) for group in kept),
        updated=sum(group.fresh for group in kept),
        updated_ready=sum(group.fresh and group.settled(now) for group in kept),
        stale=len(groups) - sum(group.fresh for group in kept),
        enough=max(1, desired - unavailable),
    )
    trouble = _trouble(inference, kept, seen.refusals)
    told = {group.name: told for group in kept if (told := _observation(seen.live.get(group.name)))}
    closed = _gateway_trouble(inference, seen, now) or (seen.access.lack if seen.access else None)
    first = closed if closed and closed.reason in SHUT else held or closed
    state = _state(inference, counts, trouble, waiting, closed)
    if canary and state in ("RollingOut", "Scaling", "Ready"):  # the last where the stable groups are being made anew
        state = "Canary"
    identity = inference.identity
    loading = _loading(kept, told)
    telling = f"{_told_canary(canary, target)}{f'; {loading}' if loading else ''}" if canary else loading
    status = ArcticInferenceStatus(
        state=state,
        observed_generation=inference.generation,
        replicas=counts.all,
        desired_replicas=scaling.wanted if scaling else inference.spec.replicas,
        scaling=_scaled(inference.status, scaling, now),
        ready_replicas=counts.ready,
        updated_replicas=counts.updated,
        selector=",".join(f"{name}={value}" for name, value in leader_selector(identity).items()),
        url=service_url(identity, inference.spec),
        revision=target.name,
        stable_revision=target.name
        if counts.complete and not canary
        else stable_revision(inference.status, seen.groups, target.name),
        revisions=[_told(each) for each in told_revisions(seen)] or None,
        start_time=inference.status.start_time or (format_time(now) if counts.ready else None),
        canary=analysed.status if analysed else None,
        drain_request=asked_to_go,
        conditions=_conditions(inference, counts, trouble, state, waiting, first, telling, scaling, analysed, now),
        weights=(seen.base or inference.status.weights) if inference.spec.model.training else None,
        **_figures(list(told.values())),
    )
    return status.wire()


def _scaled(before: ArcticInferenceStatus, scaling: Scaling | None, now: datetime) -> ScalingStatus | None:
    """Return the last change of the number of groups."""
    if scaling is None or before.desired_replicas in (scaling.wanted, None):
        return before.scaling if scaling else None
    message = f"{before.desired_replicas} to {scaling.wanted} groups: {scaling.message}"
    return ScalingStatus(replicas=scaling.wanted, reason=scaling.reason, message=message, time=format_time(now))


def scaling_events(before: ArcticInferenceStatus, after: Mapping[str, Any]) -> list[Event]:
    """Return an event for a change of the number of groups; `after` is a status as it is written."""
    scaled = ScalingStatus.model_validate(after["scaling"]) if after.get("scaling") else None
    return [] if scaled is None or scaled == before.scaling else [Event("Normal", "Scaled", scaled.message)]


def _told_canary(canary: Canary, target: Target) -> str:
    stable = canary.stable.name
    return f"revision {target.name} gets {canary.share}% of the requests, {stable} the rest: take canary out to go on"


def _told(recorded: Revision) -> RevisionStatus:
    image = (recorded.made_of.get("engine") or {}).get("image")
    return RevisionStatus(name=recorded.name, generation=recorded.generation, image=image)


def _observation(live: Live | None) -> InferenceObservation | None:
    seen = live.observation if live and live.connected else None
    return seen if isinstance(seen, InferenceObservation) else None


def _figures(seen: Sequence[InferenceObservation]) -> dict[str, Any]:
    """Return sums over the groups, except the fullest cache and the slowest first token."""
    if not seen:
        return {}
    return {
        "requests_per_second": f"{sum(group.requests_per_second for group in seen):.1f}",
        "tokens_per_second": round(sum(group.tokens_per_second for group in seen)),
        "queued": sum(group.waiting for group in seen),
        "kv_cache_utilization": f"{round(100 * min(1.0, max(group.kv_cache_utilization for group in seen)))}%",
        "ttft_p99": f"{max(group.ttft_p99_seconds for group in seen):.3f}",
    }


def _loading(groups: Iterable[GroupView], told: Mapping[str, InferenceObservation]) -> str:
    """Say how far the slowest of the leaders is that load."""
    shares = [told[group.name].loaded for group in groups if group.ready_since is None and group.name in told]
    return f"the leader has {min(shares):.0%} of its weights in memory" if shares and min(shares) < 1 else ""


def _trouble(inference: Inference, groups: Iterable[GroupView], refusals: Mapping[str, str]) -> Trouble | None:
    """Return what keeps groups from being ready: what children say, then how a worker ended."""
    unready = [group for group in groups if group.ready_since is None]
    pods = [pod for group in unready for pod in group.pods]
    refused = (refusal for group in unready if group.lacks_pods and (refusal := refusal_of(group.name, refusals)))
    known = next(refused, None) or trouble_of(pods, LESS_MEMORY)
    if known:
        return known
    for pod in pods:
        report = report_of(pod)
        if pod.exit_code == ExitCode.BAD_INPUT:
            reason = report.reason if report and report.reason else "BadInput"
            return Trouble(reason, report.message if report and report.message else f"pod {pod.name} refused its input")
    for pod in pods:
        if pod.waiting == CRASH_LOOP:
            return Trouble(CRASH_LOOP, exit_of(pod))
    for pod in pods:
        if pod.beside and pod.delete_requested is None:
            return Trouble(pod.beside.reason, f"pod {pod.name}: {pod.beside.message}")
    return _crash_loop(inference, unready)


def _crash_loop(inference: Inference, unready: Iterable[GroupView]) -> Trouble | None:
    """Return the crash loop that was told of a group that has not been ready since: between two crashes its pods run.

    With another manifest it may be over.
    """
    told = find(inference.status.conditions, "Degraded")
    if told is None or (told.status, told.reason) != ("True", CRASH_LOOP):
        return None
    same = told.observed_generation == inference.generation
    theirs = same and told.message.startswith(tuple(f"pod {group.name}-" for group in unready))
    return Trouble(CRASH_LOOP, told.message) if theirs else None


def _gateway_trouble(inference: Inference, seen: InferenceSeen, now: datetime) -> Trouble | None:
    down = seen.gateway_down
    if down is None or now - down.since < GATEWAY_AFTER:
        return None
    where = f"Deployment {gateway_name(inference.identity)}"
    why = down.why or "see what its pods say"
    return Trouble(NO_GATEWAY, f"no pod of the gateway ({where}) is ready, so nobody reaches the service: {why}")


def _state(
    inference: Inference, counts: _Counts, trouble: Trouble | None, waiting: Trouble | None, closed: Trouble | None
) -> str:
    if inference.spec.suspend:
        return "Suspended" if counts.all == 0 else "Suspending"
    if waiting and counts.all == 0:
        return WAITING
    if counts.desired == 0 and counts.all:
        return "ScalingDown"
    if counts.desired == 0:  # the gateway is what would wake it
        return NO_GATEWAY if closed and closed.reason == NO_GATEWAY else "Idle"
    if counts.ready and closed and closed.reason in SHUT:
        return closed.reason
    if counts.complete:
        return "Ready"
    if counts.ready == 0:
        return trouble.reason if trouble else "Starting"
    return "RollingOut" if counts.stale else "Scaling"


def _conditions(
    inference: Inference,
    counts: _Counts,
    trouble: Trouble | None,
    state: str,
    waiting: Trouble | None,
    closed: Trouble | None,
    loading: str,
    scaling: Scaling | None,
    analysed: Analysed | None,
    now: datetime,
) -> list[Condition]:
    """Return all conditions. Ready speaks of the wanted revision alone, Available of whether requests are answered."""
    conditions = Conditions(inference.status.conditions, inference.generation, now)
    told = f"{counts.updated_ready} of {counts.desired} groups of the wanted revision are ready"
    conditions.set("Ready", state == "Ready", "AllGroupsReady" if state == "Ready" else state, told)
    shut = closed is not None and closed.reason in SHUT
    available = counts.desired > 0 and counts.ready > 0 and not shut
    enough = "EnoughGroupsReady" if counts.ready >= counts.enough else "SomeGroupsReady"
    served = f"{counts.ready} of {counts.desired} groups are ready"
    conditions.set("Available", available, enough if available else state, served)
    moving = state in ("Starting", "RollingOut", "Canary", "Scaling", "ScalingDown", "Suspending") or bool(trouble)
    moving |= state in SHUT and counts.stale > 0
    held = inference.spec.rollout.paused and counts.stale > 0
    conditions.set("Progressing", moving and not held, "Paused" if held else state, loading if moving else "")
    late = None if counts.ready else _start_deadline_passed(inference, now)
    wrong = closed if shut and counts.ready else trouble or closed  # first what keeps all from being answered
    if wrong:
        conditions.set("Degraded", True, wrong.reason, wrong.message)
    elif waiting and waiting.reason != WAITING:
        conditions.set("Degraded", True, waiting.reason, waiting.message)
    elif late:
        conditions.set("Degraded", True, "StartDeadlineExceeded", late)
    elif waiting:
        conditions.set("Degraded", False, waiting.reason, waiting.message)
    else:
        conditions.set("Degraded", False, "AsExpected")
    if scaling:
        # One reason for all that is well: each other one would be an event.
        conditions.set("ScalingActive", scaling.active, MEASURED if scaling.active else scaling.reason, scaling.message)
    else:
        conditions.set("ScalingActive", False, "NotAsked", "spec.replicas says how many groups there are")
    if analysed:
        conditions.set("CanaryPassed", analysed.passed, analysed.reason, analysed.status.message)
    return conditions.all()


def _start_deadline_passed(inference: Inference, now: datetime) -> str | None:
    spec = inference.spec
    if not spec.start_deadline or spec.suspend or inference.status.start_time:
        return None
    if now - inference.created < timedelta(seconds=parse_duration(spec.start_deadline)):
        return None
    return f"was not ready within {spec.start_deadline} of its creation"


def invalid_status(status: ArcticInferenceStatus, message: str, generation: int, now: datetime) -> dict[str, Any]:
    """Return the status of a service whose specification can't be carried out; groups that serve are left alone."""
    conditions = Conditions(status.conditions, generation, now)
    for kind in ("Ready", "Available", "Progressing"):
        conditions.set(kind, is_true(status.conditions, kind) and kind == "Available", INVALID_SPEC)
    conditions.set("Degraded", True, INVALID_SPEC, message)
    after = {"state": INVALID_SPEC, "observed_generation": generation, "conditions": conditions.all()}
    return status.model_copy(update=after).wire()
