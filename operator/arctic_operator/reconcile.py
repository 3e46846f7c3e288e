"""The loop for one object: observe, plan, apply, one status write, events. What it does is decided in `plan`."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from arctic_api.ablation import ArcticAblationStatus
from arctic_api.common import Condition
from arctic_api.evaluation import ArcticEvaluationStatus
from arctic_api.log_format import about
from arctic_api.training import KIND as TRAINING_KIND
from arctic_api.training import ArcticTrainingStatus
from arctic_operator.access import AccessKeys, UnreadableKeysError
from arctic_operator.cache import CUSTOM_KINDS, Cache, Key, Manifest, key_of, owner_of
from arctic_operator.certificates import DamagedPEM, server_name
from arctic_operator.cluster import (
    NAMESPACE_ENDS,
    WEBHOOK_AWAY,
    ApiError,
    Cluster,
    NotServedError,
    OwnedByAnotherError,
)
from arctic_operator.commands import Commands
from arctic_operator.control import Followers, host_of
from arctic_operator.evaluations import Evaluation
from arctic_operator.events import Events
from arctic_operator.gateways import Gateways
from arctic_operator.install import Install
from arctic_operator.keys import Keys
from arctic_operator.live import EvaluationObservation, Live, TrainingObservation
from arctic_operator.manifests.inference import needs_login
from arctic_operator.metrics import (
    CANARIES,
    QUEUE_RETRIES,
    RECONCILE,
    RECONCILE_SECONDS,
    RECOVERY_SECONDS,
    SCALINGS,
    STATUS_WRITES,
)
from arctic_operator.observe import Invalid, Observer, Subject
from arctic_operator.observed import (
    Access,
    Identity,
    Inference,
    InferenceSeen,
    Training,
    TrainingSeen,
)
from arctic_operator.plan import ablation_status, evaluation_status, inference_status, training_status
from arctic_operator.plan.ablation import plan_ablation
from arctic_operator.plan.actions import Command, Follow, Plan, Remembered, sooner
from arctic_operator.plan.conditions import Conditions, events_between, is_true
from arctic_operator.plan.drain_request import drain_events
from arctic_operator.plan.evaluation import plan_evaluation
from arctic_operator.plan.inference import plan_inference
from arctic_operator.plan.leftovers import leftovers
from arctic_operator.plan.recovery import Fault, track
from arctic_operator.plan.training import plan_training
from arctic_operator.refusals import Refusals
from arctic_operator.settings import Settings
from arctic_operator.trials import Ablation
from arctic_operator.visits import Visit, count_write, note_state, visiting
from arctic_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 8
RECONCILE_SECONDS_LIMIT = 120.0
"""Time after which a reconciliation that hangs is given up and tried again."""
CLOSE_SECONDS = 5.0
LOOK_EVERY = 1800.0
"""Seconds after which an object's children are listed anew, and what is not watched is seen to."""
LIST_EVERY = 300.0
"""Seconds after which it is listed what is there of all kinds: a watch that was away misses deletions."""
NEVER = float("-inf")
SETTLE_SECONDS = 3.0
"""Longest time that a status waits for what is about to change it again."""
BEGIN_SECONDS = 12.0
"""Time for which an object's first status waits while worlds of others are to be started."""
BEGIN_RATE = 1.0
"""First statuses a second that are written after that, for as long as worlds are started one after the other."""
SEE_TO_EVERY = 5.0
"""Seconds between two looks at what is not watched while pods wait for it."""
ASK_RATE = 8.0
"""Children a second of which it is asked why they have no pods: the API server goes through all events for each, and
where thousands begin at once their pods are late because it is busy."""
PROGRESS_EVERY = 10.0
"""Least seconds between two writes of one object's progress."""
PROGRESS_RATE = 20.0
"""Most writes of progress a second, over all objects."""
PROGRESS_FIELDS = training_status.PROGRESS_FIELDS | inference_status.PROGRESS_FIELDS
PROGRESS_FIELDS |= ablation_status.PROGRESS_FIELDS | evaluation_status.PROGRESS_FIELDS
REFUSALS = (ApiError, OwnedByAnotherError, NotServedError, DamagedPEM, UnreadableKeysError)


