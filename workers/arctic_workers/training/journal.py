"""The journal of a run in its folder, for people: `journal.jsonl` and TensorBoard's event files. No torch.

Several attempts write one after the other. An attempt that went back to a checkpoint writes steps again: the later
lines hold, and TensorBoard is told so.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
"""What happened beside the steps: attempts that began (with what is in their sources) and ended, losses that jumped."""
ATTEMPT_BEGAN, ATTEMPT_ENDED = "AttemptBegan", "AttemptEnded"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class Entry:
    """A run at one of its steps; figures are of the last step unless they say otherwise."""

    time: str
    attempt: int
    """The attempt's epoch."""
    stage: str
    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    mfu: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each part since the attempt began."""
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """Since the last entry."""
    epochs: Mapping[str, float] = field(default_factory=dict)
    """How often each source that is trained on has been read."""
    routers: Sequence[Mapping[str, Any]] = ()
    """`layer`, `load`, `entropy`, `dead` and `dropped` of each layer with experts, since the last entry."""
    exposed_communication: Sequence[Mapping[str, Any]] = ()
    """`layer` (None of ZeRO's), `kind`, `backward`, `in_flight`, `exposed` (seconds) of exchanges; none on GPUs."""
    expert_chunks: int = 1
    """In which the experts' rows are exchanged."""

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Yield what TensorBoard and trackers draw, by name."""
        for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "tokens"):
            yield name, float(getattr(self, name))
        for name, value in self.loss_by_source.items():
            yield f"loss_by_source/{name}", value
        for name, value in self.epochs.items():
            yield f"epochs/{name}", value
        for name, value in self.seconds.items():
            yield f"seconds/{name}", value
        if (share := exposed_share(self.exposed_communication)) is not None:
            yield "exposed_communication", share
        for router in self.routers:
            yield f"router_entropy/layer_{router['layer']}", router["entropy"]
            yield f"router_imbalance/layer_{router['layer']}", max(router["load"]) * len(router["load"])
            yield f"router_dead_experts/layer_{router['layer']}", float(len(router["dead"]))
            yield f"router_dropped/layer_{router['layer']}", router["dropped"]


class Journal:
    """Where an attempt writes its entries."""

    def __init__(self, folder: Path, step: int) -> None:
        """Write to the run's folder, going on from a step: what earlier attempts wrote of later ones holds no more."""
        # Imported here: it brings torch, where that is, to whoever only reads a journal.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path = folder / JOURNAL
        place = folder / TENSORBOARD
        place.mkdir(exist_ok=True)
        # Its name says seconds: a run that goes back within one would write over what it wrote before.
        self._tensorboard = EventsWriter(str(place / "events"), f".{time.time_ns()}")
        if step:
            self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, entry: Entry) -> None:
        """Add an entry; OSError where it can't be written."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        append_line(self._path, asdict(entry))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in entry.scalars()]
        self._write(Event(step=entry.step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._tensorboard.write_event(event)
        self._tensorboard.flush()

    def close(self) -> None:
        """Write no more."""
        self._tensorboard.close()


def exposed_share(parts: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the share of the exchanges' time that was only waited for; None where nothing was exchanged."""
    parts = list(parts)
    in_flight, exposed = (sum(part[name] for part in parts) for name in ("in_flight", "exposed"))
    return min(1.0, exposed / in_flight) if in_flight else None


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one JSON line to a log that several attempts write, behind one that a full volume has cut if need be."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file, without one that a writer's end has cut; none where there is no file."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def that_hold(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of a journal that no later attempt has written again, in the order of their steps."""
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        while kept and kept[-1]["step"] >= entry["step"]:
            kept.pop()
        kept.append(entry)
    return kept
