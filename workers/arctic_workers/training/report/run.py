"""What a run's folder says of it: the journal, the stages' held-out losses, attempts and what ended them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_workers.training.journal import ATTEMPT_BEGAN, ATTEMPT_ENDED, EVENTS, JOURNAL, read_lines, that_hold

STAGES = "stages.jsonl"
MOST_ATTEMPTS = 1_000_000
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One attempt: `ended` is empty for one that runs, or was ended without a word."""

    name: str
    began: Line
    ended: Line
    seconds: Mapping[str, float]
    """Of each part, as far as the journal goes."""


@dataclass(frozen=True)
class StageSpan:
    """A stage, as far as it was trained."""

    name: str
    first_tokens: int
    last_tokens: int
    first_loss: float
    last_loss: float
    held_out: tuple[float | None, float | None]
    """At its start and its end."""
    category: str


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    name: str
    entries: Sequence[Line]
    """Of the journal, those that hold, by step."""
    attempts: Sequence[Attempt]
    spikes: Sequence[Line]
    stages: Sequence[StageSpan]
    sources: Sequence[Line]
    """As the last attempt found them."""

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run's folder; FileNotFoundError if it has no journal."""
        if not (folder / JOURNAL).exists():
            raise FileNotFoundError(
                f"{folder} has no {JOURNAL}: name the folder of a run, as status.lastCheckpoint.uri begins"
            )
        lines, events = read_lines(folder / JOURNAL), read_lines(folder / EVENTS)
        entries = that_hold(lines)
        return cls(
            name=folder.name,
            entries=entries,
            attempts=_attempts(lines, events),
            spikes=[event for event in events if event["kind"] == "LossSpike"],
            stages=_stages(entries, read_lines(folder / STAGES)),
            sources=next((event["sources"] for event in reversed(events) if event.get("sources")), ()),
        )


def _attempts(lines: Sequence[Line], events: Sequence[Line]) -> list[Attempt]:
    """Return the attempts in their order; each has its own clock."""
    seconds = {line["attempt"]: line["seconds"] for line in lines}
    began = {event["attempt"]: event for event in events if event["kind"] == ATTEMPT_BEGAN}
    ended = {event["attempt"]: event for event in events if event["kind"] == ATTEMPT_ENDED}
    epochs = sorted({*seconds, *began, *ended})
    # On a cluster an epoch is the attempt's number; of local processes it is the time.
    numbered = all(epoch <= MOST_ATTEMPTS for epoch in epochs)
    return [
        Attempt(str(epoch if numbered else place), began.get(epoch, {}), ended.get(epoch, {}), seconds.get(epoch, {}))
        for place, epoch in enumerate(epochs, 1)
    ]


def _stages(entries: Sequence[Line], notes: Sequence[Line]) -> list[StageSpan]:
    spans, held_out = [], {(note["stage"], note["moment"]): note for note in notes}
    before = 0
    for name in dict.fromkeys(entry["stage"] for entry in entries):
        own = [entry for entry in entries if entry["stage"] == name]
        start, end = held_out.get((name, "start"), {}), held_out.get((name, "end"), {})
        spans.append(
            StageSpan(
                name=name,
                first_tokens=before,
                last_tokens=own[-1]["tokens"],
                first_loss=own[0]["loss"],
                last_loss=own[-1]["loss"],
                held_out=(start.get("held_out_loss"), end.get("held_out_loss")),
                category=start.get("category", ""),
            )
        )
        before = own[-1]["tokens"]
    return spans
