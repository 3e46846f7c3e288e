"""What the cluster tests say of custom resources and their pods, in a namespace of the real local cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arctic_api.world import Label
from arctic_cli.manifest import load_one
from arctic_cluster import Cluster

T = TypeVar("T")
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 240.0
"""Seconds: several times what anything takes on two free cores."""


def example(kind: str, name: str) -> dict[str, Any]:
    """Return the example of a kind, ArcticTraining or ArcticInference, under another name."""
    manifest = load_one(EXAMPLES / f"tiny-{kind.removeprefix('Arctic').lower()}.yaml", kind)
    manifest["metadata"]["name"] = name
    return manifest


def until_established(kubectl: Callable[..., str], *definitions: str) -> None:
    """Return when the server that `kubectl` asks serves what some definitions define."""

    def established() -> bool:
        found = json.loads(kubectl("get", *definitions, "-o", "json"))
        each = found.get("items", [found])
        return all(condition(one.get("status") or {}, "Established").get("status") == "True" for one in each)

    # Not `kubectl wait`, which fails where there are no conditions yet.
    eventually("the definitions are established", established, 60)


def until_all_ready(cluster: Cluster) -> None:
    """Return when all nodes of a cluster are ready: one that was cut off, or an outage of the API server, is over."""

    def ready() -> bool:
        found = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
        told = {each["metadata"]["name"]: condition(each["status"], "Ready").get("status") for each in found}
        return all(told.get(node.name) == "True" for node in cluster.nodes)

    eventually("all nodes are ready", ready)


def eventually(what: str, look: Callable[[], T | None], limit: float = PATIENCE) -> T:
    """Return the first truthy answer of `look`; fail with its last answer after `limit` seconds."""
    end = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:.0f} s: {what}; seen last: {found!r}")
        time.sleep(0.5)
    return found


@dataclass(frozen=True)
class Objects:
    """One namespace."""

    cluster: Cluster
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def typed(self, *words: str) -> str:
        """Return what a command prints to a user with kubectl and arctic on the path; the namespace is in the words."""
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        path = f"{self.cluster.binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment |= {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": path}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def apply(self, manifest: dict[str, Any]) -> None:
        """Apply a manifest as a user does."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """Change fields of an object's specification."""
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def labelled(self, kinds: str, selector: str) -> list[dict[str, Any]]:
        """Return the objects with a label."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kinds, "-l", selector, "-o", "json"))["items"]
        return found

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object's status; empty before the first visit."""
        status: dict[str, Any] = self.get(kind, name).get("status", {})
        return status

    def pods(self, name: str, kind: str = "ArcticTraining") -> list[dict[str, Any]]:
        """Return the worker pods of a custom resource, in the order of their names."""
        selector = f"{Label.NAME}={name},{Label.KIND}={kind},{Label.ROLE}!=gateway"
        return sorted(self.labelled("pods", selector), key=lambda pod: str(pod["metadata"]["name"]))

    def restarts(self, name: str) -> dict[str, list[int]]:
        """Return the same of the pods of a training and a service of that name."""
        return restarts([*self.pods(name), *self.pods(name, "ArcticInference")])

    def eventually(self, what: str, look: Callable[[], T | None], limit: float = PATIENCE) -> T:
        """Wait as the function of that name does; a failure shows what is in the namespace."""
        try:
            return eventually(what, look, limit)
        except AssertionError as error:
            there = self.kubectl("get", "arctic,jobs,statefulsets,pods", "-o", "wide")
            raise AssertionError(f"{error}\n{there}") from error

    def state(self, kind: str, name: str, *states: str, limit: float = 2 * PATIENCE) -> dict[str, Any]:
        """Return the status once its state is one of `states`; a failure that is none of them ends the wait."""

        def look() -> dict[str, Any] | None:
            status = self.status(kind, name)
            state = status.get("state")
            if state == "Failed" and state not in states:
                raise AssertionError(f"{kind} {name} failed: {json.dumps(status.get('conditions'))}")
            return status if state in states else None

        return self.eventually(f"{kind} {name} is {' or '.join(states)}", look, limit)


def restarts(pods: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    """Return how often the containers of pods have begun anew, by the pods' uids."""
    found = {pod["metadata"]["uid"]: pod["status"].get("containerStatuses", ()) for pod in pods}
    return {uid: [each["restartCount"] for each in statuses] for uid, statuses in found.items()}


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether a pod is ready and not on its way out."""
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return one condition of a status; empty before it has it."""
    found: dict[str, Any] = next((each for each in status.get("conditions") or () if each["type"] == kind), {})
    return found


def processes(pod: dict[str, Any]) -> list[Path]:
    """Return the folders in /proc of a pod's processes, whatever they call themselves."""
    uid = pod["metadata"]["uid"]
    names = (uid, uid.replace("-", "_"))  # the second is systemd's
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if any(name in (folder / "cgroup").read_text() for name in names):
                found.append(folder)
    return found


def arguments_of(process: Path) -> list[str]:
    """Return the command line of a process, by its folder in /proc; empty if it has ended."""
    with suppress(OSError):
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def kill(pod: dict[str, Any], meant: Callable[[list[str]], bool]) -> None:
    """Kill a pod's processes whose command line is meant, of which there must be one."""
    found = [process for process in processes(pod) if meant(arguments_of(process))]
    assert found, f"no such process in pod {pod['metadata']['name']}"
    for process in found:
        with suppress(ProcessLookupError):  # it has ended with the one before
            os.kill(int(process.name), signal.SIGKILL)
