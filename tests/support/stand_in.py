"""A cheap worker that stands where a real one does, for tests of the lifecycle of objects alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from objects import PATIENCE, Objects, example, is_ready

from arctic_api.world import Label
from arctic_cluster import Cluster, paths
from arctic_cluster.addresses import Node

CORPUS = "/var/lib/arctic/corpus"

# Serves the probes and the endpoint; a training's ends well after SECONDS, or with EXIT_CODE and REASON. EATS is what
# it takes of memory then, in MiB. One that is DEAF hears no SIGTERM.
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

signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("DEAF") else stop)
assert set(os.listdir("/etc/arctic/tls")) >= {"tls.crt", "tls.key", "ca.crt"}
open(os.environ["HOME"] + "/writable", "w").close()

def known(host):
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None

while not all(map(known, world.get("hosts") or [world.get("firstHost", "localhost")])):
    time.sleep(1)
time.sleep(float(os.environ.get("SECONDS", "3600")))
eaten = bytes(b"x") * (int(os.environ.get("EATS", "0")) << 20)
code = int(os.environ.get("EXIT_CODE", "0"))
if code == 64:
    reason = os.environ.get("REASON", "UnknownColumn")
    report(outcome="refused", reason=reason, message="books.jsonl has no column 'text'")
elif code == 0 and rank == 0:
    report(outcome="succeeded", exportUri="file:///export", step=7, tokens=70, loss=1.25, epoch=world["epoch"])
sys.exit(code)
"""


def folder_of(cluster: Cluster) -> str:
    """Return the name of a cluster's stand-in: clusters share their volumes."""
    return f"stand-in-{cluster.name}"


@contextmanager
def placed(cluster: Cluster) -> Iterator[None]:
    """Put the stand-in where the pods see it, for a while."""
    folder = cluster.volumes / paths.CORPUS / folder_of(cluster)
    package = folder / "arctic_workers"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for module in ("training.py", "inference.py", "evaluation.py"):
        (package / module).write_text(WORKER)
    yield
    shutil.rmtree(folder)


def preferring(node: Node) -> dict[str, Any]:
    """Return what a template says of pods that are rather on a node."""
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    return {"affinity": {"nodeAffinity": preferred}}


class StandIns(Objects):
    """A namespace with custom resources in whose pods the stand-in runs."""

    @property
    def mounted(self) -> str:
        """Where pods have the stand-in, which is their model too."""
        return f"{CORPUS}/{folder_of(self.cluster)}"

    def apply_example(
        self,
        kind: str,
        name: str,
        environment: dict[str, str] | None = None,
        template: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """Apply an example under a name; `template` is what else its template says."""
        manifest = example(kind, name)
        variables = {"PYTHONPATH": self.mounted} | (environment or {})
        manifest["spec"] |= spec | {
            "template": {
                "environment": [{"name": key, "value": value} for key, value in variables.items()],
                "volumes": [{"claimName": paths.CORPUS, "mountPath": CORPUS}],
            }
            | (template or {})
        }
        self.apply(manifest)

    def train(self, name: str, environment: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply a training."""
        restart = {"limit": 1, "backoff": {"initial": "1s", "max": "1s"}}
        self.apply_example("ArcticTraining", name, environment, **{"restart": restart} | spec)

    def serve(self, name: str, environment: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply a service."""
        model = {"uri": f"file://{self.mounted}"}
        rollout = {"drainTimeout": "2s"}
        self.apply_example("ArcticInference", name, environment, **{"model": model, "rollout": rollout} | spec)

    def evaluate(self, name: str, environment: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply an evaluation."""
        model = {"uri": f"file://{self.mounted}"}
        self.apply_example("ArcticEvaluation", name, environment, **{"model": model} | spec)

    def running(self, name: str, attempt: int, pods: int = 2, limit: float = PATIENCE) -> list[dict[str, Any]]:
        """The pods of an attempt of a training once all run and are ready."""

        def ready() -> list[dict[str, Any]] | None:
            world = [pod for pod in self.pods(name) if pod["metadata"]["labels"].get(Label.ATTEMPT) == str(attempt)]
            return world if len(world) == pods and all(map(is_ready, world)) else None

        return self.eventually(f"attempt {attempt} of {name} runs", ready, limit)
