"""The `arctic` command."""

import io
import sys
from typing import Any

import click

from arctic_cli.ablate import ablate
from arctic_cli.chat import chat
from arctic_cli.convert import export, import_, quantize
from arctic_cli.corpus import corpus
from arctic_cli.demo import demo
from arctic_cli.drain import drain
from arctic_cli.evaluate import evaluate
from arctic_cli.extend import extend
from arctic_cli.live import checkpoint, pause, resume, stop
from arctic_cli.local import serve, train
from arctic_cli.logs import logs
from arctic_cli.plan import plan
from arctic_cli.plot import plot
from arctic_cli.report import report
from arctic_cli.reproduce import reproduce
from arctic_cli.simulate import simulate
from arctic_cli.status import status
from arctic_cli.validate import validate
from arctic_cluster.commands import cluster
from arctic_cluster.errors import ClusterError


class _Commands(click.Group):
    """Commands whose errors of files and of the local cluster are sentences for people."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # what models, logs and files say may be no text of the terminal's
        try:
            return super().invoke(ctx)
        except ClusterError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:  # click ends without a word where nobody reads any more
            raise
        except OSError as error:
            words = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
            raise click.ClickException(words) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train and serve Arctic-class models, on a laptop or on Kubernetes."""


_LIVE = (status, logs, chat, pause, resume, checkpoint, stop, drain, extend)
_RUNS = (report, reproduce, evaluate, ablate)
_PLANS = (validate, plan, simulate, plot)
for _command in (train, serve, *_PLANS, *_LIVE, *_RUNS, import_, export, quantize, corpus, cluster, demo):
    main.add_command(_command)
