"""A seeded campaign of faults against the operator, and the invariants that must hold all the while.

Two trainings and a service, with stand-ins in their pods, live in one namespace of a real cluster. One fault after the
other is inflicted; a second thread looks at all objects meanwhile and notes what must never be. At the end the faults
stop, and everything has to come to where its manifest says.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from objects import Objects, eventually
from stand_in import StandIns

from arctic_api.world import Label
from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import SYSTEM_NAMESPACE

SERVICE = "answers"
SECONDS = "20"  # that a training takes, undisturbed
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
CHILDREN = "jobs,statefulsets,services,secrets,networkpolicies,poddisruptionbudgets,configmaps,deployments"
EDITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("services", {"selector": {"nobody": "has"}}),
    ("networkpolicies", {"podSelector": {"matchLabels": {"nobody": "has"}}}),
    ("deployments", {"replicas": 0}),
    ("statefulsets", {"replicas": 0}),
)
SERVICE_CHILDREN = {
    "StatefulSet",
    "Service",
    "Secret",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ConfigMap",
    "Deployment",
}
MOST_GROUPS = 3
"""Two that are asked for at most, and one of a rollout's surge."""
PATIENCE = 480.0
LOOK_SECONDS = 1.0


@dataclass
class Outcome:
    """What a campaign came to."""

    faults: int = 0
    violations: list[str] = field(default_factory=list)
    unconverged: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """Return the figures alone."""
        return {
            "faults": self.faults,
            "violations": len(self.violations),
            "unconverged": len(self.unconverged),
        }


