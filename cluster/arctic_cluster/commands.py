"""`arctic cluster`: the commands by which people work with the local cluster. No logic: arguments in, sentences out."""

from pathlib import Path

import click

from arctic_cluster import environment, prepare, state
from arctic_cluster.cluster import DEFAULT_NAME, DEFAULT_NODES, Cluster
from arctic_cluster.errors import ClusterError
from arctic_cluster.paths import default_volumes

_LAST_LINES = 100

_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which of this machine's clusters.")
_node = click.option("--node", required=True, help="A node's name or number.")


@click.group()
def cluster() -> None:
    """Real Kubernetes on this machine: its nodes are network namespaces."""


@cluster.command()
@_name
@click.option("--nodes", type=int, help=f"How many nodes [as it was, else {DEFAULT_NODES}].")
@click.option(
    "--volumes",
    type=click.Path(path_type=Path),
    help=f"Folder of corpus, models and store [as they were, else {default_volumes()}].",
)
def up(name: str, nodes: int | None, volumes: Path | None) -> None:
    """Start a cluster, building whatever is not built."""
    it = Cluster(name)
    started = it.up(nodes, volumes)
    click.echo(f"cluster {name} {'is up' if started else 'is already running'}; use it with")
    click.echo(f"  export KUBECONFIG={it.kubeconfig} PATH={it.binaries}:$PATH")


@cluster.command()
@_name
@click.option("--all", "every", is_flag=True, help="All of this machine's clusters.")
def down(name: str, every: bool) -> None:
    """End a cluster and remove everything of it but its volumes."""
    failures = []
    for each in (every and state.names()) or [name]:
        try:
            ended = Cluster(each).down()
        except ClusterError as error:
            failures.append(f"cluster {each}: {error}")
        else:
            click.echo(f"cluster {each} is gone" if ended else f"there is no cluster {each}")
    if failures:
        raise ClusterError("\n".join(failures))


@cluster.command()
@_name
def status(name: str) -> None:
    """Say what runs, where it is, and at which addresses."""
    click.echo(Cluster(name).status())
    if others := [other for other in state.names() if other != name]:
        click.echo(f"other clusters of this machine: {', '.join(others)}")


@cluster.command()
@_name
def kubeconfig(name: str) -> None:
    """Print the path of the administrator's kubeconfig."""
    path = Cluster(name).kubeconfig
    if not path.exists():
        raise ClusterError(f"there is no cluster {name}: start it with `arctic cluster up --name {name}`")
    click.echo(path)


@cluster.command()
@click.argument("component", required=False)
@_name
def logs(component: str | None, name: str) -> None:
    """Print the end of a component's log, or, without one, the components that have a log."""
    found = {path.stem: path for path in sorted(Cluster(name).logs.glob("*.log"))}
    if component is None:
        click.echo("\n".join(found) or f"there is no cluster {name}")
    elif component in found:
        click.echo("\n".join(found[component].read_text(errors="replace").splitlines()[-_LAST_LINES:]))
    else:
        raise ClusterError(f"there is no log of {component!r}: name one of {', '.join(found)}")


@cluster.command()
def build() -> None:
    """Build the programs and the image, without starting anything."""
    prepare.build()


@cluster.command(name="environment")
@click.argument("engine", type=click.Choice(environment.ENGINES))
def environment_of(engine: str) -> None:
    """Make the Python environment of an ENGINE that has one of its own, and print its folder.

    `arctic cluster up` gives it to the cluster.
    """
    click.echo(prepare.prepare_engine(engine))


@cluster.command()
@click.argument("archive", type=click.Path(path_type=Path))
@_name
def load(archive: Path, name: str) -> None:
    """Import an image ARCHIVE, as `docker save` writes it, on every node."""
    Cluster(name).load(archive)


@cluster.command()
@click.option("--namespace", required=True, help="A namespace that exists.")
@_name
def claims(namespace: str, name: str) -> None:
    """Give a namespace the claims that workers mount: environment, corpus, models and store."""
    Cluster(name).create_claims(namespace)


@cluster.command()
@_node
@click.option("--rate", required=True, help="What the node may send, in tc's units, such as 200mbit.")
@click.option("--latency", default="50ms", show_default=True, help="How long a packet may wait for its turn.")
@_name
def shape(node: str, rate: str, latency: str, name: str) -> None:
    """Make a node's network slow."""
    Cluster(name).shape(node, rate, latency)


@cluster.command()
@_node
@_name
def unshape(node: str, name: str) -> None:
    """Make a node's network fast again."""
    Cluster(name).unshape(node)


@cluster.command()
@_node
@_name
def cut(node: str, name: str) -> None:
    """Take a node off the network, as if its cable were pulled: all that runs on it runs on."""
    Cluster(name).cut(node)


@cluster.command()
@_node
@_name
def mend(node: str, name: str) -> None:
    """Put a node that was cut off back on the network."""
    Cluster(name).mend(node)
