"""How many groups a service should have, from what it does: pure, what is remembered is an argument.

As in Kubernetes' HorizontalPodAutoscaler the number follows the ratio of what is measured to what is to be held, with
its tolerance and its stabilization windows. Two things are added. Fewer groups must be able to carry what there is now:
a queue that is empty since there are enough groups says nothing about one group less. And what a group carried when it
was too much is remembered: load that stays as it is never takes away the group that it has brought.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from arctic_api.common import parse_duration, parse_percent
from arctic_api.inference import ArcticInferenceSpec, ArcticInferenceStatus, Autoscaling, AutoscalingTarget
from arctic_operator.live import InferenceObservation
from arctic_operator.observed import InferenceSeen

TOLERANCE = 0.1
"""Ratios so near to 1 change nothing."""
GROWTH = 2
"""Never more than so many times the groups that serve: those that load have not shown yet what they carry."""
HEADROOM = 0.8
"""Share of what fewer groups can carry that they may be given."""
REMEMBERED = timedelta(days=1)
"""How long what a group can't carry counts: requests change."""
SAME_RUSH = timedelta(minutes=1)


@dataclass(frozen=True)
class Measured:
    """What a service does now. Rates are per second, over the last ten seconds."""

    serving: int
    """Groups that are ready, and whose leaders are heard."""
    unheard: int
    """Groups that are ready, and whose leaders are not."""
    running: int
    """Requests that are computed."""
    waiting: int
    """Requests that wait in the leaders."""
    kv_cache_utilization: float
    """Mean over the groups, 0 to 1."""
    ttft_p99_seconds: float
    """Of the slowest group; 0 without requests."""
    tokens_per_second: float
    requests_per_second: float
    held: int | None
    """Requests that wait in the gateway; None where no pod of it could be asked."""

    @property
    def queued(self) -> int:
        """Requests that wait anywhere."""
        return self.waiting + (self.held or 0)

    @property
    def idle(self) -> bool:
        """Whether it is known that nobody asks."""
        quiet = self.running + self.queued == 0 and self.requests_per_second == 0
        return self.serving > 0 and not self.unheard and self.held is not None and quiet


@dataclass(frozen=True)
class Scaler:
    """What is remembered from one look to the next. Losing it costs the time of a window, and no request."""

    asked: tuple[tuple[datetime, int], ...] = ()
    """When how many groups were asked for, the oldest first."""
    idle_since: datetime | None = None
    too_much: float | None = None
    """Tokens a second that a group carried when they were too many."""
    too_much_at: datetime | None = None


@dataclass(frozen=True)
class Scaling:
    """How many groups there should be, and why."""

    wanted: int
    reason: str
    message: str
    active: bool = True
    """Whether it follows what is measured; else the number stays."""


