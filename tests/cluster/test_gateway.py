"""The gateway on a real cluster: it finds leaders by the cluster's DNS, and loses no request as pods come and go.

The leaders are small stand-ins with a leader's labels, ports and manners, so that the gateway alone is looked at.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from objects import eventually

from arctic_api import API_VERSION, inference
from arctic_api.world import Label, Ports, Routing
from arctic_cluster import Cluster
from arctic_cluster.image import STABLE
from arctic_operator.manifests.common import CONTAINER_SECURITY, POD_SECURITY, gateway_name, leader_selector
from arctic_operator.observed import Identity, identity_of
from arctic_workers.inference.pod import LINGER

# Answers as a leader does; told to stop, it is not ready any more, serves all that comes for as long as a leader does,
# then turns away what still comes.
LEADER = """
import http.server, os, signal, threading, time
stopping, closed = threading.Event(), threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, code, text=""):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.answer(503 if stopping.is_set() else 200)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(503 if closed.is_set() else 200, os.environ["HOSTNAME"])
for port in (HTTP, METRICS):
    threading.Thread(target=http.server.ThreadingHTTPServer(("", port), Handler).serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
stopping.wait()
time.sleep(LINGER)
closed.set()
time.sleep(4)
"""

# Asks on, over connections that it keeps, until told to stop; prints who answered, what was refused in which words, and
# which connections went wrong.
CLIENT = """
import collections, http.client, json, signal, sys, threading, time
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
host, answers, refusals, errors, connection = sys.argv[1], collections.Counter(), [], [], None
while not stopping.wait(0.05):
    try:
        connection = connection or http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", "/v1/completions", b"{}")
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            refusals.append(f"{time.time():.1f} {answer.status} {text}")
        answers[text if answer.status == 200 else answer.status] += 1
        if answer.will_close:
            connection.close()
            connection = None
    except OSError as error:
        errors.append(f"{time.time():.1f} {error!r}")
        connection = None
    except http.client.HTTPException as error:
        errors.append(f"{time.time():.1f} {error!r}")
        connection = None
    if sum(answers.values()) % 20 == 0:
        print(json.dumps({"answers": answers, "refusals": refusals[:10], "errors": errors[:10]}), flush=True)
"""


def pod(name: str, namespace: str, labels: dict[str, str], code: str, *arguments: str) -> dict[str, Any]:
    container = {
        "name": "python",
        "image": STABLE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-u", "-c", code, *arguments],
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "securityContext": POD_SECURITY, "restartPolicy": "Never"},
    }


class Service:
    """A service without groups of its own, to which stand-in leaders are added."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        # No groups of the operator's; a short drain lets the test see the end of it.
        spec = {"model": {"uri": "file:///nowhere"}, "replicas": 0, "rollout": {"drainTimeout": "10s"}}
        metadata = {"name": "demo", "namespace": namespace}
        cluster.apply([{"apiVersion": API_VERSION, "kind": inference.KIND, "metadata": metadata, "spec": spec}])
        self.identity: Identity = identity_of(json.loads(self.kubectl("get", inference.PLURAL, "demo", "-o", "json")))
        self.gateway = f"deployment/{gateway_name(self.identity)}"
        eventually("the gateway", lambda: self.gateway.partition("/")[2] in self.kubectl("get", "deployments"))
        self.rolled_out()

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def rolled_out(self) -> None:
        self.kubectl("rollout", "status", self.gateway, "--timeout=240s")

    def add_leader(self, name: str) -> None:
        ports = Ports()
        code = (
            LEADER.replace("HTTP,", f"{ports.http},")
            .replace("METRICS", str(ports.metrics))
            .replace("LINGER", str(LINGER))
        )
        leader = pod(name, self.namespace, leader_selector(self.identity, Routing.ON), code)
        leader["spec"]["containers"][0]["readinessProbe"] = {
            "httpGet": {"path": "/readyz", "port": ports.metrics},
            "periodSeconds": 1,
        }
        self.cluster.apply([leader])

    def start_client(self) -> None:
        self.cluster.apply([pod("client", self.namespace, {"app": "client"}, CLIENT, "demo:8000")])
        eventually("the client's first answers", lambda: bool(self.seen()["answers"]))

    def seen(self) -> dict[str, Any]:
        """Return what the client has seen so far: how often who answered, and what went wrong."""
        phase = self.kubectl("get", "pod", "client", "-o", "jsonpath={.status.phase}")
        lines = self.kubectl("logs", "client", "--tail=1").splitlines() if phase == "Running" else []
        return dict(json.loads(lines[0])) if lines else {"answers": {}, "refusals": [], "errors": []}


@pytest.fixture
def service(operator: Cluster, namespace: str) -> Iterator[Service]:
    made = Service(operator, namespace)
    yield made
    made.kubectl("delete", inference.PLURAL, "demo", "--wait=false")


def test_a_service_without_leaders_answers_503_and_then_finds_them_by_dns(service: Service) -> None:
    service.start_client()
    seen = service.seen()
    assert set(seen["answers"]) == {"503"}
    # Before the cluster has set up the new address, connections to it go wrong: that is not the gateway's doing.
    assert seen["refusals"]
    assert all("service_unavailable" in refusal for refusal in seen["refusals"])
    service.add_leader("first")
    eventually("the leader's first answer", lambda: service.seen()["answers"].get("first", 0) > 0)
    service.kubectl("label", "pod", "first", "--overwrite", f"{Label.ROUTING.value}=off")
    refused = service.seen()["answers"]["503"]
    eventually("leaving out a leader that is not routed to", lambda: bool(service.seen()["answers"]["503"] > refused))


def test_no_request_is_lost_while_gateways_and_leaders_are_replaced(service: Service) -> None:
    service.add_leader("first")
    service.add_leader("second")
    service.kubectl("wait", "--for=condition=Ready", "pod/first", "pod/second", "--timeout=240s")
    wait_until_found(service, 2)
    service.start_client()
    service.kubectl("rollout", "restart", service.gateway)
    service.rolled_out()
    eventually("the end of the old gateways", lambda: gateway_pods(service) == 2)
    service.kubectl("delete", "pod", "first", "--wait=true")
    answers = service.seen()["answers"]
    eventually("answers after all changes", lambda: service.seen()["answers"]["second"] > answers["second"] + 20)
    seen = service.seen()
    assert set(seen["answers"]) == {"first", "second"}
    assert (seen["refusals"], seen["errors"]) == ([], [])


def gateway_pods(service: Service) -> int:
    selector = f"{Label.UID.value}={service.identity.uid},{Label.ROLE.value}=gateway"
    return len(service.kubectl("get", "pods", "-l", selector, "-o", "name").split())


def wait_until_found(service: Service, leaders: int) -> None:
    """Wait until every gateway's own metrics say that it has found so many leaders."""
    selector = f"{Label.UID.value}={service.identity.uid},{Label.ROLE.value}=gateway"
    names = service.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}").split()

    def found(name: str) -> int:
        path = f"/api/v1/namespaces/{service.namespace}/pods/{name}:{Ports().metrics}/proxy/metrics"
        lines = service.cluster.kubectl("get", "--raw", path).splitlines()
        up = 'haproxy_server_status{proxy="leaders",server="leader'
        return sum(line.startswith(up) and 'state="UP"' in line and line.endswith(" 1") for line in lines)

    eventually("finding the leaders", lambda: [found(name) for name in names] == [leaders] * len(names))
