"""Watches the ranks of one pod, from the process that starts them, and ends an attempt that one of them holds up."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arctic_api.uris import uri_of
from arctic_api.world import Report, TrainingWorld
from arctic_workers.training.files import write_atomically
from arctic_workers.training.hang.board import Board
from arctic_workers.training.hang.judge import LEAST_SECONDS, Standing, Vigil, waiting_for
from arctic_workers.training.hang.process import frames, stacks, vitals
from arctic_workers.training.hang.pulse import Pulse, pulse_path, stack_path
from arctic_workers.training.outcome import outcome_path

log = logging.getLogger(__name__)

RANK_HUNG = "RankHung"
LOOK_SECONDS = 1.0
SILENT = 3.0
"""A pod that says nothing is given so many times as long as a rank that is still: it may be the network's doing."""
PODS_A_SECOND = 256
"""Notes that all pods together put into the store a second: more would keep it from its work."""
TOLD_SECONDS = 2.5
"""Time for the other pods to read why this one ends, before they lose it."""
STACKS_FOLDER = "hung"
KEEP_SECONDS = 3.0


class Watchdog:
    """Looks at the ranks of a pod until it has found one that is hung.

    Args:
        world: whose ranks they are.
        node: the pod's place in it.
        folder: shared with the ranks, and with the supervisor that reads how they ended.
        least: seconds that any rank may be still.
    """

    def __init__(self, world: TrainingWorld, node: int, folder: Path, least: float = LEAST_SECONDS) -> None:
        self._world, self._node, self._folder, self._least = world, node, folder, least
        self._look_seconds = LOOK_SECONDS * least / LEAST_SECONDS
        self._nodes = world.spec.parallelism.nodes
        self._vigils: dict[int, Vigil] = {}  # by local rank
        self._board: Board | None = None
        self._said: dict[int, tuple[str, float]] = {}  # by pod: its last word, and seconds since it came
        self._words = 0
        self._put_at = 0.0

    def start(self) -> None:
        """Watch from now on, in a thread."""
        threading.Thread(target=self._guard, name="watchdog", daemon=True).start()

    def _guard(self) -> None:
        try:
            self.watch()
        except Exception:
            log.warning("a rank that hangs will not be found any more", exc_info=True)

    def watch(self) -> None:
        """Look until a rank is hung, and end the ranks of this pod then."""
        last = time.monotonic()
        while True:
            time.sleep(self._look_seconds)
            now = time.monotonic()
            self._look(now - last)
            report = self._judge(now - last)
            last = now
            if report is not None:
                log.error("%s", report.message)
                write_atomically(outcome_path(self._folder, "hung"), report.model_dump_json(by_alias=True).encode())
                self._end_ranks()
                return

    # --- looking

    def _look(self, elapsed: float) -> None:
        for local_rank in range(self._world.spec.parallelism.processes_per_node):
            with suppress(OSError):  # it has not begun to write
                pulse = Pulse.read(pulse_path(self._folder, local_rank))
                seen, vigil = vitals(pulse.pid, pulse.writer), self._vigils.get(local_rank)
                if seen is None:
                    self._vigils.pop(local_rank, None)
                elif vigil is None:
                    self._vigils[local_rank] = Vigil(pulse, seen, most=2 * self._look_seconds)
                else:
                    vigil.look(pulse, seen, elapsed)

    def _exchange(self, elapsed: float, *, waits: bool, hung: Report | None = None) -> None:
        """Say how the ranks of this pod are, and hear of the others' where that may matter."""
        if self._nodes == 1 or not self._vigils:
            return
        word = None
        if hung or time.monotonic() - self._put_at >= self._nodes / PODS_A_SECOND:
            self._words += 1
            self._put_at = time.monotonic()
            standings = [asdict(vigil.standing) for vigil in self._vigils.values()]
            told = hung.model_dump(mode="json", by_alias=True) if hung else None
            word = json.dumps({"number": self._words, "pod": _pod(), "ranks": standings, "hung": told})
        if self._board is None:
            self._board = Board(next(iter(self._vigils.values())).pulse.store, self._node, self._nodes)
        heard = self._board.talk(word, listen=waits)
        if heard is None and self._node:  # it is on pod 0, which may have said nothing that was heard here
            nothing = json.dumps({"number": 0, "pod": self._world.first_host, "ranks": [], "hung": None})
            self._said.setdefault(0, (nothing, 0.0))
        heard = heard or {}
        if not waits:
            self._said.clear()
            return
        for node in (heard.keys() | self._said.keys()) - {self._node}:
            before, age = self._said.get(node, ("", 0.0))
            word_of = heard.get(node, before)
            self._said[node] = (word_of, age + min(elapsed, 2 * self._look_seconds) if word_of == before else 0.0)

    # --- judging

    def _judge(self, elapsed: float) -> Report | None:
        waits = any(vigil.unmoved >= vigil.deadline(self._least) / 2 for vigil in self._vigils.values())
        suspicions = {local_rank: vigil.suspicion(self._least) for local_rank, vigil in self._vigils.items()}
        suspected = {local_rank: why for local_rank, why in suspicions.items() if why is not None}
        self._exchange(elapsed, waits=waits or bool(suspected))
        words = {node: json.loads(text) for node, (text, _) in self._said.items() if text}
        for word in words.values():
            if word["hung"] is not None:
                return Report.model_validate(word["hung"])
        peers = [Standing(**each) for word in words.values() for each in word["ranks"]]
        for local_rank, why in suspected.items():
            vigil = self._vigils[local_rank]
            others = [v.standing for key, v in self._vigils.items() if key != local_rank] + peers
            if waiting := waiting_for(vigil.standing, others, vigil.deadline(self._least) / 2):
                report = self._report(local_rank, vigil, why, waiting)
                self._exchange(elapsed, waits=False, hung=report)
                if self._nodes > 1:
                    time.sleep(TOLD_SECONDS * self._least / LEAST_SECONDS)
                return report
        return self._silent(words)

    def _silent(self, words: Mapping[int, dict[str, Any]]) -> Report | None:
        """Judge a pod that says nothing any more, while a rank here is still and no pod that speaks is the cause."""
        for node, word in words.items():
            age = self._said[node][1]
            ranks = [Standing(**each) for each in word["ranks"]]
            for vigil in self._vigils.values():
                long = SILENT * vigil.deadline(self._least)
                own = vigil.standing
                if own.in_step and min(age, own.unmoved) >= long and not any(own.is_behind(each) for each in ranks):
                    named = ", ".join(str(each.rank) for each in ranks) or "unknown"
                    return self._failure(
                        f"pod {node} ({word['pod']}) with ranks {named} has said nothing for {age:.0f} s, "
                        f"while rank {own.rank} waits at step {own.step}"
                    )
        return None

    def _report(self, local_rank: int, vigil: Vigil, why: str, waiting: list[int]) -> Report:
        own = vigil.standing
        text = stacks(vigil.pulse.pid, stack_path(self._folder, local_rank))
        place = self._keep_stacks(own.rank, text)
        log.error("the stacks of rank %d:\n%s", own.rank, text)
        return self._failure(
            f"rank {own.rank} on pod {self._node} ({_pod()}) is hung at step {own.step}: {why} for "
            f"{vigil.unmoved:.0f} s, while {_ranks(waiting)} for it; it is in {frames(text)}"
            + (f"; its stacks are in {place}" if place else "")
        )

    def _failure(self, message: str) -> Report:
        return Report(outcome="failed", reason=RANK_HUNG, message=message, epoch=self._world.epoch)

    def _keep_stacks(self, rank: int, text: str) -> str | None:
        """Put the stacks into the run's folder; returns where, None if that takes long: the store may be what hangs."""
        inside = f"{STACKS_FOLDER}/attempt-{self._world.attempt}-rank-{rank}.txt"
        path = Path(self._world.locate(self._world.run_folder)) / inside
        kept = threading.Event()

        def keep() -> None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, text.encode())
                kept.set()

        threading.Thread(target=keep, daemon=True).start()
        return uri_of(f"{self._world.run_folder}/{inside}") if kept.wait(KEEP_SECONDS) else None

    def _end_ranks(self) -> None:
        for vigil in self._vigils.values():
            with suppress(ProcessLookupError):
                os.kill(vigil.pulse.pid, signal.SIGKILL)


def _pod() -> str:
    return os.uname().nodename


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} waits"
    return f"{len(ranks)} ranks wait"