class ReadyView(Protocol):
    """What measuring needs of a group."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def lost(self) -> bool: ...  # noqa: D102
    @property
    def draining(self) -> bool: ...  # noqa: D102
    @property
    def ready_since(self) -> datetime | None: ...  # noqa: D102


def measured(groups: Sequence[ReadyView], seen: InferenceSeen) -> Measured:
    """Return what the groups that serve say of themselves, all together."""
    ready = [group for group in groups if group.ready_since and not group.lost and not group.draining]
    lives = [seen.live.get(group.name) for group in ready]
    told = [live.observation for live in lives if live and live.connected]
    heard = [each for each in told if isinstance(each, InferenceObservation)]
    return Measured(
        serving=len(heard),
        unheard=len(ready) - len(heard),
        running=sum(each.running for each in heard),
        waiting=sum(each.waiting for each in heard),
        kv_cache_utilization=sum(each.kv_cache_utilization for each in heard) / max(1, len(heard)),
        ttft_p99_seconds=max((each.ttft_p99_seconds for each in heard), default=0.0),
        tokens_per_second=sum(each.tokens_per_second for each in heard),
        requests_per_second=sum(each.requests_per_second for each in heard),
        held=seen.held,
    )


def scale(
    spec: ArcticInferenceSpec, status: ArcticInferenceStatus, scaler: Scaler, now_measured: Measured, now: datetime
) -> tuple[Scaling | None, Scaler]:
    """Return the number of groups of a service with `autoscaling`, and what to remember; None for one without."""
    scaling = spec.autoscaling
    if scaling is None:
        return None, Scaler()
    known = status.desired_replicas if status.desired_replicas is not None else spec.replicas
    before = min(max(known, scaling.min), scaling.max)
    if spec.suspend:
        return Scaling(before, "Suspended", "suspended: the number of groups stays", active=False), Scaler()
    scaler = _remembering(scaler, scaling.target, now_measured, now)
    since = scaler.idle_since
    if before == 0:
        return _asleep(scaling, now_measured), scaler
    if since and scaling.scale_to_zero_after and now - since >= _time(scaling.scale_to_zero_after):
        message = f"no request for {scaling.scale_to_zero_after}"
        return Scaling(0, "NoRequests", message), Scaler(too_much=scaler.too_much, too_much_at=scaler.too_much_at)
    asked = _asked(spec, scaling, before, scaler, now_measured)
    scaler = replace(scaler, asked=(*_recent(scaling, scaler, before, now), (now, asked.wanted)))
    return _stabilized(scaling, before, asked, scaler, now), scaler


def _asleep(scaling: Autoscaling, now_measured: Measured) -> Scaling:
    if now_measured.held:
        return Scaling(1, "Woken", f"{now_measured.held} requests wait in the gateway")
    if now_measured.held is None:
        return Scaling(0, "NoMeasurements", "no pod of the gateway can be asked for requests that wait", active=False)
    return Scaling(0, "NoRequests", f"no request for {scaling.scale_to_zero_after}: the next one brings a group back")


def _remembering(scaler: Scaler, target: AutoscalingTarget, now_measured: Measured, now: datetime) -> Scaler:
    """Note since when nobody asks, and what is too much for a group."""
    # Clocks are set back: nothing that is remembered is yet to come.
    idle_since, too_much_at = (moment and min(moment, now) for moment in (scaler.idle_since, scaler.too_much_at))
    idle_since = (idle_since or now) if now_measured.idle else None
    scaler = replace(scaler, idle_since=idle_since, too_much_at=too_much_at)
    if scaler.too_much_at and now - scaler.too_much_at >= REMEMBERED:
        scaler = replace(scaler, too_much=None, too_much_at=None)
    if not now_measured.serving or now_measured.tokens_per_second <= 0 or _worst(target, now_measured)[0] <= 1:
        return scaler
    each = now_measured.tokens_per_second / now_measured.serving
    # Rates are means of the last moments: a rush shows at its height what a group carries.
    same = scaler.too_much_at is not None and now - scaler.too_much_at < SAME_RUSH
    return replace(scaler, too_much=max(each, scaler.too_much or 0.0) if same else each, too_much_at=now)


def _worst(target: AutoscalingTarget, now_measured: Measured) -> tuple[float, str]:
    """Return the highest ratio of what is measured to what is to be held, and the sentence on it."""
    found = []
    if target.queued_per_replica is not None:
        each = now_measured.queued / max(1, now_measured.serving)
        found.append(
            (each / target.queued_per_replica, f"{each:.1f} requests wait by group of {target.queued_per_replica}")
        )
    if target.kv_cache_utilization is not None:
        used = now_measured.kv_cache_utilization
        share = parse_percent(target.kv_cache_utilization)
        found.append((used / share, f"{used:.0%} of the KV cache is used of {target.kv_cache_utilization}"))
    if target.ttft is not None:
        seconds = now_measured.ttft_p99_seconds
        found.append(
            (seconds / parse_duration(target.ttft), f"the first token takes {seconds:.3f} s (p99) of {target.ttft}")
        )
    return max(found)


def _asked(
    spec: ArcticInferenceSpec, scaling: Autoscaling, before: int, scaler: Scaler, now_measured: Measured
) -> Scaling:
    """Return what this moment alone asks for."""
    if now_measured.unheard:
        message = f"{now_measured.unheard} groups that are ready can't be heard: the number stays"
        return Scaling(before, "NoMeasurements", message, active=False)
    serving = now_measured.serving
    if not serving:
        return Scaling(
            before, "NoGroupReady", "no group is ready that could be measured: the number stays", active=False
        )
    ratio, sentence = _worst(scaling.target, now_measured)
    if ratio > 1 + TOLERANCE:
        more = min(math.ceil(serving * ratio), GROWTH * serving)
        return Scaling(max(before, more), "AboveTarget", sentence)
    if ratio >= 1 - TOLERANCE:
        return Scaling(before, "OnTarget", sentence)
    fewest = next((count for count in range(1, serving) if _carry(count, spec, scaling, scaler, now_measured)), serving)
    return Scaling(min(before, fewest), "BelowTarget", sentence)


def _carry(count: int, spec: ArcticInferenceSpec, scaling: Autoscaling, scaler: Scaler, now_measured: Measured) -> bool:
    """Whether so many groups could carry what all carry now, and have room left."""
    target, serving = scaling.target, now_measured.serving
    room = parse_percent(target.kv_cache_utilization) if target.kv_cache_utilization else 1.0
    ratio, _ = _worst(target, now_measured)
    return (
        now_measured.running + now_measured.queued <= HEADROOM * count * spec.batching.max_sequences
        and now_measured.kv_cache_utilization * serving <= HEADROOM * count * room
        and ratio * serving <= HEADROOM * count
        and (scaler.too_much is None or now_measured.tokens_per_second <= HEADROOM * count * scaler.too_much)
    )


def _recent(scaling: Autoscaling, scaler: Scaler, before: int, now: datetime) -> tuple[tuple[datetime, int], ...]:
    """Return what has been asked for in the longest window; it begins anew where nothing has, and with a new clock."""
    windows = scaling.stabilization
    longest = max(_time(windows.up), _time(windows.down))
    asked = tuple(each for each in scaler.asked if each[0] <= now) or ((now, before),)
    return tuple(each for each in asked if now - each[0] <= longest)


def _stabilized(scaling: Autoscaling, before: int, asked: Scaling, scaler: Scaler, now: datetime) -> Scaling:
    """Return what has been asked for long enough, within the limits."""

    def within(window: str) -> list[int]:
        return [count for moment, count in scaler.asked if now - moment <= _time(window)]

    least, most = min(within(scaling.stabilization.up)), max(within(scaling.stabilization.down))
    number = min(max(before, least), most)
    wanted = min(max(number, scaling.min, 1), scaling.max)
    if wanted == before and asked.wanted != before:
        limited = asked.wanted > scaling.max or asked.wanted < max(1, scaling.min)
        reason, why = (
            ("Limited", "which min and max don't allow") if limited else ("Stabilizing", "not yet for long enough")
        )
        return replace(asked, wanted=wanted, reason=reason, message=f"{asked.message}: asks for {asked.wanted}, {why}")
    return replace(asked, wanted=wanted)


def _time(duration: str) -> timedelta:
    return timedelta(seconds=parse_duration(duration))
