"""What the supervisor asks of this rank, kept until it is done. No torch."""

from dataclasses import dataclass, field

from arctic_api.world import CheckpointReport
from arctic_workers.control.link import Command, LinkClient


@dataclass
class Desk:
    """Requests that came over the link: only the first rank of each pod has one."""

    link: LinkClient | None
    stop: bool = False
    pause: bool = False
    _checkpoints: list[Command] = field(default_factory=list)

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
                case "checkpoint":
                    self._checkpoints.append(command)
                case _:
                    command.refuse(f"A training can't {command.name} yet.")

    @property
    def checkpoint(self) -> bool:
        """Whether somebody waits for a checkpoint."""
        return bool(self._checkpoints)

    def answer_checkpoint(self, report: CheckpointReport) -> None:
        """Tell all who wait that there is a checkpoint."""
        for command in self._checkpoints:
            command.answer(**report.wire())
        self._checkpoints.clear()