class Invariants:
    """What must be true at each look at the objects."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.looks = 0
        self._attempts: dict[str, int] = {}
        self._succeeded: set[str] = set()

    def look(self, trainings: list[dict[str, Any]], pods: list[dict[str, Any]]) -> None:
        """Judge one listing; `pods` were listed after `trainings`."""
        self.looks += 1
        for training in trainings:
            self._judge(training)
        alive = [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        workers = [pod["metadata"]["labels"] for pod in alive if Label.ATTEMPT in pod["metadata"]["labels"]]
        for uid, world in groupby(sorted(workers, key=_uid), key=_uid):
            attempts = sorted({labels[Label.ATTEMPT] for labels in world})
            self._hold(len(attempts) == 1, f"attempts {', '.join(attempts)} of training {uid} have pods at once")
        stays = [pod["metadata"]["labels"] for pod in alive if "deletionTimestamp" not in pod["metadata"]]
        for uid, service in groupby(sorted((labels for labels in stays if Label.GROUP in labels), key=_uid), key=_uid):
            groups = sorted({labels[Label.GROUP] for labels in service})
            self._hold(len(groups) <= MOST_GROUPS, f"service {uid} has groups {', '.join(groups)} at once")

    def _judge(self, training: dict[str, Any]) -> None:
        uid, status = training["metadata"]["uid"], training.get("status", {})
        attempt = status.get("attempt", 0)
        self._hold(attempt >= self._attempts.get(uid, 0), f"the attempt of {uid} fell to {attempt}")
        self._attempts[uid] = attempt
        succeeded = status.get("state") == "Succeeded"
        self._hold(succeeded or uid not in self._succeeded, f"{uid} had succeeded, and is {status.get('state')}")
        if succeeded:
            self._succeeded.add(uid)
            self._hold("export" in status, f"{uid} succeeded without an export")
        # All faults are the infrastructure's: none may bring a training nearer to its limit.
        for ending in status.get("attempts") or []:
            why = f"attempt {ending['number']}, {ending['reason']}: {ending['message']}"
            self._hold(not ending["counted"], f"{uid} was charged for {why}")

    def _hold(self, true: bool, otherwise: str) -> None:
        if not true and otherwise not in self.violations:
            self.violations.append(otherwise)


def _uid(labels: dict[str, str]) -> str:
    return labels[Label.UID]


class Campaign:
    """Faults in an order that the seed alone decides; what exactly they hit depends on what is there."""

    def __init__(
        self,
        objects: StandIns,
        seed: int,
        say: Callable[[str], None] = print,
        trainings: Sequence[str] = ("first", "second"),
    ) -> None:
        self._objects, self._cluster = objects, objects.cluster
        self._random = random.Random(seed)
        self._say, self._trainings = say, trainings
        self._suspended: set[str] = set()
        self._replicas = 1
        self._faults: list[Callable[[], str]] = [
            self._delete_a_pod,
            self._kill_a_pod,
            self._delete_a_child,
            self._edit_a_child,
            self._kill_the_operator,
            self._kill_a_component,
            self._cut_a_node,
            self._steal_the_lease,
            self._suspend_or_resume,
            self._make_anew,
            self._scale,
            self._revert_a_rollout,
        ]

    def run(self, faults: int) -> Outcome:
        """Inflict so many faults, wait for the end of all, and return what was seen."""
        for name in self._trainings:
            self._train(name)
        self._serve()
        outcome, invariants = Outcome(), Invariants()
        with looking(self._objects, invariants):
            for fault in self._planned(faults):
                self._say(f"fault {outcome.faults + 1}: {self._insist(fault)}")
                outcome.faults += 1
                time.sleep(self._random.uniform(0.5, 4))
                self._insist(self._renew)
            self._insist(self._resume_all)
            outcome.unconverged = list(self._unconverged())
        outcome.violations = invariants.violations
        assert invariants.looks > 0, "nobody looked"
        return outcome

    def _planned(self, faults: int) -> Iterator[Callable[[], str]]:
        """Each kind once before any comes again, in an order of its own each time."""
        order: list[Callable[[], str]] = []
        for _ in range(faults):
            if not order:
                order = self._random.sample(self._faults, len(self._faults))
            yield order.pop()

    def _insist(self, act: Callable[[], Any]) -> Any:
        """Act again while the API server is away or an object has gone meanwhile."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return act()
            except ClusterError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    # --- the objects

    def _train(self, name: str) -> None:
        self._objects.train(name, {"SECONDS": SECONDS})
        self._suspended.discard(name)

    def _serve(self) -> None:
        self._objects.serve(SERVICE, replicas=self._replicas)

    def _renew(self) -> None:
        """A training that is done makes room for another, so that faults have something to hit."""
        for name in self._trainings:
            if self._objects.status("arctictraining", name).get("state") == "Succeeded":
                self._remake(name)

    def _remake(self, name: str) -> None:
        self._objects.kubectl(
            "delete", "arctictraining", name, "--wait=false", "--cascade=background", "--ignore-not-found"
        )
        self._train(name)

    def _resume_all(self) -> None:
        for name in list(self._suspended):
            self._set_suspended(name, False)

    def _set_suspended(self, name: str, suspended: bool) -> None:
        self._objects.change("arctictraining", name, suspend=suspended)
        (self._suspended.add if suspended else self._suspended.discard)(name)

    # --- the faults; each returns what it did

    def _delete_a_pod(self) -> str:
        return self._remove_a_pod()

    def _kill_a_pod(self) -> str:
        return self._remove_a_pod("--grace-period=0", "--force")

    def _remove_a_pod(self, *how: str) -> str:
        pod = self._any("pods")
        if pod:
            self._objects.kubectl("delete", "pod", pod, "--wait=false", *how)
        return f"delete pod {pod} {' '.join(how)}"

    def _delete_a_child(self) -> str:
        kind = self._random.choice(CHILDREN.split(","))
        child = self._any(kind)
        if child:
            self._objects.kubectl("delete", kind, child, "--wait=false")
        return f"delete {kind} {child}"

    def _edit_a_child(self) -> str:
        """Take from a Service what it selects, or from a set or a budget what it keeps."""
        kind, spec = self._random.choice(EDITS)
        child = self._any(kind)
        if child:
            self._objects.change(kind, child, **spec)
        return f"edit {kind} {child}"

    def _any(self, kind: str) -> str | None:
        names = sorted(each["metadata"]["name"] for each in self._objects.labelled(kind, Label.MANAGED))
        return self._random.choice(names) if names else None

    def _kill_the_operator(self) -> str:
        selector = ("-l", "app.kubernetes.io/name=arctic-operator")
        self._cluster.kubectl(
            "delete", "pods", "-n", SYSTEM_NAMESPACE, *selector, "--grace-period=0", "--force", "--wait=false"
        )
        return "kill the operator"

    def _kill_a_component(self) -> str:
        kubelets = [f"node{node.number}-kubelet" for node in self._cluster.nodes]
        component = self._random.choice([*CONTROL_PLANE, *kubelets])
        self._cluster.stop(component)
        time.sleep(self._random.uniform(0.5, 5))
        self._cluster.start(component)
        return f"kill {component}"

    def _cut_a_node(self) -> str:
        node = self._random.choice([node.name for node in self._cluster.nodes])
        self._cluster.cut(node)
        time.sleep(self._random.uniform(1, 6))
        self._cluster.mend(node)
        return f"cut {node} off for a while"

    def _steal_the_lease(self) -> str:
        patch = json.dumps({"spec": {"holderIdentity": "another"}})
        self._cluster.kubectl("patch", "lease", "-n", SYSTEM_NAMESPACE, "arctic-operator", "--type=merge", "-p", patch)
        return "steal the lease"

    def _suspend_or_resume(self) -> str:
        name = self._random.choice(self._trainings)
        suspended = name not in self._suspended
        self._set_suspended(name, suspended)
        return f"{'suspend' if suspended else 'resume'} {name}"

    def _make_anew(self) -> str:
        name = self._random.choice(self._trainings)
        self._remake(name)
        return f"delete {name} and make it anew"

    def _scale(self) -> str:
        self._replicas = 3 - self._replicas
        self._objects.kubectl("scale", "arcticinference", SERVICE, f"--replicas={self._replicas}")
        return f"scale {SERVICE} to {self._replicas}"

    def _revert_a_rollout(self) -> str:
        """Change what a group is made of, and take the change back while its rollout is under way."""
        for length in (96, 512):
            attention = {"maxLength": length}
            self._insist(partial(self._objects.change, "arcticinference", SERVICE, attention=attention))
            time.sleep(self._random.uniform(0.5, 4))
        return f"roll {SERVICE} out and back"

    # --- the end

    def _unconverged(self) -> Iterator[str]:
        """Name what does not come to where its manifest says."""
        for what, arrived in self._wanted():
            yield from self._unreached(what, arrived)
        # A new operator looks at everything at once: at Secrets and ConfigMaps, which nobody watches, and at what
        # Kubernetes' garbage collector has missed of owners that went and came back while its watch was away.
        self._insist(self._kill_the_operator)
        yield from self._unreached("children of objects that are gone go too", lambda: not self._orphans())
        yield from self._insist(self._orphans)
        yield from self._unreached(f"{SERVICE} has children of every kind", self._has_every_child)

    def _wanted(self) -> list[tuple[str, Callable[[], bool]]]:
        """What has to come, and whether it has."""
        return [
            *((f"{name} succeeds", partial(self._has_succeeded, name)) for name in self._trainings),
            (f"{SERVICE} is ready with {self._replicas} replicas", self._is_ready),
        ]

    def _unreached(self, what: str, arrived: Callable[[], bool]) -> Iterator[str]:
        try:
            eventually(what, partial(self._insist, arrived), PATIENCE)
        except AssertionError as error:
            yield str(error)

    def _has_succeeded(self, name: str) -> bool:
        return self._objects.status("arctictraining", name).get("state") == "Succeeded"

    def _is_ready(self) -> bool:
        status = self._objects.status("arcticinference", SERVICE)
        pods = self._objects.pods(SERVICE, "ArcticInference")
        return (status.get("state"), status.get("readyReplicas"), len(pods)) == (
            "Ready",
            self._replicas,
            2 * self._replicas,
        )

    def _has_every_child(self) -> bool:
        uid = self._objects.get("arcticinference", SERVICE)["metadata"]["uid"]
        children = self._objects.labelled(CHILDREN, f"{Label.UID}={uid}")
        return {child["kind"] for child in children} == SERVICE_CHILDREN

    def _orphans(self) -> list[str]:
        """What is left of objects that are gone, each with what may say why."""
        owners = json.loads(self._objects.kubectl("get", "arctic", "-o", "json"))["items"]
        uids = {owner["metadata"]["uid"] for owner in owners}
        children = self._objects.labelled(f"pods,{CHILDREN}", Label.MANAGED)
        left = [child for child in children if child["metadata"]["labels"][Label.UID] not in uids]
        return [f"left behind: {child['kind']} {json.dumps(child['metadata'])}" for child in left]


@contextmanager
def looking(objects: Objects, invariants: Invariants) -> Iterator[None]:
    """Look at a namespace once a second, in a thread, for as long as the block runs."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            with suppress(ClusterError):  # the API server is away
                trainings = json.loads(objects.kubectl("get", "arctictrainings", "-o", "json"))["items"]
                invariants.look(trainings, objects.labelled("pods", Label.MANAGED))

    with ThreadPoolExecutor(1) as threads:
        looks = threads.submit(look)
        try:
            yield
        finally:
            over.set()
        looks.result()
