"""The rank's side: a note of how far it is, written again and again by a thread of its own. No torch."""

import faulthandler
import json
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

STACK_SIGNAL = signal.SIGUSR2
"""Makes a rank write the stacks of all its threads, whatever it is doing."""
WRITE_SECONDS = 0.25
LEAST_STEPS = 3
TIMED_STEPS = 20
"""Steps that a rank's usual time is taken from; those of another stage say nothing."""


@dataclass(frozen=True)
class Pulse:
    """What a rank notes of itself."""

    rank: int
    pid: int
    writer: int
    """The thread that writes this, which says nothing about the rank."""
    store: str
    """Address and port of the store of the rendezvous."""
    step: int = 0
    in_step: bool = False
    """Whether it is in a step: elsewhere ranks may wait for each other for as long as it takes."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Collectives launched so far, by group of ranks."""
    step_seconds: float | None = None
    """Usual time of a step, once there is one."""
    step_cpu: float | None = None
    """Processor time of it, of the main thread alone; none where that may be spent on waiting for a GPU."""

    @classmethod
    def read(cls, path: Path) -> "Pulse":
        """Read what a `Pulsing` has written."""
        return cls(**json.loads(path.read_bytes()))


def pulse_path(folder: Path, local_rank: int) -> Path:
    """Return where a rank of a pod writes its pulse."""
    return folder / f"pulse-{local_rank}"


def stack_path(folder: Path, local_rank: int) -> Path:
    """Return where a rank of a pod writes its stacks when it is asked to."""
    return folder / f"stack-{local_rank}"


class Pulsing:
    """Writes a rank's pulse for as long as the process lives.

    Args:
        folder: shared with the process that starts the ranks; None where nobody looks.
        rank: of the world.
        launched: returns the number of collectives launched so far, by group.
        on_cpu: whether it computes on a processor.
    """

    def __init__(self, folder: Path | None, rank: int, launched: Callable[[], dict[str, int]], *, on_cpu: bool) -> None:
        self._launched, self._on_cpu = launched, on_cpu
        self._rank = rank
        self._step, self._stage, self._in_step = 0, "", False
        self._times: deque[tuple[float, float]] = deque(maxlen=TIMED_STEPS)
        self._stacks: IO[str] | None = None  # kept open: the signal's handler writes to its descriptor
        if folder is not None:
            local_rank = int(os.environ["LOCAL_RANK"])
            self._stacks = stack_path(folder, local_rank).open("w")
            faulthandler.register(STACK_SIGNAL, self._stacks, all_threads=True)
            path = pulse_path(folder, local_rank)
            threading.Thread(target=self._write_on, args=(path,), name="pulse", daemon=True).start()

    @contextmanager
    def step(self, step: int, stage: str) -> Iterator[None]:
        """Mark a step of a stage, from its beginning to its end."""
        if stage != self._stage:
            self._stage = stage
            self._times.clear()
        self._step, self._in_step = step, True
        start, start_cpu = time.monotonic(), time.thread_time()
        yield
        self._times.append((time.monotonic() - start, time.thread_time() - start_cpu))
        self._in_step = False

    def _write_on(self, path: Path) -> None:
        while True:
            self.write(path)
            time.sleep(WRITE_SECONDS)

    def write(self, path: Path) -> None:
        """Note how far the rank is; without room for that, take away the last note, by which it would look still."""
        temporary = path.with_suffix(".part")
        try:
            temporary.write_text(json.dumps(asdict(self._now())))
            temporary.replace(path)
        except OSError:
            path.unlink(missing_ok=True)

    def _now(self) -> Pulse:
        times = list(self._times) if len(self._times) >= LEAST_STEPS else []
        return Pulse(
            rank=self._rank,
            pid=os.getpid(),
            writer=threading.get_native_id(),
            store=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            step=self._step,
            in_step=self._in_step,
            groups=self._launched(),
            step_seconds=statistics.median(seconds for seconds, _ in times) if times else None,
            step_cpu=statistics.median(cpu for _, cpu in times) if times and self._on_cpu else None,
        )
