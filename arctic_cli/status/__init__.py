"""`arctic status`: how trainings and services fare, from what the operator has written of them."""

from arctic_cli.status.command import status

__all__ = ["status"]
