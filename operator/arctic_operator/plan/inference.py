"""What should become of the groups of a service: how many, of which revision, on which nodes, which one goes next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from arctic_api.common import parse_duration
from arctic_api.world import GROUP_BROKEN, ExitCode, Label, Ports, Routing, group_index
from arctic_operator.live import InferenceObservation
from arctic_operator.manifests.common import group_name, revision_of
from arctic_operator.manifests.gateway import gateway_children, held_at_once
from arctic_operator.manifests.inference import group_services, group_set
from arctic_operator.observed import (
    DRAINING_ANNOTATION,
    GENERATION_ANNOTATION,
    READ_ANNOTATION,
    REVISION_ANNOTATION,
    GroupSet,
    Inference,
    InferenceSeen,
    Node,
    Pod,
    Trouble,
    format_time,
    is_silent,
)
from arctic_operator.plan.actions import Delete, Follow, Mark, Plan, Remembered, sooner
from arctic_operator.plan.autoscaling import measured, scale
from arctic_operator.plan.canary import Canary, canary_of, unless_refused
from arctic_operator.plan.canary_analysis import analyse
from arctic_operator.plan.conditions import (
    CRASH_LOOP,
    PODS_AFTER,
    lacks_pods,
    unreachable,
    until_unreachable,
    waiting_for,
)
from arctic_operator.plan.drain_request import drain_request, leaver
from arctic_operator.plan.inference_history import Target, forgotten, records, target_of
from arctic_operator.plan.inference_status import WAITING, inference_status
from arctic_operator.plan.settling import is_to_be_heard
from arctic_operator.plan.words import report_of
from arctic_operator.settings import Settings

SETTLE = timedelta(seconds=10)
"""What the gateway gets to notice that a leader came or went."""
SERVED_AFTER = timedelta(seconds=60)
"""A pod that lived longer is remade at once when it waits to be restarted; one that can't start is left to back off."""
LOOK_AGAIN_SECONDS = 30.0
MEASURE_SECONDS = 5.0
"""Time between two looks of autoscaling."""
LOOK_AT_KEYS_SECONDS = 15.0
"""Nothing tells of a Secret that has changed."""


@dataclass(frozen=True)
class Group:
    """One group and how it fares."""

    name: str
    index: int
    set: GroupSet
    pods: tuple[Pod, ...]
    fresh: bool
    """Of the wanted revision, and not one that leaves."""
    leaves: bool
    """With a pod on a node that is to be emptied, or asked by name to go."""
    lost: bool
    """With a pod on a node that is gone."""
    ready_since: datetime | None
    """Since when all of its pods are ready, None while they are not."""

    @property
    def lacks_pods(self) -> bool:
        """Whether it has fewer pods than it was made for."""
        return len(self.pods) < self.set.size

    @property
    def draining(self) -> bool:
        """Whether it takes no new requests."""
        return self.set.draining_since is not None

    def settled(self, now: datetime) -> bool:
        """Whether it is ready and the gateway knows."""
        return self.ready_since is not None and now - self.ready_since >= SETTLE


def _stamps(target: Target, seen: InferenceSeen) -> Iterable[Mark]:
    """Note which groups agree still: or else the next edit, or upgrade, would see two changes in one."""
    inference = target.inference
    wanted = {REVISION_ANNOTATION: inference.revision, GENERATION_ANNOTATION: str(inference.generation)}
    for group in seen.groups:
        known = {REVISION_ANNOTATION: group.specification, GENERATION_ANNOTATION: str(group.generation)}
        if not group.deleting and known != wanted and target.agrees(group) and not target.forgotten:
            yield Mark(group.kind, inference.identity.namespace, group.name, group.uid, annotations=wanted)


def groups_of(seen: InferenceSeen, revision: str, asked: str | None, now: datetime) -> list[Group]:
    """Return the groups that exist and are not being deleted, oldest first; `asked` is the uid of one that is to go."""
    nodes = seen.nodes or {}
    groups = []
    for held in seen.groups:
        if held.deleting:
            continue
        pods = tuple(pod for pod in seen.pods if pod.group == held.name)
        leaves = held.uid == asked or any(pod.node in nodes and nodes[pod.node].to_be_emptied for pod in pods)
        ready = [pod.ready_since for pod in pods if pod.ready_since and pod.delete_requested is None]
        whole = len(ready) == len(pods) == held.size
        groups.append(
            Group(
                name=held.name,
                index=group_index(held.name),
                set=held,
                pods=pods,
                fresh=held.revision == revision and not leaves,
                leaves=leaves,
                lost=_is_lost(pods, seen.nodes, now),
                ready_since=max(ready) if whole else None,
            )
        )
    return sorted(groups, key=lambda group: group.index)


