"""What every component is told: command lines and configuration files. Pure: values in, text out."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_cluster.addresses import Addresses, Node
from arctic_cluster.cgroups import DAEMONS
from arctic_cluster.state import Ports

DOMAIN = "cluster.local"
CNI_BINARIES = Path("/usr/lib/cni")
_EVICTION_SIGNALS = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available")
_QPS = ["--kube-api-qps=200", "--kube-api-burst=400"]


@dataclass(frozen=True)
class Layout:
    """Where a cluster's files are: the run folder, the binaries, and its addresses and ports."""

    run: Path
    binaries: Path
    addresses: Addresses
    ports: Ports

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.run / "pki"

    @property
    def logs(self) -> Path:
        """One log a component."""
        return self.run / "logs"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.addresses.gateway}:{self.ports.api}"

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of a component."""
        return self.pki / f"{user}.kubeconfig"

    def node(self, node: Node) -> Path:
        """The folder of one node."""
        return self.run / f"node{node.number}"

    def socket(self, node: Node) -> Path:
        """The socket of a node's containerd."""
        return self.node(node) / "containerd.sock"


def _files(pki: Path, name: str, certificate: str, key: str) -> list[str]:
    return [f"--{certificate}={pki / name}.crt", f"--{key}={pki / name}.key"]


def kubeconfig(cluster: str, server: str, user: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig (JSON, which is YAML) that carries its certificates with it."""
    where = {"server": server, "certificate-authority-data": _base64(authority)}
    who = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": where}],
            "users": [{"name": user, "user": who}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
            "current-context": cluster,
        }
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def etcd(at: Layout) -> list[str]:
    """One member on loopback.

    It does not wait for the disk (`--unsafe-no-fsync`): the cluster's data ends with the cluster, which starts anew
    after a crash of the machine, and waiting for a slow disk would slow every write of the API server.
    """
    client, peer = f"https://127.0.0.1:{at.ports.etcd}", f"https://127.0.0.1:{at.ports.etcd_peer}"
    return [
        str(at.binaries / "etcd"),
        "--name=local",
        f"--data-dir={at.run / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        *_files(at.pki, "etcd", "cert-file", "key-file"),
        *_files(at.pki, "etcd", "peer-cert-file", "peer-key-file"),
        f"--trusted-ca-file={at.pki / 'ca.crt'}",
        f"--peer-trusted-ca-file={at.pki / 'ca.crt'}",
        "--client-cert-auth",
        "--peer-client-cert-auth",
        "--snapshot-count=5000",
        "--unsafe-no-fsync",
    ]


def apiserver(at: Layout) -> list[str]:
    """The API server, on the bridge's address alone: nodes and the host reach it, the outside does not."""
    accounts = at.pki / "service-accounts.key"
    return [
        str(at.binaries / "kube-apiserver"),
        f"--bind-address={at.addresses.gateway}",
        f"--advertise-address={at.addresses.gateway}",
        f"--secure-port={at.ports.api}",
        f"--cert-dir={at.pki}",
        *_files(at.pki, "apiserver", "tls-cert-file", "tls-private-key-file"),
        f"--client-ca-file={at.pki / 'ca.crt'}",
        f"--etcd-servers=https://127.0.0.1:{at.ports.etcd}",
        f"--etcd-cafile={at.pki / 'ca.crt'}",
        *_files(at.pki, "apiserver", "etcd-certfile", "etcd-keyfile"),
        f"--kubelet-certificate-authority={at.pki / 'ca.crt'}",
        *_files(at.pki, "apiserver", "kubelet-client-certificate", "kubelet-client-key"),
        # The host does not resolve the nodes' names.
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={at.addresses.services}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={accounts}",
        f"--service-account-signing-key-file={accounts}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def controller_manager(at: Layout) -> list[str]:
    """The controller manager, alone and so without a lease.

    A silent node is NotReady after 20 s in place of 50: losing a node is what people try here.
    """
    return [
        str(at.binaries / "kube-controller-manager"),
        f"--kubeconfig={at.kubeconfig('controller-manager')}",
        f"--root-ca-file={at.pki / 'ca.crt'}",
        f"--service-account-private-key-file={at.pki / 'service-accounts.key'}",
        "--use-service-account-credentials",
        f"--flex-volume-plugin-dir={at.run / 'volume-plugins'}",
        # A claim that is seen before its volume waits for the next look, 15 s later by default.
        "--pvclaimbinder-sync-period=1s",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=20s",
        "--leader-elect=false",
        "--secure-port=0",
        *_QPS,
    ]


def scheduler(at: Layout) -> list[str]:
    """The scheduler, alone and so without a lease."""
    return [
        str(at.binaries / "kube-scheduler"),
        f"--kubeconfig={at.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
        *_QPS,
    ]


def containerd(at: Layout, node: Node, image: str, *, restrict_oom: bool) -> str:
    """A node's containerd configuration (version 2, which 1.6 and later read).

    Without CAP_SYS_RESOURCE (`restrict_oom`) no process may lower its oom_score_adj, and no sandbox would start.
    """
    folder = at.node(node)
    return f"""version = 2
root = "{folder / "containerd"}"
state = "{folder / "state"}"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{at.socket(node)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = {str(restrict_oom).lower()}
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BINARIES}"
    conf_dir = "{folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{folder / "runc"}"
        SystemdCgroup = false
"""


def cni(at: Layout, node: Node) -> str:
    """A node's pod network: a bridge that routes, without masquerading, so that pods see each other's addresses."""
    return _json(
        {
            "cniVersion": "1.0.0",
            "name": node.namespace,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isDefaultGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(at.node(node) / "addresses"),
                        "ranges": [[{"subnet": str(node.pods)}]],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def kubelet(at: Layout, node: Node) -> str:
    """A node's kubelet configuration.

    A node is a share of a machine: the kubelet owns neither memory nor disk (no eviction for what others use, no image
    collection, no storage accounting), limits no system daemons, and must not ask for an oom_score_adj that the
    machine may refuse.
    """
    folder = at.node(node)
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{at.socket(node)}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(at.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(at.pki / f"{node.name}.crt"),
            "tlsPrivateKeyFile": str(at.pki / f"{node.name}.key"),
            "clusterDNS": [str(at.addresses.dns_service)],
            "clusterDomain": DOMAIN,
            "resolvConf": str(folder / "resolv.conf"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{at.addresses.cgroup}/node{node.number}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": dict.fromkeys(_EVICTION_SIGNALS, "0%"),
            "oomScoreAdj": 0,
            "maxPods": 110,
            "nodeLeaseDurationSeconds": 12,
            "shutdownGracePeriod": "0s",
            "podLogsDir": str(folder / "pods"),
            "volumePluginDir": str(at.run / "volume-plugins"),
        }
    )


def kube_proxy(at: Layout, node: Node) -> str:
    """A node's kube-proxy configuration: iptables, and no connection-tracking limit, which is the whole machine's."""
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(at.kubeconfig("kube-proxy"))},
            "hostnameOverride": node.name,
            "mode": "iptables",
            "clusterCIDR": str(at.addresses.pods),
            "oomScoreAdj": 0,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s",
                "udpStreamTimeout": "0s",
            },
        }
    )


