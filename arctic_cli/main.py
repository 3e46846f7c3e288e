"""The `arctic` command."""

import click

from arctic_cli.corpus import corpus
from arctic_cli.demo import demo
from arctic_cli.local import serve, train
from arctic_cli.validate import validate
from arctic_cluster.commands import cluster


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train and serve Arctic-class models, on a laptop or on Kubernetes."""


for _command in (train, serve, validate, corpus, cluster, demo):
    main.add_command(_command)