def _early(
    pods: Iterable[Pod], before: Mapping[tuple[str, datetime], datetime], now: datetime
) -> dict[tuple[str, datetime], datetime]:
    """Return since when pods are seen to be ready that are so only in time to come, or were when that was seen.

    A kubelet's clock may be ahead, and the cluster's is set back: neither must keep a group waiting for so long.
    """
    told = ((pod.uid, pod.ready_since) for pod in pods if pod.ready_since)
    return {each: min(before.get(each, now), now) for each in told if each in before or each[1] > now}


def _ready_since(pod: Pod, early: Mapping[tuple[str, datetime], datetime]) -> Pod:
    seen = early.get((pod.uid, pod.ready_since)) if pod.ready_since else None
    return replace(pod, ready_since=seen) if seen else pod


def _is_lost(pods: Sequence[Pod], nodes: Mapping[str, Node] | None, now: datetime) -> bool:
    """Whether nothing is known any more about a pod of a group; at the first silence if others say that it is gone."""
    if any(unreachable(pod, nodes, now) for pod in pods):
        return True
    heard = [pod for pod in pods if not is_silent(pod, nodes)]
    return len(heard) < len(pods) and any(map(_has_lost_a_peer, heard))


def _has_lost_a_peer(pod: Pod) -> bool:
    report = report_of(pod)
    return pod.ready_since is None and report is not None and report.reason == GROUP_BROKEN


@dataclass(frozen=True)
class Moves:
    """One step of a rollout."""

    create: int = 0
    """Number of new groups of the wanted revision."""
    restore: int = 0
    """Number of new groups of the stable revision, while there is a canary."""
    drain: tuple[Group, ...] = ()
    """Groups that begin to go."""
    remove: tuple[Group, ...] = ()
    """Groups that go at once."""


def next_moves(
    groups: Sequence[Group], desired: int, surge: int, unavailable: int, now: datetime, *, paused: bool = False
) -> Moves:
    """Return the next step from the groups that are to `desired` fresh ones.

    Never more than `desired + surge` groups hold nodes, and never fewer than `desired - unavailable` serve because of
    this step. What does not serve goes first; what has begun to drain does not come back. While paused only what leaves
    is replaced.
    """
    lost = [group for group in groups if group.lost]
    kept = [group for group in groups if not group.lost and not group.draining]
    draining = [group for group in groups if not group.lost and group.draining]
    staying = [group for group in kept if (not group.leaves if paused else group.fresh)]
    missing = max(0, min(desired - len(staying), desired + surge - len(kept) - len(draining)))
    surplus = _surplus(kept, desired, paused=paused)
    serving = sum(group.settled(now) for group in kept)
    may_stop = serving - max(0, desired - unavailable) if desired else len(kept)
    drain, remove = _leaving(surplus, may_stop)
    return Moves(missing, drain=drain, remove=(*lost, *remove))


def canary_moves(
    groups: Sequence[Group],
    wanted: tuple[int, int],
    stable: str,
    most: int,
    least: int,
    now: datetime,
    *,
    paused: bool = False,
) -> Moves:
    """Return the next step to so many groups of the newest revision and so many of the stable one.

    Never more than `most` groups hold nodes, and never fewer than `least` serve because of this step.
    """
    lost = [group for group in groups if group.lost]
    kept = [group for group in groups if not group.lost and not group.draining]
    newest = [group for group in kept if group.fresh]
    old = [group for group in kept if group.set.revision == stable and not group.leaves]
    others = [group for group in kept if group not in newest and group not in old]
    leaving = [group for group in others if group.leaves]
    room = most - (len(groups) - len(lost))
    # The stable revision comes first, as it carries the service.
    restore = max(0, min(wanted[1] - len(old), room))
    create = max(0, min(wanted[0] - len(newest), room - restore))
    if paused:
        create = min(create, sum(group.set.revision != stable for group in leaving))
    surplus = leaving if paused else [*others, *_beyond(old, wanted[1]), *_beyond(newest, wanted[0])]
    may_stop = sum(group.settled(now) for group in kept) - least
    drain, remove = _leaving(surplus, may_stop)
    return Moves(create, restore, drain, (*lost, *remove))


