"""Seconds from a fault until a service answers, and a training trains, again: by kind of fault, and spent on what.

On a local cluster of three nodes (which needs root), with two operators, a service of one group of two pods is asked
five times a second, and hit once its pods are a minute old: its containers die, a pod is deleted, a node is cut off
the network, an operator dies meanwhile, another pod goes while the first one comes back. It answers again when the
first answer is whole after which none fails. Then a training of two pods is hit in the same ways; it trains again when
a later attempt is past the step at which it was hit. Both are small and real. Each kind comes three times.

Noticing lasts until the status says so, waiting until the last of the pods that are then there was made (a back-off is
part of it), scheduling until their kubelets have them, loading until it answers, or trains. A service whose container
died keeps its pods. A silent node is NotReady after 20 s here, and after 50 s by Kubernetes' default.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import httpx
from cluster_training_faults import is_rank
from kept_asking import PATIENCE, RealService, kill_the_operator, node_of
from objects import Objects, eventually, is_ready, kill
from steady_load import Asked, SteadyLoad
from training_faults import small_training

from arctic_api import training
from arctic_api.world import Label, Ports
from arctic_cluster.errors import ClusterError
from arctic_cluster.paths import CORPUS
from benchmarks.form import arguments, finish, note, print_table
from benchmarks.on_a_cluster import three_nodes
from benchmarks.reconciling.race import quantile

NAME = "recovery"
ROUNDS = 3
PACE = 5.0
LATEST = 5.0
"""Seconds after which a request has failed."""
STEADY = 3.0
"""Seconds without a failure after which a service answers again."""
LIVED, BETWEEN = 60.0, 10.0
"""Seconds that pods of a service live before they are hit: what lived less passes for what can't start, and is left to
back off. And the least time between two faults."""
MEANWHILE = 2.0
"""Seconds until the second fault, where one follows."""
STEPS, EVERY, TOKENS = 200_000, 50, 1024
"""Of the training, more than it will come to; from checkpoint to checkpoint; of a step."""
STEP = "arctic_training_steps_total "
Kill = Callable[[dict[str, Any]], None]
PARTS = ("noticing", "waiting", "scheduling", "loading")


@dataclass(frozen=True)
class Recovery:
    """What came of one fault."""

    fault: str
    seconds: float
    parts: tuple[float, ...]
    """Seconds by `PARTS`."""


def recovery(fault: str, hit: float, noticed: float, pods: Sequence[Mapping[str, Any]], again: float) -> Recovery:
    """Divide the time between two moments of the wall clock; `pods` are those that serve, or train, in the end."""
    made = max((_moment(pod["metadata"]["creationTimestamp"]) for pod in pods), default=hit)
    placed = max((_moment(pod["status"]["startTime"]) for pod in pods), default=hit)
    moments = [hit]
    for moment in (noticed, made, placed, again):
        # The cluster's moments are whole seconds.
        moments.append(min(max(moment, moments[-1]), again))
    return Recovery(fault, again - hit, tuple(end - begin for begin, end in pairwise(moments)))


def _moment(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def answers_again(asked: Sequence[Asked], hit: float) -> float | None:
    """Return when the first answer was whole after which none failed, for some seconds; None while there is none.

    All moments are of the monotonic clock.
    """
    after = [each for each in asked if each.ended > hit]
    failed = max((each.began for each in after if each.failed), default=None)
    if failed is None:
        return None
    again = min((each.ended for each in after if not each.failed and each.began > failed), default=None)
    return again if again is not None and max(each.began for each in after) > again + STEADY else None


class Faults:
    """What may befall two pods, and what is under them; a node that was cut off is mended once they are back."""

    def __init__(self, objects: Objects, pods: Callable[[], list[dict[str, Any]]], kill: Kill) -> None:
        """`pods` are the world's, the first one first, and `kill` kills what computes in one of them."""
        self._objects, self._cluster, self._pods, self._kill = objects, objects.cluster, pods, kill
        self._cut: list[str] = []
        self.kinds: dict[str, Callable[[], None]] = {
            "first pod's container dies": lambda: kill(self._pods()[0]),
            "second pod's container dies": lambda: kill(self._pods()[1]),
            "pod deleted": self._delete_a_pod,
            "node cut off": self._cut_a_node,
            "operator killed, container dies": self._kill_the_operator_and_a_container,
            "container dies, then the other pod": self._kill_one_after_the_other,
        }

    def mend(self) -> None:
        """Bring back what was cut off."""
        while self._cut:
            node = self._cut.pop()
            self._cluster.mend(node)
            self._cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=120s")

    def _delete_a_pod(self, index: int = 1) -> None:
        name = self._pods()[index]["metadata"]["name"]
        self._objects.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    def _cut_a_node(self) -> None:
        # Never the first node, whose network the client is in.
        others = [node for node in map(node_of, self._pods()) if node != self._cluster.nodes[0].name]
        self._cut.append(others[0])
        self._cluster.cut(others[0])

    def _kill_the_operator_and_a_container(self) -> None:
        pod = self._pods()[1]
        kill_the_operator(self._cluster)
        self._kill(pod)

    def _kill_one_after_the_other(self) -> None:
        self._kill(self._pods()[0])
        time.sleep(MEANWHILE)
        with suppress(ClusterError, IndexError):  # a broken world's pods may be gone by then
            self._delete_a_pod()


