"""Faults against a training in a cluster that local processes don't have: of its pods, the operator, the API server."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from objects import Objects, arguments_of, processes
from training_faults import Fault

from arctic_cluster.errors import ClusterError
from arctic_cluster.manifests import SYSTEM_NAMESPACE
from arctic_cluster.paths import STORE

KIND = "arctictraining"
PATIENCE = 600.0
API_SERVER_AWAY = 30.0
MOUNTED_STORE = "file:///var/lib/arctic/store/"


class ClusterTraining:
    """One training of an operator's cluster, and what befalls it.

    Args:
        objects: the namespace.
        manifest: of the training; applied here.
        say: told of each fault.
    """

    def __init__(self, objects: Objects, manifest: dict[str, Any], say: Callable[[str], None] = print) -> None:
        self._objects, self._cluster, self._say = objects, objects.cluster, say
        self._name = manifest["metadata"]["name"]
        objects.apply(manifest)
        self.kinds: dict[str, Callable[[], float]] = {
            "the operator is killed, and a rank while nobody looks": self._kill_operator_and_rank,
            "the API server is away for 30 s, and a rank is killed": self._lose_the_api_server,
            "a pod is deleted at once": self._delete_a_pod,
        }
        """How each is inflicted; returns when it hit."""

    def inflict(self) -> Iterator[Fault]:
        """Inflict each kind once; yields what each cost once the next attempt makes steps."""
        for kind, act in self.kinds.items():
            attempt, before = self._running()
            hit = act()
            self._running(after=attempt)
            fault = Fault(kind, before, time.monotonic() - hit)
            self._say(f"{kind} at step {before}: {fault.seconds_lost:.1f} s until the next attempt's first steps")
            yield fault

    def finish(self) -> Path:
        """Wait for a good end; return the folder of the run on this machine."""
        status = self._objects.state(KIND, self._name, "Succeeded", limit=PATIENCE)
        export: str = status["export"]["uri"]
        return (self._cluster.volumes / STORE / export.removeprefix(MOUNTED_STORE)).parent

    def _running(self, after: int = 0) -> tuple[int, int]:
        """Wait until a later attempt makes steps; return its number, and the step that it has come to."""
        deadline = time.monotonic() + PATIENCE
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            with suppress(ClusterError):  # the API server is away
                status = self._objects.status(KIND, self._name)
                if status.get("state") in ("Succeeded", "Failed"):
                    raise AssertionError(f"{self._name} is {status['state']} at step {status.get('step')}")
                attempt, step = status.get("attempt", 0), status.get("step", 0)
                if status.get("state") == "Running" and attempt > after and step:
                    return attempt, step
            time.sleep(0.5)
        raise AssertionError(f"not within {PATIENCE:.0f} s: an attempt after {after} makes steps; seen last: {status}")

    def _ranks(self) -> list[int]:
        """Return the processes that compute, on whichever node."""
        return [
            int(folder.name)
            for pod in self._objects.pods(self._name)
            for folder in processes(pod)
            if is_rank(arguments_of(folder))
        ]

    # --- the faults: each returns when it hit

    def _kill_operator_and_rank(self) -> float:
        ranks = self._ranks()
        selector = ("-l", "app.kubernetes.io/name=arctic-operator")
        self._cluster.kubectl(
            "delete", "pods", "-n", SYSTEM_NAMESPACE, *selector, "--grace-period=0", "--force", "--wait=false"
        )
        os.kill(ranks[-1], signal.SIGKILL)
        return time.monotonic()

    def _lose_the_api_server(self) -> float:
        ranks = self._ranks()
        self._cluster.stop("kube-apiserver")
        hit = time.monotonic()
        try:
            os.kill(ranks[0], signal.SIGKILL)
            time.sleep(API_SERVER_AWAY)
        finally:
            self._cluster.start("kube-apiserver")
        return hit

    def _delete_a_pod(self) -> float:
        pod = self._objects.pods(self._name)[-1]["metadata"]["name"]
        self._objects.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        return time.monotonic()


def is_rank(arguments: list[str]) -> bool:
    """Whether a process computes; what starts it has its name among its arguments too."""
    return "arctic_workers.training.rank" in arguments and "arctic_workers.training.launch" not in arguments
