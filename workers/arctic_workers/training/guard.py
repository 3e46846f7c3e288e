"""What is done about a loss that jumps (`restart.lossSpike`). Pure: the same on all ranks, and after a restart."""

from typing import Any, Literal

from arctic_workers.training.spikes import Spikes

MOST_ROLLBACKS = 5
"""Times that a run goes back to the same checkpoint: what jumps again on other data is no accident of a batch."""


class SpikeGuard:
    """Judges the loss of each step before its update is made.

    Args:
        policy: `skip` leaves the update out; `rollback` goes back to the last checkpoint and past the data up to here;
            `stop` ends the run. None lets everything pass.
    """

    def __init__(self, policy: Literal["skip", "rollback", "stop"] | None) -> None:
        self.policy = policy
        self.alarm: float | None = None
        """A loss about which more is to be done than to leave its update out."""
        self.skipped_data: dict[str, int] = {}
        """How many steps' data of each stage are passed over, by its name."""
        self._spikes = Spikes()
        self._went_back: tuple[int, int] = (-1, 0)

    def begin_stage(self) -> None:
        """Forget the losses: a stage has other text."""
        self._spikes.clear()

    @property
    def limit(self) -> float:
        """The loss from which on one is a spike."""
        return self._spikes.limit()

    def allows(self, loss: float, *, can_go_back: bool) -> bool:
        """Return whether the update of a step with this loss is made; `alarm` is set if that is not all.

        `can_go_back` says whether there is a checkpoint to go back to: else a spike's update is left out.
        """
        if self.policy is None:
            return True
        if not self._spikes.is_spike(loss):
            self._spikes.note(loss)
            return True
        if self.policy == "stop" or (self.policy == "rollback" and can_go_back):
            self.alarm = loss
        return False

    def went_back(self, stage: str, skipped: int, step: int) -> bool:
        """Pass over `skipped` steps' data of a stage from now on, after the run went back to a step.

        Returns whether it may: it has not gone back there too often.
        """
        self.alarm = None
        self.skipped_data[stage] = skipped
        before, times = self._went_back
        self._went_back = (step, times + 1 if before == step else 1)
        return self._went_back[1] <= MOST_ROLLBACKS

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"losses": self._spikes.losses, "skipped_data": self.skipped_data}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `to_json` gave; from nothing, if the checkpoint is older than that."""
        self._spikes = Spikes(kept.get("losses", ()))
        self.skipped_data = dict(kept.get("skipped_data", {}))
