"""A webhook that puts a second container into every pod of ours, as meshes and log shippers do."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from arctic_api.world import Label
from arctic_cluster import Cluster
from arctic_cluster.certificates import Authority

HOST = "127.0.0.1"  # the API server is on this machine
PROXY = "proxy"


class _Webhook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        patch = [{"op": "add", "path": "/spec/containers/-", "value": _proxy(request["object"])}]
        answer = {
            "uid": request["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(patch).encode()).decode(),
        }
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _proxy(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a container that neither ends by itself nor when it is told to."""
    (worker,) = pod["spec"]["containers"]
    return {
        "name": PROXY,
        "image": worker["image"],
        "imagePullPolicy": worker["imagePullPolicy"],
        "command": ["sleep", "infinity"],
        "securityContext": worker["securityContext"],
        "resources": {},
    }


@contextmanager
def second_containers(cluster: Cluster, namespace: str, folder: Path) -> Iterator[None]:
    """Put a second container into the worker pods that are made in a namespace meanwhile."""
    authority = Authority(folder / "webhook")
    authority.issue("server", "webhook", hosts=(HOST,))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "server.crt", authority.folder / "server.key")
    server = ThreadingHTTPServer((HOST, 0), _Webhook)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()
    webhook = {
        "name": "second.containers.test",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": f"https://{HOST}:{server.server_port}/", "caBundle": bundle},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": {"matchExpressions": [{"key": Label.ROLE, "operator": "In", "values": ["worker", "leader"]}]},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    kind = "MutatingWebhookConfiguration"
    cluster.apply(
        [
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": namespace},
                "webhooks": [webhook],
            }
        ]
    )
    try:
        yield
    finally:
        cluster.kubectl("delete", kind, namespace)
        server.shutdown()
        server.server_close()
