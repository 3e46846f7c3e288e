"""`arctic simulate`: what users of a service wait for, and what failures of nodes cost a training. Starts nothing."""

from arctic_cli.simulate.command import simulate

__all__ = ["simulate"]
