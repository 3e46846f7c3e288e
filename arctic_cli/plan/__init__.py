"""`arctic plan`: what a manifest takes of a device, and what to change where it doesn't fit. Starts nothing."""

from arctic_cli.plan.command import plan

__all__ = ["plan"]
