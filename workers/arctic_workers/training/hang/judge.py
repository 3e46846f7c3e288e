"""Whether a rank is hung, from looks at it and what its peers say of themselves. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from arctic_workers.training.hang.process import Vitals
from arctic_workers.training.hang.pulse import Pulse

LEAST_SECONDS = 20.0
"""No rank is hung that has been still for less."""
UNTIMED_SECONDS = 60.0
"""The same, while nobody knows yet how long a step takes."""
USUAL_STEPS = 10.0
"""So many times the usual time of a step, at least."""


@dataclass(frozen=True)
class Standing:
    """What a rank's peers need to know of it."""

    rank: int
    step: int
    in_step: bool
    groups: dict[str, int]
    unmoved: float
    """Seconds without progress: it waits, or computes, or hangs."""
    stopped: bool

    def is_behind(self, other: "Standing") -> bool:
        """Return whether a group that both are in has seen fewer collectives of this one."""
        return any(count < other.groups.get(group, 0) for group, count in self.groups.items())


@dataclass
class Vigil:
    """One rank, look after look.

    A look that comes late counts for no more than `most` seconds: who looks may have been asleep, and the rank too.
    """

    pulse: Pulse
    vitals: Vitals
    most: float
    still: float = 0.0
    """Seconds without any sign of life."""
    unmoved: float = 0.0
    """Seconds without progress."""
    before: Vitals | None = None
    """At its last progress that was seen."""

    def look(self, pulse: Pulse, vitals: Vitals, elapsed: float) -> None:
        """Take in another look, `elapsed` seconds after the last one."""
        progress = (pulse.step, pulse.in_step, pulse.groups) != (self.pulse.step, self.pulse.in_step, self.pulse.groups)
        if progress:
            self.before = vitals
        alive = progress or vitals.is_alive_since(self.vitals)
        self.still = 0.0 if alive else self.still + min(elapsed, self.most)
        self.unmoved = 0.0 if progress else self.unmoved + min(elapsed, self.most)
        self.pulse, self.vitals = pulse, vitals

    @property
    def standing(self) -> Standing:
        """What to tell the peers."""
        pulse = self.pulse
        return Standing(pulse.rank, pulse.step, pulse.in_step, dict(pulse.groups), self.unmoved, self.vitals.stopped)

    @property
    def computed(self) -> float:
        """Seconds that the main thread has computed since the last progress."""
        main = self.pulse.pid
        return self.vitals.cpu.get(main, 0.0) - self.before.cpu.get(main, 0.0) if self.before else 0.0

    def suspicion(self, least: float = LEAST_SECONDS) -> str | None:
        """Return what speaks against this rank, as the end of a sentence that begins with its name."""
        if self.still >= self.deadline(least):
            if self.vitals.stopped:
                return "its process is stopped"
            return "nothing in its process runs" if self.pulse.in_step else None
        usual = self.pulse.step_cpu
        if self.pulse.in_step and usual is not None and self.computed >= max(least, USUAL_STEPS * usual):
            return f"it computes, where a whole step takes {usual:.2g} s,"
        return None

    def deadline(self, least: float = LEAST_SECONDS) -> float:
        """Return how long this rank may be still."""
        usual = self.pulse.step_seconds
        return max(least, UNTIMED_SECONDS / LEAST_SECONDS * least if usual is None else USUAL_STEPS * usual)


def waiting_for(suspect: Standing, others: Iterable[Standing], unmoved: float) -> list[int]:
    """Return the ranks that wait for a suspect, and for nobody else: none if somebody else may be the cause.

    All ranks launch the same collectives in the same order, so who waits for whom follows from how many they have
    launched. A rank that is ahead of another waits for that one itself, and whoever waits for it does so too.

    Args:
        suspect: a rank that shows no sign of life.
        others: what all other ranks have said of themselves last.
        unmoved: seconds after which a rank that is in a step counts as waiting, whatever its process does meanwhile:
            waiting for a GPU is computing to the kernel.
    """
    others = list(others)
    if any(other.is_behind(suspect) for other in others):
        return []
    waiting = [other for other in others if other.in_step and not other.stopped and other.unmoved >= unmoved]
    # A stopped process may hold up a collective that it has entered.
    return sorted(other.rank for other in waiting if suspect.stopped or suspect.is_behind(other))