VERDICTS = {"Promoted": "promoted", "RolledBack": "rolled_back"}


class PlanningError(Exception):
    """A fault of ours: planning has failed on what is observed of an object."""


FAILURES = {
    PlanningError: "InternalError",
    DamagedPEM: "DamagedSecret",
    NotServedError: "NoLeaderWorkerSets",
    UnreadableKeysError: "UnreadableKeys",
}
"""Reasons of what has nothing to do with one child."""


class Bucket:
    """A token bucket over a monotonic clock."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._tokens, self._filled = rate, clock()

    def take(self) -> bool:
        """Take a token if there is one."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def reserve(self) -> float:
        """Take the next token that nobody else has taken; return the seconds until it is there."""
        self._fill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now


@dataclass
class _Memory:
    """What is remembered of an object only to spare work: losing it loses nothing."""

    uid: str
    looked: float = NEVER
    progress_written: float = NEVER
    progress_turn: float | None = None
    """When progress may be written, of which all objects together have so much a second."""
    held: float | None = None
    """Since when news waits for what follows it."""
    attempt: int = 0
    """The attempt that such news of a training tells of: its number is given once, even if its Job goes meanwhile."""
    seen_to: float = NEVER
    """When what is not watched was seen to."""
    followed: set[str] = field(default_factory=set)
    shapes: dict[str, object] = field(default_factory=dict)
    refusals: dict[str, str] | None = None
    """Why children have too few pods, by their names; None before that was asked."""
    asked: dict[str, float] = field(default_factory=dict)
    """When that was asked of each of them."""
    seen: TrainingSeen | InferenceSeen | None = None
    """What this visit's plan was made on, until a recovery is measured by it: all nodes of that moment are in it."""
    fault: Fault | None = None
    """What the world has not recovered from."""
    access: Access | None = None
    remembered: Remembered = field(default_factory=Remembered)


