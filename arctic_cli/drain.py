"""`arctic drain`: has one group of a service finish its requests and be made anew, and waits until it is gone."""

import click

from arctic_api.inference import KIND
from arctic_api.world import DRAIN_REQUEST, Label, group_index
from arctic_cli.on_cluster import Manifest, OnCluster


@click.command()
@click.argument("service")
@click.option("--group", type=click.IntRange(min=0), default=None, help="Its number [default: the only one's].")
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds to wait for it.")
def drain(service: str, group: int | None, namespace: str | None, timeout: float) -> None:
    """Have a group of a service finish its requests and be made anew, and wait until it is gone.

    Another one takes its place first where rollout.maxSurge allows; it fares as the groups on a node that is drained.
    """
    cluster = OnCluster(namespace)
    number = _only_group(cluster, service) if group is None else group
    answer = cluster.request(KIND, service, DRAIN_REQUEST, "drainRequest", timeout, of=str(number), over=_is_over)
    if not answer.over:
        raise click.ClickException(
            f"{service}: group {number} is there still after {timeout:.0f} s (state {answer.state}, "
            f"{answer.said.get('message', 'not answered')}); "
            f"status.drainRequest with the token {answer.token} says when it is gone"
        )
    if answer.said["state"] == "Refused":
        raise click.ClickException(f"{service}: {answer.said['message']}")
    click.echo(f"{service}: {answer.said['message']}")


def _only_group(cluster: OnCluster, service: str) -> int:
    """Return the number of a service's only group."""
    cluster.get(KIND, service)  # says so if there is none
    names = {pod["metadata"]["labels"].get(Label.GROUP) for pod in cluster.pods(KIND, service)} - {None}
    numbers = sorted(map(group_index, names))
    if len(numbers) != 1:
        known = ", ".join(map(str, numbers)) or "none"
        raise click.ClickException(f"{service} has these groups: {known}: name one by --group")
    return numbers[0]


def _is_over(said: Manifest) -> bool:
    return said.get("state") not in (None, "Draining")
