"""The local cluster itself: what it promises to everything else that is tested on it."""

import json
import socket
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from objects import PATIENCE, until_all_ready

from arctic_cluster import Cluster, ClusterError, image, manifests

Kubectl = Callable[..., str]

RESTRICTED: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# Both pods listen, reach each other by name, and each leaves what it saw in the store.
MEET = """
import os, pathlib, socket, sys, time
me = int(os.environ["JOB_COMPLETION_INDEX"])
server = socket.create_server(("", 29500))
def reach(host):
    for _ in range(900):
        try:
            return socket.create_connection((host, 29500), timeout=2)
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{host} was not reached")
reach(f"meet-{1 - me}.meet").sendall(str(me).encode())
connection, _ = server.accept()
pathlib.Path(f"/store/{os.environ['NAMESPACE']}-{me}").write_text(connection.recv(1).decode())
"""


def pod_spec(command: list[str], **further: Any) -> dict[str, Any]:
    """A restricted pod with the base image that mounts all claims."""
    mounts = {
        "arctic-environment": "/opt/arctic",
        "arctic-corpus": "/corpus",
        "arctic-models": "/models",
        "arctic-store": "/store",
    }
    read_only = {name: name != "arctic-store" for name in mounts}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "main",
                "image": image.STABLE,
                "command": command,
                "securityContext": RESTRICTED,
                "env": [{"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
                "volumeMounts": [
                    {"name": name, "mountPath": path, "readOnly": read_only[name]} for name, path in mounts.items()
                ],
            }
        ],
        "volumes": [
            {"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": read_only[name]}} for name in mounts
        ],
    } | further


def run_pod(cluster: Cluster, namespace: str, command: list[str]) -> str:
    """Run a pod to its end and return what it printed."""
    metadata = {"name": "once", "namespace": namespace}
    cluster.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(command)}])
    phase = "jsonpath={.status.phase}=Succeeded"
    cluster.kubectl("wait", "-n", namespace, "pod/once", f"--for={phase}", "--timeout=240s")
    return cluster.kubectl("logs", "-n", namespace, "once")


def test_all_nodes_are_ready_and_carry_their_names(cluster: Cluster, kubectl: Kubectl) -> None:
    until_all_ready(cluster)  # an earlier test may have stopped the API server
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    assert [node["metadata"]["labels"]["kubernetes.io/hostname"] for node in nodes] == [n.name for n in cluster.nodes]