class Reconciler:
    """Works through the queue: several objects at a time, never one object twice at a time."""

    def __init__(self, cluster: Cluster, cache: Cache, queue: WorkQueue[Key], settings: Settings) -> None:
        self._cluster, self._cache, self._queue, self._settings = cluster, cache, queue, settings
        self.observer = Observer(
            cluster, cache, read_nodes=settings.read_nodes, leader_worker_sets=settings.leader_worker_sets
        )
        self._keys = Keys(cluster, settings, Install(cluster, settings), cluster.clock.now)
        self._access_keys = AccessKeys(cluster)
        self._events, self._refusals = Events(cluster, settings.pod_name), Refusals(cluster)
        self._followers = Followers(self._on_live_change)
        self._gateways = Gateways(queue.add)
        self._commands = Commands(self._followers, queue.add)
        self._memory: dict[Key, _Memory] = {}
        self._bucket, self._asks, self._firsts = Bucket(PROGRESS_RATE), Bucket(ASK_RATE), Bucket(BEGIN_RATE)
        self._beginning: set[Key] = set()
        """Objects whose world is being started, which their status does not say yet."""
        self._begun = NEVER
        """When one of them was added last, or came to run."""

    def waiting(self, key: Key) -> int | None:
        """Return how many requests wait in a service's gateway; None where it is not asked, or does not answer."""
        return self._gateways.waiting(key)

    async def run(self, *, again: bool = False) -> None:
        """Reconcile until cancelled, all objects first: what happened before is not known.

        But `again`, where nobody else has reconciled meanwhile, what was read of the API server is as good as it was,
        and news has waited: to read all objects anew would keep it busy for minutes, and lose the Lease once more.
        """
        for key, memory in list(self._memory.items()):
            if not (known := self._cache.custom(key)) or known["metadata"]["uid"] != memory.uid:
                self._forget(key, memory)  # it went while another operator led
        kept = self._memory if again else {}
        self._memory = {
            key: _Memory(each.uid, each.looked, held=each.held, attempt=each.attempt) for key, each in kept.items()
        }
        self._beginning.clear()
        self._followers = Followers(self._on_live_change)
        self._gateways = Gateways(self._queue.add)
        self._commands = Commands(self._followers, self._queue.add)
        await self._first_look()
        try:
            async with asyncio.TaskGroup() as workers:
                for number in range(WORKERS):
                    workers.create_task(self._work(), name=f"reconciler {number}")
                workers.create_task(self._miss_nothing(), name="listing")
                workers.create_task(self._events.run(), name="telling events")
        finally:
            self._commands.close()
            # Whatever becomes of old streams must not keep this operator from leading again.
            closing = [asyncio.create_task(each.close()) for each in (self._followers, self._gateways)]
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)

    async def _miss_nothing(self) -> None:
        while True:
            await asyncio.sleep(LIST_EVERY)
            async for key in self.observer.find_missed(self._settings.watch_namespaces or ("",)):
                self._queue.add(key)

    async def _first_look(self) -> None:
        while True:
            try:
                await self.observer.look_at_nodes()
            except ApiError as error:
                log.warning("nodes can't be read: %s", error)
                await asyncio.sleep(1)
                continue
            break
        for key, _ in self._cache.customs():
            self._queue.add(key)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            started = time.monotonic()
            try:
                with about(*key):
                    result = await self._attempt(key)
            finally:
                self._queue.done(key)
            RECONCILE.labels(key.kind, result).inc()
            RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - started)

    async def _attempt(self, key: Key) -> str:
        """Reconcile one object and say when it comes again."""
        with visiting() as visit:
            result = await self._visit(key, visit)
        if memory := self._memory.get(key):
            visit.tell(key, memory.uid)
        return result

    async def _visit(self, key: Key, visit: Visit) -> str:
        try:
            async with asyncio.timeout(RECONCILE_SECONDS_LIMIT):
                again = await self._reconcile(key)
        except REFUSALS as error:
            visit.failure = str(error)
            seconds = self._queue.retry(key)
            level = logging.DEBUG if is_expected(error) else logging.WARNING
            log.log(level, "%s %s/%s: %s (again in %.1f s)", *key, error, seconds)
        except Exception as error:
            visit.failure = f"{type(error).__name__}: {error}"
            self._queue.retry(key)
            log.exception("%s %s/%s could not be reconciled", *key)
        else:
            self._queue.forget(key)
            if again is not None:
                self._queue.add_after(key, again)
            return "success"
        QUEUE_RETRIES.inc()
        return "error"

    async def _reconcile(self, key: Key) -> float | None:
        subject = self.observer.subject(key)
        memory = self._memory.get(key)
        if memory and (subject is None or subject.identity.uid != memory.uid):
            self._forget(key, memory)
        if subject is None:
            return None
        memory = self._memory.setdefault(key, _Memory(subject.identity.uid))
        looked, new = memory.looked, memory.looked == NEVER and self._is_new(key, subject)
        try:
            if isinstance(subject, Inference):
                memory.access = await self._access_keys.read(subject)
            plan = await self._newest_plan(key, subject, memory, new=new)
        except (PlanningError, UnreadableKeysError) as error:
            await self._write_status(key, subject, Plan(status=subject.status.wire()), memory, error)
            raise
        subject = self.observer.subject(key)
        if subject is None or subject.deleting:
            self._forget(key, memory)
            return None
        if plan.begins != (key in self._beginning):
            self._begun = time.monotonic()
        (self._beginning.add if plan.begins else self._beginning.discard)(key)
        # Secrets and ConfigMaps are not watched: they are seen to after a live read, and while pods wait for them.
        unseen = memory.seen_to + SEE_TO_EVERY - time.monotonic()
        starting = self.observer.has_starting_pods(subject.identity.uid)
        look = memory.looked != looked or (starting and unseen <= 0)
        if look or new:
            memory.seen_to = time.monotonic()
        failure = await self._carry_out(key, subject, plan, look=look, new=new)
        waits = await self._write_status(key, subject, plan, memory, failure)
        self._note_recovery(key, subject, plan, memory)
        await self._ask(key, plan, memory)
        if failure:
            raise failure
        return sooner(plan.requeue_after, waits, unseen if starting and not look else None)

    async def _newest_plan(self, key: Key, subject: Subject, memory: _Memory, *, new: bool) -> Plan:
        """Plan on what the watches have shown; on a live read if it is time for one, or if the plan asks for it."""
        if new:
            memory.looked = time.monotonic()
            return self._plan(key, subject)
        if time.monotonic() - memory.looked >= LOOK_EVERY:
            return await self._look_and_plan(key, memory)
        plan = self._plan(key, subject)
        return await self._look_and_plan(key, memory) if plan.needs_fresh else plan

    def _is_new(self, key: Key, subject: Subject) -> bool:
        """Whether no operator has visited an object yet and nothing is known of it: there is nothing to read then.

        If there is, a child's name is taken, which is refused, and then it is looked.
        """
        never_visited = subject.status.observed_generation is None
        known = any(self._cache.children(subject.identity.uid))
        return never_visited and not known and not any(self._cache.children_of_others(key, subject.identity.uid))

    async def _look_and_plan(self, key: Key, memory: _Memory) -> Plan:
        """Plan on what the API server itself says now."""
        await self.observer.look(key)
        memory.looked = time.monotonic()
        subject = self.observer.subject(key)
        if subject is None:
            return Plan()
        await self._clear_leftovers(key, subject.identity)
        return self._plan(key, subject)

    async def _clear_leftovers(self, key: Key, owner: Identity) -> None:
        """Remove what objects of this name have left that were there before it: it has just been read who lives."""
        deletes, adopts = leftovers(owner, self._cache.children_of_others(key, owner.uid))
        for delete in deletes:
            log.info("%s %s/%s: %s %s is an earlier object's, and goes", *key, delete.kind, delete.name)
            count_write("delete")
            await self._cluster.delete(delete)
        for adopt in adopts:
            await self._cluster.adopt(adopt)

    def _plan(self, key: Key, subject: Subject) -> Plan:
        """Plan, whatever may be wrong with the plan's code: a user must hear of that too."""
        try:
            return self._decide(key, subject, self._cluster.clock.now())
        except Exception as error:
            raise PlanningError(
                f"the operator fails on this object and leaves what runs alone ({type(error).__name__}: {error}): "
                "change what the error names, and report it with the operator's log"
            ) from error

    def _decide(self, key: Key, subject: Subject, now: datetime) -> Plan:
        if subject.deleting:
            return Plan()
        memory = self._memory[key]
        refusals = memory.refusals or {}
        if isinstance(subject, Training):
            if memory.attempt > (subject.status.attempt or 0):
                subject = replace(subject, status=subject.status.model_copy(update={"attempt": memory.attempt}))
            answer = self._commands.answer(key, subject.identity.uid)
            seen = self.observer.training_seen(subject, self._followers.latest((key, "")), refusals, answer)
            memory.seen = seen
            return plan_training(subject, seen, self._settings, now)
        if isinstance(subject, Inference):
            services = self.observer.inference_seen(
                subject,
                lambda group: self._followers.latest((key, group)),
                refusals,
                memory.access,
                self._gateways.waiting(key),
            )
            memory.seen = services
            plan = plan_inference(subject, services, self._settings, now, memory.remembered)
            memory.remembered = plan.remembered
            return plan
        if isinstance(subject, Ablation):
            return plan_ablation(subject, self.observer.ablation_seen(subject, refusals), self._settings, now)
        if isinstance(subject, Evaluation):
            evaluated = self.observer.evaluation_seen(subject, self._followers.latest((key, "")), refusals)
            return plan_evaluation(subject, evaluated, self._settings, now)
        return Plan(status=_invalid_status(subject, now))

    async def _carry_out(self, key: Key, subject: Subject, plan: Plan, *, look: bool, new: bool) -> Exception | None:
        """Do what is planned, in order, up to the first refusal, which is returned: the status will tell of it.

        With `look` also what is not watched is seen to.
        """
        identity = subject.identity
        if look:
            self.observer.forget_unwatched(identity.uid)
        try:
            if plan.create or plan.follow or (plan.apply and not isinstance(subject, Ablation)):
                login = isinstance(subject, Inference) and needs_login(subject.spec)
                await self._keys.ensure(identity, look=look, login=login, new=new)
            for manifest in plan.apply:
                await self._apply(manifest, identity)
            for manifest in plan.create:
                await self._create(manifest)
            for mark in plan.mark:
                self._keep(await self._cluster.mark(mark), "mark")
            for delete in plan.delete:
                count_write("delete")
                await self._cluster.delete(delete)
            await self._follow(key, identity, plan.follow)
            self._gateways.ask(key, plan.ask_gateways)
            drains = (Command("drain", group=group) for group in plan.drain)
            self._commands.send(key, identity.uid, (*plan.commands, *drains))
        except REFUSALS as error:
            return error
        return None

    async def _apply(self, manifest: Manifest, identity: Identity) -> None:
        known = self.observer.known(manifest, identity.uid)
        answer = await self._cluster.apply(manifest, identity.uid, known)
        if answer is not known:
            self._keep(answer, "apply")

    async def _create(self, manifest: Manifest) -> None:
        created = await self._cluster.create(manifest)
        if created is None:
            metadata = manifest["metadata"]
            raise OwnedByAnotherError(f"{manifest['kind']} {metadata['name']} is there already and was not seen")
        self._keep(created, "create")

    def _keep(self, answer: Manifest | None, action: Literal["apply", "create", "mark"]) -> None:
        """Count what was written, and know it before the watch shows it."""
        if answer is not None:
            count_write(action, answer)
            self._cache.put(answer)
            if answer["kind"] in CUSTOM_KINDS and (key := key_of(answer)):
                self._queue.add(key)  # its watch shows nothing new

    async def _follow(self, key: Key, identity: Identity, follow: tuple[Follow, ...]) -> None:
        memory = self._memory[key]
        wanted = {target.group for target in follow}
        for group in memory.followed - wanted:
            self._followers.unfollow((key, group))
            memory.shapes.pop(group, None)
        memory.followed = wanted
        if follow:
            tls = await self._keys.client()
            name = server_name(identity.name, identity.namespace)
            for target in follow:
                self._followers.follow((key, target.group), f"{host_of(target.host)}:{target.port}", name, tls)

    async def _ask(self, key: Key, plan: Plan, memory: _Memory) -> None:
        """Read why children have too few pods; what is news is planned with at once."""
        longest_ago = sorted(plan.short, key=lambda child: memory.asked.get(child.name, NEVER))
        short = [child for child in longest_ago if self._asks.take()]  # the others when it is looked again
        memory.asked = {child.name: memory.asked.get(child.name, NEVER) for child in plan.short}
        memory.asked |= {child.name: time.monotonic() for child in short}
        if not short and plan.short:
            return
        errors: tuple[Exception, ...] = ()
        try:
            async with asyncio.TaskGroup() as asking:
                told = {child.name: asking.create_task(self._refusals.of(key.namespace, child)) for child in short}
        except* ApiError as group:
            errors = group.exceptions
        if errors:
            log.warning("%s %s/%s: why pods are missing can't be read: %s", *key, errors[0])
            return
        before = memory.refusals or {}
        known = {child.name: before.get(child.name, "") for child in plan.short}
        news = known | {name: answer.result() for name, answer in told.items()}
        refusals = memory.refusals = {name: sentence for name, sentence in news.items() if sentence}
        if refusals != before:
            self._queue.add(key)

    async def _write_status(
        self, key: Key, subject: Subject, plan: Plan, memory: _Memory, failure: Exception | None
    ) -> float | None:
        """Write the status if it is news, then tell the events; return the seconds that it waits."""
        if plan.status is None:
            return None
        status = with_failure(plan.status, failure, subject, self._cluster.clock.now()) if failure else plan.status
        manifest = self._cache.custom(key)
        change = difference((manifest or {}).get("status") or {}, status)
        if not change:
            memory.held = None
            return None
        left = self._waits(change, memory, self._patience(subject, plan, memory) if failure is None else 0.0)
        if left is not None:
            memory.attempt = status.get("attempt", 0)
            return left
        try:
            metadata = await self._cluster.apply_status(subject.identity, status)
        except ApiError as error:
            if error.gone or error.code == 409:
                return None
            raise
        self._beginning.discard(key)
        STATUS_WRITES.labels(key.kind).inc()
        note_state("" if change <= PROGRESS_FIELDS else str(status.get("state", "")))
        if manifest and manifest["metadata"].get("generation") == metadata.get("generation"):
            # Of an edit that no watch has shown yet, the specification would be the old one.
            self._cache.put(manifest | {"metadata": metadata, "status": status})
            if owner := owner_of(manifest):
                self._queue.add(owner)  # whose it is: the watch of that shows nothing new
            if key.kind == TRAINING_KIND and "export" in change:
                for other in self._cache.users(key):
                    self._queue.add(other)
        self._tell(subject, status)
        return None

    def _patience(self, subject: Subject, plan: Plan, memory: _Memory) -> float:
        """Return the seconds that a status may wait for the one that follows.

        A status costs the API server as much as a world: where many start, those come first. And trouble is not over
        for an operator that has just begun, and has not asked for it yet.
        """
        if plan.begins and len(self._beginning) > 1:
            now = time.monotonic()
            held, goes_on = now - (memory.held or now), now - self._begun < BEGIN_SECONDS
            return BEGIN_SECONDS + (held if goes_on and held >= BEGIN_SECONDS and not self._firsts.take() else 0.0)
        unasked = plan.short and memory.refusals is None and is_true(subject.status.conditions, "Degraded")
        return SETTLE_SECONDS if plan.settling or unasked else 0.0

    def _waits(self, change: set[str], memory: _Memory, patience: float) -> float | None:
        """Return the seconds that a change of a status has to wait, None if it is to be written now."""
        now = time.monotonic()
        if patience:
            memory.held = memory.held or now
            left = memory.held + patience - now
            if left > 0:
                return left
        memory.held = None
        if change <= PROGRESS_FIELDS:
            left = memory.progress_written + PROGRESS_EVERY - now
            if left > 0:
                return max(left, 1.0)
            if memory.progress_turn is None:
                memory.progress_turn = now + self._bucket.reserve()
            if now < memory.progress_turn:
                return memory.progress_turn - now
        memory.progress_written, memory.progress_turn = now, None
        return None

    def _tell(self, subject: Subject, status: Manifest) -> None:
        """Tell the events of a status that was written."""
        now = self._cluster.clock.now()
        events = events_between(subject.status.conditions, map(Condition.model_validate, status["conditions"]))
        if isinstance(subject, Inference):
            events += inference_status.scaling_events(subject.status, status)
            events += drain_events(subject.status, status)
            _count_decisions(subject, status)
        for event in events:
            self._events.tell(subject.identity, event, now)

    def _note_recovery(self, key: Key, subject: Subject, plan: Plan, memory: _Memory) -> None:
        """Measure how long what broke takes to be whole again."""
        seen, memory.seen = memory.seen, None
        if isinstance(subject, Invalid | Ablation | Evaluation) or seen is None or plan.status is None:
            return
        memory.fault, over = track(memory.fault, subject, seen, plan.status, self._cluster.clock.now())
        if over is not None:
            for part, seconds in over.seconds.items():
                RECOVERY_SECONDS.labels(key.kind, over.fault, part).observe(seconds)

    def _forget(self, key: Key, memory: _Memory) -> None:
        for group in memory.followed:
            self._followers.unfollow((key, group))
        self._gateways.forget(key)
        self._commands.forget(key)
        self._keys.forget(memory.uid)
        self._access_keys.forget(memory.uid)
        self.observer.forget(memory.uid)
        self.observer.forget_unwatched(memory.uid)
        self._beginning.discard(key)
        self._memory.pop(key, None)

    def _on_live_change(self, followed: Any) -> None:
        """How a worker stands is told at once, how far it is now and then."""
        key, group = followed
        memory, shape = self._memory.get(key), _shape(self._followers.latest(followed))
        if memory and memory.shapes.get(group) != shape:
            memory.shapes[group] = shape
            self._queue.add(key)
        else:
            self._queue.add_after(key, PROGRESS_EVERY)


