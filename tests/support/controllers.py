"""Other projects' controllers, as processes beside the local cluster's control plane.

Installed as usual, they make their webhooks' certificates and keep them in a Secret that their pod mounts; here these
are the test's, and the webhooks are called at an address of this machine.
"""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Any

from objects import eventually, until_established

from arctic_cluster import Cluster, binaries
from arctic_cluster.certificates import Authority

HERE = "127.0.0.1"
STARTS_WITHIN = 120.0
IN_ITS_OWN_ETC = """
mount -t tmpfs none /etc
mkdir -p "$(dirname "$0")"
ln -s "$1" "$0"
shift
exec "$@"
"""
Manifest = dict[str, Any]


def _free_port() -> int:
    with closing(socket()) as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    cluster: Cluster,
    controller: binaries.Controller,
    folder: Path,
    settings: Manifest,
    definitions: Sequence[Path],
    webhooks: Sequence[Manifest],
    flags: Sequence[str] = (),
    fixed: str = "",
) -> Iterator[None]:
    """Install definitions and webhook configurations, and run a controller, for a while.

    `settings` are its configuration, less what is about this machine; `folder` keeps its files and its log. `fixed` is
    a folder in /etc where it looks for certificates whatever it is told: it gets an /etc of its own that has only that.
    """
    name = controller.program.name
    authority, port, health = Authority(folder / "certificates"), _free_port(), _free_port()
    authority.issue("tls", name, hosts=[HERE])
    here = {
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"host": HERE, "port": port, "certDir": str(authority.folder)},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f"{HERE}:{health}"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings | here))
    made = [_called_here(configuration, authority.certificate, port, name) for configuration in webhooks]
    files = [argument for definition in definitions for argument in ("-f", str(definition))]
    cluster.kubectl("apply", "--server-side", *files)
    until_established(cluster.kubectl, *files)
    alone = ("unshare", "--mount", "sh", "-ec", IN_ITS_OWN_ETC, fixed, str(authority.folder)) if fixed else ()
    told = (f"--config={folder / 'config.yaml'}", f"--kubeconfig={cluster.kubeconfig}", *flags)
    with (
        (folder / f"{name}.log").open("w") as log,
        subprocess.Popen([*alone, str(controller.program), *told], stdout=log, stderr=log) as process,
    ):
        try:
            ready = f"http://{HERE}:{health}/readyz"
            eventually(f"{name} answers", lambda: _answers(process, ready), STARTS_WITHIN)
            cluster.apply(made)
            yield
        finally:
            for configuration in made:
                where = (configuration["kind"], configuration["metadata"]["name"])
                cluster.kubectl("delete", *where, "--ignore-not-found")
            cluster.kubectl("delete", *files)
            process.terminate()


def _called_here(configuration: Manifest, authority: Path, port: int, name: str) -> Manifest:
    """Return a webhook configuration that is called at a port of this machine."""
    bundle = base64.b64encode(authority.read_bytes()).decode()
    what = configuration["kind"].removesuffix("WebhookConfiguration").lower()
    called = [
        webhook | {"clientConfig": {"url": f"https://{HERE}:{port}{_path(webhook)}", "caBundle": bundle}}
        for webhook in configuration["webhooks"]
    ]
    return configuration | {"metadata": {"name": f"{name}-{what}"}, "webhooks": called}


def _path(webhook: Manifest) -> str:
    return str(webhook["clientConfig"]["service"]["path"])


def _answers(process: "subprocess.Popen[bytes]", address: str) -> bool:
    assert process.poll() is None, "the controller has ended: see its log"
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