def _leaving(surplus: Sequence[Group], may_stop: int) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Divide what should go: at most so many of those that serve begin to drain, what does not serve goes at once."""
    serving = [group for group in surplus if group.ready_since is not None]
    return tuple(serving[: max(0, may_stop)]), tuple(group for group in surplus if group.ready_since is None)


def _beyond(groups: Sequence[Group], number: int) -> list[Group]:
    """Return the groups beyond so many, in the order in which they should go."""
    ordered = sorted(groups, key=lambda group: (group.ready_since is not None, -group.index))
    return ordered[: max(0, len(groups) - number)]


def _routing(group: Group) -> Routing:
    leader = _leader(group)
    return leader.routing if leader else Routing.OFF


def _surplus(kept: Sequence[Group], desired: int, *, paused: bool) -> list[Group]:
    """Return the groups that should go, in the order in which they should."""
    leaving = [group for group in kept if group.leaves]
    stale = sorted((g for g in kept if not g.fresh), key=lambda g: (not g.leaves, g.ready_since is not None, g.index))
    fresh = _beyond([group for group in kept if group.fresh], 0)
    if paused:
        return [*stale, *fresh][: max(len(leaving), len(kept) - desired)]
    return [*stale, *fresh[: max(0, len(fresh) - desired)]]


def plan_inference(
    inference: Inference,
    seen: InferenceSeen,
    settings: Settings,
    now: datetime,
    remembered: Remembered = Remembered(),  # noqa: B008  frozen
) -> Plan:
    """Return what to do for a service, and its status; `remembered` is what the plan before has handed on."""
    if inference.deleting:
        return Plan()
    early = _early(seen.pods, remembered.early, now)
    seen = replace(seen, pods=[_ready_since(pod, early) for pod in seen.pods])
    newest, held = target_of(inference, seen)
    target, refused = unless_refused(inference, seen, newest)
    held = held or refused
    spec, identity = target.inference.spec, inference.identity
    asked_to_go = drain_request(inference, seen.groups)
    groups = groups_of(seen, target.name, leaver(asked_to_go), now)
    waiting = held if target.forgotten else _waiting(target, seen)
    scaling, scaler = scale(spec, inference.status, remembered.scaler, measured(groups, seen), now)
    wanted = scaling.wanted if scaling else spec.replicas
    desired = 0 if spec.suspend or (waiting and not groups) else wanted
    rollout = spec.rollout
    asked = canary_of(inference, seen, target) if desired else None
    canary = asked if isinstance(asked, Canary) else None
    held = held or (asked if isinstance(asked, Trouble) else None)
    stuck = waiting is not None or isinstance(asked, Trouble)
    if stuck:  # no group of the wanted revision can be made, so none goes in favour of it
        groups = [replace(group, leaves=False) for group in groups]
    paused = rollout.paused or stuck
    if canary:
        most, least = desired + rollout.max_surge, desired - rollout.max_unavailable
        moves = canary_moves(groups, canary.counts(desired), canary.stable.name, most, least, now, paused=paused)
    else:
        moves = next_moves(groups, desired, rollout.max_surge, rollout.max_unavailable, now, paused=paused)
    analysed, comparison = analyse(inference, newest.name, canary, groups, seen, remembered.comparison, now)
    kinds_of_new = [
        *((canary.stable, Routing.ON) for _ in range(moves.restore) if canary),
        *((target, Routing.CANARY if canary else Routing.ON) for _ in range(0 if waiting else moves.create)),
    ]
    first = 1 + max(map(group_index, _names(seen)), default=-1)
    new = {
        group_name(identity, each.name, first + number): (each, routing)
        for number, (each, routing) in enumerate(kinds_of_new)
    }
    gone = [group for group in groups if group.draining and _is_idle(group, inference, seen, now)]
    removed = [*moves.remove, *gone]
    staying = [group for group in groups if group not in removed]
    kinds = {group.name: group.set.kind for group in staying} | dict.fromkeys(new, settings.inference_groups)
    left = tuple(_left_behind(seen, identity.namespace)) if settings.leader_worker_sets else ()
    used = [target.name, *(group.set.revision for group in groups)]
    share = canary.share if canary else 0
    status = inference_status(
        replace(target.inference, generation=inference.generation),
        seen,
        groups,
        target,
        canary,
        desired,
        waiting,
        held,
        scaling,
        analysed,
        asked_to_go,
        now,
    )
    return Plan(
        apply=(
            *records(target, seen),
            *gateway_children(identity, spec, settings, seen.access.digests if seen.access else (), share),
            *(child for name, kind in kinds.items() for child in group_services(identity, name, kind, settings)),
        ),
        create=tuple(
            group_set(each.inference, each.name, name, settings, each.base, routing)
            for name, (each, routing) in new.items()
        ),
        mark=(
            *_stamps(target, seen),
            *(
                mark
                for group in groups
                for mark in _marks(group, identity.namespace, group in moves.drain, canary, now)
            ),
            *_told_to_read(seen, identity.namespace, share, held_at_once(spec)),
        ),
        drain=tuple(group.name for group in staying if _must_tell(group, seen, now)),
        delete=(
            *(_delete_set(group, identity.namespace) for group in removed),
            *_orphans(seen, new),
            *left,
            *_crashed(staying, identity.namespace, now),
            *forgotten(inference, seen, used),
        ),
        follow=tuple(follow for group in staying for follow in _follow(group)),
        short=tuple(g.set for g in staying if lacks_pods(g.set.created, g.pods, g.set.size, now)),
        ask_gateways=tuple(pod.ip for pod in seen.gateways if pod.ip) if scaling else (),
        remembered=Remembered(scaler, comparison, early),
        status=status,
        settling=is_to_be_heard(inference, status, seen, (group.name for group in groups if group.ready_since)),
        requeue_after=sooner(
            _next_look(groups, now),
            until_unreachable(seen.pods, seen.nodes, now),
            LOOK_AT_KEYS_SECONDS if seen.access else None,
            MEASURE_SECONDS if (wanted and scaling) or (canary and analysed) else None,
        ),
        needs_fresh=bool(new or left) or any(group.lost for group in groups),
    )


def _names(seen: InferenceSeen) -> Iterable[str]:
    """Return the names of groups that are in use: a pod on a node that is gone keeps its name when its group is not."""
    yield from (group.name for group in seen.groups)
    yield from (pod.group for pod in seen.pods if pod.group)


def _waiting(target: Target, seen: InferenceSeen) -> Trouble | None:
    """Return why the weights of the training that is named are not there."""
    name = target.inference.spec.model.training
    if name is None or target.base:
        return None
    return seen.lack or Trouble(WAITING, waiting_for(name))


def _delete_set(group: Group, namespace: str) -> Delete:
    return Delete(group.set.kind, namespace, group.name, group.set.uid)


def _leader(group: Group) -> Pod | None:
    return next((pod for pod in group.pods if pod.index == 0), None)


def _marks(group: Group, namespace: str, begins: bool, canary: Canary | None, now: datetime) -> Iterable[Mark]:
    """Say which requests a group gets: none if it goes or is lost. Scale its set back where somebody has scaled it.

    The mark on the set is the memory of when it began to go: one that is yet to come, which nobody knows, is made anew.
    """
    leader = _leader(group)
    if group.set.scaled:
        yield Mark(group.set.kind, namespace, group.name, group.set.uid, replicas=group.set.replicas)
    if begins or _since_drain(group, now) < timedelta(0):
        since = {DRAINING_ANNOTATION: format_time(now)}
        yield Mark(group.set.kind, namespace, group.name, group.set.uid, annotations=since)
    routing = Routing.OFF if begins or group.draining or group.lost else _due_routing(group, canary)
    if leader and leader.routing not in (routing, Routing.OFF):
        yield Mark("Pod", namespace, leader.name, leader.uid, labels={Label.ROUTING: routing.value})


def _due_routing(group: Group, canary: Canary | None) -> Routing:
    """Return which requests a group gets that stays.

    What was a canary and is not wanted any more stays aside until it goes: its share is gone with it.
    """
    if canary:
        return Routing.ON if group.set.revision == canary.stable.name else Routing.CANARY
    return Routing.ON if group.fresh else _routing(group)


def _told_to_read(seen: InferenceSeen, namespace: str, share: int, hold: int) -> Iterable[Mark]:
    """Have the files of gateways brought up to date now: the kubelet would take its time, a minute or two."""
    contents = {"keys": seen.access and seen.access.digests, "share": share} | ({"hold": hold} if hold else {})
    files = revision_of(contents) if seen.access or share or hold else ""
    for pod in seen.gateways:
        if pod.told != files:
            yield Mark("Pod", namespace, pod.name, pod.uid, annotations={READ_ANNOTATION: files})


def _since_drain(group: Group, now: datetime) -> timedelta:
    return now - group.set.draining_since if group.set.draining_since else timedelta(0)


def _observation(group: Group, seen: InferenceSeen) -> InferenceObservation | None:
    """Return what a leader says of itself, if it can be heard."""
    live = seen.live.get(group.name)
    told = live.observation if live and live.connected else None
    return told if isinstance(told, InferenceObservation) else None


def _must_tell(group: Group, seen: InferenceSeen, now: datetime) -> bool:
    """Whether it is time to tell a leader to take no new requests: once the gateway sends none any more."""
    told = _observation(group, seen)
    return group.draining and _since_drain(group, now) >= SETTLE and told is not None and not told.draining


def _is_idle(group: Group, inference: Inference, seen: InferenceSeen, now: datetime) -> bool:
    """Whether a draining group may go: nothing runs in it any more, or its time is over."""
    leader, since = _leader(group), _since_drain(group, now)
    if leader is None or leader.ready_since is None:
        return True
    if since >= SETTLE + timedelta(seconds=parse_duration(inference.spec.rollout.drain_timeout)):
        return True
    told = _observation(group, seen)
    return since >= SETTLE and told is not None and told.draining and told.running + told.waiting == 0


def _crashed(groups: Sequence[Group], namespace: str, now: datetime) -> Iterable[Delete]:
    """When one rank goes all of its group do; they must not wait out a back-off that grows with each lost peer."""
    for pod in (pod for group in groups for pod in group.pods):
        held_back = pod.waiting == CRASH_LOOP and pod.exit_code != ExitCode.BAD_INPUT
        served = (pod.finished or now) - pod.created >= SERVED_AFTER
        if held_back and served and pod.delete_requested is None:
            yield Delete("Pod", namespace, pod.name, pod.uid)


def _orphans(seen: InferenceSeen, new: Iterable[str]) -> Iterable[Delete]:
    """What stood beside groups that are gone; what is there of new ones is left of a try that was refused."""
    names = {*new, *(group.name for group in seen.groups)}
    for child in seen.others:
        metadata = child["metadata"]
        group = metadata.get("labels", {}).get(Label.GROUP)
        if group and group not in names:
            yield Delete(child["kind"], metadata["namespace"], metadata["name"], metadata["uid"])


def _left_behind(seen: InferenceSeen, namespace: str) -> Iterable[Delete]:
    """What still makes workers for a LeaderWorkerSet that is gone.

    It belongs to the leader's pod: it would end after that one only, and never while that one's node is unreachable.
    """
    names = {group.name for group in seen.groups}
    alive = (pod for pod in seen.pods if pod.group not in names and pod.delete_requested is None)
    for owner in dict.fromkeys(pod.owner for pod in alive if pod.owner and pod.owner.name != pod.group):
        yield Delete(owner.kind, namespace, owner.name, owner.uid)


def _follow(group: Group) -> Iterable[Follow]:
    leader = _leader(group)
    if leader and leader.ip and leader.phase == "Running":
        yield Follow(group.name, leader.ip, Ports().control)


def _next_look(groups: Sequence[Group], now: datetime) -> float | None:
    """Settling, draining and lost nodes are matters of time: nothing in the cluster changes when it is over."""
    settling = [
        (SETTLE - (now - g.ready_since)).total_seconds() for g in groups if g.ready_since and not g.settled(now)
    ]
    draining = [1.0 for group in groups if group.draining]
    lacking = [PODS_AFTER.total_seconds() for group in groups if group.lacks_pods]
    return sooner(LOOK_AGAIN_SECONDS, *settling, *draining, *lacking)