def _invalid_status(invalid: Invalid, now: datetime) -> Manifest:
    """Return the status of an object whose specification can't be carried out."""
    status, told = invalid.status, (invalid.message, invalid.generation, now)
    if isinstance(status, ArcticAblationStatus):
        return ablation_status.invalid_status(status, *told)
    if isinstance(status, ArcticEvaluationStatus):
        return evaluation_status.invalid_status(status, *told)
    if isinstance(status, ArcticTrainingStatus):
        return training_status.invalid_status(status, *told)
    return inference_status.invalid_status(status, *told)


def _count_decisions(inference: Inference, status: Manifest) -> None:
    """Count what autoscaling and the analysis of a canary have decided."""
    known, told = inference.status.canary, status.get("canary")
    if told and told["verdict"] in VERDICTS and (known is None or known.verdict != told["verdict"]):
        CANARIES.labels(VERDICTS[told["verdict"]]).inc()
    before, after = inference.status.desired_replicas, status.get("desiredReplicas")
    if inference.spec.autoscaling is None or before is None or after is None or before == after:
        return
    ends = "to_zero" if after == 0 else "from_zero" if before == 0 else None
    SCALINGS.labels(ends or ("up" if after > before else "down")).inc()


def _shape(live: Live | None) -> object:
    """Return what of a worker's state is more than progress."""
    seen = live.observation if live else None
    if live is None or seen is None:
        return None
    if isinstance(seen, TrainingObservation):
        return (live.connected, seen.phase, seen.stage, seen.epoch, seen.step > 0, seen.stop_after)
    if isinstance(seen, EvaluationObservation):
        return (live.connected, seen.phase, tuple((suite.name, suite.state) for suite in seen.suites))
    return (live.connected, seen.phase, seen.ready, seen.draining, seen.draining and seen.running + seen.waiting == 0)


