"""`arctic logs`: what an object's pods write, each line with its pod's name."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence

import click

from arctic_api.world import Label
from arctic_cli.on_cluster import POLL_SECONDS, Manifest, NotBegunError, OnCluster
from arctic_cli.status.command import KINDS_OF, kind_argument

GATEWAY = "gateway"
_OURS = frozenset({"worker", "nim", "haproxy"})
_END = ("", "")


@click.command()
@kind_argument
@click.argument("name")
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until the pods end.")
@click.option("--tail", type=click.IntRange(min=0), help="Lines of each pod to begin with [default: all].")
@click.option("--gateway", is_flag=True, help="Those of a service's gateway, and not of its replicas.")
def logs(kind: str, name: str, namespace: str | None, follow: bool, tail: int | None, gateway: bool) -> None:
    """Print the logs of the pods of a training, a service, an evaluation or an ablation."""
    cluster = OnCluster(namespace)
    pods = [pod for pod in cluster.pods(KINDS_OF[kind], name) if _is_gateway(pod) == gateway]
    if not pods:
        raise click.ClickException(f"{name} has no pods in {cluster.namespace}: see `arctic status {kind} {name}`")
    if not follow:
        for pod in pods:
            for line in cluster.log(_name(pod), container_of(pod), follow=False, tail=tail):
                click.echo(f"{_name(pod)}: {line}")
        return
    for pod_name, line in _together(cluster, pods, tail):
        click.echo(f"{pod_name}: {line}")


def container_of(pod: Manifest) -> str:
    """Return the container that does the work: webhooks may have put others beside it."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    return next((name for name in names if name in _OURS), str(names[0]))


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _is_gateway(pod: Manifest) -> bool:
    return bool(pod["metadata"].get("labels", {}).get(Label.ROLE) == GATEWAY)


def _together(cluster: OnCluster, pods: Sequence[Manifest], tail: int | None) -> Iterator[tuple[str, str]]:
    """Yield lines as they come, with their pods' names, until all pods have ended; what broke off is raised then."""
    lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    broken: list[str] = []

    def read(pod: Manifest) -> None:
        try:
            for line in _from_its_start(cluster, pod, tail):
                lines.put((_name(pod), line))
        except click.ClickException as error:
            broken.append(f"{_name(pod)}: {error.message}")
        finally:
            lines.put(_END)

    for pod in pods:
        threading.Thread(target=read, args=(pod,), daemon=True).start()
    left = len(pods)
    while left:
        line = lines.get()
        if line is _END:
            left -= 1
        else:
            yield line
    if broken:
        raise click.ClickException("; ".join(broken))


def _from_its_start(cluster: OnCluster, pod: Manifest, tail: int | None) -> Iterator[str]:
    """Yield the lines of a pod that may have to start yet; what it waits for is said once."""
    told = ""
    while True:
        try:
            yield from cluster.log(_name(pod), container_of(pod), follow=True, tail=tail)
        except NotBegunError as error:
            if error.message != told:
                told = error.message
                click.echo(f"{_name(pod)}: {told}", err=True)
            time.sleep(POLL_SECONDS)
        else:
            return
