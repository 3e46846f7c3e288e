"""Lives of custom resources on the real local cluster: operator, API server, Job controller, scheduler and kubelets are
real, and so are the pods; a cheap stand-in runs in them where the lifecycle alone is in question."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from arctic_api.world import Label
from arctic_cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
STAND_IN = "operator-test"
CORPUS = "/var/lib/arctic/corpus"
OPERATOR = ("-n", "arctic-system", "deployment/arctic-operator")
PATIENCE = 90.0

WORKER = """
import http.server, json, os, signal, socket, sys, threading, time

class Probe(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass

world = json.loads(os.environ["ARCTIC_WORLD"])
rank = int(os.environ["ARCTIC_NODE_RANK"])
for port in (9441, 8000):
    server = http.server.ThreadingHTTPServer(("", port), Probe)
    threading.Thread(target=server.serve_forever, daemon=True).start()

def report(**content):
    with open(world["terminationMessage"], "w") as file:
        json.dump(content, file)

def stop(*_):
    report(outcome="interrupted", epoch=world.get("epoch", 0))
    os._exit(int(os.environ.get("EXIT_WHEN_TOLD", "75")))

signal.signal(signal.SIGTERM, stop)
assert set(os.listdir("/etc/arctic/tls")) >= {"tls.crt", "tls.key", "ca.crt"}
open(os.environ["HOME"] + "/writable", "w").close()

def known(host):
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None

while not all(map(known, world["hosts"])):
    time.sleep(1)
time.sleep(float(os.environ.get("SECONDS", "3600")))
code = int(os.environ.get("EXIT_CODE", "0"))
if code == 64:
    report(outcome="refused", reason="UnknownColumn", message="books.jsonl has no column 'text'")
elif code == 0 and rank == 0:
    report(outcome="succeeded", exportUri="file:///export", step=7, tokens=70, loss=1.25, epoch=world["epoch"])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def stand_in(operator: Cluster) -> Iterator[None]:
    """The stand-in worker, where the pods see it."""
    folder = operator.volumes / "arctic-corpus" / STAND_IN / "arctic_workers"
    modules = [folder / name for name in ("training.py", "inference.py")]
    folder.mkdir(parents=True, exist_ok=True)
    for module in [folder / "__init__.py", *modules]:
        module.write_text(WORKER if module in modules else "")
    yield
    for module in [folder / "__init__.py", *modules]:
        module.unlink()
    subprocess.run(["rm", "-rf", folder.parent], check=True)


class Objects:
    """What a test does with the objects of its namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def apply(
        self,
        example: str,
        name: str,
        environment: dict[str, str] | None = None,
        affinity: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """Apply an example under a name; the stand-in runs in its pods."""
        manifest = YAML(typ="safe").load(EXAMPLES / example)
        manifest["metadata"]["name"] = name
        variables = {"PYTHONPATH": f"{CORPUS}/{STAND_IN}"} | (environment or {})
        manifest["spec"] |= spec | {
            "template": {
                "environment": [{"name": key, "value": value} for key, value in variables.items()],
                "volumes": [{"claimName": "arctic-corpus", "mountPath": CORPUS}],
                "affinity": affinity or {},
            }
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def train(self, name: str, environment: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply a training; `affinity` is its template's."""
        restart = {"limit": 1, "backoff": {"initial": "1s", "max": "1s"}}
        self.apply("tiny-training.yaml", name, environment, **{"restart": restart} | spec)

    def serve(self, name: str, environment: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply a service."""
        model = {"uri": f"file://{CORPUS}/{STAND_IN}"}
        rollout = {"drainTimeout": "2s"}
        self.apply("tiny-inference.yaml", name, environment, **{"model": model, "rollout": rollout} | spec)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def of(self, name: str, kind: str = "pods") -> list[dict[str, Any]]:
        """The children of one kind, in the order of their names."""
        listed = json.loads(self.kubectl("get", kind, "-l", f"{Label.NAME}={name}", "-o", "json"))
        return sorted(listed["items"], key=lambda item: str(item["metadata"]["name"]))

    def status(self, kind: str, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get(kind, name).get("status", {})
        return status

    def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Wait for something to become true and return it."""
        end = time.monotonic() + patience
        while not (found := condition()):
            assert time.monotonic() < end, self.kubectl("get", "arctic,jobs,statefulsets,pods", "-o", "wide")
            time.sleep(0.5)
        return found

    def until_state(self, kind: str, name: str, *states: str, patience: float = PATIENCE) -> dict[str, Any]:
        self.until(lambda: self.status(kind, name).get("state") in states, patience)
        return self.status(kind, name)

    def running(self, name: str, attempt: int, pods: int = 2, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """The pods of an attempt once all run and are ready."""

        def ready() -> list[dict[str, Any]] | None:
            world = [p for p in self.of(name) if p["metadata"]["labels"].get(Label.ATTEMPT) == str(attempt)]
            return world if len(world) == pods and all(map(is_ready, world)) else None

        found: list[dict[str, Any]] = self.until(ready, patience)
        return found


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in status["conditions"] if c["type"] == kind)
    return found


@pytest.fixture
def objects(operator: Cluster, stand_in: None, namespace: str) -> Objects:
    return Objects(operator, namespace)


def test_a_training_runs_a_pod_a_node_succeeds_by_its_report_and_takes_its_children_along(objects: Objects) -> None:
    objects.train("tiny", {"SECONDS": "5"})
    status = objects.until_state("arctictraining", "tiny", "Succeeded")
    assert len({pod["spec"]["nodeName"] for pod in objects.of("tiny")}) == 2
    assert (status["step"], status["loss"], status["export"]) == (7, "1.2500", {"uri": "file:///export"})
    assert condition(status, "Succeeded")["status"] == "True"
    objects.kubectl("delete", "arctictraining", "tiny")
    kinds = "jobs,pods,services,networkpolicies,secrets"
    objects.until(lambda: not json.loads(objects.kubectl("get", kinds, "-l", Label.MANAGED, "-o", "json"))["items"])


def test_a_deleted_pod_is_followed_by_the_next_attempt_and_does_not_count(objects: Objects) -> None:
    objects.train("tiny")
    first = objects.running("tiny", 1)
    objects.kubectl("delete", "pod", first[1]["metadata"]["name"], "--wait=false")
    objects.running("tiny", 2)
    status = objects.status("arctictraining", "tiny")
    assert [(a["number"], a["reason"], a["counted"]) for a in status["attempts"]] == [(1, "PodDeleted", False)]
    assert status["restarts"] == 0


@pytest.mark.parametrize("code", ["75", "0"])
def test_draining_both_pods_never_makes_it_succeeded(objects: Objects, code: str) -> None:
    objects.train("tiny", {"EXIT_WHEN_TOLD": code})
    pods = [pod["metadata"]["name"] for pod in objects.running("tiny", 1)]
    objects.kubectl("delete", "pod", *pods, "--wait=false")
    objects.running("tiny", 2)
    status = objects.status("arctictraining", "tiny")
    assert condition(status, "Succeeded")["status"] == "False"
    assert status["restarts"] == 0


def test_failures_count_up_to_the_limit_and_bad_input_is_never_tried_again(objects: Objects) -> None:
    objects.train("crash", {"SECONDS": "1", "EXIT_CODE": "3"})
    objects.train("refused", {"SECONDS": "1", "EXIT_CODE": "64"})
    status = objects.until_state("arctictraining", "crash", "Failed")
    assert condition(status, "Failed")["reason"] == "RestartLimitExceeded"
    assert (status["attempt"], status["restarts"]) == (2, 2)
    status = objects.until_state("arctictraining", "refused", "Failed")
    assert condition(status, "Failed")["reason"] == "UnknownColumn"
    assert condition(status, "Failed")["message"] == "books.jsonl has no column 'text'"
    assert status["attempt"] == 1


def test_what_keeps_pods_from_running_is_told_in_the_status(objects: Objects) -> None:
    def told(name: str, kind: str) -> str:
        status = objects.status("arctictraining", name)
        return str(condition(status, kind)["message"]) if status else ""

    objects.train("image", image="registry.invalid/none:1")
    objects.train("room", resources={"requests": {"cpu": "1000"}})
    status = objects.until_state("arctictraining", "image", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff")
    assert "registry.invalid/none:1" in condition(status, "Degraded")["message"]
    objects.until(lambda: "Insufficient cpu" in told("room", "PodsScheduled"))
    assert objects.status("arctictraining", "room")["state"] == "Unschedulable"


def test_suspend_stops_the_world_and_resume_makes_the_next(objects: Objects) -> None:
    objects.train("tiny")
    objects.running("tiny", 1)
    objects.kubectl("patch", "arctictraining", "tiny", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    objects.until_state("arctictraining", "tiny", "Suspended")
    objects.until(lambda: objects.of("tiny") == [])
    objects.kubectl("patch", "arctictraining", "tiny", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    objects.running("tiny", 2)
    assert objects.status("arctictraining", "tiny")["restarts"] == 0


def test_an_object_made_again_under_the_same_name_starts_clean(objects: Objects) -> None:
    objects.train("tiny")
    old = objects.running("tiny", 1)
    objects.kubectl("delete", "arctictraining", "tiny", "--wait=false", "--cascade=background")
    objects.train("tiny")
    uid = objects.get("arctictraining", "tiny")["metadata"]["uid"]

    def anew() -> bool:
        pods = [pod for pod in objects.of("tiny") if pod["metadata"]["labels"][Label.UID] == uid]
        return len(pods) == 2 and all(map(is_ready, pods))

    objects.until(anew)
    status = objects.status("arctictraining", "tiny")
    assert status["attempt"] == 1
    assert status.get("attempts") is None
    assert not {pod["metadata"]["name"] for pod in old} & {
        p["metadata"]["name"] for p in objects.of("tiny") if is_ready(p)
    }


def test_the_operator_may_go_and_come_back_and_children_go_without_it(objects: Objects) -> None:
    objects.train("tiny", {"SECONDS": "25"})
    objects.train("other")
    before = objects.running("tiny", 1)
    objects.running("other", 1)
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=0")
    try:
        objects.cluster.kubectl(
            "wait", "-n", "arctic-system", "--for=delete", "pod", "-l", "app.kubernetes.io/name=arctic-operator"
        )
        objects.kubectl("delete", "arctictraining", "other")
        objects.until(lambda: objects.of("other") == [])
        objects.until(lambda: all(pod["status"]["phase"] == "Succeeded" for pod in objects.of("tiny")))
        assert [p["metadata"]["uid"] for p in objects.of("tiny")] == [p["metadata"]["uid"] for p in before]
    finally:
        objects.cluster.kubectl("scale", *OPERATOR, "--replicas=1")
    assert objects.until_state("arctictraining", "tiny", "Succeeded")["attempt"] == 1


def test_a_world_on_a_node_that_is_cut_off_goes_on_elsewhere_without_counting(objects: Objects) -> None:
    (operator,) = json.loads(objects.cluster.kubectl("get", "pods", *OPERATOR[:2], "-o", "json"))["items"]
    node = next(n for n in objects.cluster.nodes if n.name != operator["spec"]["nodeName"])
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    objects.train("tiny", affinity={"nodeAffinity": preferred}, parallelism={"nodes": 1})
    (first,) = objects.running("tiny", 1, pods=1)
    assert first["spec"]["nodeName"] == node.name
    objects.cluster.cut(node.name)
    try:
        (second,) = objects.running("tiny", 2, pods=1, patience=240)
        assert second["spec"]["nodeName"] != node.name
        status = objects.status("arctictraining", "tiny")
        assert [(a["reason"], a["counted"]) for a in status["attempts"]] == [("NodeLost", False)]
    finally:
        objects.cluster.mend(node.name)
        objects.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=120s")


def test_an_operator_that_lost_the_lease_leads_again(objects: Objects) -> None:
    lease = ("-n", "arctic-system", "lease", "arctic-operator")
    objects.train("tiny")
    objects.running("tiny", 1)
    objects.cluster.kubectl("patch", *lease, "--type=merge", "-p", '{"spec": {"holderIdentity": "another"}}')
    objects.kubectl("delete", "pod", objects.of("tiny")[0]["metadata"]["name"], "--wait=false")
    objects.running("tiny", 2)
    assert json.loads(objects.cluster.kubectl("get", *lease, "-o", "json"))["spec"]["holderIdentity"] != "another"


def test_another_operator_leads_when_the_leader_is_gone(objects: Objects) -> None:
    lease = ("get", "lease", "-n", "arctic-system", "arctic-operator", "-o", "jsonpath={.spec.holderIdentity}")
    objects.cluster.kubectl("scale", *OPERATOR, "--replicas=2")
    try:
        objects.cluster.kubectl("rollout", "status", *OPERATOR)
        leader = objects.cluster.kubectl(*lease)
        objects.cluster.kubectl("delete", "pod", "-n", "arctic-system", leader, "--grace-period=0", "--force")
        objects.train("tiny")
        objects.running("tiny", 1)
        assert objects.cluster.kubectl(*lease) not in ("", leader)
    finally:
        objects.cluster.kubectl("scale", *OPERATOR, "--replicas=1")


def test_a_service_is_ready_as_a_whole_heals_and_leaves_its_address_when_suspended(objects: Objects) -> None:
    objects.serve("tiny")
    status = objects.until_state("arcticinference", "tiny", "Ready")
    assert (status["readyReplicas"], status["url"]) == (1, f"http://tiny.{objects.namespace}.svc:8000")
    pods = [pod for pod in objects.of("tiny") if Label.GROUP in pod["metadata"]["labels"]]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    leaders = json.loads(objects.kubectl("get", "pods", "-l", status["selector"], "-o", "json"))["items"]
    assert [leader["metadata"]["name"] for leader in leaders] == [pods[0]["metadata"]["name"]]

    objects.kubectl("delete", "pod", pods[1]["metadata"]["name"])
    objects.until(lambda: objects.status("arcticinference", "tiny")["readyReplicas"] == 0)
    objects.until_state("arcticinference", "tiny", "Ready")

    objects.kubectl("patch", "arcticinference", "tiny", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    objects.until_state("arcticinference", "tiny", "Suspended", patience=180)
    assert objects.of("tiny", "statefulsets") == []
    assert objects.get("service", "tiny")["metadata"]["labels"][Label.NAME] == "tiny"


def test_an_address_that_is_someone_elses_is_left_alone_and_told(objects: Objects) -> None:
    objects.kubectl("create", "service", "clusterip", "tiny", "--tcp=80")
    objects.serve("tiny")
    objects.until(lambda: condition_reason(objects.status("arcticinference", "tiny")) == "FailedCreate")
    message = condition(objects.status("arcticinference", "tiny"), "Degraded")["message"]
    assert "Service tiny exists and belongs to something else" in message
    assert objects.get("service", "tiny")["spec"]["ports"][0]["port"] == 80


def condition_reason(status: dict[str, Any]) -> str | None:
    return next((c["reason"] for c in status.get("conditions", ()) if c["type"] == "Degraded"), None)