def test_two_pods_of_a_job_on_two_nodes_reach_each_other_by_name(cluster: Cluster, namespace: str) -> None:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"job-name": "meet"}},
    }
    pod = pod_spec(["/opt/arctic/bin/python3", "-c", MEET], subdomain="meet", topologySpreadConstraints=[spread])
    metadata = {"name": "meet", "namespace": namespace}
    service = {"clusterIP": "None", "selector": {"job-name": "meet"}, "publishNotReadyAddresses": True}
    job = {
        "completions": 2,
        "parallelism": 2,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    cluster.apply(
        [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job},
        ]
    )
    cluster.kubectl("wait", "-n", namespace, "job/meet", "--for=condition=Complete", "--timeout=300s")
    pods = json.loads(cluster.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {node.name for node in cluster.nodes}
    for me in (0, 1):
        left = cluster.volumes / "arctic-store" / f"{namespace}-{me}"
        assert left.read_text() == str(1 - me)
        assert (left.stat().st_uid, left.stat().st_gid) == (image.USER, image.USER)
        left.unlink()


def test_pods_import_the_project_from_the_mounted_environment(cluster: Cluster, namespace: str) -> None:
    said = run_pod(
        cluster, namespace, ["/opt/arctic/bin/python3", "-c", "import arctic_api; print(arctic_api.__file__)"]
    )
    assert said.startswith("/opt/arctic/lib/python3.")


def test_pods_write_to_the_store_alone(cluster: Cluster, namespace: str) -> None:
    script = (
        "for d in /corpus /opt/arctic /store; do touch $d/$NAMESPACE 2>/dev/null && echo $d; done; rm /store/$NAMESPACE"
    )
    assert run_pod(cluster, namespace, ["sh", "-c", script]) == "/store\n"


def test_a_name_outside_the_machine_is_refused_at_once(cluster: Cluster, namespace: str) -> None:
    does_not_exist = "import socket\ntry: socket.gethostbyname('example.com')\nexcept OSError as e: print(e.errno)"
    assert run_pod(cluster, namespace, ["python3", "-c", does_not_exist]) == f"{socket.EAI_NONAME}\n"


def test_nodes_have_no_route_out_of_the_machine(cluster: Cluster) -> None:
    for node in cluster.nodes:
        inside = ["nsenter", f"--net=/run/netns/{node.namespace}", "ip", "route", "get", "198.51.100.7"]
        asked = subprocess.run(inside, capture_output=True, text=True, check=False)
        assert "Network is unreachable" in asked.stderr


def test_nodes_reach_this_machine_past_a_firewall_that_drops_what_it_does_not_know(
    cluster: Cluster, kubectl: Kubectl
) -> None:
    node = cluster.nodes[0]
    server = urllib.parse.urlsplit(kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"))
    reach = f"import socket; socket.create_connection(('{server.hostname}', {server.port}), timeout=5)"
    rule = ["INPUT", "-s", node.address, "-j", "DROP"]
    subprocess.run(["iptables", "--wait", "-A", *map(str, rule)], check=True)
    try:
        subprocess.run(["nsenter", f"--net=/run/netns/{node.namespace}", sys.executable, "-c", reach], check=True)
    finally:
        subprocess.run(["iptables", "--wait", "-D", *map(str, rule)], check=True)


def test_a_service_answers_on_every_nodes_port(cluster: Cluster, namespace: str) -> None:
    labels = {"app": "web"}
    serve = pod_spec(["python3", "-m", "http.server", "8000", "--directory", "/corpus"])
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    serve["containers"][0]["readinessProbe"] = probe
    service = {"type": "NodePort", "selector": labels, "ports": [{"port": 80, "targetPort": 8000}]}
    metadata = {"name": "web", "namespace": namespace, "labels": labels}
    cluster.apply(
        [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": serve},
        ]
    )
    cluster.kubectl("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=240s")
    port = cluster.kubectl("get", "service", "-n", namespace, "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
    for node in cluster.nodes:
        assert get(f"http://{node.address}:{port}/") == HTTPStatus.OK


def get(url: str) -> int:
    """The status of a GET, tried again while kube-proxy has not yet heard of the service."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with direct.open(url, timeout=5) as answer:
                return int(answer.status)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_restricted_namespace_refuses_host_paths(cluster: Cluster, namespace: str) -> None:
    spec = pod_spec(["true"])
    spec["volumes"] = [{"name": name["name"], "hostPath": {"path": "/"}} for name in spec["volumes"]]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad", "namespace": namespace}, "spec": spec}
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        cluster.apply([pod])


def test_a_namespaces_volumes_go_with_it(cluster: Cluster, kubectl: Kubectl) -> None:
    cluster.apply([manifests.restricted_namespace("passing")])
    cluster.create_claims("passing")
    kubectl("wait", "-n", "passing", "pvc", "--all", "--for=jsonpath={.status.phase}=Bound", "--timeout=240s")
    cluster.delete_namespace("passing")
    assert "passing" not in kubectl("get", "persistentvolumes", "-o", "name")


def test_a_node_that_is_cut_off_becomes_unready_and_comes_back(cluster: Cluster, kubectl: Kubectl) -> None:
    node = cluster.nodes[-1].name
    cluster.cut(node)
    try:
        kubectl("wait", f"node/{node}", "--for=condition=Ready=Unknown", "--timeout=240s")
    finally:
        cluster.mend(node)
    until_all_ready(cluster)


def test_a_shaped_node_sends_no_faster_than_its_rate(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    cluster.shape(node.name, "200mbit", "50ms")
    inside = ["nsenter", f"--net=/run/netns/{node.namespace}", "tc", "qdisc", "show", "dev", "eth0"]
    shaped = said_by(inside)
    cluster.unshape(node.name)
    free = said_by(inside)
    assert "tbf" in shaped
    assert "rate 200Mbit" in shaped
    assert "tbf" not in free


def test_a_stopped_component_is_told_and_starts_again(cluster: Cluster, kubectl: Kubectl) -> None:
    cluster.stop("kube-scheduler")
    assert "kube-scheduler does not run" in cluster.status()
    cluster.start("kube-scheduler")
    assert "running" in cluster.status()
    with pytest.raises(ClusterError, match="no component 'kube-skeduler': name one of etcd, kube-apiserver"):
        cluster.stop("kube-skeduler")


def test_a_loaded_image_is_on_every_node(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "layer.tar", "w") as layer:
        layer.add(__file__, "file")
    name = "docker.io/arctic/loaded:1"
    image.write_archive(tmp_path / "layer.tar", tmp_path / "image.tar", [name])
    cluster.load(tmp_path / "image.tar")
    for node in cluster.nodes:
        socket_path = cluster.kubeconfig.parent / f"node{node.number}" / "containerd.sock"
        assert name in said_by(
            ["ctr", "--address", str(socket_path), "--namespace=k8s.io", "images", "list", "--quiet"]
        )
    with pytest.raises(ClusterError, match="no image archive"):
        cluster.load(tmp_path / "no.tar")


def test_kubectl_and_helm_reach_the_cluster_past_a_proxy_of_the_machine(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert cluster.kubectl("get", "--raw=/readyz") == "ok"
    assert cluster.helm("list", "--short", "--namespace", "no-releases-here") == ""


def test_a_second_up_changes_nothing_but_the_environment(cluster: Cluster) -> None:
    before = json.loads((cluster.kubeconfig.parent / "state.json").read_text())
    assert not cluster.up()
    assert json.loads((cluster.kubeconfig.parent / "state.json").read_text()) == before


def test_an_up_with_other_nodes_is_refused_while_the_cluster_runs(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="runs with 2 nodes"):
        cluster.up(nodes=3)


def test_a_second_cluster_runs_beside_the_first_and_down_leaves_nothing_even_of_a_broken_one(
    cluster: Cluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    second = Cluster("second")
    try:
        second.up(nodes=1, volumes=tmp_path)
        (node,) = second.nodes
        assert second.kubectl("get", "nodes", "-o", "name") == f"node/{node.name}\n"
        assert node.address not in {other.address for other in cluster.nodes}
        assert len(traces(second.name)) > 1
        assert node.veth in links_and_routes()
        assert str(node.pods) in links_and_routes()
        second.stop("node1-containerd")
        assert "broken" in second.status()
    finally:
        assert second.down()
    assert traces(second.name) == []
    assert node.veth not in links_and_routes()
    assert str(node.pods) not in links_and_routes()
    assert not second.down()
    kubectl("get", "--raw=/readyz")


def links_and_routes() -> str:
    """All of the host's links and routes."""
    return said_by(["ip", "-oneline", "link"]) + said_by(["ip", "route", "show", "table", "all"])


def traces(name: str) -> list[str]:
    """Whatever names the cluster among processes, namespaces, rules, mounts, cgroups and files."""
    state = f"/var/lib/arctic/clusters/{name}"
    commands = [
        ["ip", "netns", "list"],
        ["iptables-save"],
        ["findmnt", "--list", "--noheadings", "--output", "TARGET"],
        ["find", "/sys/fs/cgroup", "-name", f"arctic-{name}"],
        ["find", "/var/lib/cni", "-name", f"arctic-{name}-*"],
        ["find", "/var/log/containers", "-lname", f"{state}/*"],
        ["find", state, "-maxdepth", "0"],
        ["ps", "-eo", "args"],
    ]
    said = "".join(map(said_by, commands))
    return [line for line in said.splitlines() if f"arctic-{name}" in line or state in line]


def said_by(command: list[str]) -> str:
    """What a command prints, whatever becomes of it: find fails on folders that are not there."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