def kill_a_server(pod: dict[str, Any]) -> None:
    """Kill what serves in a pod of a group."""
    kill(pod, lambda arguments: "arctic_workers.inference" in arguments)


def kill_a_rank(pod: dict[str, Any]) -> None:
    """Kill what computes for a training in a pod, and not what watches it there."""
    kill(pod, is_rank)


def until(what: str, look: Callable[[], bool]) -> float:
    """Return when something was true, by the wall clock; a call that fails is not true."""

    def seen() -> bool:
        with suppress(ClusterError, httpx.HTTPError, LookupError):  # nobody answers, or it is being made
            return look()
        return False

    eventually(what, seen, PATIENCE)
    return time.time()


# --- a service


def serving(objects: Objects, rounds: int) -> list[Recovery]:
    """Hit a service with each kind so many times."""
    service = RealService(objects, replicas=1)
    faults = Faults(objects, lambda: service.pods, kill_a_server)
    recoveries = []
    with service.asked(PACE, LATEST) as load:
        for number in range(rounds):
            for kind, inflict in faults.kinds.items():
                let_live(service.pods)
                recoveries.append(hit_service(kind, inflict, service, load))
                tell(recoveries[-1], number)
                faults.mend()
                service.until_at_rest(1)
    objects.kubectl("delete", service.KIND, service.NAME, "--wait=true")
    return recoveries


def let_live(pods: Sequence[Mapping[str, Any]]) -> None:
    """Return when the youngest of these is old enough to be hit."""
    youngest = max(_moment(pod["metadata"]["creationTimestamp"]) for pod in pods)
    time.sleep(max(BETWEEN, youngest + LIVED - time.time()))


def hit_service(kind: str, inflict: Callable[[], None], service: RealService, load: SteadyLoad) -> Recovery:
    """Inflict a fault; return what came of it once the service is ready, and answers."""
    hit, clocks = time.time(), time.time() - time.monotonic()
    inflict()

    def again() -> float | None:
        return answers_again(load.asked(), hit - clocks)

    # Containers may be back before an operator is there to see it.
    unready = until(f"{kind}: it is noticed", lambda: service.status["state"] != "Ready" or again() is not None)
    until(f"{kind}: the service is ready", lambda: service.status["state"] == "Ready")
    until(f"{kind}: it answers", lambda: again() is not None)
    over = again()
    assert over is not None
    pods = [pod for pod in service.pods if is_ready(pod)]
    return recovery(kind, hit, unready, pods, over + clocks)


# --- a training


