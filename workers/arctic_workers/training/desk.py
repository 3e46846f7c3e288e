"""What the supervisor asks of this rank, kept until it is done. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from arctic_api.world import CheckpointReport
from arctic_workers.control.link import Command, LinkClient


@dataclass
class Desk:
    """Requests that came over the link: only the first rank of each pod has one.

    Args:
        link: to the supervisor.
        leader: whether this is rank 0, which alone knows of commits.
        stages: names of the run's stages.
        stop: whether the world is to end in order.
        pause: whether it is to hold.
        stop_after: the stage that the run ends with; empty: the last one. Only the leader's counts.
    """

    link: LinkClient | None
    leader: bool = True
    stages: Sequence[str] = ()
    stop: bool = False
    pause: bool = False
    stop_after: str = ""
    _checkpoints: list[Command] = field(default_factory=list)
    _promised: list[tuple[int, Command]] = field(default_factory=list)

    def begin(self) -> None:
        """Let the supervisor know that this rank looks from now on."""
        if self.link:
            self.link.begin()

    def look(self) -> None:
        """Take in what has come since the last look."""
        for command in self.link.poll() if self.link else []:
            match command.name:
                case "stop":
                    self.stop = True
                    command.answer()
                case "pause" | "resume":
                    self.pause = command.name == "pause"
                    command.answer()
                case "checkpoint" if self.leader:
                    self._checkpoints.append(command)
                case "stop_after" if self.leader:
                    self._set_last_stage(command)
                case _:
                    command.refuse(f"This rank of a training can't {command.name}.")

    def _set_last_stage(self, command: Command) -> None:
        stage = command.arguments["stage"]
        if stage and stage not in self.stages:
            command.refuse(f"This training has no stage {stage!r}: it has {', '.join(self.stages)}.")
            return
        self.stop_after = stage
        command.answer()

    @property
    def checkpoint(self) -> bool:
        """Whether somebody wants a checkpoint that is not begun yet."""
        return bool(self._checkpoints)

    def promise_checkpoint(self, step: int) -> None:
        """Note that the checkpoint of a step will do for all who want one."""
        self._promised += [(step, command) for command in self._checkpoints]
        self._checkpoints.clear()

    def refuse_checkpoints(self, reason: str) -> None:
        """Tell those who were promised a checkpoint why they don't get it."""
        for _, command in self._promised:
            command.refuse(reason)
        self._promised.clear()

    def answer_checkpoints(self, committed: CheckpointReport) -> None:
        """Tell those who were promised a checkpoint up to this one that it is committed."""
        for step, command in self._promised:
            if step <= committed.step:
                command.answer(**committed.wire())
        self._promised = [(step, command) for step, command in self._promised if step > committed.step]
