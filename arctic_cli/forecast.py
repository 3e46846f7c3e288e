"""What dry runs have in common: their options, and the words for the time and price of devices."""

from collections.abc import Callable
from typing import Any

import click

from arctic_api.training import ArcticTrainingSpec

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what it will take and read, and start nothing.")
_RATE = click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Rate of one training, at which --dry-run says time and cost besides.",
)


def dry_run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its dry run, and the rate at which that says time and cost."""
    return _DRY_RUN(_RATE(command))


def device_time(spec: ArcticTrainingSpec, hours: float) -> str:
    """Return the hours of devices, and their price if one is given, of so many hours of a training."""
    spent = hours * spec.parallelism.nodes * spec.parallelism.processes_per_node
    line, price = f"{spent:,.2f} hours of devices", spec.price_per_gpu_hour
    return line if price is None else f"{line}, ${spent * float(price):,.2f} at ${price} an hour"