class Trained:
    """A training that goes on for as long as it is let."""

    def __init__(self, objects: Objects, corpus_folder: str) -> None:
        self.objects = objects
        corpus = objects.cluster.volumes / CORPUS
        manifest = small_training(corpus, corpus_folder, STEPS, EVERY, TOKENS)
        # Faults follow each other much closer than in life: a back-off that grows would be theirs.
        manifest["spec"]["restart"] = {"limit": 1000, "backoff": {"factor": 1}}
        manifest["metadata"]["name"] = self.name = "trained"
        objects.apply(manifest)

    @property
    def pods(self) -> list[dict[str, Any]]:
        """The pods of the newest attempt."""
        living = [pod for pod in self.objects.pods(self.name) if "deletionTimestamp" not in pod["metadata"]]
        newest = max(map(_attempt_of, living), default=0)
        return [pod for pod in living if _attempt_of(pod) == newest]

    @property
    def attempt(self) -> int:
        """That attempt; 0 while there is none."""
        return max(map(_attempt_of, self.pods), default=0)

    @property
    def ended(self) -> int:
        """The last attempt that has ended, as far as the status knows."""
        attempts = self.objects.status(training.KIND, self.name).get("attempts") or [{"number": 0}]
        return int(attempts[-1]["number"])

    def step(self) -> int:
        """The step that the newest attempt has come to."""
        first = self.pods[0]["status"]["podIP"]
        text = httpx.get(f"http://{first}:{Ports().metrics}/metrics", trust_env=False, timeout=1).text
        line = next((line for line in text.splitlines() if line.startswith(STEP)), f"{STEP}0")
        return int(float(line.removeprefix(STEP)))


def _attempt_of(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"]["labels"][Label.ATTEMPT])


def trainings(objects: Objects, rounds: int) -> list[Recovery]:
    """Hit a training with each kind so many times."""
    folder = f"{NAME}-{uuid.uuid4().hex}"
    recoveries = []
    try:
        trained = Trained(objects, folder)
        faults = Faults(objects, lambda: trained.pods, kill_a_rank)
        until("first steps", lambda: trained.step() > 0)
        for number in range(rounds):
            for kind, inflict in faults.kinds.items():
                time.sleep(BETWEEN)
                recoveries.append(hit_training(kind, inflict, trained))
                tell(recoveries[-1], number)
                faults.mend()
        objects.kubectl("delete", training.KIND, trained.name, "--wait=true")
    finally:
        shutil.rmtree(objects.cluster.volumes / CORPUS / folder, ignore_errors=True)
    return recoveries


def hit_training(kind: str, inflict: Callable[[], None], trained: Trained) -> Recovery:
    """Inflict a fault; return what came of it once a later attempt is past where the training was."""
    attempt, step, hit = trained.attempt, trained.step(), time.time()
    inflict()
    noticed = until(f"{kind}: the status says so", lambda: trained.ended >= attempt)
    again = until(f"{kind}: it trains past step {step}", lambda: trained.attempt > attempt and trained.step() > step)
    return recovery(kind, hit, noticed, trained.pods, again)


# --- both


def tell(it: Recovery, number: int) -> None:
    """Note one recovery."""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in zip(PARTS, it.parts, strict=True))
    note(f"round {number + 1}: {it.fault}: {it.seconds:.1f} s ({parts})")


def show(title: str, recoveries: Sequence[Recovery]) -> None:
    """Print the recoveries by kind."""
    kinds = dict.fromkeys(each.fault for each in recoveries)
    rows = []
    for kind in kinds:
        mine = [each for each in recoveries if each.fault == kind]
        parts = (f"{median(part):.1f}" for part in zip(*(each.parts for each in mine), strict=True))
        seconds = [each.seconds for each in mine]
        rows.append((kind, f"{median(seconds):.1f}", f"{quantile(seconds, 0.95):.1f}", *parts))
    print_table(title, ("fault", "p50", "p95", *PARTS), rows)


def figures(name: str, recoveries: Sequence[Recovery]) -> dict[str, float]:
    """Return the figures over all kinds."""
    seconds = [each.seconds for each in recoveries]
    return {f"{name}_p50_s": median(seconds), f"{name}_p95_s": quantile(seconds, 0.95)}


def main() -> None:
    """Inflict, print, keep."""
    told = arguments(__doc__, f"each kind once instead of {ROUNDS} times")
    rounds = 1 if told.quick else ROUNDS
    with three_nodes(NAME, "--set", "replicas=2") as objects:
        served, trained = serving(objects, rounds), trainings(objects, rounds)
    show("Seconds until a service answers again, medians by part", served)
    show("Seconds until a training is past where it was, medians by part", trained)
    found = {**figures("serving", served), **figures("training", trained)}
    finish(told, found, less_is_better=found.keys())


if __name__ == "__main__":
    main()
