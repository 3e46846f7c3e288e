import base64
import json
import tomllib
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from arctic_cluster import addresses, config
from arctic_cluster.state import Ports

AT = config.Layout(
    run=Path("/run/here"),
    binaries=Path("/cache/bin"),
    addresses=addresses.plan("demo", 1, 2),
    ports=Ports(api=6444, etcd=23800, etcd_peer=23801),
)
NODE = AT.addresses.nodes[1]


def flags(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in command if word.startswith("--") and "=" in word)


def test_the_api_server_listens_on_the_bridge_alone_and_etcd_on_loopback_alone() -> None:
    api, etcd = flags(config.apiserver(AT)), flags(config.etcd(AT))
    assert api["bind-address"] == api["advertise-address"] == str(AT.addresses.gateway)
    assert AT.server == f"https://{api['bind-address']}:{api['secure-port']}"
    assert api["etcd-servers"] == etcd["listen-client-urls"] == "https://127.0.0.1:23800"
    assert etcd["listen-peer-urls"] == "https://127.0.0.1:23801"


def test_all_clients_of_etcd_must_show_a_certificate() -> None:
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(config.etcd(AT))


def test_components_start_in_the_order_in_which_they_need_each_other() -> None:
    assert list(config.control_plane(AT))[:2] == ["etcd", "kube-apiserver"]
    assert list(config.node_components(AT, NODE)) == ["node2-containerd", "node2-kube-proxy", "node2-kubelet"]


def test_every_component_of_a_node_runs_in_its_network_namespace() -> None:
    for command in config.node_components(AT, NODE).values():
        assert command[:2] == ["nsenter", f"--net=/run/netns/{NODE.namespace}"]


@pytest.mark.parametrize("restrict", [True, False])
def test_containerd_is_told_whether_the_machine_lets_it_lower_oom_scores(restrict: bool) -> None:
    text = config.node_files(AT, NODE, "an/image:1", restrict_oom=restrict)["containerd.toml"]
    cri = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is restrict
    assert cri["sandbox_image"] == "an/image:1"


def test_the_nodes_of_a_cluster_share_no_folder_but_those_of_the_cluster() -> None:
    first, second = (
        config.node_files(AT, node, "an/image:1", restrict_oom=False)["containerd.toml"] for node in AT.addresses.nodes
    )
    own = [set(_strings(tomllib.loads(text))) for text in (first, second)]
    shared = {value for value in own[0] & own[1] if value.startswith("/")}
    assert shared == {str(config.CNI_BINARIES)}


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [found for each in value.values() for found in _strings(each)]
    return [value] if isinstance(value, str) else []


def test_kubelet_kube_proxy_and_cni_agree_on_the_nodes_name_and_ranges() -> None:
    files = config.node_files(AT, NODE, "an/image:1", restrict_oom=False)
    kubelet, proxy = json.loads(files["kubelet.json"]), json.loads(files["kube-proxy.json"])
    bridge = json.loads(files["cni/10-pods.conflist"])["plugins"][0]
    command = flags(config.node_components(AT, NODE)["node2-kubelet"])
    assert command["hostname-override"] == proxy["hostnameOverride"] == NODE.name
    assert command["node-ip"] == str(NODE.address)
    assert IPv4Network(bridge["ipam"]["ranges"][0][0]["subnet"]).subnet_of(IPv4Network(proxy["clusterCIDR"]))
    assert kubelet["cgroupRoot"] == f"/{AT.addresses.cgroup}/node2"
    assert "node2" in config.cgroup_children(AT.addresses)


def test_pods_addresses_are_never_rewritten() -> None:
    bridge = json.loads(config.cni(AT, NODE))["plugins"][0]
    assert bridge["ipMasq"] is False


def test_a_kubeconfig_carries_its_certificates() -> None:
    document = json.loads(config.kubeconfig("arctic-demo", AT.server, "admin", b"authority", b"certificate", b"key"))
    user = document["users"][0]["user"]
    assert base64.b64decode(user["client-certificate-data"]) == b"certificate"
    assert base64.b64decode(user["client-key-data"]) == b"key"
    assert document["clusters"][0]["cluster"]["server"] == AT.server
    assert document["current-context"] == document["contexts"][0]["name"] == "arctic-demo"