def difference(before: Manifest, after: Manifest) -> set[str]:
    """Return the fields of a status that differ; a condition's mere message, which may carry figures, is progress."""
    fields = {
        name for name in {*before, *after} - {"conditions"} if _ordered(before.get(name)) != _ordered(after.get(name))
    }
    old, new = _by_type(before), _by_type(after)
    if {kind: _essence(c) for kind, c in old.items()} != {kind: _essence(c) for kind, c in new.items()}:
        fields.add("conditions")
    elif old != new:
        fields.add("stages")
    return fields


def _by_type(status: Manifest) -> dict[str, Manifest]:
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


def _essence(condition: Manifest) -> tuple[Any, ...]:
    return tuple(condition.get(name) for name in ("status", "reason", "observedGeneration"))


def _ordered(value: Any) -> Any:
    """Return lists of named objects as mappings: the API server may order them otherwise."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {str(item.get("name", item.get("number", index))): item for index, item in enumerate(value)}
    return value


def with_failure(status: Manifest, failure: Exception, subject: Subject, now: datetime) -> Manifest:
    """Return a status that tells why an object can't be planned or a child can't be made.

    An attempt that was to be made, and may not have been, is not told of.
    """
    if isinstance(subject, Training):
        known = subject.status.attempt
        status = {name: value for name, value in status.items() if name != "attempt"}
        status |= {} if known is None else {"attempt": known}
    if isinstance(failure, ApiError) and (is_passing(failure) or is_expected(failure)):
        return status
    conditions = Conditions(subject.status.conditions, subject.generation, now)
    conditions.set("Degraded", True, FAILURES.get(type(failure), "FailedCreate"), str(failure))
    degraded = conditions.all()[0].wire()
    others = [condition for condition in status.get("conditions", ()) if condition["type"] != "Degraded"]
    return status | {"conditions": [*others, degraded]}


def is_passing(failure: ApiError) -> bool:
    """Whether the API server itself is away or busy, which is nothing that an object's owner could mend."""
    return failure.code in (0, 429) or (failure.code >= 500 and WEBHOOK_AWAY not in failure.message)


def is_expected(failure: Exception) -> bool:
    """Whether an object is refused its children because its namespace is being deleted."""
    return isinstance(failure, ApiError) and failure.reason == NAMESPACE_ENDS
