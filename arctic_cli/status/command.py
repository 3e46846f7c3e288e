"""`arctic status [trainings|services|evaluations] [NAME]`: asks the cluster, and shows it once or again and again."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from arctic_api import evaluation, inference, training
from arctic_cli.on_cluster import OnCluster
from arctic_cli.status import evaluation as evaluations
from arctic_cli.status import service as services
from arctic_cli.status import training as trainings
from arctic_cli.status.text import table

KINDS_OF = {
    "trainings": training.KIND,
    "training": training.KIND,
    "services": inference.KIND,
    "service": inference.KIND,
    "evaluations": evaluation.KIND,
    "evaluation": evaluation.KIND,
}
"""What people write for a kind."""
POLL_SECONDS = 1.0

_KINDS = "[trainings|services|evaluations]"

kind_argument = click.argument("kind", type=click.Choice(list(KINDS_OF)), metavar=_KINDS)


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS_OF)), required=False, metavar=_KINDS)
@click.argument("name", required=False)
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("-w", "--watch", is_flag=True, help="Show it anew whenever it has changed, until Ctrl-C.")
def status(kind: str | None, name: str | None, namespace: str | None, watch: bool) -> None:
    """Show how a training, a service or an evaluation fares; all of them without NAME."""
    cluster, shown = OnCluster(namespace), ""
    while True:
        text = "\n".join(_page(cluster, kind, name))
        if text != shown:
            if shown and sys.stdout.isatty():
                click.clear()
            click.echo(text)
        if not watch:
            return
        shown = text
        time.sleep(POLL_SECONDS)


def _page(cluster: OnCluster, kind: str | None, name: str | None) -> Iterator[str]:
    if kind is None:
        yield from _list(cluster, training.KIND)
        yield ""
        yield from _list(cluster, inference.KIND)
        if cluster.all(evaluation.KIND):
            yield ""
            yield from _list(cluster, evaluation.KIND)
    elif name is None:
        yield from _list(cluster, KINDS_OF[kind])
    else:
        of = KINDS_OF[kind]
        manifest, pods = cluster.get(of, name), cluster.pods(of, name)
        if of == training.KIND:
            yield from trainings.view_of_training(manifest, pods, datetime.now(UTC))
        elif of == evaluation.KIND:
            yield from evaluations.view_of_evaluation(manifest, pods)
        else:
            yield from services.view_of_service(manifest, pods)


def _list(cluster: OnCluster, kind: str) -> Iterator[str]:
    found = cluster.all(kind)
    if kind == training.KIND:
        lines = list(table(trainings.HEAD, map(trainings.line_of_training, found)))
    elif kind == evaluation.KIND:
        lines = list(table(evaluations.HEAD, map(evaluations.line_of_evaluation, found)))
    else:
        lines = list(table(services.HEAD, map(services.line_of_service, found)))
    word = next(word for word, of in KINDS_OF.items() if of == kind)
    yield from lines or [f"no {word} in {cluster.namespace}"]
