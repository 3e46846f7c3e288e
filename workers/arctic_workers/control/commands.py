"""What the operator may ask of a worker, and the two ways to say no. No network, no work."""

# ruff: noqa: ARG002 - the base says no whatever it is asked

from arctic_api.world import CheckpointReport


class Refused(Exception):  # noqa: N818 - a refusal is no error
    """A command that was not done; its text is a sentence for people."""


class NotNow(Refused):
    """The worker knows the command but can't do it in its present state (FAILED_PRECONDITION)."""


class Unsupported(Refused):
    """The worker does not know the command (UNIMPLEMENTED)."""


class Commands:
    """Base of what answers commands; a worker overrides those that it can do.

    Each is called in a thread of its own, may block, and is given the seconds that the caller still waits. It raises
    `NotNow`, `Unsupported` or `TimeoutError`.
    """

    def checkpoint(self, timeout: float) -> CheckpointReport:
        """Write a checkpoint at the end of this step; return when it is committed."""
        raise Unsupported("This worker writes no checkpoints.")

    def pause(self, timeout: float) -> None:
        """Hold before the next step."""
        raise Unsupported("This worker can't be paused.")

    def resume(self, timeout: float) -> None:
        """Go on."""
        raise Unsupported("This worker can't be paused, so there is nothing to resume.")

    def stop_after(self, stage: str, timeout: float) -> None:
        """End with this stage; with the last one if it is empty."""
        raise Unsupported("This worker has no stages.")

    def drain(self, timeout: float) -> None:
        """Take no new requests; return at once."""
        raise Unsupported("This worker serves no requests that could be drained.")

    def stop(self, timeout: float) -> None:
        """End in order, as SIGTERM would; return at once."""
        raise Unsupported("This worker can't be stopped by a call; send it SIGTERM.")

    def profile(self, steps: int, timeout: float) -> str:
        """Record a trace of so many steps; return where it is."""
        raise Unsupported("This worker records no traces.")