def inside(node: Node) -> list[str]:
    """The words before a command that runs in the node's network namespace.

    `nsenter --net` and not `ip netns exec`, whose mount namespace would hide secrets' mounts from containers.
    """
    return ["nsenter", f"--net=/run/netns/{node.namespace}"]


def control_plane(at: Layout) -> dict[str, list[str]]:
    """The control plane's components in the order of their start, and their command lines."""
    return {
        "etcd": etcd(at),
        "kube-apiserver": apiserver(at),
        "kube-controller-manager": controller_manager(at),
        "kube-scheduler": scheduler(at),
    }


def node_components(at: Layout, node: Node) -> dict[str, list[str]]:
    """A node's components in the order of their start, and their command lines."""
    folder = at.node(node)
    commands = {
        "containerd": ["containerd", f"--config={folder / 'containerd.toml'}"],
        "kube-proxy": [str(at.binaries / "kube-proxy"), f"--config={folder / 'kube-proxy.json'}"],
        "kubelet": [
            str(at.binaries / "kubelet"),
            f"--config={folder / 'kubelet.json'}",
            f"--kubeconfig={at.kubeconfig(node.name)}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'kubelet' / 'pki'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            f"--node-labels=topology.kubernetes.io/zone={at.addresses.name}",
        ],
    }
    return {f"node{node.number}-{name}": [*inside(node), *command] for name, command in commands.items()}


def node_files(at: Layout, node: Node, image: str, *, restrict_oom: bool) -> dict[str, str]:
    """A node's configuration files by path below its folder."""
    return {
        "containerd.toml": containerd(at, node, image, restrict_oom=restrict_oom),
        "cni/10-pods.conflist": cni(at, node),
        "kubelet.json": kubelet(at, node),
        "kube-proxy.json": kube_proxy(at, node),
        # Pods with the node's DNS have none: there is nothing to ask outside.
        "resolv.conf": "",
    }


def cgroup_children(addresses: Addresses) -> list[str]:
    """The cgroups below the cluster's: one for daemons, one for each node's pods."""
    return [DAEMONS, *(f"node{node.number}" for node in addresses.nodes)]
