"""`arctic status [KIND] [NAME]`: asks the cluster how objects fare, and shows it once or again and again."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from arctic_api import ablation, evaluation, inference, training
from arctic_cli.on_cluster import OnCluster
from arctic_cli.status.ablation import HEAD as ABLATIONS
from arctic_cli.status.ablation import line_of_ablation, view_of_ablation
from arctic_cli.status.evaluation import HEAD as EVALUATIONS
from arctic_cli.status.evaluation import line_of_evaluation, view_of_evaluation
from arctic_cli.status.service import HEAD as SERVICES
from arctic_cli.status.service import line_of_service, view_of_service
from arctic_cli.status.text import Manifest, table
from arctic_cli.status.training import HEAD as TRAININGS
from arctic_cli.status.training import line_of_training, view_of_training


@dataclass(frozen=True)
class _Kind:
    """How a kind is shown."""

    kind: str
    many: str
    """What people write for it; one of them is that without its last letter."""
    head: Sequence[str]
    line: Callable[[Manifest], tuple[str, ...]]
    view: Callable[[Manifest, Sequence[Manifest]], Iterator[str]]
    always: bool = False
    """Whether it is listed where there is none, too."""


def _view_of_training(manifest: Manifest, pods: Sequence[Manifest]) -> Iterator[str]:
    return view_of_training(manifest, pods, datetime.now(UTC))


_KINDS = (
    _Kind(training.KIND, "trainings", TRAININGS, line_of_training, _view_of_training, always=True),
    _Kind(inference.KIND, "services", SERVICES, line_of_service, view_of_service, always=True),
    _Kind(evaluation.KIND, "evaluations", EVALUATIONS, line_of_evaluation, view_of_evaluation),
    _Kind(ablation.KIND, "ablations", ABLATIONS, line_of_ablation, view_of_ablation),
)
_BY_WORD = {word: kind for kind in _KINDS for word in (kind.many, kind.many.removesuffix("s"))}
KINDS_OF = {word: kind.kind for word, kind in _BY_WORD.items()}
"""What people write for a kind."""
POLL_SECONDS = 1.0

_WORDS = f"[{'|'.join(kind.many for kind in _KINDS)}]"

kind_argument = click.argument("kind", type=click.Choice(list(KINDS_OF)), metavar=_WORDS)


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS_OF)), required=False, metavar=_WORDS)
@click.argument("name", required=False)
@click.option("-n", "--namespace", default=None, help="Its namespace [default: the context's].")
@click.option("-w", "--watch", is_flag=True, help="Show it anew whenever it has changed, until Ctrl-C.")
def status(kind: str | None, name: str | None, namespace: str | None, watch: bool) -> None:
    """Show how a training, a service, an evaluation or an ablation fares; all of them without NAME."""
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


def _page(cluster: OnCluster, word: str | None, name: str | None) -> Iterator[str]:
    if word is None:
        for number, kind in enumerate(_KINDS):
            found = cluster.all(kind.kind)
            if found or kind.always:
                yield from ["", *_list(cluster, kind, found)][number == 0 :]
    elif name is None:
        kind = _BY_WORD[word]
        yield from _list(cluster, kind, cluster.all(kind.kind))
    else:
        kind = _BY_WORD[word]
        yield from kind.view(cluster.get(kind.kind, name), cluster.pods(kind.kind, name))


def _list(cluster: OnCluster, kind: _Kind, found: Sequence[Manifest]) -> Iterator[str]:
    yield from list(table(kind.head, map(kind.line, found))) or [f"no {kind.many} in {cluster.namespace}"]
